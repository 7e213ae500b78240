"""Partitions in which liveness, buffers or payloads decide: limits that are no sums over weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from slicewise.passes.partitioning import exact
from slicewise.passes.partitioning.checked import lenient, solve_checked
from slicewise.passes.partitioning.ground import Ground
from slicewise.passes.partitioning.ideals import lattice
from slicewise.passes.partitioning.order import cut_checked, orders
from slicewise.passes.partitioning.problem import Assignment, Problem, fewest_slices, lift
from slicewise.passes.partitioning.recompute import (
    Layout,
    Result,
    add_inlined,
    inlined_ops,
    layout_cost,
    measures,
    obeys,
    options,
    plain_layout,
    relaxation,
    spread,
    tidy,
)
from slicewise.passes.partitioning.relaxed import MOST_VARIABLES, solve_relaxed

_FEWER_SLICES = 2.0  # seconds to spend on fewer slices at the same bytes
_CHECKED = 3_000  # ops up to which slices are measured one by one along an order
_FEW_PREFIXES = 6_000
_RESERVES = 8  # times that room for activations is set aside before that is given up


def solve_tight(
    base: Ground, broken: Layout, bound: int, *, deadline: float, workers: int, seed: int
) -> Result:
    """The best layout that keeps all limits, given one that breaks some and a lower bound.

    Heuristics first; CP-SAT on all ops then proves the rest as far as time and size allow.
    """
    over_prefixes = _over_prefixes(base, bound, deadline)
    if over_prefixes is not None and over_prefixes.closed:
        return over_prefixes
    best = _with_reserve(base, broken, deadline=deadline, workers=workers, seed=seed)
    if over_prefixes is not None:
        bound = max(bound, over_prefixes.lower_bound)
        if over_prefixes.layout is not None and (
            best is None or _bytes(base, over_prefixes.layout) < _bytes(base, best)
        ):
            best = over_prefixes.layout
    problem = relaxation(base, inline=False)
    if problem.size <= _CHECKED and (best is None or _bytes(base, best) > bound):
        for order in orders(problem):
            slice_of = cut_checked(problem, order, base)
            if slice_of is None:
                continue
            layout = tidy(base, plain_layout(slice_of))
            layout = layout if obeys(base, layout) else plain_layout(slice_of)
            if best is None or _bytes(base, layout) < _bytes(base, best):
                best = layout
    return _prove(base, problem, best, bound, deadline=deadline, workers=workers, seed=seed)


def _over_prefixes(base: Ground, bound: int, deadline: float) -> Result | None:
    """Every slice between two prefixes measured, where prefixes are few.

    The best layout in which cheap ops run wherever they are needed, and a bound for all layouts: the
    same search in a ground that lets every slice have all that it could have.
    """
    if base.limits.max_slices is not None or base.overheads.max_edge_bytes is not None:
        return None
    problem = relaxation(base)
    until = time.monotonic() + (deadline - time.monotonic()) / 2
    found = lattice(problem, _FEW_PREFIXES, until)
    if found is None:
        return None
    slice_of, value, finished = solve_checked(base, problem, found, None, until)
    if not finished:
        return None
    method = f"all {len(found.ideals)} prefixes, measured"
    if slice_of is None or value > bound:
        free = relaxation(base, free_options=True) if options(base) else problem
        best = None if slice_of is None else value
        lax_slices, lax_value, finished = solve_checked(lenient(base), free, found, best, until)
        if not finished:
            return None
        if slice_of is None:
            return Result(None, 0, True, method) if lax_slices is None else None
        bound = max(bound, lax_value if lax_slices is not None else value)
    lifted = lift(problem, slice_of, len(base.reads))
    layout = spread(base, lifted)
    if not obeys(base, layout):
        layout = plain_layout(lifted)
        inlined = inlined_ops(base)
        for ops in layout:
            add_inlined(base, ops, inlined)
    if not obeys(base, layout):  # an inlined op ran before its own slice, and sends from there
        return Result(None, bound, False, method)
    reached = _bytes(base, layout)
    return Result(layout, min(bound, reached), reached <= bound, method)


def _bytes(base: Ground, layout: Layout) -> int:
    return layout_cost(base, measures(base, layout))


def _with_reserve(
    base: Ground, broken: Layout, *, deadline: float, workers: int, seed: int
) -> Layout | None:
    """Set aside what the worst slice took besides its weights, and solve with what is left."""
    cap = base.memory_cap
    if cap is None:
        return None
    problem, reserve = relaxation(base), 0
    until = time.monotonic() + (deadline - time.monotonic()) / 4
    for _ in range(_RESERVES):
        taken = [part.peak + part.buffers for part in measures(base, broken) if part.memory > cap]
        if not taken:
            return None  # it is the payload that breaks
        reserve = max(max(taken), reserve + reserve // 4)
        if reserve > cap or time.monotonic() > until:
            return None
        found = solve_relaxed(
            replace(problem, memory_cap=cap - reserve),
            len(base.reads),
            deadline=until,
            workers=workers,
            seed=seed,
        )
        if found.slice_of is None:
            return None
        broken = spread(base, found.slice_of)
        if obeys(base, broken):
            return broken
    return None


def _prove(
    base: Ground,
    problem: Problem,
    best: Layout | None,
    bound: int,
    *,
    deadline: float,
    workers: int,
    seed: int,
) -> Result:
    value = None if best is None else _bytes(base, best)
    complete = ground_slice_bound(base, problem)
    slices, seconds = complete, deadline - time.monotonic()
    cheapest = best is not None and value == bound
    if best is not None and cheapest:  # only the number of slices may be better
        slices, seconds = len(best), min(seconds, _FEWER_SLICES)
        if slices <= max(2, fewest_slices(problem)):
            return Result(best, bound, True, "cut along orders")
    if problem.max_slices is not None:
        slices, complete = min(slices, problem.max_slices), min(complete, problem.max_slices)
    if slices == 1:
        return Result(None, 0, True, "one slice")
    if best is not None:  # all numbers of slices, or as many as a model can hold
        slices = min(slices, max(len(best), MOST_VARIABLES // 4 // problem.size))
    if problem.size * slices > MOST_VARIABLES:
        return Result(best, bound, cheapest, "cut along orders")
    outcome = exact.solve(
        problem,
        slices,
        hint=None if best is None else _homes(best, problem.size),
        best=value,
        least=bound,
        seconds=seconds,
        workers=workers,
        seed=seed,
        base=base,
        cheap=[op for op, cheap in enumerate(base.cheap) if cheap],
    )
    if outcome.slice_of is not None:
        layout = plain_layout(outcome.slice_of, outcome.copies)
        tidied = tidy(base, layout)
        best = tidied if obeys(base, tidied) else layout
    if slices < complete and not cheapest:  # nothing is proven of more slices
        closed = best is not None and _bytes(base, best) == bound
        return Result(best, bound, closed, f"CP-SAT with liveness, {slices} slices")
    bound = max(bound, outcome.lower_bound)
    return Result(best, bound, outcome.closed or cheapest, "CP-SAT with liveness")


def _homes(layout: Sequence[set[int]], ops: int) -> Assignment:
    """The first slice that runs each op."""
    home = [0] * ops
    for index in range(len(layout) - 1, -1, -1):
        for op in layout[index]:
            home[op] = index
    return home


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
