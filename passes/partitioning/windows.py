"""A lower bound for wide graphs: what is live at a boundary in every window of weights.

The slices of an assignment end at ideals (sets of nodes closed under predecessors) whose weights go up
by at most the cap. So for any weight t from 1 to the total there is an ideal in the *window*
t <= w < t + cap: the first one that is not lighter than t. A net that is live there (made inside, read
outside) is received by some later slice. Split the bytes of every net over windows, so that its shares
together are at most its bytes. Then every assignment pays at least

    sum over windows of the least shares that are live at an ideal of a weight in the window:

where a net is live in several windows, or one ideal stands for several, its shares there together are
still at most its bytes, which are paid. This holds for any windows and shares.

Windows are put where the cuts are largest, some way apart. Shares are found by going to and fro: find
the ideals that decide the windows, then shares that make the best of all ideals found so far
(multiplicative weights). The first shares are equal where a net can be live, and small elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slicewise.passes.partitioning.problem import Problem
from slicewise.passes.partitioning.spine import (
    NEVER,
    Flow,
    Links,
    cheapest,
    flows,
    least_cuts,
    links_of,
    live_nets,
)

Array = NDArray[Any]

_PER_CAP = 60  # buckets of weight
_PRICES = (-8.0, -4.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 8.0)  # in mean cuts
_FREE = _PRICES.index(0.0)
_GAPS = (0.2, 0.4)  # between windows, in caps: nets that are live in two of them are shared
_ROUNDS = 40
_STEPS = 200  # of multiplicative weights in a round
_RATE = 0.5
_NEAR = 0.1  # of the least: ideals that near decide too
_FAR = 10.0  # how fast shares fall with the distance in caps
_SOFT = 0.05  # of the mean cut

_NONE = np.zeros(0, dtype=np.int64)
_Ideal = tuple[Array, int]  # the nets that are live at an ideal, and a price that comes with it


@dataclass(frozen=True, slots=True)
class _Cuts:
    """The networks, and what all windows have in common: bytes of nets, prices, a mean cut."""

    links: Links
    networks: Sequence[Flow]
    amounts: Array
    rates: Sequence[float]
    mean: float
    cap: int
    width: int  # of a bucket


def window_bound(
    problem: Problem, weights: Array, cap: int, *, deadline: float, enough: int = NEVER
) -> int:
    """Bytes that every assignment pays whose slices weigh at most `cap`; stops at `enough`.

    0 where time is over before the windows are found.
    """
    total = int(weights.sum())
    if total <= cap or cap <= 0 or not problem.nets or time.monotonic() > deadline:
        return 0
    links = links_of(problem)
    networks, spans = flows(problem, links, weights, cap)
    amounts = np.array([net.bytes for net in problem.nets], dtype=np.int64)
    mean = max(1.0, float(np.mean([cheapest(flow, amounts, 0.0) for flow in networks])))
    rates = [price * mean / cap for price in _PRICES]
    known = _Cuts(links, networks, amounts, rates, mean, cap, width=-(-cap // _PER_CAP))
    cuts = _by_weight(known, total, deadline)
    step = -(-cap // known.width)
    chosen = dict.fromkeys(tuple(_windows(cuts, step, round(gap * step))) for gap in _GAPS)
    chosen.pop((), None)
    best = 0
    for left, buckets in zip(range(len(chosen), 0, -1), chosen, strict=True):
        until = time.monotonic() + (deadline - time.monotonic()) / left
        starts = np.array(buckets, dtype=np.int64) * known.width
        best = max(best, _shared_out(known, starts, _nearness(spans, starts, cap), until, enough))
        if best >= enough:
            break
    return best


def _by_weight(known: _Cuts, total: int, deadline: float) -> Array:
    """What ideals cut at least, about, in every bucket of weights; none when time is over."""
    cuts = np.full(total // known.width + 1, NEVER)
    for flow in known.networks:
        first, last = flow.low // known.width, flow.high // known.width + 1
        most = int(cuts[first:last].max())
        found = np.zeros(last - first, dtype=np.int64)
        for rate in known.rates[::2]:
            proven, _ = least_cuts(flow, known.amounts, [rate], (first, last, known.width), most, 0)
            np.maximum(found, proven, out=found)
            if found.min() >= most:
                break
        np.minimum(cuts[first:last], found, out=cuts[first:last])
        if time.monotonic() > deadline:
            return cuts[:0]
    return cuts


def _windows(cuts: Array, step: int, gap: int) -> list[int]:
    """The first buckets of windows of `step` buckets, `gap` apart, whose least cuts are most."""
    if len(cuts) < step + 2:
        return []
    spans = np.lib.stride_tricks.sliding_window_view(cuts[1:-1], step).min(axis=1)
    gains = np.where(spans < NEVER, spans, 0)  # of the window that starts at bucket 1, 2, ...
    best = np.zeros(len(cuts) + 1, dtype=np.int64)  # of windows that end before a bucket
    for end in range(step + 1, len(cuts)):
        best[end] = max(best[end - 1], best[max(0, end - step - gap)] + gains[end - step - 1])
    starts, end = [], len(cuts) - 1
    while end > step:
        if best[end] == best[end - 1]:
            end -= 1
            continue
        starts.append(end - step)
        end -= step + gap
    return starts[::-1]


def _shared_out(known: _Cuts, starts: Array, begin: Array, deadline: float, enough: int) -> int:
    """The bound for windows from `starts` on; `begin` are the logs of the first shares."""
    pools: list[list[_Ideal]] = [[] for _ in starts]
    tries = [dict.fromkeys(range(len(known.networks)), _FREE) for _ in starts]
    shares = _normal(begin)
    best = 0
    for _ in range(_ROUNDS):
        # Slightly less than all bytes, so that rounding never makes them more.
        parts = (known.amounts * (shares * (1 - 1e-9))).astype(np.int64)
        value = 0
        for pool, tried, start, part in zip(pools, tries, starts.tolist(), parts, strict=True):
            least, near = _least(known, tried, part, start)
            value += least
            for flow, price, proven in near:
                live = live_nets(known.links, flow, part, known.rates[price])
                pool.append((live, proven - int(part[live].sum())))
        best = max(best, value)
        if time.monotonic() > deadline or best >= enough or not any(pools):
            break
        shares = _share(known, pools, begin)
    return best


def _least(
    known: _Cuts, tries: dict[int, int], part: Array, start: int
) -> tuple[int, list[tuple[Flow, int, int]]]:
    """The least that ideals of start <= weight < start + cap cut, and what is not far from it.

    `tries` are the networks in the order in which they are tried, with the index of the
    price to begin with. What
    decided comes first the next time.
    """
    cap, width, least = known.cap, known.width, NEVER
    near, decided = [], {}
    for index, price in list(tries.items()):
        flow = known.networks[index]
        if flow.high < start or flow.low >= start + cap:
            continue
        first = max(start, flow.low) // width
        last = min(start + cap - 1, flow.high) // width + 1
        most = NEVER if least == NEVER else int(least * (1 + _NEAR))
        found, price = least_cuts(flow, part, known.rates, (first, last, width), most, price)
        proven = int(found.min())
        least = min(least, max(0, proven))
        tries[index] = price
        if proven > -NEVER and (proven < most or proven <= 0):
            decided[index] = price
            near.append((flow, price, proven))
    rest = {index: price for index, price in tries.items() if index not in decided}
    tries.clear()
    tries.update(decided | rest)
    return (0 if least == NEVER else least), near


def _nearness(spans: tuple[Array, Array], starts: Array, cap: int) -> Array:
    """For every window and net how far the net is from being live there, as a log of shares."""
    early, late = spans[0] - (starts + cap)[:, None], starts[:, None] - spans[1]
    return np.asarray(-_FAR * np.maximum(0, np.maximum(early, late)) / cap)


def _normal(growth: Array) -> Array:
    """Shares that are one together for every net."""
    shares = np.exp(growth - growth.max(axis=0))
    return np.asarray(shares / shares.sum(axis=0))


def _share(known: _Cuts, pools: Sequence[Sequence[_Ideal]], begin: Array) -> Array:
    """Shares of every net in every window that do well for the known ideals.

    The least is softened, so that what is close to it counts too, and the later half is averaged.
    """
    live = [np.concatenate([nets for nets, _ in pool] or [_NONE]) for pool in pools]
    rows = [np.repeat(np.arange(len(pool)), [len(nets) for nets, _ in pool]) for pool in pools]
    prices = [np.array([price for _, price in pool], dtype=float) for pool in pools]
    used = np.unique(np.concatenate(live))
    live = [np.searchsorted(used, nets) for nets in live]
    amounts = known.amounts[used]
    growth = begin[:, used]
    average = np.zeros_like(growth)
    for count in range(_STEPS):
        shares = _normal(growth)
        if count >= _STEPS // 2:
            average += shares
        for index, price in enumerate(prices):
            if len(price):
                part = amounts * shares[index]
                cut = price + np.bincount(rows[index], part[live[index]], len(price))
                likely = np.exp((cut.min() - cut) / (_SOFT * known.mean))
                likely *= _RATE / likely.sum()
                growth[index] += np.bincount(live[index], likely[rows[index]], len(used))
    found = _normal(begin)
    found[:, used] = average / average.sum(axis=0)
    return found
