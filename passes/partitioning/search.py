"""The search: first without liveness and buffers, then with them if they matter."""

from __future__ import annotations

import time
from dataclasses import dataclass

from slicewise.passes.partitioning import exact
from slicewise.passes.partitioning.ground import Ground, breaks, measure
from slicewise.passes.partitioning.order import cut_checked, cut_order, orders
from slicewise.passes.partitioning.problem import (
    Assignment,
    Problem,
    cost,
    fewest_slices,
    fits,
    lift,
    slice_bound,
)
from slicewise.passes.partitioning.reduce import join_uncuttable, reduce, restrict
from slicewise.passes.partitioning.refine import refine

_MOST_VARIABLES = 60_000  # nodes times slices for which CP-SAT is tried
_FEW_PREFIXES = 20_000  # so few are enumerated before any relaxation is thought of
_MOST_PREFIXES = 400_000
_MOST_CELLS = 200_000_000  # bytes of tables: prefixes times nodes and nets
_FEWER_SLICES = 5.0  # seconds to spend on fewer slices at the same bytes
_CHECKED = 3_000  # ops up to which slices are measured one by one along an order


@dataclass(frozen=True, slots=True)
class Found:
    """The best assignment of ops, a lower bound for all, and whether the search is `closed`.

    Closed: the assignment is optimal; without one, that there is none.
    """

    slice_of: Assignment | None
    lower_bound: int
    closed: bool
    method: str


def search(base: Ground, problem: Problem, *, deadline: float, workers: int, seed: int) -> Found:
    """The best assignment that keeps all limits of `base`; `problem` is its relaxation."""
    if obeys(base, [0] * problem.size):
        return Found([0] * problem.size, 0, True, "one slice")
    relaxed = solve_relaxed(problem, deadline=deadline, workers=workers, seed=seed)
    if relaxed.slice_of is None or obeys(base, relaxed.slice_of):
        return relaxed
    return _solve_ground(base, problem, relaxed, deadline=deadline, workers=workers, seed=seed)


def obeys(base: Ground, slice_of: Assignment) -> bool:
    """Whether this assignment of ops keeps every limit."""
    members: dict[int, list[int]] = {}
    for op, index in enumerate(slice_of):
        members.setdefault(index, []).append(op)
    most = base.limits.max_slices
    if most is not None and len(members) > most:
        return False
    return not any(breaks(base, measure(base, ops)) for ops in members.values())


def solve_relaxed(problem: Problem, *, deadline: float, workers: int, seed: int) -> Found:
    """The optimum of a `Problem`: reduce, cut along orders, refine, prove."""
    ops = problem.size
    small = reduce(problem)
    best = heuristic(small, deadline=deadline, seed=seed)
    bytes_best = None if best is None else cost(small, best)
    if best is not None and bytes_best is not None:
        joined = join_uncuttable(small, bytes_best)
        kept = restrict(small, joined, best)
        if kept is not None and joined.size < small.size:
            small = reduce(joined)
            best = restrict(joined, small, kept)
    found = _prove(small, best, bytes_best, deadline=deadline, workers=workers, seed=seed)
    lifted = None if found.slice_of is None else lift(small, found.slice_of, ops)
    return Found(lifted, found.lower_bound, found.closed, found.method)


def heuristic(problem: Problem, *, deadline: float, seed: int) -> Assignment | None:
    """The best of several cuts along topological orders, refined; None if none keeps the caps."""
    best: Assignment | None = None
    best_bytes = 0
    for order in orders(problem):
        found = cut_order(problem, order)
        if found is None:
            continue
        found = refine(problem, found, deadline=deadline, seed=seed)
        value = cost(problem, found)
        if best is None or (value, max(found)) < (best_bytes, max(best)):
            best, best_bytes = found, value
        if time.monotonic() > deadline:
            break
    return best


def _prove(
    problem: Problem,
    best: Assignment | None,
    best_bytes: int | None,
    *,
    deadline: float,
    workers: int,
    seed: int,
) -> Found:
    if best is not None and best_bytes is not None and has_one_order(problem):
        return Found(best, best_bytes, True, "one order")
    exhausted = _over_prefixes(problem, best_bytes, deadline)
    if exhausted.closed:
        return exhausted
    bound = exhausted.lower_bound
    if exhausted.slice_of is not None:
        best, best_bytes = exhausted.slice_of, cost(problem, exhausted.slice_of)
    bound = max(bound, _cut_bound(problem, best, deadline))
    if best_bytes is not None and bound >= best_bytes:
        return Found(best, best_bytes, True, "minimum cuts")
    slices = slice_bound(problem)
    if problem.max_slices is not None:
        slices = min(slices, problem.max_slices)
    if slices == 1:
        fitting = fits(problem, [0] * problem.size)
        return Found([0] * problem.size if fitting else None, 0, True, "one slice")
    if problem.size * slices > _MOST_VARIABLES and best is not None:
        return Found(best, bound, False, "minimum cuts")
    outcome = exact.solve(
        problem,
        slices,
        hint=best,
        best=best_bytes,
        least=bound,
        seconds=deadline - time.monotonic(),
        workers=workers,
        seed=seed,
    )
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
    """The best of the minimum-cut bounds along some orders."""
    from slicewise.passes.partitioning.bounds import lower_bound

    tried = orders(problem)
    if best is not None:
        tried.append(sorted(range(problem.size), key=lambda node: (best[node], node)))
    until = time.monotonic() + (deadline - time.monotonic()) / 4
    bound = 0
    for order in tried:
        if time.monotonic() < until:
            bound = max(bound, lower_bound(problem, order, deadline=until))
    return bound


def _over_prefixes(problem: Problem, best_bytes: int | None, deadline: float) -> Found:
    """Dynamic programming over prefixes, if there are few; perhaps only of a relaxation.

    Not closed, it still has the lower bound and perhaps a better assignment.
    """
    from slicewise.passes.partitioning import ideals
    from slicewise.passes.partitioning.evict import absorb_sources, settle

    core = absorb_sources(problem)
    bound, better = 0, None
    for goal, evictable, most in (
        (problem, None, _FEW_PREFIXES),
        (core.problem, core.evictable, _MOST_PREFIXES),
        (problem, None, _MOST_PREFIXES),
    ):
        if goal is core.problem and evictable is None:
            continue
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


def _solve_ground(
    base: Ground, problem: Problem, relaxed: Found, *, deadline: float, workers: int, seed: int
) -> Found:
    """With liveness and buffers, on all ops: cut along orders for a hint, then CP-SAT."""
    best: Assignment | None = None
    best_bytes: int | None = None
    if problem.size <= _CHECKED:
        for order in orders(problem):
            found = cut_checked(problem, order, base)
            if found is not None and (best_bytes is None or cost(problem, found) < best_bytes):
                best, best_bytes = found, cost(problem, found)
    slices = ground_slice_bound(base, problem)
    seconds = deadline - time.monotonic()
    cheapest = best is not None and best_bytes == relaxed.lower_bound
    if best is not None and cheapest:  # only the number of slices may be better
        slices, seconds = max(best) + 1, min(seconds, _FEWER_SLICES)
    if problem.max_slices is not None:
        slices = min(slices, problem.max_slices)
    if best is not None and cheapest and slices <= max(2, fewest_slices(problem)):
        return Found(best, relaxed.lower_bound, True, relaxed.method)
    if slices == 1:
        return Found(None, 0, True, "one slice")
    outcome = exact.solve(
        problem,
        slices,
        hint=best,
        best=best_bytes,
        seconds=seconds,
        workers=workers,
        seed=seed,
        base=base,
    )
    bound = max(relaxed.lower_bound, outcome.lower_bound)
    if outcome.slice_of is not None:
        best = outcome.slice_of
    return Found(best, bound, outcome.closed or cheapest, "CP-SAT with liveness")


def ground_slice_bound(base: Ground, problem: Problem) -> int:
    """As `slice_bound`, with all limits: what two slices touch bounds what their union takes."""
    pairs = 0
    for amounts, cap in problem.resources[:1] if base.weight_cap is not None else ():
        pairs += _held(problem, amounts) // (cap + 1)
    readers = [len(ops) for ops in base.readers]
    touched = sum(size * (1 + count) for size, count in zip(base.size, readers, strict=True))
    if base.memory_cap is not None:
        left = base.memory_cap - max(base.scratch, default=0)
        if left < 0:
            return problem.size
        memory = _held(problem, tuple(load.memory for load in problem.loads))
        pairs += int((memory + (1 + base.edge_factor) * touched) // (left + 1))
    if base.overheads.max_edge_bytes is not None:
        pairs += 2 * touched // (base.overheads.max_edge_bytes + 1)
    return min(2 * pairs + 1, problem.size)


def _held(problem: Problem, amounts: tuple[int, ...]) -> int:
    return sum(
        amount * len(load.users) for load, amount in zip(problem.loads, amounts, strict=True)
    )
