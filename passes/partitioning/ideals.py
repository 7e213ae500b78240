"""Exact dynamic programming over the prefixes of a partition, for graphs that have few of them.

The union of slices 0..k is an ideal: a set of nodes closed under predecessors. The bytes that a
slice receives depend on two ideals only, the prefix before it and the one after it, so the best
way to reach an ideal J is the best over all ideals I in J with J - I within the caps. All numbers
of slices are covered at once.
"""

from __future__ import annotations

import time

import numpy as np
from slicewise.passes.partitioning.problem import Assignment, Problem, slice_bound


def ideals(problem: Problem, most: int, deadline: float) -> list[int] | None:
    """All ideals as bit sets, or None when there are more than `most`."""
    need = [sum(1 << other for other in before) for before in problem.preds]
    found = {0}
    frontier = [(0, [node for node, mask in enumerate(need) if not mask])]
    while frontier:
        following: list[tuple[int, list[int]]] = []
        for ideal, ready in frontier:
            for node in ready:
                grown = ideal | 1 << node
                if grown in found:
                    continue
                found.add(grown)
                following.append(
                    (
                        grown,
                        [other for other in ready if other != node]
                        + [o for o in problem.succs[node] if need[o] & grown == need[o]],
                    )
                )
        if len(found) > most or time.monotonic() > deadline:
            return None
        frontier = following
    return list(found)


def solve(
    problem: Problem, prefixes: list[int], best: int | None, deadline: float
) -> tuple[Assignment | None, bool]:
    """The best assignment of at most `best` bytes (fewest slices among equals), and if it is
    proven.

    `(None, True)` says that there is none.
    """
    table = _Table(problem, prefixes)
    return table.run(best, deadline)


class _Table:
    def __init__(self, problem: Problem, prefixes: list[int]) -> None:
        self.problem = problem
        size = problem.size
        width = (size + 7) // 8
        packed = np.frombuffer(
            b"".join(ideal.to_bytes(width, "little") for ideal in prefixes), dtype=np.uint8
        ).reshape(len(prefixes), width)
        member = np.unpackbits(packed, axis=1, count=size, bitorder="little").astype(bool)
        # A lower bound on the weight of J - I that is a difference: split shared loads evenly.
        self.shared = [index for index, load in enumerate(problem.loads) if len(load.users) > 1]
        self.own: list[np.ndarray] = []
        floors = []
        for amounts, _ in problem.resources:
            own = np.zeros(size, dtype=np.int64)
            floor = np.zeros(size, dtype=np.int64)
            for load, amount in zip(problem.loads, amounts, strict=True):
                for node in load.users:
                    floor[node] += amount // len(load.users)
                    if len(load.users) == 1:
                        own[node] += amount
            self.own.append(own)
            floors.append(floor)
        key = member @ floors[0] if floors else np.zeros(len(prefixes), dtype=np.int64)
        count = member.sum(axis=1)
        order = np.lexsort((count, key))
        self.floor = key[order]
        self.member = np.ascontiguousarray(member[order].T)  # a row per node, a column per ideal
        self.weight = [own @ self.member for own in self.own]
        self.columns = len(prefixes)
        live = np.zeros((len(problem.nets), self.columns), dtype=bool)
        self.cut = np.zeros(self.columns, dtype=np.int64)  # bytes made inside and read outside
        for index, net in enumerate(problem.nets):
            live[index] = self.member[net.producer]
            live[index] &= ~self.member[list(net.readers)].all(axis=0)
            self.cut += live[index] * np.int64(net.bytes)
        self.live = np.ascontiguousarray(live.T)
        top = np.zeros_like(self.member)
        for node in range(size):
            top[node] = self.member[node]
            if problem.succs[node]:
                top[node] &= ~self.member[list(problem.succs[node])].any(axis=0)
        self.top = np.ascontiguousarray(top.T)

    def run(self, best: int | None, deadline: float) -> tuple[Assignment | None, bool]:
        problem, member = self.problem, self.member
        layers = problem.max_slices or 1
        tie = slice_bound(problem) + 2
        never = np.int64(1) << np.int64(61)
        bound = never if best is None else np.int64((best + 1) * tie)
        value = np.full((layers, self.columns), never)
        origin = np.full((layers, self.columns), -1, dtype=np.int64)
        value[0, 0] = 0
        caps = [cap for _, cap in problem.resources]
        reach = (
            np.searchsorted(self.floor, self.floor + caps[0], side="right")
            if caps
            else np.full(self.columns, self.columns)
        )
        limited = problem.max_slices is not None
        for column in range(self.columns - 1):
            if not (value[:, column] < bound).any():
                continue
            # Every live net is received at least once more:
            if int(value[:, column].min()) + int(self.cut[column]) * tie >= bound:
                continue
            inside = member[:, column]
            window = slice(column + 1, int(reach[column]))
            good = self._above(column, window)
            added = np.zeros(len(good), dtype=np.int64)
            for index in np.flatnonzero(self.live[column]):
                net = problem.nets[index]
                outside = [node for node in net.readers if not inside[node]]
                hit = member[outside[0], good]
                for node in outside[1:]:
                    hit = hit | member[node, good]
                added += hit * np.int64(net.bytes * tie)
            for layer in range(layers):
                if value[layer, column] >= bound:
                    continue
                target = layer + 1 if limited and column else layer
                if target >= layers:
                    continue
                reached = added + (value[layer, column] + 1)
                better = reached < value[target, good]
                value[target, good[better]] = reached[better]
                origin[target, good[better]] = column
            if column % 64 == 0 and time.monotonic() > deadline:
                return None, False
        final = value[:, -1]
        layer = int(final.argmin())
        if final[layer] >= bound:
            return None, True
        return self._trace(origin, layer, limited), True

    def _above(self, column: int, window: slice) -> np.ndarray:
        """The columns in `window` whose ideals hold this one and exceed it within the caps."""
        problem, inside = self.problem, self.member[:, column]
        good = np.arange(window.start, window.stop)
        for (_, cap), weight in zip(problem.resources, self.weight, strict=True):
            good = good[weight[good] - weight[column] <= cap]
        for node in np.flatnonzero(self.top[column]):
            good = good[self.member[node, good]]
        if self.shared:
            for (amounts, cap), weight in zip(problem.resources, self.weight, strict=True):
                held = weight[good] - weight[column]
                for index in self.shared:
                    outside = [v for v in problem.loads[index].users if not inside[v]]
                    if outside:
                        held = (
                            held + self.member[np.ix_(outside, good)].any(axis=0) * amounts[index]
                        )
                keep = held <= cap
                good = good[keep]
        return good

    def _trace(self, origin: np.ndarray, layer: int, limited: bool) -> Assignment:
        column, path = self.columns - 1, []
        while column > 0:
            path.append(column)
            before = int(origin[layer, column])
            layer = layer - 1 if limited and before else layer
            column = before
        slice_of = np.zeros(self.problem.size, dtype=np.int64)
        for column in reversed(path[1:] if path else []):
            slice_of += ~self.member[:, column]
        return [int(index) for index in slice_of]
