"""The search: first without liveness and buffers, then with them if they matter."""

from __future__ import annotations

import time
from dataclasses import dataclass

from slicewise.passes.partitioning import exact
from slicewise.passes.partitioning.ground import Ground
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
from slicewise.passes.partitioning.recompute import (
    Layout,
    layout_cost,
    measures,
    obeys,
    options,
    plain_layout,
    relaxation,
    spread,
    tidy,
)
from slicewise.passes.partitioning.reduce import join_uncuttable, reduce, restrict
from slicewise.passes.partitioning.refine import refine

_MOST_VARIABLES = 60_000  # nodes times slices for which CP-SAT is tried
_FEW_PREFIXES = 20_000  # so few are enumerated before any relaxation is thought of
_MOST_PREFIXES = 400_000
_MOST_CELLS = 200_000_000  # bytes of tables: prefixes times nodes and nets
_FEWER_SLICES = 5.0  # seconds to spend on fewer slices at the same bytes
_OPTIONS = 10.0  # seconds to spend on whether options run again
_CHECKED = 3_000  # ops up to which slices are measured one by one along an order


@dataclass(frozen=True, slots=True)
class Result:
    """The best layout, a lower bound for all, and whether the search is `closed`.

    Closed: the layout is optimal; without one, that there is none.
    """

    layout: Layout | None
    lower_bound: int
    closed: bool
    method: str


@dataclass(frozen=True, slots=True)
class Found:
    """The same for a `Problem`: the slice of every op, -1 for ops that are not in it."""

    slice_of: Assignment | None
    lower_bound: int
    closed: bool
    method: str


def search(base: Ground, *, deadline: float, workers: int, seed: int) -> Result:
    """The best layout that keeps all limits of `base`."""
    ops = len(base.reads)
    if not ops:
        return Result([], 0, True, "no ops")
    if obeys(base, [set(range(ops))]):
        return Result([set(range(ops))], 0, True, "one slice")
    undecided = options(base)
    best: Layout | None = None
    best_bytes = bound = 0
    method = ""
    for free_options in (True, False) if undecided else (False,):
        problem = relaxation(base, free_options=free_options)
        found = solve_relaxed(problem, ops, deadline=deadline, workers=workers, seed=seed)
        if found.slice_of is None:
            return Result(None, found.lower_bound, found.closed, found.method)
        if free_options or not undecided:
            bound, method = found.lower_bound, found.method
        layout = spread(base, found.slice_of)
        value = layout_cost(base, measures(base, layout))
        if best is None or value < best_bytes:
            best, best_bytes = layout, value
        if best_bytes == bound:
            break
    assert best is not None
    if not obeys(base, best):
        return _solve_ground(base, bound, deadline=deadline, workers=workers, seed=seed)
    if best_bytes > bound and undecided:
        return _decide_options(base, best, bound, deadline=deadline, workers=workers, seed=seed)
    return Result(best, bound, best_bytes == bound, method)


def solve_relaxed(problem: Problem, ops: int, *, deadline: float, workers: int, seed: int) -> Found:
    """The optimum of a `Problem` for the slices of `ops` ops: reduce, cut orders, refine, prove."""
    small = reduce(problem)
    fallback: Assignment | None = None
    best = heuristic(small, deadline=deadline, seed=seed)
    bytes_best = None if best is None else cost(small, best)
    if best is not None and bytes_best is not None:
        joined = join_uncuttable(small, bytes_best)
        fallback = lift(small, best, ops)
        if joined.size < small.size:
            best = restrict(small, joined, best)
            small = reduce(joined)
            best = None if best is None else restrict(joined, small, best)
    found = _prove(small, best, bytes_best, deadline=deadline, workers=workers, seed=seed)
    if found.slice_of is not None:
        fallback = lift(small, found.slice_of, ops)
    return Found(fallback, found.lower_bound, found.closed, found.method)


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
    if best is not None and best_bytes is not None and bound >= best_bytes:
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


def _decide_options(
    base: Ground, best: Layout, bound: int, *, deadline: float, workers: int, seed: int
) -> Result:
    """Whether options should run again, by CP-SAT; `best` is a layout and `bound` a lower bound."""
    problem = relaxation(base)
    value = layout_cost(base, measures(base, best))
    slices = slice_bound(problem)
    if problem.max_slices is not None:
        slices = min(slices, problem.max_slices)
    if problem.size * slices > _MOST_VARIABLES:
        return Result(best, bound, False, "prefixes")
    outcome = exact.solve(
        problem,
        slices,
        hint=None,
        best=value,
        least=bound,
        seconds=min(_OPTIONS, deadline - time.monotonic()),
        workers=workers,
        seed=seed,
        cheap=[node for node, (op,) in enumerate(problem.ops) if base.cheap[op]],
    )
    bound = max(bound, outcome.lower_bound)
    closed = outcome.closed
    if outcome.slice_of is not None:
        copies = [(problem.ops[node][0], index) for node, index in outcome.copies]
        layout = spread(base, lift(problem, outcome.slice_of, len(base.reads)), copies)
        found = layout_cost(base, measures(base, layout))
        if found <= value and obeys(base, layout):
            best, value = layout, found
        else:
            closed = False
    return Result(best, min(bound, value), closed or bound >= value, "CP-SAT with recomputation")


def _solve_ground(base: Ground, bound: int, *, deadline: float, workers: int, seed: int) -> Result:
    """With liveness and buffers, on all ops: cut along orders for a hint, then CP-SAT."""
    problem = relaxation(base, inline=False)
    best: Assignment | None = None
    best_bytes: int | None = None
    if problem.size <= _CHECKED:
        for order in orders(problem):
            found = cut_checked(problem, order, base)
            if found is not None and (best_bytes is None or cost(problem, found) < best_bytes):
                best, best_bytes = found, cost(problem, found)
    layout = None if best is None else plain_layout(best)
    slices = ground_slice_bound(base, problem)
    seconds = deadline - time.monotonic()
    cheapest = best is not None and best_bytes == bound
    if best is not None and cheapest:  # only the number of slices may be better
        slices, seconds = max(best) + 1, min(seconds, _FEWER_SLICES)
    if problem.max_slices is not None:
        slices = min(slices, problem.max_slices)
    if best is not None and cheapest and slices <= max(2, fewest_slices(problem)):
        return Result(layout, bound, True, "cut along an order")
    if slices == 1:
        return Result(None, 0, True, "one slice")
    outcome = exact.solve(
        problem,
        slices,
        hint=best,
        best=best_bytes,
        least=bound,
        seconds=seconds,
        workers=workers,
        seed=seed,
        base=base,
        cheap=[op for op, cheap in enumerate(base.cheap) if cheap],
    )
    bound = max(bound, outcome.lower_bound)
    if outcome.slice_of is not None:
        layout = plain_layout(outcome.slice_of, outcome.copies)
        tidied = tidy(base, layout)
        layout = tidied if obeys(base, tidied) else layout
    return Result(layout, bound, outcome.closed or cheapest, "CP-SAT with liveness")


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
