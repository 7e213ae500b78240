"""Exact dynamic programming over the prefixes of a partition, for graphs that have few of them.

The union of slices 0..k is an ideal: a set of nodes closed under predecessors. The bytes that a
slice receives depend on two ideals only, the prefix before it and the one after it, so the best
way to reach an ideal J is the best over all ideals I in J with J - I within the caps. All numbers
of slices are covered at once.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slicewise.passes.partitioning.problem import Assignment, Problem, slice_bound

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Lattice:
    """All ideals of a graph as bit sets, and the steps (ideal, node, ideal with that node)."""

    ideals: list[int]
    steps: list[tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Evictable:
    """Load that a node may shed to earlier slices: the amount per resource, and the least price.

    Shedding x units of resource r costs at least `price[r]` * x, and at least `full_price[r]` * x less
    `allowance` bytes; both prices are in 1/1024 byte per unit.
    """

    amounts: tuple[tuple[int, ...], ...]
    price: tuple[int, ...]
    full_price: tuple[int, ...]
    allowance: int


def lattice(problem: Problem, most: int, deadline: float) -> Lattice | None:
    """All ideals, or None when there are more than `most`."""
    depth: list[int] = []
    for before in problem.preds:
        depth.append(max((1 + depth[other] for other in before), default=0))
    widest = max(Counter(depth).values(), default=0)
    if 2**widest > most:  # any set of nodes of one depth, with all that they need, is one
        return None
    need = [sum(1 << other for other in before) for before in problem.preds]
    number = {0: 0}
    steps: list[tuple[int, int, int]] = []
    frontier = [(0, [node for node, mask in enumerate(need) if not mask])]
    while frontier:
        following: list[tuple[int, list[int]]] = []
        for ideal, ready in frontier:
            here = number[ideal]
            for node in ready:
                grown = ideal | 1 << node
                there = number.get(grown)
                if there is None:
                    there = number[grown] = len(number)
                    after = [other for other in ready if other != node]
                    after += [o for o in problem.succs[node] if need[o] & grown == need[o]]
                    following.append((grown, after))
                steps.append((here, node, there))
        if len(number) > most or len(steps) > 16 * most or time.monotonic() > deadline:
            return None
        frontier = following
    return Lattice(list(number), steps)


def solve(
    problem: Problem,
    found: Lattice,
    best: int | None,
    deadline: float,
    evictable: Evictable | None = None,
) -> tuple[Assignment | None, int, bool]:
    """The best assignment of at most `best` bytes, its value, and if the search was finished.

    `(None, ..., True)` says that there is none. With `evictable`, a slice may exceed a cap by what
    its nodes may shed, at that price: a relaxation whose value is a lower bound.
    """
    return Table(problem, found, evictable).run(best, deadline)


class Table:
    """The ideals as columns in an order in which every subset comes before its supersets."""

    def __init__(self, problem: Problem, found: Lattice, evictable: Evictable | None) -> None:
        self.problem, self.evictable = problem, evictable
        size, prefixes = problem.size, found.ideals
        width = (size + 7) // 8
        packed = np.frombuffer(
            b"".join(ideal.to_bytes(width, "little") for ideal in prefixes), dtype=np.uint8
        ).reshape(len(prefixes), width)
        member = np.unpackbits(packed, axis=1, count=size, bitorder="little").astype(bool)
        floors = self._weigh(size)
        key = member @ floors[0] if floors else np.zeros(len(prefixes), dtype=np.int64)
        order = np.lexsort((member.sum(axis=1), key))
        self.floor = key[order]
        self.member = np.ascontiguousarray(member[order].T)  # a row per node, a column per ideal
        self.weight = [own @ self.member for own in self.own]
        self.shed = [shed @ self.member for shed in self.sheddable]
        self.columns = len(prefixes)
        self._find_live()
        self._find_steps(found, order)

    def _weigh(self, size: int) -> list[Array]:
        """Per resource and node what is additive, and a lower bound on a slice's sum that is."""
        problem = self.problem
        self.shared = [index for index, load in enumerate(problem.loads) if len(load.users) > 1]
        self.own: list[Array] = []
        self.sheddable: list[Array] = []
        floors = []
        for resource, (amounts, _) in enumerate(problem.resources):
            own = np.zeros(size, dtype=np.int64)
            floor = np.zeros(size, dtype=np.int64)
            shed = np.zeros(size, dtype=np.int64)
            if self.evictable is not None:
                shed[:] = self.evictable.amounts[resource]
            for load, amount in zip(problem.loads, amounts, strict=True):
                for node in load.users:
                    floor[node] += amount // len(load.users)  # shared loads split evenly
                    if len(load.users) == 1:
                        own[node] += amount
            self.own.append(own)
            self.sheddable.append(shed)
            floors.append(floor - shed)
        return floors

    def _find_live(self) -> None:
        problem, member = self.problem, self.member
        live = np.zeros((len(problem.nets), self.columns), dtype=bool)
        self.cut = np.zeros(self.columns, dtype=np.int64)  # bytes made inside and read outside
        for index, net in enumerate(problem.nets):
            live[index] = member[net.producer] & ~member[list(net.readers)].all(axis=0)
            self.cut += live[index] * np.int64(net.bytes)
        self.live = np.ascontiguousarray(live.T)
        top = member.copy()
        for node, after in enumerate(problem.succs):
            if after:
                top[node] &= ~member[list(after)].any(axis=0)
        self.top = np.ascontiguousarray(top.T)

    def _find_steps(self, found: Lattice, order: Array) -> None:
        """For every step what it can cost the rest of a partition at most, by its first ideal."""
        problem, member = self.problem, self.member
        rank = np.empty(self.columns, dtype=np.int64)
        rank[order] = np.arange(self.columns)
        steps = np.array(found.steps, dtype=np.int64).reshape(-1, 3)
        source, node, target = rank[steps[:, 0]], steps[:, 1], rank[steps[:, 2]]
        costs = np.zeros(len(steps), dtype=np.int64)
        by_node = np.argsort(node, kind="stable")
        bounds = np.searchsorted(node[by_node], np.arange(problem.size + 1))
        for moved in range(problem.size):
            chosen = by_node[bounds[moved] : bounds[moved + 1]]
            costs[chosen] = sum(problem.nets[net].bytes for net in problem.made[moved])
            for net in problem.read[moved]:
                others = [other for other in problem.nets[net].readers if other != moved]
                last = member[np.array(others, dtype=np.int64)[:, None], source[chosen]].all(axis=0)
                costs[chosen] -= last * np.int64(problem.nets[net].bytes)
        by_source = np.argsort(source, kind="stable")
        self.step_target = target[by_source]
        self.step_cost = costs[by_source]
        self.step_begin = np.searchsorted(source[by_source], np.arange(self.columns + 1))

    def run(self, best: int | None, deadline: float) -> tuple[Assignment | None, int, bool]:
        """See `solve`."""
        problem = self.problem
        limited = problem.max_slices is not None
        layers = problem.max_slices or 1
        # Bytes count first, then slices, then slices over a cap: bytes * tie + 2 * slices + over.
        tie = 3 * slice_bound(problem) + 3
        never = np.int64(1) << np.int64(61)
        bound = never if best is None else np.int64((best + 1) * tie)
        value = np.full((layers, self.columns), never)  # with a limit: by number of slices
        origin = np.full((layers, self.columns), -1, dtype=np.int64)
        value[0, 0] = 0
        reach = self._reach()
        for column in range(self.columns - 1):
            alive = [
                layer
                for layer in range(layers)
                if (not limited or column == 0 or layer + 1 < layers)
                # Every live net is received at least once more:
                and value[layer, column] + self.cut[column] * tie < bound
                and not self._dominated(value[layer], column, tie)
            ]
            if not alive:
                continue
            good = np.arange(column + 1, int(reach[column]))
            lowest = min(value[layer, column] for layer in alive)
            good = good[lowest + self.cut[good] * tie < bound]
            good, added = self._extend(column, good, tie)
            for layer in alive:
                target = layer + 1 if limited and column else layer
                reached = added + (value[layer, column] + 2)
                better = reached < value[target, good]
                value[target, good[better]] = reached[better]
                origin[target, good[better]] = column
            if column % 64 == 0 and time.monotonic() > deadline:
                return None, 0, False
        final = value[:, -1]
        layer = int(final.argmin())
        if final[layer] >= bound:
            return None, 0, True
        return self._trace(origin, layer, limited), int(final[layer]) // tie, True

    def _reach(self) -> Array:
        """Per column the first one that is too heavy for a slice that starts there."""
        if not self.problem.resources:
            return np.full(self.columns, self.columns)
        cap = self.problem.resources[0][1]
        return np.searchsorted(self.floor, self.floor + cap, side="right")

    def _dominated(self, value: Array, column: int, tie: int) -> bool:
        """Whether one more node in this prefix makes every way to go on as good.

        Take any continuation and move that node here: it costs at most what the node makes, and
        saves what it was the last to read.
        """
        steps = slice(self.step_begin[column], self.step_begin[column + 1])
        after = value[self.step_target[steps]] + self.step_cost[steps] * tie
        return bool((after <= value[column]).any())

    def _extend(self, column: int, good: Array, tie: int) -> tuple[Array, Array]:
        """Which of the columns `good` can end a slice that starts here, and what each costs."""
        problem, member, inside = self.problem, self.member, self.member[:, column]
        for (_, cap), weight, shed in zip(problem.resources, self.weight, self.shed, strict=True):
            held = weight[good] - weight[column]
            good = good[held - (shed[good] - shed[column]) <= cap]
        for node in np.flatnonzero(self.top[column]).tolist():
            good = good[member[node].take(good)]
        added = np.zeros(len(good), dtype=np.int64)
        over = np.zeros(len(good), dtype=bool)
        for resource, (amounts, cap) in enumerate(problem.resources):
            held = self.weight[resource][good] - self.weight[resource][column]
            for index in self.shared:
                outside = np.array([v for v in problem.loads[index].users if not inside[v]])
                if len(outside):
                    held = held + member[outside[:, None], good].any(axis=0) * amounts[index]
            excess = np.maximum(held - cap, 0)
            over = over | (excess > 0)
            shed = self.shed[resource][good] - self.shed[resource][column]
            keep = excess <= shed
            if self.evictable is not None:
                price = excess * self.evictable.price[resource] // 1024
                full = excess * self.evictable.full_price[resource] // 1024
                price = np.maximum(price, full - self.evictable.allowance)
                added = np.maximum(added, price * tie)
            good, added, over = good[keep], added[keep], over[keep]
        added += over  # among equals, rather within the caps
        for number in np.flatnonzero(self.live[column]).tolist():
            net = problem.nets[number]
            readers = [node for node in net.readers if not inside[node]]
            hit = member[readers[0]].take(good)
            for node in readers[1:]:
                hit |= member[node].take(good)
            added += hit * np.int64(net.bytes * tie)
        return good, added

    def _trace(self, origin: Array, layer: int, limited: bool) -> Assignment:
        column, path = self.columns - 1, []
        while column > 0:
            path.append(column)
            before = int(origin[layer, column])
            layer = layer - 1 if limited and before else layer
            column = before
        slice_of = np.zeros(self.problem.size, dtype=np.int64)
        for column in path[1:]:
            slice_of += ~self.member[:, column]
        return [int(index) for index in slice_of]
