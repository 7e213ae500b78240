"""The optimum of a `Problem`: reduce, cut along orders, refine, prove."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import chain

from slicewise.passes.partitioning import exact
from slicewise.passes.partitioning.flow import refine_by_flows
from slicewise.passes.partitioning.improve import improve
from slicewise.passes.partitioning.multilevel import multilevel
from slicewise.passes.partitioning.order import cut_order, orders
from slicewise.passes.partitioning.problem import (
    Assignment,
    Problem,
    cost,
    even_weights,
    fewest_slices,
    fits,
    lift,
    slice_bound,
)
from slicewise.passes.partitioning.reduce import carry, join_uncuttable, reduce
from slicewise.passes.partitioning.refine import refine

MOST_VARIABLES = 60_000  # nodes times slices for which CP-SAT is tried
_FEW_PREFIXES = 20_000  # so few are enumerated before any relaxation is thought of
_MOST_PREFIXES = 400_000
_WIDE = 200  # nodes from which on the bound at windows is worth its seconds
_CLOSE = 0.8  # of the best bytes: a bound so near is left as it is
_FIRST_SHARE = 0.2  # of the time for a first proof; then assignments are improved
_IMPROVING = 0.8  # of the rest; what is left proves again
_MOST_CELLS = 200_000_000  # bytes of tables: prefixes times nodes and nets


@dataclass(frozen=True, slots=True)
class Found:
    """The same for a `Problem`: the slice of every op, -1 for ops that are not in it."""

    slice_of: Assignment | None
    lower_bound: int
    closed: bool
    method: str


def solve_relaxed(problem: Problem, ops: int, *, deadline: float, workers: int, seed: int) -> Found:
    """The optimum of a `Problem` for the slices of `ops` ops: reduce, cut orders, refine, prove."""
    small = reduce(problem)
    fallback: Assignment | None = None
    least = _narrow_bound(small, deadline)
    own = cut_order(problem, range(problem.size))  # so that none is worse than a cut of this order
    start = None if own is None else carry(problem, small, own)
    best = heuristic(small, start, deadline=deadline, seed=seed, least=least)
    bytes_best = None if best is None else cost(small, best)
    if best is not None and _is_settled(small, best, least):
        return Found(lift(small, best, ops), least, True, "bottlenecks")
    if best is not None and bytes_best is not None:
        joined = join_uncuttable(small, bytes_best)
        fallback = lift(small, best, ops)
        if joined.size < small.size:
            best = carry(small, joined, best)
            small = reduce(joined)
            best = carry(joined, small, best)
            bytes_best = cost(small, best)
    found = _prove(small, best, bytes_best, least, deadline=deadline, workers=workers, seed=seed)
    if found.slice_of is not None:
        fallback = lift(small, found.slice_of, ops)
    return Found(fallback, found.lower_bound, found.closed, found.method)


def _narrow_bound(problem: Problem, deadline: float) -> int:
    """The bound along bottlenecks: cheap, so it comes first."""
    from slicewise.passes.partitioning.segments import segment_bound

    until = time.monotonic() + (deadline - time.monotonic()) / 2
    return max(
        (
            segment_bound(problem, even_weights(problem, amounts), cap, deadline=until)
            for amounts, cap in problem.resources
        ),
        default=0,
    )


def _is_settled(problem: Problem, best: Assignment, least: int) -> bool:
    """Whether neither bytes nor slices can be fewer."""
    return max(best, default=-1) < fewest_slices(problem) and cost(problem, best) <= least


def heuristic(
    problem: Problem,
    start: Assignment | None = None,
    *,
    deadline: float,
    seed: int,
    least: int = -1,
) -> Assignment | None:
    """The best of `start` and several cuts along topological orders, refined; None if none fits."""
    if has_one_order(problem):
        return cut_order(problem, range(problem.size))
    starts = chain([start], (cut_order(problem, order) for order in orders(problem)))
    best: Assignment | None = None
    best_bytes = 0
    for found in starts:
        if found is None:
            continue
        if not _is_settled(problem, found, least):
            found = refine(problem, found, deadline=deadline, seed=seed)
        value = cost(problem, found)
        if best is None or (value, max(found)) < (best_bytes, max(best)):
            best, best_bytes = found, value
        if time.monotonic() > deadline or _is_settled(problem, best, least):
            break
    return best


def _prove(
    problem: Problem,
    best: Assignment | None,
    best_bytes: int | None,
    least: int,
    *,
    deadline: float,
    workers: int,
    seed: int,
) -> Found:
    """Proofs from the cheapest to the dearest; `least` is a lower bound that is known already."""
    if best is not None and best_bytes is not None and has_one_order(problem):
        return Found(best, best_bytes, True, "one order")
    exhausted = _over_prefixes(problem, best_bytes, deadline)
    if exhausted.closed:
        return exhausted
    bound = max(least, exhausted.lower_bound)
    if exhausted.slice_of is not None:
        value = cost(problem, exhausted.slice_of)
        if best_bytes is None or value < best_bytes:
            best, best_bytes = exhausted.slice_of, value
    if best is not None and best_bytes is not None and bound < best_bytes:
        until = time.monotonic() + (deadline - time.monotonic()) / 4
        best = refine_by_flows(problem, best, deadline=until, seed=seed)
        best = refine(problem, best, deadline=until, seed=seed)
        best_bytes = cost(problem, best)
    if best_bytes is None or bound < best_bytes:
        bound = max(bound, _cut_bound(problem, best, deadline))
    if best is not None and best_bytes is not None and bound >= best_bytes:
        return Found(best, best_bytes, True, "minimum cuts")
    slices = slice_bound(problem)
    if problem.max_slices is not None:
        slices = min(slices, problem.max_slices)
    if slices == 1:
        fitting = fits(problem, [0] * problem.size)
        return Found([0] * problem.size if fitting else None, 0, True, "one slice")
    if problem.size * slices > MOST_VARIABLES and best is not None:
        better = multilevel(problem, best, deadline=deadline, seed=seed, least=bound)
        value = cost(problem, better)
        return Found(better, min(bound, value), bound >= value, "minimum cuts")
    # Good assignments are found sooner in a model of few slices; the proof needs all of them.
    few = slices if best is None else min(slices, max(best) + 1)
    for count, share in ((few, _FIRST_SHARE), (slices, 1.0)):
        outcome = exact.solve(
            problem,
            count,
            hint=best,
            best=best_bytes,
            least=bound,
            seconds=(deadline - time.monotonic()) * share,
            workers=workers,
            seed=seed,
        )
        if outcome.slice_of is not None:
            best, best_bytes = outcome.slice_of, cost(problem, outcome.slice_of)
        if outcome.closed and count == slices:
            break
        if best is not None and share < 1 and not outcome.closed:
            if count == slices:
                bound = max(bound, outcome.lower_bound)
            until = time.monotonic() + (deadline - time.monotonic()) * _IMPROVING
            best = improve(problem, best, least=bound, deadline=until, workers=workers, seed=seed)
            best_bytes = cost(problem, best)
    bound = max(bound, outcome.lower_bound)
    if outcome.slice_of is None:
        if outcome.closed:
            return Found(best, best_bytes or 0, True, "CP-SAT")
        return Found(best, bound, False, "CP-SAT")
    return Found(outcome.slice_of, bound, outcome.closed, "CP-SAT")


def has_one_order(problem: Problem) -> bool:
    """Whether each node depends on the one before it: then the best cut of that order is optimal."""
    return all(node + 1 in problem.succs[node] for node in range(problem.size - 1))


def _cut_bound(problem: Problem, best: Assignment | None, deadline: float) -> int:
    """The best of the minimum-cut bounds along some orders, and at windows where they say little."""
    from slicewise.passes.partitioning.bounds import lower_bound
    from slicewise.passes.partitioning.windows import window_bound

    tried = orders(problem)
    if best is not None:
        tried.append(sorted(range(problem.size), key=lambda node: (best[node], node)))
    # With the unread nodes last, prefixes that miss one of them early need no thought.
    tried += [sorted(order, key=lambda node: not problem.succs[node]) for order in tried]
    until = time.monotonic() + (deadline - time.monotonic()) / 8
    bound = 0
    for order in tried:
        if time.monotonic() < until:
            bound = max(bound, lower_bound(problem, order, deadline=until))
    enough = None if best is None else cost(problem, best)
    if problem.size < _WIDE or enough is None or bound >= enough * _CLOSE:
        return bound
    until = time.monotonic() + (deadline - time.monotonic()) / 3
    for amounts, cap in problem.resources:
        weights = even_weights(problem, amounts)
        bound = max(bound, window_bound(problem, weights, cap, deadline=until, enough=enough))
    return bound


def _over_prefixes(problem: Problem, best_bytes: int | None, deadline: float) -> Found:
    """Dynamic programming over prefixes, if there are few; perhaps only of a relaxation.

    Not closed, it still has the lower bound and perhaps a better assignment.
    """
    from slicewise.passes.partitioning import ideals
    from slicewise.passes.partitioning.evict import absorb_waiting, settle

    core = absorb_waiting(problem)
    bound, better = 0, None
    attempts: list[tuple[Problem, ideals.Evictable | None, int]] = [(problem, None, _FEW_PREFIXES)]
    if core.evictable is not None:
        attempts.append((core.problem, core.evictable, _MOST_PREFIXES))
    attempts.append((problem, None, _MOST_PREFIXES))
    for goal, evictable, most in attempts:
        seconds = (deadline - time.monotonic()) / 4
        most = min(most, _MOST_CELLS // (goal.size + len(goal.nets) + 1))
        found = ideals.lattice(goal, most, time.monotonic() + seconds)
        if found is None:
            continue
        method = f"all {len(found.ideals)} prefixes"
        slice_of, value, finished = ideals.solve(goal, found, best_bytes, deadline, evictable)
        if not finished:
            continue
        if slice_of is None or evictable is None:
            return Found(slice_of, value, True, method)
        bound, better = value, settle(problem, core, slice_of)
        if better is not None and cost(problem, better) == value:
            return Found(better, value, True, method)
    return Found(better, bound, False, "")
