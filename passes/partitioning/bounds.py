"""A lower bound for graphs that are too large to prove otherwise: minimum cuts at every weight.

Along a topological order, every ideal (prefix of a partition) has a first missing position j: it holds
all nodes before j and none that depends on the one at j. Between these two sets its cut is at least a
minimum cut. That bounds the cut of an ideal by its weight, and a partition has ideals at many weights:
the next boundary is never more than a cap away.

Bytes are not counted twice. Keep a boundary whenever it is at least `spread` heavier than the last one
kept; the next kept one is then less than cap + spread away. A net is only counted at ideals whose
weights differ by less than `spread`, so at one kept boundary at most, and a net that is live at a
boundary is received at least once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slicewise.passes.partitioning.problem import Problem, even_weights

Array = NDArray[Any]

_MOST_FREE = 20_000  # nodes between the two sides; more make a flow too slow to be worth it
_BUCKETS = 4_000


@dataclass(slots=True)
class _Group:
    """Ideals whose first missing position lies in a range: what all have, what none has, between."""

    begin: int
    free: set[int]
    live: list[int]
    low: int = 0
    high: int = 0
    cut: int = 0


def lower_bound(problem: Problem, order: Sequence[int], *, deadline: float) -> int:
    """Bytes that every assignment within the caps pays, whatever the number of slices."""
    position = np.empty(problem.size, dtype=np.int64)
    position[list(order)] = np.arange(problem.size)
    best = 0
    groups: list[_Group] | None = None
    for amounts, cap in problem.resources:
        full = even_weights(problem, amounts)
        if int(full.sum()) <= cap or cap <= 0:
            continue
        groups = groups or _groups(problem, order, position.tolist(), deadline)
        if groups is None:
            return 0
        tried = set()
        for part in (1, 4, 16):
            weights = _without_wide(groups, order, full, cap // part)
            total = int(weights.sum())
            if total <= cap or total in tried:
                continue
            tried.add(total)
            _weigh(groups, order, weights)
            before = np.concatenate(([0], np.cumsum(weights[list(order)])))[position]
            _cut_groups(problem, position.tolist(), groups, before * 0, total + 1)
            best = max(best, _widest(groups, total, cap))
            for spread in (cap // 64, cap // 16, cap // 4, cap // 2, cap):
                for start in (before, before - spread // 4):
                    _cut_groups(problem, position.tolist(), groups, start, spread)
                    best = max(best, _shortest(groups, total, cap, spread))
                    if time.monotonic() > deadline:
                        return best
    return best


def _without_wide(
    groups: Sequence[_Group], order: Sequence[int], weights: Array, most: int
) -> Array:
    """Weights in which nodes that may run much before or after their position count nothing.

    Any smaller weights keep the caps too; these tell more about where an ideal ends.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, group in enumerate(groups):
        for node in group.free:
            first.setdefault(node, index)
            last[node] = index
    kept = weights.copy()
    before = np.concatenate(([0], np.cumsum(weights[list(order)])))
    for node, index in first.items():
        if before[groups[last[node]].begin] - before[groups[index].begin] > most:
            kept[node] = 0
    return kept


def _weigh(groups: Sequence[_Group], order: Sequence[int], weights: Array) -> None:
    """Set the weights that the ideals of every group lie between."""
    before = np.concatenate(([0], np.cumsum(weights[list(order)])))
    for group in groups:
        group.low = int(before[group.begin])
        group.high = group.low + int(weights[list(group.free)].sum())


def _groups(
    problem: Problem,
    order: Sequence[int],
    position: Sequence[int],
    deadline: float,
) -> list[_Group] | None:
    size = problem.size
    sources = [index for index, node in enumerate(order) if not problem.preds[node]]
    width = max(1, min(64, size // 1000))
    left = [len(net.readers) for net in problem.nets]
    live: set[int] = set()
    ready: set[int] = set()  # positions of nodes that depend on one before
    groups = []
    for begin in range(0, size, width):
        end = min(size, begin + width)
        free = _free(problem, order, position, (sources, ready), begin, end)
        if free is None or time.monotonic() > deadline:
            return None
        groups.append(_Group(begin, free, sorted(live)))
        for node in order[begin:end]:
            for net in problem.read[node]:
                left[net] -= 1
                if not left[net]:
                    live.discard(net)
            live.update(problem.made[node])
            ready.discard(position[node])
            ready.update(position[other] for other in problem.succs[node])
    return groups


def _free(
    problem: Problem,
    order: Sequence[int],
    position: Sequence[int],
    open_positions: tuple[Sequence[int], Set[int]],
    begin: int,
    end: int,
) -> set[int] | None:
    """Nodes from `begin` on that do not depend on all of the positions begin..end-1."""
    import bisect
    import heapq

    everything = (1 << (end - begin)) - 1
    mask: dict[int, int] = {}
    sources, ready = open_positions
    queued = {*range(begin, end), *sources[bisect.bisect_left(sources, end) :], *ready}
    queue = list(queued)
    heapq.heapify(queue)
    free: set[int] = set()
    while queue:
        index = heapq.heappop(queue)
        node = order[index]
        above = 1 << (index - begin) if index < end else 0
        for other in problem.preds[node]:
            if position[other] >= begin:
                above |= mask.get(other, everything)
        if above == everything:
            continue
        mask[node] = above
        free.add(node)
        if len(free) > _MOST_FREE:
            return None
        for other in problem.succs[node]:
            if position[other] not in queued:
                queued.add(position[other])
                heapq.heappush(queue, position[other])
    return free


def _cut_groups(
    problem: Problem,
    position: Sequence[int],
    groups: list[_Group],
    start: Array,
    spread: int,
) -> None:
    """Fill in the minimum cut of every group, counting what v makes from weight start[v] on."""
    for group in groups:
        touched = {net for node in group.free for net in problem.made[node]}
        counted = [
            net
            for net in sorted(touched.union(group.live))
            if start[problem.nets[net].producer] <= group.low
            and group.high < start[problem.nets[net].producer] + spread
        ]
        group.cut = _minimum_cut(problem, position, group, counted)


def _minimum_cut(
    problem: Problem, position: Sequence[int], group: _Group, counted: Sequence[int]
) -> int:
    from ortools.graph.python import max_flow

    if not counted:
        return 0
    source, sink = 0, 1
    number = {node: index for index, node in enumerate(sorted(group.free), start=2)}
    nets = 2 + len(number)
    tails, heads, capacities = [], [], []
    endless = sum(problem.nets[net].bytes for net in counted) + 1
    for net in counted:
        made = problem.nets[net]
        tails.append(number.get(made.producer, source))
        heads.append(nets)
        capacities.append(made.bytes)
        for node in made.readers:
            if node in number:
                tails.append(nets)
                heads.append(number[node])
                capacities.append(endless)
            elif position[node] >= group.begin:
                tails.append(nets)
                heads.append(sink)
                capacities.append(endless)
        nets += 1
    for node, index in number.items():
        for other in problem.preds[node]:
            if other in number:
                tails.append(index)
                heads.append(number[other])
                capacities.append(endless)
    flow = max_flow.SimpleMaxFlow()
    flow.add_arcs_with_capacity(np.array(tails), np.array(heads), np.array(capacities))
    flow.solve(source, sink)
    return int(flow.optimal_flow())


def _widest(groups: Sequence[_Group], total: int, cap: int) -> int:
    """Bytes across one boundary: there is one in every stretch of weights as long as the cap."""
    cuts, width = _buckets(groups, total)
    span = cap // width + 2
    if span >= len(cuts):
        return 0
    return int(np.lib.stride_tricks.sliding_window_view(cuts[:-1], span).min(axis=1).max())


def _buckets(groups: Sequence[_Group], total: int) -> tuple[Array, int]:
    """The least cut of an ideal by its weight, in buckets of equal width."""
    width = max(1, -(-total // _BUCKETS))
    cuts = np.full(total // width + 1, np.int64(1) << np.int64(61))
    for group in groups:
        window = cuts[group.low // width : group.high // width + 1]
        np.minimum(window, group.cut, out=window)
    return cuts, width


def _shortest(groups: Sequence[_Group], total: int, cap: int, spread: int) -> int:
    """The cheapest way through the weights in hops of less than cap + spread."""
    cuts, width = _buckets(groups, total)
    count, never = len(cuts), np.int64(1) << np.int64(61)
    hop = (cap + spread - 1) // width + 1  # buckets that two weights this near can be apart
    value = np.full(count, never)
    value[0] = 0
    for bucket in range(1, count):
        if cuts[bucket] < never:
            value[bucket] = cuts[bucket] + value[max(0, bucket - hop) : bucket].min()
    return int(value[max(0, count - 1 - hop) :].min())
