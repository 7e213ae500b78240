"""`partition` against brute force, its guarantees on every result, and its errors."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import combinations, pairwise
from unittest import mock

import networkx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from slicewise.errors import InfeasibleError
from slicewise.graph import INPUT, Op, OpGraph, Tensor, Weight
from slicewise.limits import MB, Limits, Overheads
from slicewise.passes import Partition, partition
from slicewise.passes.partitioning import bounds, evict, exact, relaxed
from slicewise.passes.partitioning.bounds import lower_bound
from slicewise.passes.partitioning.ground import Ground, ground
from slicewise.passes.partitioning.ideals import lattice
from slicewise.passes.partitioning.order import orders
from slicewise.passes.partitioning.problem import cost, even_weights, fits, slice_bound
from slicewise.passes.partitioning.recompute import layout_cost, measures, obeys, relaxation
from tests.passes.graphs import best_partition, crossing, op_graphs, slice_is_allowed

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
memory_left = st.one_of(st.none(), st.integers(8, 40))


def limits_and_overheads(
    weight_bytes: int | None,
    memory: int | None,
    slices: int | None,
    factor: float,
    edge: int | None,
) -> tuple[Limits, Overheads]:
    """Limits that leave `memory` bytes for a slice: overhead takes the rest of 1 MB."""
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
    position = {op.name: index for index, op in enumerate(graph.ops)}
    total, ran = 0, set[str]()

    assert [part.name for part in found.slices] == [f"slice{i}" for i in range(len(found.slices))]
    for part in found.slices:
        ops = frozenset(part.ops)
        entering, _ = crossing(graph, ops)
        weights = graph.weights_of(part.ops)
        assert list(part.ops) == sorted(ops, key=position.__getitem__)
        assert set(part.recomputed) == ops & ran
        assert all(graph.op[op].is_cheap for op in part.recomputed)
        assert slice_is_allowed(graph, ops, limits, overheads)
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


@QUICK
@given(
    op_graphs(most=6, cheap=True),
    st.integers(4, 16),
    st.one_of(st.none(), st.integers(2, 4)),
)
def test_reaches_the_optimum_with_recomputation(graph: OpGraph, cap: int, slices: int | None):
    agree(graph, *limits_and_overheads(cap, None, slices, 0.0, None))


@QUICK
@given(
    op_graphs(most=6, cheap=True),
    st.integers(4, 16),
    st.integers(20, 60),
    st.one_of(st.none(), st.integers(6, 20)),
)
def test_recomputation_keeps_all_limits(graph: OpGraph, cap: int, memory: int, edge: int | None):
    """What a slice sends depends on later slices, which brute force does not look at."""
    limits, overheads = limits_and_overheads(cap, memory, None, 0.5, edge)
    try:
        found = partition(graph, limits, overheads=overheads, workers=1)
    except InfeasibleError:
        return
    check(graph, limits, replace(overheads, edge_factor=0.0, max_edge_bytes=None), found)
    for part in found.slices:
        for names in (part.inputs, part.outputs):
            total = sum(graph.tensor[name].max_bytes for name in names)
            assert edge is None or total <= edge
    wanted = best_partition(graph, limits, replace(overheads, edge_factor=0.0, max_edge_bytes=None))
    assert found.cross_slice_bytes >= wanted[0]


def best_layout_bytes(base: Ground) -> float:
    """The fewest bytes of all sequences of slices that keep every limit, by trying each of them."""
    count = len(base.reads)
    subsets = [set(ops) for n in range(1, count + 1) for ops in combinations(range(count), n)]
    best = float("inf")

    def extend(layout: list[set[int]], done: set[int]) -> None:
        nonlocal best
        if len(done) == count:
            if obeys(base, layout):
                best = min(best, layout_cost(base, measures(base, layout)))
            return
        for ops in subsets:
            again = ops & done
            if ops <= done or not all(base.cheap[op] for op in again):
                continue
            needed = {base.producer[t] for op in ops for t in base.reads[op]} - {-1}
            if needed <= done | ops:
                extend([*layout, ops], done | ops)

    extend([], set())
    return best


@settings(QUICK, max_examples=50)
@given(op_graphs(most=5, cheap=True), st.integers(4, 16), st.integers(14, 60))
def test_proofs_with_recomputation_under_memory_limits_hold(
    graph: OpGraph, cap: int, memory: int
) -> None:
    """What is called optimal is, and no lower bound lies above the optimum."""
    limits, overheads = limits_and_overheads(cap, memory, None, 0.5, None)
    wanted = best_layout_bytes(ground(graph, limits, overheads))
    try:
        found = partition(graph, limits, overheads=overheads, workers=1, time_limit_s=5)
    except InfeasibleError:
        return
    assert found.cross_slice_bytes >= wanted
    assert found.certificate.lower_bound <= wanted
    if found.certificate.status == "optimal":
        assert found.cross_slice_bytes == wanted


@settings(QUICK, max_examples=50)
@given(op_graphs(), st.integers(4, 16), st.one_of(st.none(), st.integers(1, 4)))
def test_cp_sat_alone_reaches_the_optimum(graph: OpGraph, cap: int, slices: int | None):
    limits, overheads = limits_and_overheads(cap, None, slices, 0.0, None)
    problem = relaxation(ground(graph, limits, overheads))
    assume(not any(sum(amounts) <= cap for amounts, cap in problem.resources))
    count = min(slices or len(graph.ops), slice_bound(problem))
    assume(count > 1)
    found = exact.solve(problem, count, hint=None, best=None, seconds=30, workers=1, seed=0)
    wanted = best_partition(graph, limits, overheads)

    if found.slice_of is None:
        assert wanted[0] == float("inf")
    else:
        assert (cost(problem, found.slice_of), max(found.slice_of) + 1) == wanted
        assert fits(problem, found.slice_of)


@QUICK
@given(op_graphs(), st.integers(4, 16), st.one_of(st.none(), st.integers(1, 4)))
def test_moving_waiting_nodes_keeps_the_optimum(graph: OpGraph, cap: int, slices: int | None):
    with mock.patch.object(relaxed, "_FEW_PREFIXES", 0), mock.patch.object(evict, "_MANY", 1):
        agree(graph, *limits_and_overheads(cap, None, slices, 0.0, None))


@QUICK
@given(op_graphs(), st.integers(4, 16))
def test_minimum_cuts_bound_the_optimum(graph: OpGraph, cap: int):
    limits, overheads = limits_and_overheads(cap, None, None, 0.0, None)
    problem = relaxation(ground(graph, limits, overheads))
    wanted, _ = best_partition(graph, limits, overheads)

    for order in orders(problem):
        assert lower_bound(problem, order, deadline=time.monotonic() + 10) <= wanted


@QUICK
@given(op_graphs(), st.integers(4, 16))
def test_every_prefix_weighs_what_its_group_says(graph: OpGraph, cap: int):
    limits, overheads = limits_and_overheads(cap, None, None, 0.0, None)
    problem = relaxation(ground(graph, limits, overheads))
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


def chain(*sizes: int, weight: int = 10) -> OpGraph:
    """A chain of ops a, b, c, ... of equal weights whose tensors have these bytes."""
    digraph = networkx.DiGraph()
    names = [chr(ord("a") + index) for index in range(len(sizes))]
    for name, size in zip(names, sizes, strict=True):
        digraph.add_node(name, bytes=size, weight_bytes=weight)
    digraph.add_edges_from(pairwise(names))
    return OpGraph.from_networkx(digraph)


def test_cuts_a_chain_at_its_smallest_tensor():
    found = partition(chain(5, 1, 7, 5), Limits(weight_bytes=30))

    assert [part.ops for part in found.slices] == [("a", "b"), ("c", "d")]
    assert found.cross_slice_bytes == 1
    assert found.certificate.status == "optimal"


def test_a_graph_that_fits_is_one_slice():
    found = partition(chain(5, 1, 7), Limits())

    assert [part.ops for part in found.slices] == [("a", "b", "c")]
    assert found.cross_slice_bytes == 0


def test_a_tensor_is_paid_once_per_slice_that_receives_it():
    digraph = networkx.DiGraph([("a", "b"), ("a", "c"), ("a", "d")])
    networkx.set_node_attributes(digraph, {"a": 3, "b": 0, "c": 0, "d": 0}, "bytes")
    networkx.set_node_attributes(digraph, 10, "weight_bytes")

    found = partition(OpGraph.from_networkx(digraph), Limits(weight_bytes=20))

    assert len(found.slices) == 2
    assert found.cross_slice_bytes == 3


def test_a_shared_weight_counts_once_per_slice():
    tied = Weight(name="w", bytes=8, memory_bytes=8)
    ops = tuple(
        Op(name=name, inputs=inputs, outputs=(name,), weights=("w",))
        for name, inputs in (("a", ()), ("b", ("a",)))
    )
    tensors = tuple(Tensor(name=op.name, producer=op.name, bytes=4, max_bytes=4) for op in ops)
    graph = OpGraph(name="tied", ops=ops, tensors=tensors, weights=(tied,), outputs=("b",))

    assert len(partition(graph, Limits(weight_bytes=8)).slices) == 1


def test_names_the_op_whose_weights_do_not_fit():
    graph = chain(1, 1, weight=200 * MB)

    with pytest.raises(InfeasibleError, match=r"Op 'a' has 200.0 MB .*100.0 MB") as caught:
        partition(graph, Limits(weight_bytes=100 * MB))

    assert caught.value.op == "a"
    assert caught.value.smallest_limit == 200 * MB
    partition(graph, Limits(weight_bytes=200 * MB))


def test_names_the_smallest_package_limit_that_works():
    graph, overheads = chain(1, 1, weight=200 * MB), Overheads(package_bytes=71 * MB)

    with pytest.raises(InfeasibleError, match="Raise package_mb to at least 271") as caught:
        partition(graph, Limits(package_mb=250), overheads=overheads)

    assert caught.value.smallest_limit == 271
    partition(graph, Limits(package_mb=271), overheads=overheads)


def test_names_the_smallest_memory_limit_that_works():
    graph, overheads = chain(10 * MB, 90 * MB, 5 * MB), Overheads(memory_bytes=110 * MB)

    with pytest.raises(InfeasibleError, match=r"Op 'b' needs 100.0 MB .*200 MB") as caught:
        partition(graph, Limits(memory_mb=200), overheads=overheads)

    assert caught.value.limit_name == "memory_mb"
    smallest = caught.value.smallest_limit
    assert smallest is not None
    partition(graph, Limits(memory_mb=smallest), overheads=overheads)


def test_no_memory_below_the_one_it_names_works():
    """Ops together may take less than the largest of them alone: they send each other nothing."""
    graph, overheads = (
        chain(1 * MB, 90 * MB, 5 * MB, 5 * MB),
        Overheads(memory_bytes=110 * MB, edge_factor=1.0),
    )

    with pytest.raises(InfeasibleError, match=r"Raise memory_mb to \d+, or split") as caught:
        partition(graph, Limits(memory_mb=150), overheads=overheads)

    smallest = caught.value.smallest_limit
    assert smallest is not None
    partition(graph, Limits(memory_mb=smallest), overheads=overheads)
    with pytest.raises(InfeasibleError):
        partition(graph, Limits(memory_mb=smallest - 1), overheads=overheads)


def test_names_the_number_of_slices_that_works():
    graph = chain(1, 1, 1, 1, 1, weight=60 * MB)

    with pytest.raises(InfeasibleError, match="Raise max_slices to 5") as caught:
        partition(graph, Limits(weight_bytes=100 * MB, max_slices=3))

    assert caught.value.smallest_limit == 5
    partition(graph, Limits(weight_bytes=100 * MB, max_slices=5))


def test_a_graph_without_ops_has_no_slices():
    graph = OpGraph(name="empty", ops=(), tensors=())

    assert partition(graph, Limits(weight_bytes=1)).slices == ()


def op(name: str, inputs: tuple[str, ...], *, weights: tuple[str, ...] = (), cheap: bool = False):
    return Op(name=name, inputs=inputs, outputs=(name,), weights=weights, is_cheap=cheap)


def masked_layers(count: int = 4) -> OpGraph:
    """Layers of 10 bytes a tensor that all read a mask: 2 bytes from the request, 400 broadcast."""
    ops = [
        op("size", ("hidden",), cheap=True),
        op("cast", ("mask",), cheap=True),
        op("broadcast", ("cast", "size"), cheap=True),
    ]
    last = "hidden"
    for index in range(count):
        ops.append(op(f"layer{index}", (last, "broadcast"), weights=(f"w{index}",)))
        last = f"layer{index}"
    sizes = {"size": 8, "cast": 4, "broadcast": 400}
    tensors = [
        Tensor(name="hidden", producer=INPUT, bytes=10, max_bytes=10),
        Tensor(name="mask", producer=INPUT, bytes=2, max_bytes=2),
    ]
    for made in ops:
        size = sizes.get(made.name, 10)
        tensors.append(Tensor(name=made.name, producer=made.name, bytes=size, max_bytes=size))
    weights = tuple(Weight(name=f"w{i}", bytes=50, memory_bytes=50) for i in range(count))
    return OpGraph(
        name="masked",
        ops=tuple(ops),
        tensors=tuple(tensors),
        weights=weights,
        inputs=("hidden", "mask"),
        outputs=(last,),
    )


def test_a_broadcast_mask_is_made_where_it_is_needed():
    found = partition(masked_layers(), Limits(weight_bytes=100))

    assert [part.recomputed for part in found.slices] == [(), ("size", "cast", "broadcast")]
    assert found.slices[1].inputs == ("hidden", "mask", "layer1")
    assert found.cross_slice_bytes == 10
    assert found.certificate.status == "optimal"


def sent_between(last_size: int, middle_size: int) -> tuple[str, ...]:
    """What crosses when a heavy op's output goes through a cheap op before the next heavy op."""
    ops = (
        op("heavy", (), weights=("v",)),
        op("cheap", ("heavy",), cheap=True),
        op("last", ("cheap",), weights=("w",)),
    )
    sizes = {"heavy": last_size, "cheap": middle_size, "last": 1}
    graph = OpGraph(
        name="ends",
        ops=ops,
        tensors=tuple(
            Tensor(name=name, producer=name, bytes=size, max_bytes=size)
            for name, size in sizes.items()
        ),
        weights=tuple(Weight(name=name, bytes=60, memory_bytes=60) for name in "vw"),
        outputs=("last",),
    )
    found = partition(graph, Limits(weight_bytes=100))
    assert found.certificate.status == "optimal"
    return found.slices[1].inputs


def test_a_tensor_crosses_before_it_is_broadcast_or_cast_up():
    assert sent_between(10, 40) == ("heavy",)


def test_a_tensor_crosses_after_it_is_cast_down():
    assert sent_between(40, 10) == ("cheap",)


def test_a_scalar_size_is_read_again_where_its_tensor_is_at_hand():
    ops = (
        op("first", (), weights=("v",)),
        op("rows", ("first",), cheap=True),
        op("side", ("rows",), weights=("u",)),
        op("last", ("first", "rows", "side"), weights=("w",)),
    )
    tensors = tuple(
        Tensor(name=made.name, producer=made.name, bytes=size, max_bytes=size)
        for made, size in zip(ops, (100, 8, 1, 1), strict=True)
    )
    graph = OpGraph(
        name="sizes",
        ops=ops,
        tensors=tensors,
        weights=tuple(Weight(name=name, bytes=40, memory_bytes=40) for name in "uvw"),
        outputs=("last",),
    )

    found = partition(graph, Limits(weight_bytes=80))

    assert found.certificate.status == "optimal"
    assert (found.cross_slice_bytes, len(found.slices)) == best_partition(
        graph, Limits(weight_bytes=80), Overheads()
    )
