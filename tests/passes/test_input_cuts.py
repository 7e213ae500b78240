"""Input cuts: which parts come with the request, and what is left of the graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from slicewise.cost import Step, Transport
from slicewise.graph import INPUT, Op, OpGraph, Tensor
from slicewise.passes.input_cuts import cut_on_arrival
from slicewise.plan import InputCut

INLINE = Transport(
    name="payload", send=Step(), collect=Step(), pass_on=Step(), receive=Step(), message_bytes=10**6
)
STORED = Transport(name="s3", send=Step(), collect=Step(), pass_on=Step(), receive=Step())


def graph(shape: tuple[int | str, ...] = (1, 3, 8, 8), dim: int = 2, **changed: Any) -> OpGraph:
    """x is cut along `dim`, and what is cut is doubled."""
    arguments = {"self": "%x", "dim": dim, "start": 0, "end": 4, "step": 1, **changed}
    sizes = [size for size in shape if isinstance(size, int)]
    count = 4
    for size in sizes:
        count *= size
    return OpGraph(
        name="g",
        ops=(
            Op(name="cut", kind="aten.slice.Tensor", inputs=("x",), outputs=("part",),
               arguments=tuple(arguments.items())),
            Op(name="double", kind="aten.mul.Scalar", inputs=("part",), outputs=("y",)),
        ),
        tensors=(
            Tensor(name="x", producer=INPUT, bytes=count, max_bytes=count, shape=shape),
            Tensor(name="part", producer="cut", bytes=count // 2, max_bytes=count // 2),
            Tensor(name="y", producer="double", bytes=count // 2, max_bytes=count // 2),
        ),
        inputs=("x",),
        outputs=("y",),
    )  # fmt: skip


def test_the_cut_comes_with_the_request() -> None:
    found, cuts = cut_on_arrival(graph(), ["cut", "cut", "gone"], {"x": INLINE})

    assert cuts == (InputCut(tensor="part", source="x", ranges=((2, 0, 4),)),)
    assert [op.name for op in found.ops] == ["double"]
    assert found.inputs == ("x", "part")
    assert found.tensor["part"].producer == INPUT


@pytest.mark.parametrize(
    ("given", "transport"),
    [
        (graph(), STORED),  # a shard fetches the object itself
        (graph(step=2), INLINE),
        (graph((5000, 8), dim=1), INLINE),  # 5,000 pieces
        (graph((1, 3, 8, "width")), INLINE),
    ],
)
def test_other_cuts_stay_with_the_shards(given: OpGraph, transport: Transport) -> None:
    assert cut_on_arrival(given, ["cut"], {"x": transport}) == (given, ())


def test_only_what_was_named_is_cut() -> None:
    assert cut_on_arrival(graph(), [], {"x": INLINE}) == (graph(), ())


def test_a_tile_is_cut_out_of_what_was_cut_before() -> None:
    second = Op(
        name="cut_again", kind="aten.slice.Tensor", inputs=("part",), outputs=("tile",),
        arguments=(("self", "%part"), ("dim", 3), ("start", 2), ("end", 8), ("step", 1)),
    )  # fmt: skip
    given = graph()
    cut, double = given.ops
    tile = Tensor(name="tile", producer="cut_again", bytes=288, max_bytes=288)
    tiled = replace(
        given,
        ops=(cut, second, replace(double, inputs=("tile",))),
        tensors=(*given.tensors, tile),
    )

    found, cuts = cut_on_arrival(tiled, ["cut", "cut_again"], {"x": INLINE})

    assert cuts == (InputCut(tensor="tile", source="x", ranges=((2, 0, 4), (3, 2, 8))),)
    assert [op.name for op in found.ops] == ["double"]
    assert "part" not in found.tensor
    # What is read itself comes, too.
    found, cuts = cut_on_arrival(
        replace(tiled, ops=(cut, second, replace(double, inputs=("part", "tile")))),
        ["cut", "cut_again"],
        {"x": INLINE},
    )
    assert [each.tensor for each in cuts] == ["part", "tile"]
    assert found.inputs == ("x", "part", "tile")
