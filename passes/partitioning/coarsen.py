"""Levels of ever smaller problems, each the contraction of the one before: pairs of near nodes.

Acyclic by levels (Herrmann et al., Multilevel Algorithms for Acyclic Partitioning of Directed Acyclic
Graphs, SIAM J. Sci. Comput. 2019). Let t(v) be the length of the longest path to v, so t goes up along
every edge by one at least. Pairs have one level, or t(v) = t(u) + 1 for an edge u -> v. A cycle of pairs
goes up along its edges and comes down inside pairs, by one at most: so each edge goes up by exactly one,
and each pair is entered at its v and left at its u. All of them then have the same t(u). No such cycle
comes to be if a pair, when it is made, leads to no earlier pair of its t(u), or none of those to it: a
graph that grows by sources and sinks has no cycle. Pairs of one level never take part.
The same with the longest path from v, all edges turned around: rounds take turns.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence

from slicewise.passes.partitioning.problem import Assignment, Problem, even_weights
from slicewise.passes.partitioning.reduce import carry, quotient

_MOST_PINS = 24  # of a net whose nodes count as near each other
_SHRINK = 0.95  # of the nodes that may be left after two rounds to go on


def coarsen(
    problem: Problem, most: int, *, seed: int, slice_of: Assignment | None = None
) -> list[Problem]:
    """`problem` and contractions of it, down to about `most` nodes.

    With `slice_of`, nodes of different slices stay apart.
    """
    pick = random.Random(seed)
    levels = [problem]
    start = slice_of
    stuck = 0
    while levels[-1].size > most and stuck < 2:
        last = levels[-1]
        leader = _pairs(
            last, pick, backward=bool(len(levels) % 2 == stuck % 2), most=most, slice_of=start
        )
        small = quotient(last, leader)
        stuck = stuck + 1 if small.size > _SHRINK * last.size else 0
        if small.size == last.size:
            continue
        levels.append(small)
        if start is not None:
            start = carry(last, small, start)
    return levels


def _levels(problem: Problem, backward: bool) -> list[int]:
    """The longest path to every node, or from it."""
    level = [0] * problem.size
    if backward:
        for node in range(problem.size - 1, -1, -1):
            level[node] = max((level[other] + 1 for other in problem.succs[node]), default=0)
    else:
        for node in range(problem.size):
            level[node] = max((level[other] + 1 for other in problem.preds[node]), default=0)
    return level


def _pairs(
    problem: Problem,
    pick: random.Random,
    *,
    backward: bool,
    most: int,
    slice_of: Sequence[int] | None,
) -> list[int]:
    """For every node the one that stands for its pair."""
    level = _levels(problem, backward)
    above, below = problem.preds, problem.succs
    if backward:
        above, below = below, above
    weights = _shares(problem)
    heaviest = 4 / most
    leader = list(range(problem.size))
    taken = [False] * problem.size
    head = [False] * problem.size  # the upper, lower one of a pair of two levels
    tail = [False] * problem.size
    order = list(range(problem.size))
    pick.shuffle(order)
    for node in order:
        if taken[node]:
            continue
        best, best_score, mine = -1, -1.0, weights[node]
        for other, near in _near(problem, node).items():
            if taken[other] or mine + weights[other] > heaviest:
                continue
            if slice_of is not None and slice_of[other] != slice_of[node]:
                continue
            score = near / (mine + weights[other] + 1e-9)
            if score <= best_score:
                continue
            apart = level[other] - level[node]
            if apart:
                u, v = (node, other) if apart == 1 else (other, node)
                if apart not in (1, -1) or v not in below[u]:
                    continue
                base = level[u]
                if any(head[w] and level[w] == base + 1 for w in below[u]) and any(
                    tail[w] and level[w] == base for w in above[v]
                ):
                    continue
            best, best_score = other, score
        if best < 0:
            continue
        taken[node] = taken[best] = True
        leader[max(node, best)] = min(node, best)
        if level[best] != level[node]:
            u, v = (node, best) if level[best] > level[node] else (best, node)
            tail[u] = head[v] = True
    return leader


def _near(problem: Problem, node: int) -> dict[int, float]:
    """Nodes that share nets or an edge with this one, and the bytes per pin they share."""
    near: dict[int, float] = {}
    for others in (problem.preds[node], problem.succs[node]):
        near.update(dict.fromkeys(others[:_MOST_PINS], 0.0))
    for index in (*problem.made[node], *problem.read[node]):
        net = problem.nets[index]
        readers, pins = net.readers, len(net.readers)
        share = net.bytes / pins
        near[net.producer] = near.get(net.producer, 0.0) + share
        if pins > _MOST_PINS:
            middle = bisect_left(readers, node)
            readers = readers[max(0, middle - _MOST_PINS // 2) : middle + _MOST_PINS // 2]
        for other in readers:
            near[other] = near.get(other, 0.0) + share
    near.pop(node, None)
    return near


def _shares(problem: Problem) -> list[float]:
    """Per node its share of the loads, or of the nodes where that is more."""
    import numpy as np

    found = np.full(problem.size, 1 / problem.size)
    for amounts, _ in problem.resources:
        weights = even_weights(problem, amounts)
        total = float(weights.sum())
        if total:
            found = np.maximum(found, weights / total)
    shares: list[float] = found.tolist()
    return shares
