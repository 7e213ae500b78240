"""Cuts along one topological order: the best one by dynamic programming, and good orders to try."""

from __future__ import annotations

from collections.abc import Sequence

from slicewise.passes.partitioning.ground import Ground, breaks, measure
from slicewise.passes.partitioning.problem import Assignment, Problem, slice_bound


def orders(problem: Problem) -> list[list[int]]:
    """Topological orders worth cutting: as given, depth first from either end, least live bytes."""
    given = list(range(problem.size))
    found = [given, _depth_first(problem, problem.preds), _least_live(problem)]
    backward = _depth_first(problem, problem.succs)
    backward.reverse()
    found.append(backward)
    distinct = dict.fromkeys(tuple(order) for order in found)
    return [list(order) for order in distinct]


def _depth_first(problem: Problem, before: Sequence[Sequence[int]]) -> list[int]:
    """Finish everything that a node needs (along `before`) right before that node."""
    order: list[int] = []
    done = [False] * problem.size
    forward = before is problem.preds
    after = problem.succs if forward else problem.preds
    goals = [node for node in range(problem.size) if not after[node]]
    for goal in goals if forward else reversed(goals):
        stack = [goal]
        while stack:
            node = stack[-1]
            if done[node]:
                stack.pop()
                continue
            missing = [other for other in before[node] if not done[other]]
            if missing:
                stack.extend(missing)
            else:
                done[node] = True
                order.append(node)
                stack.pop()
    return order


def _least_live(problem: Problem) -> list[int]:
    """Greedy: of the ready nodes the one after which the fewest bytes are live; then the newest."""
    import heapq

    left = [len(net.readers) for net in problem.nets]
    waiting = [len(nodes) for nodes in problem.preds]
    clock = 0

    def delta(node: int) -> int:
        made = sum(problem.nets[net].bytes for net in problem.made[node])
        return made - sum(problem.nets[net].bytes for net in problem.read[node] if left[net] == 1)

    ready = [(delta(node), 0, node) for node in range(problem.size) if waiting[node] == 0]
    heapq.heapify(ready)
    order: list[int] = []
    done = [False] * problem.size
    while ready:
        value, age, node = heapq.heappop(ready)
        if done[node]:
            continue
        current = delta(node)
        if current != value:  # a net that it reads has fewer readers left than when it was queued
            heapq.heappush(ready, (current, age, node))
            continue
        done[node] = True
        order.append(node)
        clock -= 1
        for net in problem.read[node]:
            left[net] -= 1
            if left[net] == 1:
                for other in problem.nets[net].readers:
                    if not done[other] and waiting[other] == 0:
                        heapq.heappush(ready, (delta(other), clock, other))
        for other in problem.succs[node]:
            waiting[other] -= 1
            if waiting[other] == 0:
                heapq.heappush(ready, (delta(other), clock, other))
    return order


def cut_order(problem: Problem, order: Sequence[int]) -> Assignment | None:
    """The best assignment whose slices are contiguous in `order`; None if none keeps the limits.

    Fewest bytes, then fewest slices. Proven best for this order: dynamic programming over the ends
    of slices, where the cost of a slice that starts at i grows by a net's bytes when the end passes
    one of its readers and i lies behind the previous one.
    """
    start_of = _first_starts(problem, order)
    if start_of is None:
        return None
    found = _cut(problem, order, start_of, None)
    limit = problem.max_slices
    if limit is not None and found is not None and len(found) > limit:
        found = _cut(problem, order, start_of, limit)
    if found is None:
        return None
    slice_of = [0] * len(order)
    for index, begin in enumerate(found):
        for node in order[begin:]:
            slice_of[node] = index
    return slice_of


def _cut(
    problem: Problem, order: Sequence[int], start_of: list[int], limit: int | None
) -> list[int] | None:
    """Where the slices of the best cut start. With a limit, one layer per number of slices."""
    import numpy as np

    size, layers = len(order), limit or 1
    tie = slice_bound(problem) + 2  # bytes count first, then slices: value = bytes * tie + slices
    position = {node: index for index, node in enumerate(order)}
    behind = [position[net.producer] for net in problem.nets]
    never = np.int64(1) << np.int64(61)
    value = np.full((layers, size + 1), never)
    value[0, 0] = 0
    origin = np.zeros((layers, size + 1), dtype=np.int64)
    final = np.full(layers, never)
    for end, node in enumerate(order):
        first = start_of[end]
        for net in problem.read[node]:
            begin = max(behind[net] + 1, first)
            behind[net] = end
            value[:, begin : end + 1] += problem.nets[net].bytes * tie
        window = value[:, first : end + 1]
        choice = window.argmin(axis=1)
        reached = window[np.arange(layers), choice] + 1
        origin[:, end + 1] = choice + first
        if end + 1 == size:
            final = reached
        elif limit is None:
            value[0, end + 1] = reached[0]
        else:
            value[1:, end + 1] = np.minimum(reached[:-1], never)
    layer, end = int(final.argmin()), size
    if final[layer] >= never:
        return None
    starts: list[int] = []
    while end > 0:
        end = int(origin[layer, end])
        layer = max(0, layer - 1)
        starts.append(end)
    return starts[::-1]


def _first_starts(problem: Problem, order: Sequence[int]) -> list[int] | None:
    """Per position the earliest start of a slice that ends there; None if a node is too big."""
    users = [0] * len(problem.loads)
    used = [0] * len(problem.resources)
    start, starts = 0, []
    for end, node in enumerate(order):
        for load in problem.held[node]:
            users[load] += 1
            if users[load] == 1:
                for index, (amounts, _) in enumerate(problem.resources):
                    used[index] += amounts[load]
        while any(used[index] > cap for index, (_, cap) in enumerate(problem.resources)):
            for load in problem.held[order[start]]:
                users[load] -= 1
                if users[load] == 0:
                    for index, (amounts, _) in enumerate(problem.resources):
                        used[index] -= amounts[load]
            start += 1
            if start > end:
                return None
        starts.append(start)
    return starts


def cut_checked(problem: Problem, order: Sequence[int], base: Ground) -> Assignment | None:
    """As `cut_order`, with every limit of `base`: nodes are ops, each slice taken is measured."""
    import numpy as np

    size, limit = len(order), problem.max_slices
    layers = limit or 1
    start_of = _first_starts(problem, order)
    if start_of is None:
        return None
    tie = size + 1
    position = {node: index for index, node in enumerate(order)}
    behind = [position[net.producer] for net in problem.nets]
    never = np.int64(1) << np.int64(61)
    value = np.full((layers, size + 1), never)
    value[0, 0] = 0
    reached = np.full((layers, size + 1), never)
    origin = np.zeros((layers, size + 1), dtype=np.int64)
    for end, node in enumerate(order):
        first = start_of[end]
        for net in problem.read[node]:
            begin = max(behind[net] + 1, first)
            behind[net] = end
            value[:, begin : end + 1] += problem.nets[net].bytes * tie
        allowed: dict[int, bool] = {}
        for layer in range(layers):
            window = value[layer, first : end + 1]
            for choice in np.argsort(window, kind="stable"):
                if window[choice] >= never:
                    break
                begin = first + int(choice)
                if begin not in allowed:
                    allowed[begin] = not breaks(base, measure(base, order[begin : end + 1]))
                if allowed[begin]:
                    reached[layer, end + 1] = window[choice] + 1
                    origin[layer, end + 1] = begin
                    break
            if limit is None:
                value[layer, end + 1] = reached[layer, end + 1]
            elif layer + 1 < layers:
                value[layer + 1, end + 1] = reached[layer, end + 1]
    layer, end = int(reached[:, size].argmin()), size
    if reached[layer, size] >= never:
        return None
    slice_of = [0] * size
    while end > 0:
        begin = int(origin[layer, end])
        for node in order[end:]:
            slice_of[node] += 1
        end, layer = begin, max(0, layer - 1)
    return slice_of
