"""Simulated annealing: single nodes move between slices, at first also where that costs bytes.

What a descent cannot reach: on wide graphs good assignments differ in many nodes none of which gains
anything alone. Every state on the way keeps the caps and the order, so the best one seen is allowed.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence

from slicewise.passes.partitioning.problem import Assignment, Problem, compact, cost

_FIRST = 2.0  # seconds of the first round; every further one takes half as long again
_HOTTEST = (10.0, 0.5, 3.0)  # first temperatures of rounds, in bytes of a mean net
_COLDEST = 0.02  # the last one
_TOGETHER = 0.05  # how often a node that could move alone takes others along
_BLOCKED = 0.25  # and one that cannot
_GROUP = 24  # most nodes that move together
_CHECK = 256  # tries between two looks at the clock


def anneal(
    problem: Problem, best: Sequence[int], *, deadline: float, seed: int, least: int = 0
) -> Assignment:
    """An assignment of no more bytes, or of as many; rounds until `deadline` or `least` bytes."""
    pick = random.Random(seed)
    best = compact(best)
    best_bytes, seconds, number = cost(problem, best), _FIRST, 0
    if not problem.nets:
        return best
    scale = max(1.0, sum(net.bytes for net in problem.nets) / len(problem.nets))
    started = time.monotonic()
    while best_bytes > least and started < deadline:
        until = min(deadline, started + seconds)
        count = max(best) + 1
        # Rounds differ: mostly the same slices, now and then one more, which starts empty.
        spare = number % 3 == 2 and (problem.max_slices is None or count < problem.max_slices)
        start = list(best)
        if spare:
            gap = pick.randint(0, count)
            start = [index + (index >= gap) for index in start]
        walk = _Walk(problem, start, count + spare)
        heats = scale * _HOTTEST[number % 3], scale * _COLDEST
        found, value = walk.run(pick, heats, until)
        if (value, max(compact(found))) < (best_bytes, max(best)):
            best, best_bytes = compact(found), value
        seconds, number = seconds * 1.5, number + 1
        started = time.monotonic()
    return best


class _Walk:
    """An assignment and the counts by which the price of a move is known."""

    def __init__(self, problem: Problem, slice_of: Sequence[int], count: int) -> None:
        self.problem, self.slice_of, self.count = problem, list(slice_of), count
        self.size = [net.bytes for net in problem.nets]
        self.producer = [net.producer for net in problem.nets]
        self.reading = [[0] * count for _ in problem.nets]
        for row, net in zip(self.reading, problem.nets, strict=True):
            for node in net.readers:
                row[slice_of[node]] += 1
        self.users = [[0] * count for _ in problem.loads]
        self.amounts = [amounts for amounts, _ in problem.resources]
        self.caps = [cap for _, cap in problem.resources]
        self.used = [[0] * count for _ in problem.resources]
        for index, load in enumerate(problem.loads):
            row = self.users[index]
            for node in load.users:
                row[slice_of[node]] += 1
            for used, amounts in zip(self.used, self.amounts, strict=True):
                for where, users in enumerate(row):
                    used[where] += amounts[index] * (users > 0)

    def run(
        self, pick: random.Random, heats: tuple[float, float], until: float
    ) -> tuple[Assignment, int]:
        """Cool down until the time is over; the best assignment on the way and its bytes."""
        problem, slice_of = self.problem, self.slice_of
        preds, succs = problem.preds, problem.succs
        value = best_value = cost(problem, slice_of)
        best = list(slice_of)
        moved: list[int] = []  # since the best was noted
        started = time.monotonic()
        span = max(1e-6, until - started)
        size, last = problem.size, self.count - 1
        hot, cold = heats
        rand = pick.random
        while True:
            now = time.monotonic()
            if now >= until:
                break
            temperature = hot * (cold / hot) ** ((now - started) / span)
            for _ in range(_CHECK):
                node = int(rand() * size)
                here = slice_of[node]
                low, high = 0, last
                for other in preds[node]:
                    if slice_of[other] > low:
                        low = slice_of[other]
                        if low == here:
                            break
                for other in succs[node]:
                    if slice_of[other] < high:
                        high = slice_of[other]
                        if high == here:
                            break
                if rand() < (_BLOCKED if low == high else _TOGETHER):
                    value += self._try_group(
                        node, 1 if rand() < 0.5 else -1, temperature, rand, moved
                    )
                    if value < best_value:
                        best_value = value
                        for other in moved:
                            best[other] = slice_of[other]
                        moved.clear()
                    continue
                if low == high:
                    continue
                there = low + int(rand() * (high - low))
                there += there >= here
                delta = self._price(node, here, there)
                if delta > 0 and rand() >= math.exp(-delta / temperature):
                    continue
                if not self._has_room(node, there):
                    continue
                self._move(node, here, there)
                value += delta
                moved.append(node)
                if value < best_value:
                    best_value = value
                    for other in moved:
                        best[other] = slice_of[other]
                    moved.clear()
            if len(moved) > 4 * size:
                moved[:] = set(moved)
        return best, best_value

    def _try_group(
        self,
        node: int,
        step: int,
        temperature: float,
        rand: Callable[[], float],
        moved: list[int],
    ) -> int:
        """Move a node with all of its slice that must go along, perhaps; what that adds."""
        slice_of, here = self.slice_of, self.slice_of[node]
        along = self.problem.succs if step > 0 else self.problem.preds
        end = self.count - 1 if step > 0 else 0
        group, seen = [node], {node}
        for member in group:
            for other in along[member]:
                where = slice_of[other]
                if where == here:
                    if other not in seen:
                        seen.add(other)
                        group.append(other)
                elif (where - end) * step < 0:
                    end = where
            if end == here or len(group) > _GROUP:
                return 0
        if end == here:
            return 0
        there = here + step * (1 + int(rand() * abs(end - here)))
        added, done = 0, 0
        for member in group:
            if not self._has_room(member, there):
                break
            added += self._price(member, here, there)
            self._move(member, here, there)
            done += 1
        if done == len(group) and (added <= 0 or rand() < math.exp(-added / temperature)):
            moved += group
            return added
        for member in reversed(group[:done]):
            self._move(member, there, here)
        return 0

    def _price(self, node: int, here: int, there: int) -> int:
        """What a move adds to the bytes that cross."""
        size, slice_of, added = self.size, self.slice_of, 0
        for net in self.problem.read[node]:
            row, home = self.reading[net], slice_of[self.producer[net]]
            if row[here] == 1 and here != home:
                added -= size[net]
            if not row[there] and there != home:
                added += size[net]
        for net in self.problem.made[node]:
            row = self.reading[net]
            if row[here]:
                added += size[net]
            if row[there]:
                added -= size[net]
        return added

    def _has_room(self, node: int, there: int) -> bool:
        fresh = [load for load in self.problem.held[node] if not self.users[load][there]]
        return all(
            used[there] + sum(amounts[load] for load in fresh) <= cap
            for used, amounts, cap in zip(self.used, self.amounts, self.caps, strict=True)
        )

    def _move(self, node: int, here: int, there: int) -> None:
        for net in self.problem.read[node]:
            row = self.reading[net]
            row[here] -= 1
            row[there] += 1
        for load in self.problem.held[node]:
            row = self.users[load]
            row[here] -= 1
            row[there] += 1
            for used, amounts in zip(self.used, self.amounts, strict=True):
                if not row[here]:
                    used[here] -= amounts[load]
                if row[there] == 1:
                    used[there] += amounts[load]
        self.slice_of[node] = there
