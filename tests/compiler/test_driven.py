"""What chains and state machines take and cost, against sums done by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from slicewise.cost import CostModel, Moved, Step, entry_time, slice_time
from slicewise.driven import chain, state_machine
from slicewise.plan import Edge, Slice
from slicewise.targets import load

MODEL: CostModel = dataclasses.replace(
    load("lambda").cost_model(load("lambda").resolve_limits(None)),
    call=Step(wait_ms=10.0),
    handle=Step(),
    transition=Step(wait_ms=100.0),
    transition_usd=2.5e-5,
    caller_memory_mb=512,
)


def part(name: str, stage: int) -> Slice:
    return Slice(
        name=name, stage=stage, ops=(), weight_bytes=0, peak_memory_bytes=0, memory_mb=1769,
        package_bytes=0, inputs=(), outputs=(), onnx="",
    )  # fmt: skip


def edge(tensor: str, producer: str, consumer: str, size: int) -> Edge:
    return Edge(
        tensor=tensor, dtype="float32", shape=(1,), bytes=size, producer=producer,
        consumer=consumer, transport="payload", reason="",
    )  # fmt: skip


SLICES = (part("a", 0), part("b", 1), part("c", 2))


def alone(compute_ms: dict[str, float]) -> dict[str, Any]:
    return {name: slice_time(MODEL, 1769, ms, [], []) for name, ms in compute_ms.items()}


def test_a_chain_pays_every_waiting_caller() -> None:
    entry = entry_time(MODEL, [], [])
    found = chain(SLICES, (), MODEL, alone({"a": 5, "b": 20, "c": 30}), entry, 0.0)

    # The way to the first slice, its work; the way to the second, and so on.
    assert found.ms == pytest.approx(entry.caller_ms + 5 + 10 + 20 + 10 + 30)
    assert found.billed_ms == pytest.approx({"c": 30, "b": 20 + 10 + 30, "a": 5 + 30 + 40})
    gb_ms = MODEL.gb_ms_usd(1769)
    assert found.usd == pytest.approx(3 * MODEL.request_usd + (30 + 60 + 75) * gb_ms)


def test_a_tensor_that_passes_through_costs_the_slice_that_hands_it_on() -> None:
    times = alone({"a": 5, "b": 20, "c": 30})
    entry = entry_time(MODEL, [], [])
    edges = (edge("near", "a", "b", 1000), edge("far", "a", "c", 1_000_000))

    without = chain(SLICES, edges[:1], MODEL, times, entry, 0.0)
    found = chain(SLICES, edges, MODEL, times, entry, 0.0)

    payload = MODEL.transport("payload")
    receive = payload.receive.transfer(1_000_000) + payload.receive.cpu(1_000_000)
    sent = slice_time(
        dataclasses.replace(MODEL, caller_memory_mb=1769),
        1769,
        0.0,
        [Moved(transport="payload", bytes=1_000_000)],
        [],
    )
    assert found.ms - without.ms == pytest.approx(sent.caller_ms - 10 + receive)
    assert found.usd > without.usd


def test_a_state_machine_pays_for_states_and_nobody_for_waiting() -> None:
    entry = entry_time(MODEL, [], [])
    slices = (part("a", 0), part("b", 1), part("c", 1))
    found = state_machine(slices, MODEL, alone({"a": 5, "b": 20, "c": 30}), entry, 0.0)

    # begin, a, the parallel state, b, c, end; the longer of b and c counts.
    gb_ms = MODEL.gb_ms_usd(1769)
    assert found.ms == pytest.approx(4 * 100 + 5 + 30 + entry.billed_ms)
    assert found.billed_ms == pytest.approx({"a": 5, "b": 20, "c": 30})
    assert found.usd == pytest.approx(
        6 * 2.5e-5 + 5 * MODEL.request_usd + 55 * gb_ms + entry.billed_ms * MODEL.gb_ms_usd(512)
    )
