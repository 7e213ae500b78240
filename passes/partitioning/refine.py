"""Local refinement: move a node and what must go with it one slice on while that helps."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from slicewise.passes.partitioning.problem import Assignment, Problem, compact

_CLOSURE = 400  # largest set of nodes moved at once; larger ones rarely help and cost time


def refine(
    problem: Problem, slice_of: Sequence[int], *, deadline: float, seed: int = 0
) -> Assignment:
    """An assignment of no more bytes that keeps the caps and the order; `slice_of` must do so."""
    state = State(problem, slice_of)
    shuffle = random.Random(seed)
    improved = True
    while improved:
        improved = False
        for node in _boundary(problem, state.slice_of, shuffle):
            for step in (-1, 1):
                if state.try_move(node, step):
                    improved = True
                    break
            if time.monotonic() > deadline:
                return compact(state.slice_of)
    return compact(state.slice_of)


def _boundary(problem: Problem, slice_of: Sequence[int], shuffle: random.Random) -> list[int]:
    nodes = {
        node
        for net in problem.nets
        if any(slice_of[reader] != slice_of[net.producer] for reader in net.readers)
        for node in (net.producer, *net.readers)
    }
    order = sorted(nodes)
    shuffle.shuffle(order)
    return order


class State:
    """An assignment with the counts that make moves cheap to try."""

    def __init__(self, problem: Problem, slice_of: Sequence[int]) -> None:
        self.problem = problem
        self.slice_of = list(slice_of)
        self.count = max(slice_of, default=0) + 1
        self.reading: list[dict[int, int]] = []  # per net: readers per slice
        for net in problem.nets:
            row: dict[int, int] = {}
            for node in net.readers:
                row[slice_of[node]] = row.get(slice_of[node], 0) + 1
            self.reading.append(row)
        self.users: list[dict[int, int]] = []  # per load: users per slice
        self.used = [[0] * self.count for _ in problem.resources]
        for index, load in enumerate(problem.loads):
            row = {}
            for node in load.users:
                row[slice_of[node]] = row.get(slice_of[node], 0) + 1
            self.users.append(row)
            for used, (amounts, _) in zip(self.used, problem.resources, strict=True):
                for where in row:
                    used[where] += amounts[index]

    def try_move(self, node: int, step: int) -> bool:
        """Move `node` one slice on with all that must follow, if that saves bytes."""
        target = self.slice_of[node] + step
        if not 0 <= target < self.count:
            return False
        group = self._closure(node, step)
        if group is None:
            return False
        saved = sum(self.shift(member, step) for member in group)
        if saved > 0 and all(
            used[target] <= cap
            for used, (_, cap) in zip(self.used, self.problem.resources, strict=True)
        ):
            return True
        for member in reversed(group):
            self.shift(member, -step)
        return False

    def _closure(self, node: int, step: int) -> list[int] | None:
        along = self.problem.succs if step > 0 else self.problem.preds
        here = self.slice_of[node]
        group, seen = [node], {node}
        for member in group:
            for other in along[member]:
                if self.slice_of[other] == here and other not in seen:
                    seen.add(other)
                    group.append(other)
            if len(group) > _CLOSURE:
                return None
        return group

    def shift(self, node: int, step: int) -> int:
        """Move one node whatever the cost; the bytes that this saves."""
        problem, here = self.problem, self.slice_of[node]
        there = here + step
        saved = 0
        for index in problem.read[node]:
            net, row = problem.nets[index], self.reading[index]
            home = self.slice_of[net.producer]
            row[here] -= 1
            if not row[here]:
                del row[here]
                if here != home:
                    saved += net.bytes
            if there not in row:
                row[there] = 0
                if there != home:
                    saved -= net.bytes
            row[there] += 1
        for index in problem.made[node]:
            net, row = problem.nets[index], self.reading[index]
            saved += net.bytes * ((there in row) - (here in row))
        for index in problem.held[node]:
            users = self.users[index]
            users[here] -= 1
            leaves = not users[here]
            if leaves:
                del users[here]
            enters = there not in users
            users[there] = users.get(there, 0) + 1
            for used, (amounts, _) in zip(self.used, problem.resources, strict=True):
                used[here] -= amounts[index] * leaves
                used[there] += amounts[index] * enters
        self.slice_of[node] = there
        return saved
