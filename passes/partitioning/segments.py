"""A lower bound for long graphs that narrow to one node again and again: all prefixes, in one pass.

A *bottleneck* comes after every node before it and before every node after it. A prefix has all nodes
up to one bottleneck b and none from the next one c on, and of the *segment* between them a part that
is closed under predecessors. So prefixes are few, one segment's after the other's, though pairs of
them are many. What a slice receives is bounded for two kinds of pairs.

*Far*: it ends in a later segment than it starts. Then it holds c and all before, so it receives every
net that was made before it and is read by a node up to c that is not in the first prefix yet.

*Near*: both in one segment. One of its nodes has all its predecessors in the first prefix, and all
that this node reads is received.

Far slices' bytes depend on the first prefix alone and are the best of a window of weights; of the near
ones only the cheapest counts. Both are what slices receive, so nothing is counted twice.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slicewise.passes.partitioning.problem import Problem
from slicewise.passes.partitioning.twins import twins

Array = NDArray[Any]

_MOST_NODES = 62  # of a segment: bits of a word
_MANY_NODES = 16  # of a segment: from here on it is worth looking for equal branches
_MOST_PREFIXES = 100_000  # of a segment


@dataclass(frozen=True, slots=True)
class _Segment:
    """The prefixes of a segment that are worth ending a slice at: weights up, cuts up.

    `low` is the weight of the smallest prefix, `near` the least that a slice within receives.
    """

    low: int
    near: int
    weights: Array
    cuts: Array


def segment_bound(problem: Problem, weights: Array, cap: int, *, deadline: float) -> int:
    """Bytes that every assignment pays whose slices weigh at most `cap`; 0 if prefixes are many."""
    ends = bottlenecks(problem)
    if len(ends) < 2:
        return 0
    never = 1 << 61
    window: deque[tuple[int, int]] = deque()  # (weight, bytes so far and to go on), both going up

    def cheapest(weight: int) -> int:
        """The best way to a prefix of this weight by a slice from an earlier segment."""
        while window and window[0][0] < weight - cap:
            window.popleft()
        return window[0][1] if window else never

    low, start = 0, 0
    for number, stop in enumerate((*ends, problem.size)):
        # Prefixes with all nodes before `start` and not `stop`.
        found = _segment(problem, weights, start, stop, low)
        if found is None or (number % 64 == 0 and time.monotonic() > deadline):
            return 0
        reached = cheapest(low) if number else 0
        within = reached + found.near  # any prefix of the segment, from the smallest one
        fresh: list[tuple[int, int]] = []
        for weight, cut in zip(found.weights.tolist(), found.cuts.tolist(), strict=True):
            value = reached if weight == low else min(cheapest(weight), within)
            fresh.append((weight, min(never, value + cut)))
        for entry in fresh:
            while window and window[-1][1] >= entry[1]:
                window.pop()
            window.append(entry)
        low += int(weights[start : stop + 1].sum())
        start = stop + 1
    total = int(weights.sum())
    found_bytes = cheapest(total)
    return 0 if found_bytes >= never else found_bytes


def bottlenecks(problem: Problem) -> list[int]:
    """The nodes that all earlier ones lead to and that lead to all later ones."""
    size = problem.size
    latest = -1  # of the first successors of all nodes before
    leads: list[bool] = []
    for node, after in enumerate(problem.succs):
        leads.append(latest <= node)
        latest = max(latest, min(after, default=size))
    earliest, found = size, []  # of the last predecessors of all nodes behind
    for node in range(size - 1, -1, -1):
        if leads[node] and earliest >= node:
            found.append(node)
        earliest = min(earliest, max(problem.preds[node], default=-1))
    return found[::-1]


def _segment(problem: Problem, weights: Array, start: int, stop: int, low: int) -> _Segment | None:
    """The segment of nodes start..stop-1; bit `stop - start` stands for the node `stop`."""
    count = stop - start
    if count > _MOST_NODES:
        return None
    twin = twins(problem, weights.tolist(), start, stop) if count >= _MANY_NODES else {}
    masks, held = np.zeros(1, dtype=np.int64), np.full(1, low, dtype=np.int64)
    near = 0 if start == 0 else 1 << 61
    for node in range(start, stop):
        before = (*problem.preds[node], twin[node]) if node in twin else problem.preds[node]
        need = _bits(tuple(dict.fromkeys(before)), start)
        grown = (masks & need) == need
        masks = np.concatenate((masks, masks[grown] | (1 << (node - start))))
        held = np.concatenate((held, held[grown] + weights[node]))
        near = min(near, sum(problem.nets[net].bytes for net in problem.read[node]))
        if len(masks) > _MOST_PREFIXES:
            return None
    cuts = np.zeros(len(masks), dtype=np.int64)
    last = min(stop + 1, problem.size)
    for number in {net for node in range(start, last) for net in problem.read[node]}:
        net = problem.nets[number]
        readers = _bits([node for node in net.readers if node <= stop], start)
        live = (masks & readers) != readers
        if net.producer >= start:
            live &= (masks >> (net.producer - start) & 1).astype(bool)
        cuts += live * np.int64(net.bytes)
    return _Segment(low, near if count else 0, *_worthwhile(held, cuts))


def _bits(nodes: Sequence[int], start: int) -> int:
    return sum(1 << (node - start) for node in nodes if node >= start)


def _worthwhile(held: Array, cuts: Array) -> tuple[Array, Array]:
    """Without equal weights of larger cuts; sorted by weight."""
    order = np.lexsort((cuts, held))
    held, cuts = held[order], cuts[order]
    first = np.ones(len(held), dtype=bool)
    first[1:] = held[1:] != held[:-1]
    return held[first], cuts[first]
