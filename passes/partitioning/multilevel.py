"""Multilevel search: assignments of contractions of a problem, refined on the way back to it.

A *fresh* round contracts without regard to the best assignment, cuts the smallest level along orders
and refines on every level: its slices lie elsewhere. A *cycle* contracts only within the best
assignment's slices and anneals the small levels, where one move takes many nodes along.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from slicewise.passes.partitioning.anneal import anneal
from slicewise.passes.partitioning.coarsen import coarsen
from slicewise.passes.partitioning.flow import refine_by_flows
from slicewise.passes.partitioning.order import cut_order, orders
from slicewise.passes.partitioning.problem import Assignment, Problem, cost
from slicewise.passes.partitioning.reduce import carry
from slicewise.passes.partitioning.refine import refine

_SMALLEST = (1500, 500, 150)  # nodes of the smallest level, in turns
_ANNEALED = 6  # levels of so many times its nodes are annealed too
_ANNEALING = 0.4  # seconds for each


def multilevel(
    problem: Problem, best: Assignment, *, deadline: float, seed: int, least: int
) -> Assignment:
    """An assignment of no more bytes; rounds until `deadline` or `least` bytes."""
    number = 0
    while cost(problem, best) > least and time.monotonic() < deadline:
        started = time.monotonic()
        smallest = _SMALLEST[number % len(_SMALLEST)]
        number += 1
        for start in (None, best):
            levels = coarsen(problem, smallest, seed=seed + number, slice_of=start)
            if len(levels) > 1 and time.monotonic() < deadline:
                best = _better(problem, best, _climb(levels, start, deadline, seed + number))
        spent = time.monotonic() - started  # half as long again for single nodes
        until = min(deadline, time.monotonic() + max(_ANNEALING, spent / 2))
        best = anneal(problem, best, deadline=until, seed=seed + number, least=least)
    return best


def _climb(
    levels: Sequence[Problem], start: Assignment | None, deadline: float, seed: int
) -> Assignment | None:
    """From the smallest level to the first; `start` is of the first and split by no contraction."""
    small = levels[-1]
    found = _cut(small) if start is None else carry(levels[0], small, start)
    if found is None:
        return None
    for level, after in zip(reversed(levels), (None, *reversed(levels[1:])), strict=True):
        if after is not None:
            found = carry(after, level, found)
        found = refine_by_flows(level, found, deadline=deadline, seed=seed)
        if level.size <= _ANNEALED * small.size:
            until = min(deadline, time.monotonic() + _ANNEALING)
            found = anneal(level, found, deadline=until, seed=seed)
        found = refine(level, found, deadline=deadline, seed=seed)
    return found


def _cut(problem: Problem) -> Assignment | None:
    """The best cut along some orders."""
    cuts = (cut_order(problem, order) for order in orders(problem))
    return min(
        (found for found in cuts if found is not None),
        key=lambda found: cost(problem, found),
        default=None,
    )


def _better(problem: Problem, best: Assignment, found: Assignment | None) -> Assignment:
    """Fewer bytes, then fewer slices."""
    if found is None:
        return best
    rank = cost(problem, found), max(found)
    return found if rank < (cost(problem, best), max(best)) else best
