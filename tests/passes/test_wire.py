"""Bytes on the wire: half for float32 that only slices see, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

from slicewise.graph import INPUT, Op, OpGraph, Tensor, Weight
from slicewise.limits import Limits
from slicewise.passes import partition
from slicewise.passes.wire import on_wire
from slicewise.plan import TransportRule

PLAIN = TransportRule(transports=("payload",), payload_bytes=100_000)
HALF = replace(PLAIN, wire_dtype="float16", compression="zlib")


def graph() -> OpGraph:
    """x -> a (float32), b (int64) and seen (float32, also replied) -> last."""

    def tensor(name: str, producer: str, dtype: str = "float32") -> Tensor:
        return Tensor(name=name, producer=producer, bytes=80, max_bytes=800, dtype=dtype)

    return OpGraph(
        name="four",
        ops=(
            Op(name="first", inputs=("x",), outputs=("a", "b", "seen")),
            Op(name="second", inputs=("x", "a", "b", "seen"), outputs=("last",)),
        ),
        tensors=(
            tensor("x", INPUT),
            tensor("a", "first"),
            tensor("b", "first", "int64"),
            tensor("seen", "first"),
            tensor("last", "second"),
        ),
        inputs=("x",),
        outputs=("last", "seen"),
    )


def test_float32_between_slices_takes_half() -> None:
    made = on_wire(graph(), HALF)

    assert {t.name: t.bytes for t in made.tensors} == {
        "x": 80,
        "a": 40,
        "b": 80,
        "seen": 80,
        "last": 80,
    }
    assert {t.max_bytes for t in made.tensors} == {800}
    assert replace(made, tensors=graph().tensors) == graph()


def test_without_a_wire_dtype_nothing_changes() -> None:
    assert on_wire(graph(), PLAIN) == graph()
    assert on_wire(graph(), replace(PLAIN, compression="zlib")) == graph()


def test_the_cut_is_optimal_for_the_bytes_that_travel() -> None:
    """Of two places to cut a chain, float16 makes the one with more bytes in memory the better."""
    sizes = {"a": (100, "float32"), "b": (60, "int64"), "c": (1, "float32")}
    names = list(sizes)
    chain = OpGraph(
        name="chain",
        ops=tuple(
            Op(name=f"op_{name}", inputs=tuple(names[i - 1 : i]), outputs=(name,))
            for i, name in enumerate(names)
        ),
        tensors=tuple(
            Tensor(name=name, producer=f"op_{name}", bytes=size, max_bytes=size, dtype=dtype)
            for name, (size, dtype) in sizes.items()
        ),
        outputs=("c",),
    )
    weighted = replace(
        chain,
        ops=tuple(replace(op, weights=(op.name,)) for op in chain.ops),
        weights=tuple(Weight(name=op.name, bytes=10, memory_bytes=10) for op in chain.ops),
    )

    found = [partition(on_wire(weighted, rule), Limits(weight_bytes=20)) for rule in (PLAIN, HALF)]

    assert [part.cross_slice_bytes for part in found] == [60, 50]
    assert [part.certificate.status for part in found] == ["optimal", "optimal"]
