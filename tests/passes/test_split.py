"""`split_oversized`: which ops are split, along what, into how many pieces; and what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicewise.errors import InfeasibleError
from slicewise.graph import INPUT, Op, OpGraph, Tensor, Weight
from slicewise.limits import MB, Limits, Overheads
from slicewise.passes.split import MAX_PIECES, Split, records, split_oversized
from slicewise.passes.ways import ways

NONE = Overheads()
LAMBDA = Overheads(memory_bytes=110 * MB, package_bytes=74 * MB, edge_factor=4.0)


def numbers(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def tensor(name: str, producer: str, *shape: int, item: int = 4) -> Tensor:
    size = numbers(shape) * item
    return Tensor(name=name, producer=producer, bytes=size, max_bytes=size, shape=shape)


def weight(name: str, *shape: int) -> Weight:
    size = 4 * numbers(shape)
    return Weight(name=name, bytes=size, memory_bytes=size, shape=shape)


def one_op(
    kind: str,
    x: tuple[int, ...],
    y: tuple[int, ...],
    *weights: Weight,
    scratch: int = 0,
) -> OpGraph:
    op = Op(
        name="op",
        kind=kind,
        inputs=("x",),
        outputs=("y",),
        weights=tuple(w.name for w in weights),
        memory_bytes=scratch,
        module="layers.3",
    )
    return OpGraph(
        name="one",
        ops=(op,),
        tensors=(tensor("x", INPUT, *x), tensor("y", "op", *y)),
        weights=weights,
        inputs=("x",),
        outputs=("y",),
    )


def linear(ins: int, outs: int, rows: int = 1, *, bias: bool = True) -> OpGraph:
    weights = [weight("w", outs, ins)] + ([weight("b", outs)] if bias else [])
    return one_op("aten.linear", (rows, ins), (rows, outs), *weights)


def only(graph: OpGraph, limits: Limits, overheads: Overheads = NONE) -> Split:
    (split,) = split_oversized(graph, limits, overheads)
    return split


def test_vgg16s_first_linear_layer_becomes_three_pieces_of_a_zip_package() -> None:
    """Wide input, narrow output: a third of the input each and three partial outputs are less."""
    split = only(linear(25088, 4096), Limits(package_mb=250, memory_mb=3008), LAMBDA)

    assert split.sizes == (8384, 8384, 8320)
    assert split.weight_bytes == 25088 * 4096 * 4
    (use,) = split.uses
    assert (use.op, use.module, use.axis, use.combine) == (
        "op", "layers.3", "input features", "sum",
    )  # fmt: skip
    # the whole input to one, in parts: 25088 x 4 bytes; three outputs of 4096 x 4 bytes
    assert "392.0 MB of weights, and a slice may hold 176.0 MB" in split.reason
    assert f"{25088 * 4 + 3 * 4096 * 4:,} bytes to and from them" in split.reason
    assert f"{3 * 25088 * 4 + 4096 * 4:,} by output features" in split.reason


def test_a_narrow_input_and_a_wide_output_are_split_by_output_features() -> None:
    split = only(linear(100, 1000, bias=False), Limits(weight_bytes=210_000))

    assert split.sizes == (512, 488)
    assert [use.axis for use in split.uses] == ["output features"]
    assert [use.combine for use in split.uses] == ["concatenate"]


def test_what_fits_is_not_split() -> None:
    graph = linear(100, 100)
    size = 4 * (100 * 100 + 100)

    assert split_oversized(graph, Limits(weight_bytes=size), NONE) == ()
    assert split_oversized(graph, Limits(), NONE) == ()
    assert split_oversized(graph, Limits(max_slices=1), NONE) == ()
    assert len(split_oversized(graph, Limits(weight_bytes=size - 1), NONE)) == 1


def test_an_embedding_alone_is_split_by_columns_which_sends_its_output_once() -> None:
    graph = one_op("aten.embedding", (1, 8), (1, 8, 64), weight("e", 1000, 64))

    split = only(graph, Limits(weight_bytes=100_000))

    assert split.sizes == (24, 24, 16)
    assert [use.axis for use in split.uses] == ["embedding columns"]


def tied(vocabulary: int, width: int, tokens: int, *, other: str | None = None) -> OpGraph:
    ops = [
        Op(name="look", kind="aten.embedding", inputs=("ids",), outputs=("x",), weights=("e",)),
        Op(name="head", kind="aten.linear", inputs=("x",), outputs=("y",), weights=("e",)),
    ]
    tensors = [
        tensor("ids", INPUT, 1, tokens, item=8),
        tensor("x", "look", 1, tokens, width),
        tensor("y", "head", 1, tokens, vocabulary),
    ]
    if other:
        ops.append(Op(name="other", kind=other, inputs=("x",), outputs=("z",), weights=("e",)))
        tensors.append(tensor("z", "other", 1, tokens))
    return OpGraph(
        name="tied",
        ops=tuple(ops),
        tensors=tuple(tensors),
        weights=(weight("e", vocabulary, width),),
        inputs=("ids",),
        outputs=("y", "z") if other else ("y",),
    )


def test_a_tied_embedding_and_head_are_split_into_the_same_pieces() -> None:
    """128,000 x 4096 in float32 are 2,000 MB: twelve zip packages of at most 176 MB."""
    split = only(tied(128_000, 4096, 8), Limits(package_mb=250, memory_mb=3008), LAMBDA)

    assert len(split.sizes) == 12
    assert sum(split.sizes) == 128_000
    assert max(split.sizes) * 4096 * 4 <= 176 * MB
    assert [(use.op, use.axis, use.combine) for use in split.uses] == [
        ("look", "vocabulary rows", "sum"),
        ("head", "output features", "concatenate"),
    ]
    assert split.pieces[0] == "e_piece0"


def test_a_use_that_cannot_be_split_refuses_the_whole_weight() -> None:
    graph = tied(1000, 64, 8, other="aten.mean")

    with pytest.raises(InfeasibleError, match=r"'other'.*aten\.mean.*cannot be split") as refused:
        split_oversized(graph, Limits(weight_bytes=100_000), NONE)

    assert refused.value.op == "other"
    assert refused.value.limit_name == "weight_bytes"
    assert refused.value.limit == 100_000
    assert refused.value.smallest_limit == 256_000
    assert split_oversized(graph, Limits(weight_bytes=256_000), NONE) == ()


@pytest.mark.parametrize(
    ("kind", "x", "y", "shape", "axis", "sizes"),
    [
        ("aten.conv2d", (1, 8, 9, 9), (1, 64, 9, 9), (64, 8, 3, 3), "output channels", 4),
        ("aten.conv2d", (1, 64, 9, 9), (1, 8, 9, 9), (8, 64, 3, 3), "input channels", 4),
        ("aten.conv2d", (8, 9, 9), (64, 9, 9), (64, 8, 3, 3), "output channels", 4),
        ("aten.conv1d", (1, 64, 9), (1, 64, 9), (64, 16, 3), "groups of channels", 4),
        ("aten.conv_transpose2d", (1, 8, 9, 9), (1, 64, 9, 9), (8, 64, 3, 3), "output channels", 4),
        ("aten.convolution", (1, 8, 9, 9), (1, 64, 9, 9), (8, 64, 3, 3), "output channels", 4),
        ("aten.matmul", (1, 16), (1, 64), (16, 64), "output features", 4),
        ("aten.matmul", (16, 1), (64, 1), (64, 16), "output features", 4),
        ("aten.mm", (1, 64), (1, 16), (64, 16), "input features", 4),
        ("aten.bmm", (8, 3, 16), (8, 3, 16), (8, 16, 16), "batch entries", 4),
        ("aten.matmul", (8, 3, 16), (8, 3, 16), (8, 16, 16), "batch entries", 4),
    ],
)
def test_each_kind_of_op_is_split_along_what_moves_the_fewest_bytes(
    kind: str,
    x: tuple[int, ...],
    y: tuple[int, ...],
    shape: tuple[int, ...],
    axis: str,
    sizes: int,
) -> None:
    graph = one_op(kind, x, y, weight("w", *shape))

    split = only(graph, Limits(weight_bytes=graph.weight_bytes // sizes))

    assert [use.axis for use in split.uses] == [axis]
    assert len(split.sizes) == sizes
    assert len(set(split.sizes)) == 1


def test_groups_stay_whole_while_one_fits_and_are_cut_when_not() -> None:
    graph = one_op("aten.conv1d", (1, 6, 9), (1, 30, 9), weight("w", 30, 2, 5))  # 3 groups of 10

    assert only(graph, Limits(weight_bytes=25 * 2 * 5 * 4)).sizes == (20, 10)
    assert only(graph, Limits(weight_bytes=10 * 2 * 5 * 4)).sizes == (10, 10, 10)
    assert only(graph, Limits(weight_bytes=9 * 2 * 5 * 4)).sizes == (5, 5, 5, 5, 5, 5)
    assert only(graph, Limits(weight_bytes=4 * 2 * 5 * 4)).sizes == (4, 3, 3) * 3


def test_a_weight_that_is_read_transposed_is_split_along_what_the_op_sees() -> None:
    graph = OpGraph(
        name="transposed",
        ops=(
            Op(name="t", kind="aten.t", outputs=("wt",), weights=("w",)),
            Op(name="product", kind="aten.matmul", inputs=("x", "wt"), outputs=("y",)),
        ),
        tensors=(
            tensor("x", INPUT, 1, 16),
            tensor("wt", "t", 16, 60),
            tensor("y", "product", 1, 60),
        ),
        weights=(weight("w", 60, 16),),
        inputs=("x",),
        outputs=("y",),
    )

    split = only(graph, Limits(weight_bytes=2000))

    assert sum(split.sizes) == 60
    assert [(use.op, use.axis) for use in split.uses] == [("product", "output features")]


def test_memory_alone_can_be_why_an_op_is_split() -> None:
    """Half precision is computed in float32: what fits a package may not fit the memory."""
    half = Weight(name="w", bytes=100 * MB, memory_bytes=200 * MB, shape=(1024, 51_200))
    graph = one_op("aten.linear", (1, 51_200), (1, 1024), half)

    split = only(graph, Limits(memory_mb=256, package_mb=250), LAMBDA)

    assert len(split.sizes) == 2
    assert "of memory, and a slice may take 146.0 MB" in split.reason
    assert split_oversized(graph, Limits(memory_mb=512, package_mb=250), LAMBDA) == ()


def test_activations_alone_are_left_to_the_partitioner() -> None:
    graph = one_op("aten.linear", (1_000_000, 16), (1_000_000, 16), weight("w", 16, 16))

    assert split_oversized(graph, Limits(memory_mb=128), LAMBDA) == ()


def test_partial_results_are_summed_in_turn_where_all_at_once_are_too_much() -> None:
    """Sixteen of 64 columns, and their stack: 2,048 columns of 40 KB; a piece takes 96."""
    graph = linear(512, 64, rows=10_000, bias=False)
    weight_bytes = graph.weight_bytes // 16

    def combine(overheads: Overheads = NONE, **limits: int) -> str:
        split = only(graph, Limits(weight_bytes=weight_bytes, **limits), overheads)
        assert (len(split.sizes), split.uses[0].axis) == (16, "input features")
        return split.uses[0].combine

    assert combine() == "sum"
    assert combine(memory_mb=100) == "sum"
    assert combine(memory_mb=80) == "sum in turn"
    assert combine(Overheads(max_edge_bytes=16 * 64 * 40_000)) == "sum"
    assert combine(Overheads(max_edge_bytes=15 * 64 * 40_000)) == "sum in turn"


def test_a_limit_that_no_split_keeps_names_op_bytes_limit_and_the_smallest_that_works() -> None:
    graph = linear(100_000, 512, bias=False)

    with pytest.raises(
        InfeasibleError, match=r"'op'.*layers\.3.*195\.3 MB.*weight_bytes"
    ) as refused:
        split_oversized(graph, Limits(weight_bytes=1000), NONE)

    error = refused.value
    assert (error.op, error.limit_name, error.limit) == ("op", "weight_bytes", 1000)
    assert error.smallest_limit is not None
    assert len(only(graph, Limits(weight_bytes=error.smallest_limit)).sizes) <= MAX_PIECES
    with pytest.raises(InfeasibleError):
        split_oversized(graph, Limits(weight_bytes=error.smallest_limit - 1), NONE)


def test_an_unsplittable_op_under_the_package_limit_is_told_in_megabytes() -> None:
    graph = one_op("aten.mul", (2048, 32768), (2048, 32768), weight("w", 2048, 32768))

    with pytest.raises(InfeasibleError, match="package_mb") as refused:
        split_oversized(graph, Limits(package_mb=250), LAMBDA)

    assert refused.value.smallest_limit == 256 + 74


def test_records_name_the_pieces_as_the_graph_that_is_cut_does() -> None:
    split = only(tied(1000, 64, 8), Limits(weight_bytes=130_000))
    pieces = [weight(name, size, 64) for name, size in zip(split.pieces, split.sizes, strict=True)]
    names = ["embedding", "embedding_1", "linear", "linear_1"]
    converted = OpGraph(
        name="converted",
        ops=tuple(
            Op(name=name, inputs=("ids",), outputs=(name,), weights=(pieces[index % 2].name,))
            for index, name in enumerate(names)
        ),
        tensors=(tensor("ids", INPUT, 8), *(tensor(name, name, 8) for name in names)),
        weights=tuple(pieces),
        inputs=("ids",),
        outputs=tuple(names),
    )

    look, head = records((split,), converted)

    assert look.pieces == ("embedding", "embedding_1")
    assert head.pieces == ("linear", "linear_1")
    assert (look.op, look.axis, look.weight, look.weight_bytes) == (
        "look", "vocabulary rows", "e", 256_000,
    )  # fmt: skip


@st.composite
def graphs(draw: st.DrawFn) -> OpGraph:
    size = st.integers(1, 300)
    ins, outs, rows = draw(size), draw(size), draw(st.integers(1, 40))
    kind = draw(st.sampled_from(["linear", "embedding", "conv", "grouped", "matmul", "tied"]))
    if kind == "linear":
        return linear(ins, outs, rows, bias=draw(st.booleans()))
    if kind == "embedding":
        return one_op("aten.embedding", (rows,), (rows, outs), weight("w", ins, outs))
    if kind == "conv":
        weights = [weight("w", outs, ins, 3), weight("b", outs)]
        return one_op("aten.conv1d", (1, ins, rows), (1, outs, rows), *weights)
    if kind == "grouped":
        groups, each = draw(st.integers(2, 12)), draw(st.integers(1, 12))
        weights = [weight("w", groups * outs, each, 3), weight("b", groups * outs)]
        shape = (1, groups * outs, rows)
        return one_op("aten.conv1d", (1, groups * each, rows), shape, *weights)
    if kind == "matmul":
        return one_op("aten.matmul", (rows, ins), (rows, outs), weight("w", ins, outs))
    return tied(ins, outs, rows)


@given(
    graph=graphs(),
    weight_bytes=st.integers(1, 200_000),
    memory_mb=st.none() | st.integers(1, 3),
    edge_factor=st.sampled_from([0.0, 4.0]),
)
def test_pieces_cover_the_axis_once_and_each_fits(
    graph: OpGraph, weight_bytes: int, memory_mb: int | None, edge_factor: float
) -> None:
    limits = Limits(weight_bytes=weight_bytes, memory_mb=memory_mb)
    overheads = Overheads(edge_factor=edge_factor)
    try:
        splits = split_oversized(graph, limits, overheads)
    except InfeasibleError as error:
        assert error.op in graph.op
        assert error.smallest_limit is not None
        assert error.limit is not None
        assert error.smallest_limit > error.limit
        return
    split_weights = {split.weight for split in splits}
    for op in graph.ops:
        held = sum(graph.weight[name].bytes for name in op.weights)
        splittable = any(ways(graph, op, graph.weight[name]) for name in op.weights)
        assert held <= weight_bytes or split_weights.intersection(op.weights) or not splittable
    for split in splits:
        assert 2 <= len(split.sizes) <= MAX_PIECES
        assert min(split.sizes) >= 1
        for use in split.uses:
            found = ways(graph, graph.op[use.op], graph.weight[split.weight])
            (way,) = (way for way in found if way.axis == use.axis)
            assert sum(split.sizes) == way.total
            for size in split.sizes:
                assert way.weights(size) <= weight_bytes
                assert memory_mb is None or way.memory(size, 0.0) <= memory_mb * MB
            if way.unit == 1 and memory_mb is None:  # as few as fit
                fewer = -(-way.total // (len(split.sizes) - 1))
                others = [
                    next(w for w in ways(graph, graph.op[u.op], graph.weight[split.weight])
                         if w.axis == u.axis)
                    for u in split.uses
                ]  # fmt: skip
                assert fewer == way.total or any(w.weights(fewer) > weight_bytes for w in others)
            if way.unit > 1:  # whole groups, or parts of one
                ends = [sum(split.sizes[:count]) for count in range(len(split.sizes) + 1)]
                for start, end in pairwise(ends):
                    aligned = start % way.unit == 0 and end % way.unit == 0
                    assert aligned or start // way.unit == (end - 1) // way.unit
