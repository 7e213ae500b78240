"""A lower bound for wide graphs: what is live at a boundary in every window of weights.

The slices of an assignment end at ideals (sets of nodes closed under predecessors) whose weights go up
by at most the cap. So for any weight t from 1 to the total there is an ideal in the *window*
t <= w < t + cap: the first one that is not lighter than t. A net that is live there (made inside, read
outside) is received by some later slice. Split the bytes of every net over windows, so that its shares
together are at most its bytes. Then every assignment pays at least

    sum over windows of the least shares that are live at an ideal of a weight in the window:

where a net is live in several windows, or one ideal stands for several, its shares there together are
still at most its bytes, which are paid. This holds for any windows and shares.

Windows are put where the cuts are largest. Shares are found by going to and fro: find the ideals that
decide the windows, then shares that make the best of all ideals found so far (multiplicative weights).
"""

from __future__ import annotations

import os
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
_GAPS = eval(os.environ.get("GAPS","(0.0, 0.1, 0.2, 0.3)"))  # between windows, in caps, tried in turn
_ROUNDS = 40
_STEPS = 200  # of multiplicative weights in a round
_RATE = 0.5
_NEAR = 0.1  # of the least: ideals that near decide too
_FAR = 10.0  # how fast shares fall with the distance in caps
_SOFT = 0.05  # of the mean cut

_NONE = np.zeros(0, dtype=np.int64)
_Known = tuple[Array, int]  # the nets that are live at an ideal, and a price that comes with it


@dataclass(frozen=True, slots=True)
class _Search:
    """What the windows of one choice have in common; `begin` are the logs of the first shares."""

    links: Links
    networks: Sequence[Flow]
    amounts: Array
    rates: Sequence[float]
    mean: float
    cap: int
    begin: Array


def window_bound(
    problem: Problem, weights: Array, cap: int, *, deadline: float, enough: int = NEVER
) -> int:
    """Bytes that every assignment pays whose slices weigh at most `cap`; stops at `enough`.

    0 where the graph is too large, or time is over before the windows are found.
    """
    total = int(weights.sum())
    if total <= cap or cap <= 0 or not problem.nets:
        return 0
    links = links_of(problem)
    networks, spans = flows(problem, links, weights, cap)
    amounts = np.array([net.bytes for net in problem.nets], dtype=np.int64)
    mean = max(1.0, float(np.mean([cheapest(flow, amounts, 0.0) for flow in networks])))
    rates = [price * mean / cap for price in _PRICES]
    cuts = _least_by_weight(networks, amounts, rates, (total, cap), deadline)
    step, best, tried = -(-cap // -(-cap // _PER_CAP)), 0, set()
    for number, gap in enumerate(_GAPS, start=1):
        starts = tuple(_windows(cuts, step, round(gap * step)))
        if not starts or starts in tried:
            continue
        tried.add(starts)
        if "SHOW" in os.environ: print([round(x/step,2) for x in starts], best/2**20)
        until = time.monotonic() + (deadline - time.monotonic()) / (1 + len(_GAPS) - number)
        begin = _nearness(spans, np.array(starts) * -(-cap // _PER_CAP), cap)
        search = _Search(links, networks, amounts, rates, mean, cap, begin)
        best = max(best, _shared_out(search, starts, until, enough))
        if time.monotonic() > deadline or best >= enough:
            break
    return best


def _least_by_weight(
    networks: Sequence[Flow],
    amounts: Array,
    rates: Sequence[float],
    weights: tuple[int, int],
    deadline: float,
) -> Array:
    """What ideals cut at least, about, in every bucket of weights; nothing when time is over."""
    total, cap = weights
    width = -(-cap // _PER_CAP)
    cuts = np.full(total // width + 1, NEVER)
    for flow in networks:
        first, last = flow.low // width, flow.high // width + 1
        most = int(cuts[first:last].max())
        found = np.zeros(last - first, dtype=np.int64)
        for rate in rates[::2]:
            proven, _ = least_cuts(flow, amounts, [rate], (first, last, width), most, 0)
            np.maximum(found, proven, out=found)
            if found.min() >= most:
                break
        np.minimum(cuts[first:last], found, out=cuts[first:last])
        if time.monotonic() > deadline:
            return cuts[:0]
    return cuts


def _shared_out(search: _Search, buckets: Sequence[int], deadline: float, enough: int) -> int:
    """The bound for windows that start at some buckets, with the best shares that were found."""
    starts = [bucket * -(-search.cap // _PER_CAP) for bucket in buckets]
    known: list[list[_Known]] = [[] for _ in starts]
    tries = [dict.fromkeys(range(len(search.networks)), _FREE) for _ in starts]
    shares = _normal(search.begin)
    best = 0
    for _ in range(_ROUNDS):
        # Slightly less than all bytes, so that rounding never makes them more.
        parts = (search.amounts * (shares * (1 - 1e-9))).astype(np.int64)
        value = 0
        for index, start in enumerate(starts):
            least, near = _least(search, tries[index], parts[index], start)
            value += least
            for flow, price, proven in near:
                live = live_nets(search.links, flow, parts[index], search.rates[price])
                known[index].append((live, proven - int(parts[index][live].sum())))
        if value > best: kept=shares
        best = max(best, value)
        if time.monotonic() > deadline or best >= enough or not any(known):
            break
        V=os.environ.get("VAR","a")
        if V=="a": shares = _share(known, search)
        if V=="b": shares = (_share(known, search)+kept)/2
        if V=="e": shares = (_share(known, search)+shares)/2
    return best


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
        end -= step
        starts.append(end)
        end -= gap
    return starts[::-1]


def _least(
    search: _Search, tries: dict[int, int], part: Array, start: int
) -> tuple[int, list[tuple[Flow, int, int]]]:
    """The least that ideals of start <= weight < start + cap cut, and what is not far from it.

    `tries` are the networks in the order in which they are tried, with the price to begin with. What
    decided comes first the next time.
    """
    cap = search.cap
    width, least = -(-cap // _PER_CAP), NEVER
    near, decided = [], {}
    for index, price in list(tries.items()):
        flow = search.networks[index]
        if flow.high < start or flow.low >= start + cap:
            continue
        first = max(start, flow.low) // width
        last = min(start + cap - 1, flow.high) // width + 1
        most = NEVER if least == NEVER else int(least * (1 + _NEAR))
        found, price = least_cuts(flow, part, search.rates, (first, last, width), most, price)
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


def _share(known: Sequence[Sequence[_Known]], search: _Search) -> Array:
    """Shares of every net in every window that do well for the known ideals.

    The least is softened, so that what is close to it counts too, and the later half is averaged.
    """
    live = [np.concatenate([nets for nets, _ in pool] or [_NONE]) for pool in known]
    rows = [np.repeat(np.arange(len(pool)), [len(nets) for nets, _ in pool]) for pool in known]
    prices = [np.array([price for _, price in pool], dtype=float) for pool in known]
    used = np.unique(np.concatenate(live))
    live = [np.searchsorted(used, nets) for nets in live]
    amounts = search.amounts[used]
    growth = search.begin[:, used]
    average = np.zeros_like(growth)
    for count in range(_STEPS):
        shares = _normal(growth)
        if count >= _STEPS // 2:
            average += shares
        for index, price in enumerate(prices):
            if len(price):
                part = amounts * shares[index]
                cut = price + np.bincount(rows[index], part[live[index]], len(price))
                likely = np.exp((cut.min() - cut) / (_SOFT * search.mean))
                likely *= _RATE / likely.sum()
                growth[index] += np.bincount(live[index], likely[rows[index]], len(used))
    found = _normal(search.begin)
    found[:, used] = average / average.sum(axis=0)
    return found
