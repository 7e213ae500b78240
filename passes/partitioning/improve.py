"""A better assignment while time lasts: by contractions, in windows of slices, and whole, in turns."""

from __future__ import annotations

import time

from slicewise.passes.partitioning import exact
from slicewise.passes.partitioning.multilevel import multilevel
from slicewise.passes.partitioning.problem import Assignment, Problem, cost

_ROUND = 6.0  # seconds of contracting and annealing before windows are tried again
_WHOLE = 12.0  # and to solve all of them
_MOST_VARIABLES = 60_000
_WINDOW = 2.0  # seconds to solve some neighbouring slices


def improve(
    problem: Problem,
    best: Assignment,
    *,
    least: int,
    deadline: float,
    workers: int,
    seed: int,
) -> Assignment:
    """An assignment of no more bytes; goes on until `deadline` or `least` bytes."""
    turn, settled = 0, -1  # the bytes at which all windows were last seen to gain nothing
    while cost(problem, best) > least and time.monotonic() < deadline:
        before = cost(problem, best)
        until = min(deadline, time.monotonic() + _ROUND * (1 + turn))
        best = multilevel(problem, best, deadline=until, seed=seed + turn, least=least)
        turn += 1
        seconds = min(_WHOLE * turn, deadline - time.monotonic())
        if seconds > 0 and problem.size * (max(best) + 1) <= _MOST_VARIABLES:
            outcome = exact.solve(
                problem,
                max(best) + 1,
                hint=best,
                best=cost(problem, best),
                least=least,
                seconds=seconds,
                workers=workers,
                seed=seed + turn,
            )
            best = best if outcome.slice_of is None else outcome.slice_of
        if cost(problem, best) < before or settled != before:
            best = _solve_windows(problem, best, deadline=deadline, workers=workers, seed=seed)
            settled = cost(problem, best)
    return best


def _solve_windows(
    problem: Problem, best: Assignment, *, deadline: float, workers: int, seed: int
) -> Assignment:
    """Solve two or three neighbouring slices at a time, as long as that saves bytes."""
    for width in (2, 3):
        fresh = max(best) + 1  # windows in a row that gained nothing
        index = 0
        while fresh > 0 and time.monotonic() < deadline:
            slices = max(best) + 1
            first = index % max(1, slices - width + 1)
            index, fresh = index + 1, fresh - 1
            value = cost(problem, best)
            outcome = exact.solve(
                problem,
                slices,
                hint=best,
                best=value,
                seconds=min(_WINDOW, deadline - time.monotonic()),
                workers=workers,
                seed=seed,
                window=(first, first + width - 1),
            )
            if outcome.slice_of is not None and cost(problem, outcome.slice_of) < value:
                best, fresh = outcome.slice_of, max(outcome.slice_of) + 1
    return best
