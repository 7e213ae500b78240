"""The search: first without liveness and buffers, then with them if they matter."""

from __future__ import annotations

import time

from slicewise.passes.partitioning import exact
from slicewise.passes.partitioning.ground import Ground
from slicewise.passes.partitioning.problem import lift, slice_bound
from slicewise.passes.partitioning.recompute import (
    Layout,
    Result,
    layout_cost,
    measures,
    obeys,
    options,
    relaxation,
    spread,
)
from slicewise.passes.partitioning.relaxed import MOST_VARIABLES, solve_relaxed
from slicewise.passes.partitioning.tight import solve_tight

_OPTIONS = 10.0  # seconds to spend on whether options run again


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
        return solve_tight(base, best, bound, deadline=deadline, workers=workers, seed=seed)
    if best_bytes > bound and undecided:
        return _decide_options(base, best, bound, deadline=deadline, workers=workers, seed=seed)
    return Result(best, bound, best_bytes == bound, method)


def _decide_options(
    base: Ground, best: Layout, bound: int, *, deadline: float, workers: int, seed: int
) -> Result:
    """Whether options should run again, by CP-SAT; `best` is a layout and `bound` a lower bound."""
    problem = relaxation(base)
    value = layout_cost(base, measures(base, best))
    slices = slice_bound(problem)
    if problem.max_slices is not None:
        slices = min(slices, problem.max_slices)
    if problem.size * slices > MOST_VARIABLES:
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
