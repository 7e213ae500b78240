"""The timeline of a request: when slices that start by readiness begin and end.

Slices share nothing but their caller. It hands tensors over and collects them for one slice after the
other; of calls that follow each other at once, the CPU of all but the first is divided by its share.
Waits are random, and whoever needs several slices waits for the slowest: the expected end of several
waits is later than the end of several expected ones. So requests are simulated, each with own draws.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache

from slicewise.cost import SliceTime, Step

DRAWS = 1000
_SEED = 6


def simulated_ms(
    order: Sequence[str],
    needs: Mapping[str, Sequence[str]],
    times: Mapping[str, SliceTime],
    *,
    share: float,
    most: int,
) -> list[float]:
    """The ms that the slices of a request take together, sorted; one value per draw.

    `needs` are the slices whose tensors each slice reads, `order` is a topological one, `share` the
    caller's vCPUs, `most` how many slices run at once.
    """
    draw = random.Random(_SEED)
    waits = {name: _log_normal(times[name]) for name in order}
    found = []
    for _ in range(DRAWS if any(s for _, s in waits.values()) else 1):
        drawn = {name: mean * math.exp(draw.gauss(0.0, s) - s * s / 2)
                 for name, (mean, s) in waits.items()}  # fmt: skip
        found.append(_one(order, needs, times, drawn, share, most))
    return sorted(found)


def _log_normal(time: SliceTime) -> tuple[float, float]:
    """Expected value, and standard deviation of the logarithm, of all waits of a call together."""
    if time.random_ms <= 0:
        return 0.0, 0.0
    return time.random_ms, math.sqrt(math.log1p(time.variance / time.random_ms**2))


def _one(
    order: Sequence[str],
    needs: Mapping[str, Sequence[str]],
    times: Mapping[str, SliceTime],
    waits: Mapping[str, float],
    share: float,
    most: int,
) -> float:
    """When the last slice has ended: the caller takes what is there first, replies before calls."""
    left = {name: len(set(needs[name])) for name in order}
    readers: dict[str, list[str]] = {name: [] for name in order}
    for name in order:
        for other in set(needs[name]):
            readers[other].append(name)
    ready = [(0.0, index, name) for index, name in enumerate(order) if not left[name]]
    place = {name: index for index, name in enumerate(order)}
    running: list[tuple[float, int, str]] = []  # when they answer
    heapq.heapify(ready)
    free = called = -1.0  # when the caller is free, and when its latest call was made
    now = 0.0
    while ready or running:
        can_begin = bool(ready) and len(running) < most
        if can_begin and (not running or max(ready[0][0], free) <= running[0][0]):
            since, _, name = heapq.heappop(ready)
            time = times[name]
            began = max(since, free, 0.0)
            at_once = began <= called
            free = began + time.begin_ms + (time.call_cpu_ms / share if at_once else time.call_ms)
            called = free
            answer = free + waits[name] + (time.total_ms - time.random_ms - time.begin_ms
                                           - time.call_ms - time.end_ms)  # fmt: skip
            heapq.heappush(running, (answer, place[name], name))
        else:
            answer, _, name = heapq.heappop(running)
            now = free = max(answer, free) + times[name].end_ms
            for reader in readers[name]:
                left[reader] -= 1
                if not left[reader]:
                    heapq.heappush(ready, (now, place[reader], reader))
    return now


@lru_cache(maxsize=256)
def slowest_extra_ms(wait: Step, count: int) -> float:
    """What the slowest of `count` such waits is expected to take longer than one of them."""
    if count <= 1 or wait.sigma == 0:
        return 0.0
    draw = random.Random(_SEED)
    median = wait.wait_ms * math.exp(-(wait.sigma**2) / 2)
    most = [max(draw.gauss(0.0, wait.sigma) for _ in range(count)) for _ in range(4 * DRAWS)]
    return median * sum(map(math.exp, most)) / len(most) - wait.wait_ms
