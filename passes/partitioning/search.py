"""The search for one `Ground`: first without liveness and buffers, then with them if they matter."""

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
    fits,
    lift,
    slice_bound,
)
from slicewise.passes.partitioning.reduce import join_uncuttable, reduce, restrict
from slicewise.passes.partitioning.refine import refine

_MOST_PREFIXES = 150_000
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
    from slicewise.passes.partitioning import ideals

    until = time.monotonic() + (deadline - time.monotonic()) / 2
    prefixes = ideals.ideals(problem, _MOST_PREFIXES, until)
    if prefixes is not None:
        found, proven = ideals.solve(problem, prefixes, best_bytes, deadline)
        if proven:
            value = 0 if found is None else cost(problem, found)
            return Found(found, value, True, f"all {len(prefixes)} prefixes")
    slices = slice_bound(problem)
    if problem.max_slices is not None:
        slices = min(slices, problem.max_slices)
    if slices == 1:
        fitting = fits(problem, [0] * problem.size)
        return Found([0] * problem.size if fitting else None, 0, True, "one slice")
    outcome = exact.solve(
        problem,
        slices,
        hint=best,
        best=best_bytes,
        seconds=deadline - time.monotonic(),
        workers=workers,
        seed=seed,
    )
    if outcome.slice_of is None:
        if outcome.closed:
            return Found(best, best_bytes or 0, True, "CP-SAT")
        return Found(best, outcome.lower_bound, False, "CP-SAT")
    return Found(outcome.slice_of, outcome.lower_bound, outcome.closed, "CP-SAT")


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
    if best is not None and best_bytes == relaxed.lower_bound:
        return Found(best, best_bytes, True, relaxed.method)
    slices = ground_slice_bound(base, problem)
    if problem.max_slices is not None:
        slices = min(slices, problem.max_slices)
    if slices == 1:
        return Found(None, 0, True, "one slice")
    outcome = exact.solve(
        problem,
        slices,
        hint=best,
        best=best_bytes,
        seconds=deadline - time.monotonic(),
        workers=workers,
        seed=seed,
        base=base,
    )
    bound = max(relaxed.lower_bound, outcome.lower_bound)
    if outcome.slice_of is not None:
        best = outcome.slice_of
    return Found(best, bound, outcome.closed, "CP-SAT with liveness")


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
