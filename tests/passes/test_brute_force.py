"""`partition` and its engines against brute force, on random graphs of up to 10 ops."""

from __future__ import annotations

import time
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from slicewise.errors import InfeasibleError
from slicewise.graph import INPUT
from slicewise.limits import MB
from slicewise.passes import Partition, partition
from slicewise.passes.partitioning import bounds, evict, exact, relaxed
from slicewise.passes.partitioning.bounds import lower_bound
from slicewise.passes.partitioning.ground import ground
from slicewise.passes.partitioning.ideals import lattice
from slicewise.passes.partitioning.order import orders
from slicewise.passes.partitioning.problem import cost, even_weights, fits, slice_bound
from slicewise.passes.partitioning.recompute import relaxation
from tests.passes.graphs import INFINITE, Case, best_partition, cases, crossing, slice_is_allowed

QUICK = settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(QUICK, max_examples=3000, derandomize=False)

WEIGHTS = cases({"weights"})
WEIGHTS_AND_SLICES = cases({"weights", "slices"})
KINDS = {
    "weights": WEIGHTS,
    "number of slices": WEIGHTS_AND_SLICES,
    "package": cases({"package", "slices"}),
    "memory": cases({"memory"}),
    "payload": cases({"payload", "weights"}),
    "all limits": cases({"weights", "package", "memory", "payload", "slices"}),
    "recomputation": cases({"weights", "slices"}, cheap=True),
    "recomputation in little memory": cases({"memory"}, cheap=True),
    "recomputation under all limits": cases(
        {"weights", "package", "memory", "payload", "slices"}, cheap=True
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def check(case: Case, found: Partition) -> None:
    """Every promise that a partition makes, counted on the graph itself."""
    graph, limits, overheads = case.graph, case.limits, case.overheads
    position = {op.name: index for index, op in enumerate(graph.ops)}
    total, ran = 0, set[str]()

    assert [part.name for part in found.slices] == [f"slice{i}" for i in range(len(found.slices))]
    assert limits.max_slices is None or len(found.slices) <= limits.max_slices
    for part in found.slices:
        ops = frozenset(part.ops)
        entering, _ = crossing(graph, ops)
        weights = graph.weights_of(part.ops)
        assert list(part.ops) == sorted(ops, key=position.__getitem__)
        assert set(part.recomputed) == ops & ran
        assert all(graph.op[op].is_cheap for op in part.recomputed)
        assert slice_is_allowed(case, ops, frozenset(part.outputs))
        assert limits.memory_mb is None or part.memory_bytes <= limits.memory_mb * MB
        assert set(part.inputs) == entering
        assert part.weight_bytes == sum(graph.weight[name].bytes for name in weights)
        assert part.package_bytes == part.weight_bytes + overheads.package_bytes
        peak = graph.peak_activation_bytes(ops)
        shared = any(graph.op[op].is_cheap for op in ran | ops)
        assert part.peak_activation_bytes == peak or (shared and part.peak_activation_bytes > peak)
        for name in entering:
            producer = graph.tensor[name].producer
            if producer != INPUT:
                assert producer in ran
                total += graph.tensor[name].bytes
        ran |= ops
    assert ran == set(graph.op)
    for index, part in enumerate(found.slices):
        received_after = {name for later in found.slices[index + 1 :] for name in later.inputs}
        fresh = [op for op in part.ops if op not in part.recomputed]
        made = {name for op in fresh for name in graph.op[op].outputs}
        assert set(part.outputs) == made & (received_after | set(graph.outputs))
    assert found.cross_slice_bytes == total
    assert found.certificate.lower_bound <= total


def agree(case: Case) -> None:
    """`partition` reaches what brute force reaches, or refuses when brute force finds nothing."""
    wanted = best_partition(case)
    try:
        found = partition(case.graph, case.limits, overheads=case.overheads, workers=1)
    except InfeasibleError as error:
        assert wanted == INFINITE, error
        return
    check(case, found)

    assert (found.cross_slice_bytes, len(found.slices)) == wanted
    assert found.certificate.status == "optimal"
    assert found.certificate.gap == 0


def raised(case: Case, error: InfeasibleError) -> Case:
    """The case with the limit that the error says works."""
    smallest = error.smallest_limit
    assert smallest is not None and error.limit is not None and smallest > error.limit
    if error.limit_name == "payload_bytes":
        return replace(case, overheads=replace(case.overheads, max_edge_bytes=smallest))
    assert error.limit_name is not None
    return replace(case, limits=replace(case.limits, **{error.limit_name: smallest}))


def refused_until_raised(case: Case) -> None:
    """Each refusal names a limit and a value; with all of these, or one if there is one, it works."""
    refused = []
    for _ in range(6):
        try:
            found = partition(case.graph, case.limits, overheads=case.overheads, workers=1)
        except InfeasibleError as error:
            refused.append(error.limit_name)
            case = raised(case, error)
        else:
            check(case, found)
            break
    else:
        pytest.fail(f"still refused after {refused}")
    assert len(refused) == len(set(refused))


@each_kind
@QUICK
@given(st.data())
def test_reaches_the_optimum_or_refuses_when_there_is_none(
    kind: st.SearchStrategy[Case], data: st.DataObject
):
    agree(data.draw(kind))


@pytest.mark.slow
@MANY
@given(st.one_of(*KINDS.values()))
def test_reaches_the_optimum_on_thousands_of_graphs(case: Case):
    agree(case)


@each_kind
@settings(QUICK, max_examples=20)
@given(st.data())
def test_the_limit_that_a_refusal_names_works(kind: st.SearchStrategy[Case], data: st.DataObject):
    refused_until_raised(data.draw(kind))


@pytest.mark.slow
@MANY
@given(st.one_of(*KINDS.values()))
def test_the_limit_that_a_refusal_names_works_on_thousands_of_graphs(case: Case):
    refused_until_raised(case)


@QUICK
@given(WEIGHTS_AND_SLICES)
def test_cp_sat_alone_reaches_the_optimum(case: Case):
    problem = relaxation(ground(case.graph, case.limits, case.overheads))
    assume(not any(sum(amounts) <= cap for amounts, cap in problem.resources))
    count = min(case.limits.max_slices or len(case.graph.ops), slice_bound(problem))
    assume(count > 1)
    found = exact.solve(problem, count, hint=None, best=None, seconds=30, workers=1, seed=0)
    wanted = best_partition(case)

    if found.slice_of is None:
        assert wanted == INFINITE
    else:
        assert (cost(problem, found.slice_of), max(found.slice_of) + 1) == wanted
        assert fits(problem, found.slice_of)


@QUICK
@given(WEIGHTS_AND_SLICES)
def test_moving_waiting_nodes_keeps_the_optimum(case: Case):
    with mock.patch.object(relaxed, "_FEW_PREFIXES", 0), mock.patch.object(evict, "_MANY", 1):
        agree(case)


@QUICK
@given(WEIGHTS)
def test_minimum_cuts_bound_the_optimum(case: Case):
    problem = relaxation(ground(case.graph, case.limits, case.overheads))
    wanted, _ = best_partition(case)

    for order in orders(problem):
        assert lower_bound(problem, order, deadline=time.monotonic() + 10) <= wanted


@QUICK
@given(WEIGHTS)
def test_every_prefix_weighs_what_its_group_says(case: Case):
    problem = relaxation(ground(case.graph, case.limits, case.overheads))
    found = lattice(problem, 10_000, time.monotonic() + 10)
    weights = even_weights(problem, problem.resources[0][0])
    assert found is not None

    for order in orders(problem):
        position = [order.index(node) for node in range(problem.size)]
        groups = bounds._groups(problem, order, position, time.monotonic() + 10)
        assert groups is not None
        bounds._weigh(groups, order, weights)
        for ideal in found.ideals:
            members = [node for node in range(problem.size) if ideal >> node & 1]
            missing = [position[node] for node in range(problem.size) if not ideal >> node & 1]
            if missing:
                group = groups[min(missing)]
                assert group.low <= sum(weights[members]) <= group.high
