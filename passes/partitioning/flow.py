"""Refinement by minimum cuts: the best boundary between two neighbouring slices, all else fixed.

Of two neighbouring slices, the nodes near the boundary are free. Which of them run in the first slice
(the source side) is a minimum cut, exactly: a net pays for the second slice if a reader is in it and the
producer is not, and one from before pays for the first slice too if a reader is in that. An edge u -> v
forbids v in the first with u in the second. Only the caps are not in the cut: the free nodes are
so few that all may move, or more, and then a cut that breaks a cap is thrown away.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from slicewise.passes.partitioning.problem import Assignment, Problem, compact, even_weights
from slicewise.passes.partitioning.refine import State

_MOST_FREE = 6_000  # nodes of one cut; more take seconds
_REACH = (1.0, 4.0, 16.0)  # weights that may move, in units of the room there is


def refine_by_flows(
    problem: Problem, slice_of: Sequence[int], *, deadline: float, seed: int = 0
) -> Assignment:
    """An assignment of no more bytes that keeps the caps and the order; `slice_of` must do so."""
    state = State(problem, slice_of)
    pick = random.Random(seed)
    weights = [even_weights(problem, amounts).tolist() for amounts, _ in problem.resources]
    count = state.count
    waiting = deque(range(count - 1))
    queued = set(waiting)
    while waiting and time.monotonic() < deadline:
        first = waiting.popleft()
        queued.discard(first)
        saved = 0
        for factor in reversed(_REACH):
            saved = _recut(state, weights, first, factor, pick)
            if saved > 0:
                break
        if saved > 0:
            for other in (first - 1, first, first + 1):
                if 0 <= other < count - 1 and other not in queued:
                    queued.add(other)
                    waiting.append(other)
    return compact(state.slice_of)


def _recut(
    state: State, weights: Sequence[Sequence[int]], first: int, factor: float, pick: random.Random
) -> int:
    """Move the boundary between slices `first` and the next if that keeps the caps; bytes saved."""
    second = first + 1
    free = [
        *_corridor(state, weights, first, second, factor),
        *_corridor(state, weights, second, first, factor),
    ]
    if not free:
        return 0
    cuts = _minimum_cuts(state, free, first)
    pick.shuffle(cuts)
    for after in cuts:
        moved = [v for v in free if (state.slice_of[v] == second) != (v in after)]
        saved = 0
        for v in moved:
            saved += state.shift(v, 1 if v in after else -1)
        if saved >= 0 and all(
            max(used[first], used[second]) <= cap
            for used, (_, cap) in zip(state.used, state.problem.resources, strict=True)
        ):
            return saved
        for v in moved:
            state.shift(v, -1 if v in after else 1)
    return 0


def _corridor(
    state: State, weights: Sequence[Sequence[int]], here: int, there: int, factor: float
) -> list[int]:
    """Nodes of `here` nearest to `there`, of about `factor` times the weight that has room there."""
    problem, slice_of = state.problem, state.slice_of
    toward, back = (
        (problem.succs, problem.preds) if there > here else (problem.preds, problem.succs)
    )
    room = [
        factor * max(cap // 100, cap - used[there])
        for used, (_, cap) in zip(state.used, problem.resources, strict=True)
    ]
    seeds = [
        v
        for v, where in enumerate(slice_of)
        if where == here and all(slice_of[w] != here for w in toward[v])
    ]
    left: dict[int, int] = {}
    queue = deque(seeds)
    found: list[int] = []
    while queue and len(found) < _MOST_FREE // 2:
        v = queue.popleft()
        for index, held in enumerate(weights):
            room[index] -= held[v]
        if any(amount < 0 for amount in room):
            break
        found.append(v)
        for w in back[v]:
            if slice_of[w] == here:
                if w not in left:
                    left[w] = sum(slice_of[x] == here for x in toward[w])
                left[w] -= 1
                if not left[w]:
                    queue.append(w)
    return found


def _minimum_cuts(state: State, free: Sequence[int], first: int) -> list[set[int]]:
    """The free nodes of the second slice by a minimum cut: the fewest, and the most."""
    from ortools.graph.python import max_flow

    problem, slice_of, second = state.problem, state.slice_of, first + 1
    source, sink = 0, 1
    number = {v: index for index, v in enumerate(free, start=2)}
    tails: list[int] = []
    heads: list[int] = []
    capacities: list[int] = []
    count = 2 + len(free)
    nets = sorted({n for v in free for n in (*problem.made[v], *problem.read[v])})
    endless = 2 * sum(problem.nets[n].bytes for n in nets) + 1

    def arc(tail: int, head: int, capacity: int) -> None:
        tails.append(tail)
        heads.append(head)
        capacities.append(capacity)

    for n in nets:
        net = problem.nets[n]
        home = slice_of[net.producer]
        inside = [number[v] for v in net.readers if v in number]
        made = number.get(net.producer)
        row = state.reading[n]
        freed_first = sum(slice_of[v] == first for v in net.readers if v in number)
        fixed_first = row.get(first, 0) - freed_first
        fixed_second = row.get(second, 0) - (len(inside) - freed_first)
        if made is None and home == second:
            continue
        tail = source if made is None else made
        if fixed_second:
            if made is not None:
                arc(made, sink, net.bytes)
        elif inside:
            arc(tail, count, net.bytes)
            for v in inside:
                arc(count, v, endless)
            count += 1
        if made is None and home < first and not fixed_first and inside:
            arc(count, sink, net.bytes)
            for v in inside:
                arc(v, count, endless)
            count += 1
    for v in free:
        for w in problem.succs[v]:
            if w in number:
                arc(number[w], number[v], endless)
            elif slice_of[w] == first:
                arc(source, number[v], endless)
        if any(slice_of[w] == second and w not in number for w in problem.preds[v]):
            arc(number[v], sink, endless)
    flow = max_flow.SimpleMaxFlow()
    if not tails:
        return []
    flow.add_arcs_with_capacity(np.array(tails), np.array(heads), np.array(capacities))
    if flow.solve(source, sink) != flow.OPTIMAL:  # bytes beyond what it can add up
        return []
    least = set(flow.get_source_side_min_cut())
    most = set(flow.get_sink_side_min_cut())
    return [
        {v for v in free if number[v] not in least},
        {v for v in free if number[v] in most},
    ]
