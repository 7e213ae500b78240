"""`partition` on small graphs made for one thing each, and its errors."""

from __future__ import annotations

from itertools import pairwise

import networkx
import pytest

from slicewise.errors import InfeasibleError
from slicewise.graph import INPUT, Op, OpGraph, Tensor, Weight
from slicewise.limits import MB, Limits, Overheads
from slicewise.passes import partition
from tests.passes.graphs import Case, best_partition


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
        Case(graph, Limits(weight_bytes=80), Overheads())
    )
