"""`partition` against brute force, its guarantees on every result, and its errors."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slicewise.errors import InfeasibleError
from slicewise.graph import INPUT, OpGraph
from slicewise.limits import MB, Limits, Overheads
from slicewise.passes import Partition, partition

from tests.passes.graphs import best_partition, crossing, op_graphs, slice_is_allowed

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
memory_left = st.one_of(st.none(), st.integers(8, 40))


def limits_and_overheads(
    weight_bytes: int | None,
    memory: int | None,
    slices: int | None,
    factor: float,
    edge: int | None,
) -> tuple[Limits, Overheads]:
    """Limits that leave `memory` bytes for a slice: the function's overhead takes the rest of 1 MB."""
    return (
        Limits(
            weight_bytes=weight_bytes,
            memory_mb=None if memory is None else 1,
            max_slices=slices,
        ),
        Overheads(
            memory_bytes=0 if memory is None else MB - memory,
            edge_factor=factor,
            max_edge_bytes=edge,
        ),
    )


def check(graph: OpGraph, limits: Limits, overheads: Overheads, found: Partition) -> None:
    """Every promise that a partition makes, counted on the graph itself."""
    slice_of = {op: index for index, part in enumerate(found.slices) for op in part.ops}
    total = 0
    position = {op.name: index for index, op in enumerate(graph.ops)}

    assert sorted(slice_of) == sorted(graph.op)
    assert sum(len(part.ops) for part in found.slices) == len(graph.ops)
    assert [part.name for part in found.slices] == [f"slice{i}" for i in range(len(found.slices))]
    for part in found.slices:
        ops = frozenset(part.ops)
        entering, leaving = crossing(graph, ops)
        weights = graph.weights_of(part.ops)
        assert list(part.ops) == sorted(part.ops, key=position.__getitem__)
        assert slice_is_allowed(graph, ops, limits, overheads)
        assert set(part.inputs) == entering
        assert set(part.outputs) == leaving
        assert part.weight_bytes == sum(graph.weight[name].bytes for name in weights)
        assert part.package_bytes == part.weight_bytes + overheads.package_bytes
        assert part.peak_activation_bytes == graph.peak_activation_bytes(ops)
        for name in entering:
            producer = graph.tensor[name].producer
            if producer != INPUT:
                assert slice_of[producer] < slice_of[part.ops[0]]
                total += graph.tensor[name].bytes
    assert found.cross_slice_bytes == total
    assert found.certificate.lower_bound <= total


def agree(graph: OpGraph, limits: Limits, overheads: Overheads) -> None:
    """`partition` reaches what brute force reaches, or refuses when brute force finds nothing."""
    wanted = best_partition(graph, limits, overheads)
    try:
        found = partition(graph, limits, overheads=overheads, workers=1)
    except InfeasibleError:
        assert wanted[0] == float("inf")
        return
    check(graph, limits, overheads, found)

    assert (found.cross_slice_bytes, len(found.slices)) == wanted
    assert found.certificate.status == "optimal"
    assert found.certificate.gap == 0


@QUICK
@given(op_graphs(), st.integers(4, 16), st.one_of(st.none(), st.integers(1, 4)))
def test_reaches_the_optimum_under_a_weight_limit(graph: OpGraph, cap: int, slices: int | None):
    agree(graph, *limits_and_overheads(cap, None, slices, 0.0, None))


@QUICK
@given(
    op_graphs(most=7),
    st.one_of(st.none(), st.integers(6, 16)),
    st.integers(14, 60),
    st.one_of(st.none(), st.integers(2, 4)),
    st.sampled_from([0.0, 0.5, 1.34]),
    st.one_of(st.none(), st.integers(8, 20)),
)
def test_reaches_the_optimum_under_all_limits(
    graph: OpGraph,
    cap: int | None,
    memory: int,
    slices: int | None,
    factor: float,
    edge: int | None,
):
    agree(graph, *limits_and_overheads(cap, memory, slices, factor, edge))
