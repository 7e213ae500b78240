"""The integer problem behind a partition: nodes, nets and loads, and how an assignment scores.

A `Problem` holds what can be said with sums: bytes that cross, weights per slice, the number of
slices. What needs a slice's inner life (liveness, buffers) is in `ground`. Leaving those limits
out makes a `Problem` a relaxation: its optimum is a lower bound, and the optimum itself when it
keeps them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

Assignment = list[int]  # the slice of every node


@dataclass(frozen=True, slots=True)
class Net:
    """Bytes that one node produces and others read: each other slice that reads them pays once."""

    bytes: int
    producer: int
    readers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """A weight: every slice with one of its users holds it once."""

    bytes: int
    memory: int
    users: tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """A DAG of nodes in topological order (every edge goes from a lower to a higher number).

    `ops[v]` are the ops that node v stands for, the one that leads them first. `weight_cap` bounds the
    bytes and `memory_cap` the memory of the loads of one slice.
    """

    ops: tuple[tuple[int, ...], ...]
    succs: tuple[tuple[int, ...], ...]
    nets: tuple[Net, ...]
    loads: tuple[Load, ...]
    weight_cap: int | None = None
    memory_cap: int | None = None
    max_slices: int | None = None

    @property
    def size(self) -> int:
        """Number of nodes."""
        return len(self.ops)

    @cached_property
    def preds(self) -> tuple[tuple[int, ...], ...]:
        """For every node the nodes it depends on."""
        found: list[list[int]] = [[] for _ in self.ops]
        for node, after in enumerate(self.succs):
            for other in after:
                found[other].append(node)
        return tuple(map(tuple, found))

    @cached_property
    def read(self) -> tuple[tuple[int, ...], ...]:
        """For every node the nets it reads."""
        found: list[list[int]] = [[] for _ in self.ops]
        for index, net in enumerate(self.nets):
            for node in net.readers:
                found[node].append(index)
        return tuple(map(tuple, found))

    @cached_property
    def made(self) -> tuple[tuple[int, ...], ...]:
        """For every node the nets it produces."""
        found: list[list[int]] = [[] for _ in self.ops]
        for index, net in enumerate(self.nets):
            found[net.producer].append(index)
        return tuple(map(tuple, found))

    @cached_property
    def held(self) -> tuple[tuple[int, ...], ...]:
        """For every node the loads it uses."""
        found: list[list[int]] = [[] for _ in self.ops]
        for index, load in enumerate(self.loads):
            for node in load.users:
                found[node].append(index)
        return tuple(map(tuple, found))

    @cached_property
    def resources(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """The capped sums over a slice's loads: (amount of every load, cap)."""
        found = []
        if self.weight_cap is not None:
            found.append((tuple(load.bytes for load in self.loads), self.weight_cap))
        if self.memory_cap is not None:
            found.append((tuple(load.memory for load in self.loads), self.memory_cap))
        return tuple(found)


def cost(problem: Problem, slice_of: Sequence[int]) -> int:
    """Bytes that cross: each net once per slice that reads it, except the one that makes it."""
    total = 0
    for net in problem.nets:
        receiving = {slice_of[node] for node in net.readers}
        receiving.discard(slice_of[net.producer])
        total += net.bytes * len(receiving)
    return total


def fits(problem: Problem, slice_of: Sequence[int]) -> bool:
    """Whether every slice keeps the caps of `problem`, and their number the bound on slices."""
    if problem.max_slices is not None and len(set(slice_of)) > problem.max_slices:
        return False
    for amounts, cap in problem.resources:
        used: dict[int, int] = {}
        for load, amount in zip(problem.loads, amounts, strict=True):
            for index in {slice_of[node] for node in load.users}:
                used[index] = used.get(index, 0) + amount
        if any(amount > cap for amount in used.values()):
            return False
    return True


def compact(slice_of: Sequence[int]) -> Assignment:
    """The same slices numbered 0, 1, ... without holes."""
    number = {old: new for new, old in enumerate(sorted(set(slice_of)))}
    return [number[index] for index in slice_of]


def lift(problem: Problem, slice_of: Sequence[int], ops: int) -> Assignment:
    """The slice of every op, given that of every node; -1 for ops of no node."""
    lifted = [-1] * ops
    for node, members in enumerate(problem.ops):
        for op in members:
            lifted[op] = slice_of[node]
    return lifted


def slice_bound(problem: Problem) -> int:
    """A number of slices that some optimum without `max_slices` does not exceed.

    Merging two adjacent slices never costs bytes. So some optimum has no adjacent pair that could
    be merged: each pair (0, 1), (2, 3), ... exceeds a cap, and the pairs together hold every load
    at most once per user.
    """
    pairs = 0
    for amounts, cap in problem.resources:
        held = sum(
            amount * len(load.users) for load, amount in zip(problem.loads, amounts, strict=True)
        )
        pairs += held // (cap + 1)
    return min(2 * pairs + 1, max(1, problem.size))


def fewest_slices(problem: Problem) -> int:
    """A number of slices that every feasible assignment needs: loads over cap."""
    fewest = 1
    for amounts, cap in problem.resources:
        if cap > 0:
            fewest = max(fewest, -(-sum(amounts) // cap))
    return fewest


def even_weights(problem: Problem, amounts: Sequence[int]) -> NDArray[Any]:
    """A load per node whose sum over a slice is at most what the slice holds: shared ones split."""
    import numpy as np

    weights = np.zeros(problem.size, dtype=np.int64)
    for load, amount in zip(problem.loads, amounts, strict=True):
        for node in load.users:
            weights[node] += amount // len(load.users)
    return weights
