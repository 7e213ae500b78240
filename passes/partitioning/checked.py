"""Exact dynamic programming over prefixes when memory decides: every slice on the way is measured.

A limit on memory with liveness and buffers is no sum over nodes, but it depends on nothing except
which nodes a slice has: on the prefix before it and the one after it, like its bytes. So the best way
to reach a prefix is the cheapest of its candidates that passes the measure. Candidates are measured
only in the order of their bytes, and only if a bound that numpy computes for all of them lets them.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slicewise.passes.partitioning.ground import Ground, breaks, measure
from slicewise.passes.partitioning.ideals import Lattice, Table
from slicewise.passes.partitioning.problem import Assignment, Problem
from slicewise.passes.partitioning.recompute import (
    add_inlined,
    inlined_ops,
    sent_by,
    sources_of,
    vanished_ops,
)

Array = NDArray[Any]


def solve_checked(
    base: Ground, problem: Problem, found: Lattice, best: int | None, deadline: float
) -> tuple[Assignment | None, int, bool]:
    """The best assignment of at most `best` bytes whose slices keep all limits of `base`.

    As `ideals.solve`: with its value, and whether the search was finished. `problem` is a relaxation
    of `base` with inlined ops and without a bound on the number of slices.
    """
    return _Checked(base, problem, found).run(best, deadline)


def lenient(base: Ground) -> Ground:
    """A ground by which no slice takes more than it must, wherever cheap ops run.

    Take any layout, and let a slice have only those kept ops that run there for the first time. One of
    them needs a tensor s that an op made which is not cheap: directly, or through cheap ops. That op
    runs nowhere else, so if it is not in the slice, the slice receives s, or what a cheap op made of
    it; if it is, and the kept op elsewhere, the slice sends one of these, and holds one to the end. So
    the kept op counts of s the least of its own size and its share of those tensors', which they have
    by the sizes of all that they are made of: shares add up to no more than what is there. A slice
    counts the most of its ops: s is several tensors, one on top of the other.

    What a cheap op makes may be received or made again, so nobody need send or receive it, unless it
    is the reply's, which the first slice to run the op sends. But it is there while it is in use: from
    the op itself, if that is one of the slice's, else from the first op that needs it, to the last one.
    And while a kept op runs, what it reads is there: where an inlined op made that, so much of it as
    is not counted already.
    """
    sources, gone = sources_of(base), vanished_ops(base)
    ways = _least_on_the_way(base)
    made = [
        maker >= 0 and base.cheap[maker] and not leaves
        for maker, leaves in zip(base.producer, base.leaves, strict=True)
    ]
    rest = [
        max(0, least - sum(way.values()))
        for least, way in zip(_least_made_of(base, sources), ways, strict=True)
    ]
    brief = [
        more if cheap and base.root[t] == t else 0
        for t, (more, cheap) in enumerate(zip(rest, made, strict=True))
    ]
    reads, last = [], [-1] * len(base.size)
    levels: list[dict[int, int]] = [{} for _ in base.size]
    for op, tensors in enumerate(base.reads):
        found: dict[int, None] = {}
        for t in tensors if op not in gone else ():
            found.update(dict.fromkeys(s for s in sources[t] if made[s]))
            for s, least in ways[t].items():
                found[s] = None
                levels[s][op] = max(levels[s].get(op, 0), least)
        reads.append(tuple(found))
        for t in (*found, *base.makes[op]):
            last[base.root[t]] = op
    scratch = list(base.scratch)
    for op, tensors in enumerate(base.reads):
        read: dict[int, int] = {}
        for t in tensors:
            root = base.root[t]
            if sources[t] != (t,) and root not in sources[t] and root not in ways[t]:
                counted = sum(ways[t].values()) + sum(brief[s] for s in sources[t])
                more = min(base.size[t], base.size[root]) - counted
                read[root] = max(read.get(root, 0), more)
        scratch[op] += sum(more for more in read.values() if more > 0)
    easy = replace(
        base,
        size=tuple(0 if cheap else size for size, cheap in zip(base.size, made, strict=True)),
        brief=tuple(brief),
        last=tuple(last),
        scratch=tuple(scratch),
        reads=tuple(reads),
        cheap=tuple(False for _ in base.cheap),
    )
    easy = _with_levels(easy, levels)
    return replace(easy, readers=tuple(sent_by(easy)))


def _least_on_the_way(base: Ground) -> list[dict[int, int]]:
    """For every tensor the tensors of other than cheap ops that it is made of, and of each the least of
    its shares in what cheap ops make on the way. Others are made of themselves.
    """
    ways: list[dict[int, int]] = [{t: size} for t, size in enumerate(base.size)]
    for op, cheap in enumerate(base.cheap):
        if not cheap:
            continue
        before = [ways[t] for t in base.reads[op]]
        needed = dict.fromkeys(s for way in before for s in way)
        total = sum(base.size[s] for s in needed)
        for t in base.makes[op]:
            ways[t] = {
                s: min(
                    base.size[t] * base.size[s] // total if total else 0,
                    *(way[s] for way in before if s in way),
                )
                for s in needed
            }
    return ways


def _least_made_of(base: Ground, sources: Sequence[tuple[int, ...]]) -> list[int]:
    """The least of every tensor and of what inlined ops make of it, which may be held in its place."""
    least = list(base.size)
    for op in range(len(base.reads) - 1, -1, -1):
        for t in base.makes[op]:
            for s in base.reads[op] if sources[t] != (t,) else ():
                least[s] = min(least[s], least[t])
    return least


def _with_levels(base: Ground, levels: Sequence[Mapping[int, int]]) -> Ground:
    """Each tensor as several, one on top of the other, each read by the ops that count so much of it.

    `levels` of a tensor are the bytes that every op counts which reads it.
    """
    size, root, last = list(base.size), list(base.root), list(base.last)
    producer, leaves, brief = list(base.producer), list(base.leaves), list(base.brief)
    reads, makes = [list(each) for each in base.reads], [list(each) for each in base.makes]
    for t, of_op in enumerate(levels):
        steps = {*of_op.values(), *([base.size[t]] if base.leaves[t] else [])}
        if not steps or base.size[t] == 0:
            continue
        size[t], *above = sorted(steps)
        below = size[t]
        for step in above:
            part = len(size)
            size.append(step - below)
            root.append(part if base.root[t] == t else base.root[t])
            last.append(max((op for op, counted in of_op.items() if counted >= step), default=-1))
            leaves.append(base.leaves[t])
            producer.append(base.producer[t])
            brief.append(0)
            for op, counted in of_op.items():
                if counted >= step:
                    reads[op].append(part)
            if base.producer[t] >= 0:
                makes[base.producer[t]].append(part)
                last[part] = max(last[part], base.producer[t])
            below = step
    return replace(
        base,
        size=tuple(size),
        cost=(*base.cost, *(0,) * (len(size) - len(base.cost))),
        producer=tuple(producer),
        leaves=tuple(leaves),
        root=tuple(root),
        last=tuple(last),
        reads=tuple(map(tuple, reads)),
        makes=tuple(map(tuple, makes)),
        brief=tuple(brief),
    )


class _Checked(Table):
    def __init__(self, base: Ground, problem: Problem, found: Lattice) -> None:
        super().__init__(problem, found, None)
        self.base = base
        self.inlined = inlined_ops(base)
        self.needing = sent_by(base)
        self.cap = base.memory_cap
        self._find_footprints(base)

    def _find_footprints(self, base: Ground) -> None:
        """What must be in memory while each node runs, whatever else its slice holds."""
        alone = np.zeros(self.problem.size, dtype=np.int64)
        for node, ops in enumerate(self.problem.ops):
            for op in ops:
                fresh = sum(base.size[t] for t in base.makes[op] if base.root[t] == t)
                alone[node] = max(alone[node], fresh + base.scratch[op])
        self.alone = alone
        self.heaviest_first = np.argsort(-alone, kind="stable")
        # Nets join the tensors of one producer and the same readers; others count as nothing.
        number = {op: node for node, ops in enumerate(self.problem.ops) for op in ops}
        incoming: dict[tuple[int, ...], int] = {}
        for tensor, ops in enumerate(self.needing):
            if base.producer[tensor] in number:
                key = (number[base.producer[tensor]], *(number[op] for op in ops))
                incoming[key] = incoming.get(key, 0) + base.size[tensor]
        self.incoming = np.array(
            [incoming.get((net.producer, *net.readers), 0) for net in self.problem.nets],
            dtype=np.int64,
        )
        self.factor = float(base.edge_factor)

    def run(self, best: int | None, deadline: float) -> tuple[Assignment | None, int, bool]:
        tie = self.columns + 1  # bytes count first, then the number of slices
        never = np.int64(1) << np.int64(61)
        bound = int(never) if best is None else (best + 1) * tie
        value = np.full(self.columns, never)
        origin = np.full((1, self.columns), -1, dtype=np.int64)
        value[0] = 0
        reach = self._reach()
        candidates: list[list[tuple[int, int]]] = [[] for _ in range(self.columns)]
        for column in range(self.columns):
            if column:
                value[column], origin[0, column] = self._settle(candidates[column], column, never)
                candidates[column] = []
            if column == self.columns - 1 or value[column] + self.cut[column] * tie >= bound:
                continue
            good = np.arange(column + 1, int(reach[column]))
            good = good[value[column] + self.cut[good] * tie < bound]
            good, added = self._extend(column, good, tie)
            good, added = self._roomy(column, good, added)
            reached = added + (value[column] + 1)
            keep = reached < bound
            for target, score in zip(good[keep].tolist(), reached[keep].tolist(), strict=True):
                candidates[target].append((score, column))
            if column % 16 == 0 and time.monotonic() > deadline:
                return None, 0, False
        if value[-1] >= bound:
            return None, 0, True
        return self._trace(origin, 0, False), int(value[-1]) // tie, True

    def _settle(
        self, candidates: list[tuple[int, int]], column: int, never: np.int64
    ) -> tuple[int, int]:
        """The cheapest candidate that is allowed."""
        heapq.heapify(candidates)
        while candidates:
            score, source = heapq.heappop(candidates)
            nodes = np.flatnonzero(self.member[:, column] & ~self.member[:, source])
            if self._allowed(nodes.tolist()):
                return score, source
        return int(never), -1

    def _allowed(self, nodes: list[int]) -> bool:
        """Whether a slice of these nodes keeps every limit."""
        base = self.base
        kept = {op for node in nodes for op in self.problem.ops[node]}
        sent = {
            t
            for op in kept
            for t in base.makes[op]
            if base.leaves[t] or any(other not in kept for other in self.needing[t])
        }
        add_inlined(base, kept, self.inlined)
        return not breaks(base, measure(base, kept, sent))

    def _roomy(self, column: int, good: Array, added: Array) -> tuple[Array, Array]:
        """Those whose weights, received tensors and largest op alone fit the memory."""
        if self.cap is None or not len(good):
            return good, added
        inside = self.member[:, column]
        held = self.weight[-1][good] - self.weight[-1][column]
        received = np.zeros(len(good), dtype=np.int64)
        for number in np.flatnonzero(self.live[column]).tolist():
            readers = [v for v in self.problem.nets[number].readers if not inside[v]]
            hit = self.member[np.array(readers)[:, None], good].any(axis=0)
            received += hit * self.incoming[number]
        largest = np.zeros(len(good), dtype=np.int64)
        unset = np.ones(len(good), dtype=bool)
        for node in self.heaviest_first.tolist():
            if inside[node]:
                continue
            hit = unset & self.member[node].take(good)
            largest[hit] = self.alone[node]
            unset &= ~hit
            if not unset.any():
                break
        keep = held + received * (1 + self.factor) + largest <= self.cap
        return good[keep], added[keep]
