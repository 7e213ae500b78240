"""Contractions and refinement by minimum cuts against the definition, on random problems."""

from __future__ import annotations

import random
import time
from itertools import pairwise
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from slicewise.limits import Limits, Overheads
from slicewise.passes import partition
from slicewise.passes.partitioning import coarsen, flow, multilevel
from slicewise.passes.partitioning.ground import ground
from slicewise.passes.partitioning.order import cut_order
from slicewise.passes.partitioning.problem import Assignment, Problem, cost, fits
from slicewise.passes.partitioning.recompute import relaxation
from slicewise.passes.partitioning.reduce import carry, reduce
from slicewise.passes.partitioning.refine import State
from tests.passes.graphs import op_graphs
from tests.passes.test_segments import narrow_problem, twin_problem, wide_problem

seeds = st.integers(0, 1 << 32)


def small_problem(pick: random.Random) -> Problem:
    return pick.choice((narrow_problem, twin_problem))(pick)


def some_assignment(problem: Problem, pick: random.Random) -> Assignment:
    """Slices along a random topological order, cut wherever the cap demands it, and elsewhere too."""
    order: list[int] = []
    ready = [node for node in range(problem.size) if not problem.preds[node]]
    waiting = [len(before) for before in problem.preds]
    while ready:
        node = ready.pop(pick.randrange(len(ready)))
        order.append(node)
        for other in problem.succs[node]:
            waiting[other] -= 1
            if not waiting[other]:
                ready.append(other)
    slice_of = [0] * problem.size
    last = 0
    for position in range(problem.size):
        rest = order[position:]
        for other in rest:
            slice_of[other] = last
        held = [other for other in order[: position + 1] if slice_of[other] == last]
        if len(held) > 1 and (pick.random() < 0.2 or not _fit(problem, held)):
            last += 1
            for other in rest:
                slice_of[other] = last
    return slice_of


def _fit(problem: Problem, nodes: list[int]) -> bool:
    return all(
        sum(
            amount
            for amount, load in zip(amounts, problem.loads, strict=True)
            if not set(nodes).isdisjoint(load.users)
        )
        <= cap
        for amounts, cap in problem.resources
    )


def check(problem: Problem, slice_of: Assignment, most: int) -> None:
    assert len(slice_of) == problem.size
    assert fits(problem, slice_of)
    assert all(slice_of[u] <= slice_of[v] for u in range(problem.size) for v in problem.succs[u])
    assert cost(problem, slice_of) <= most


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_a_reduction_carries_every_assignment_over_at_no_cost(seed: int):
    pick = random.Random(seed)
    problem = small_problem(pick)
    slice_of = some_assignment(problem, pick)

    small = reduce(problem)

    check(small, carry(problem, small, slice_of), cost(problem, slice_of))


@settings(max_examples=100, deadline=None)
@given(seeds, st.booleans())
def test_contractions_cover_all_nodes_and_keep_slices(seed: int, kept: bool):
    """`quotient` itself fails if a contraction makes a cycle."""
    pick = random.Random(seed)
    problem = small_problem(pick) if pick.random() < 0.8 else wide_problem(10, 6)
    slice_of = some_assignment(problem, pick)

    levels = coarsen.coarsen(problem, 3, seed=seed, slice_of=slice_of if kept else None)

    for finer, coarser in pairwise(levels):
        assert coarser.size < finer.size
        assert sorted(op for ops in coarser.ops for op in ops) == list(range(problem.size))
        if kept:
            slice_of = carry(finer, coarser, slice_of)
            check(coarser, slice_of, cost(finer, carry(coarser, finer, slice_of)))


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_refinement_by_minimum_cuts_keeps_caps_and_order(seed: int):
    pick = random.Random(seed)
    problem = small_problem(pick) if pick.random() < 0.8 else wide_problem(10, 6)
    slice_of = some_assignment(problem, pick)

    found = flow.refine_by_flows(problem, slice_of, deadline=time.monotonic() + 10)

    check(problem, found, cost(problem, slice_of))


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_a_multilevel_search_covers_all_nodes_and_keeps_caps_and_order(seed: int):
    pick = random.Random(seed)
    problem = small_problem(pick) if pick.random() < 0.5 else wide_problem(10, 6)
    start = some_assignment(problem, pick)

    with (
        mock.patch.object(multilevel, "_SMALLEST", (3, 5)),
        mock.patch.object(multilevel, "_ANNEALING", 0.01),
    ):
        found = multilevel.multilevel(
            problem, start, deadline=time.monotonic() + 0.3, seed=seed, least=0
        )

    check(problem, found, cost(problem, start))


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_a_minimum_cut_is_the_best_boundary_that_the_free_nodes_allow(seed: int):
    pick = random.Random(seed)
    problem = small_problem(pick)
    slice_of = some_assignment(problem, pick)
    first = pick.randint(0, max(0, max(slice_of) - 1))
    near = [node for node, where in enumerate(slice_of) if where in (first, first + 1)]
    free = pick.sample(near, pick.randint(1, min(6, len(near))))
    costs = []
    for bits in range(1 << len(free)):
        trial = list(slice_of)
        for index, node in enumerate(free):
            trial[node] = first + (bits >> index & 1)
        if all(trial[u] <= trial[v] for u in range(problem.size) for v in problem.succs[u]):
            costs.append(cost(problem, trial))

    for after in flow._minimum_cuts(State(problem, slice_of), free, first):
        found = list(slice_of)
        for node in free:
            found[node] = first + (node in after)
        assert all(found[u] <= found[v] for u in range(problem.size) for v in problem.succs[u])
        assert cost(problem, found) == min(costs)


@settings(max_examples=100, deadline=None)
@given(op_graphs(), st.integers(4, 16), st.one_of(st.none(), st.integers(1, 4)))
def test_no_partition_is_worse_than_a_cut_along_the_graphs_order(graph, cap, slices):
    """Whatever the time; so none is worse than filling slices one after the other, or equal ones."""
    limits = Limits(weight_bytes=cap, max_slices=slices)
    problem = relaxation(ground(graph, limits, Overheads()))
    own = cut_order(problem, range(problem.size))
    if own is not None:
        found = partition(graph, limits, time_limit_s=0.0, workers=1)
        assert found.cross_slice_bytes <= cost(problem, own)
