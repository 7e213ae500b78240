"""The prediction of a cold request: what starts together counts once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from slicewise import targets
from slicewise.cost import Imports, Start, Step
from slicewise.plan import Edge, Prediction, Slice
from slicewise.predict import predict

TARGET = targets.load("lambda")
MODEL = replace(
    TARGET.cost_model(TARGET.resolve_limits(None)),
    load_ns=1.0,
    imports=Imports(slice_ms=100, store_ms=300, caller_ms=250, caller_store_ms=40, early_ms=60),
    starts=(
        Start(packaging="zip", begin=Step(wait_ms=1000)),
        Start(packaging="streamed", begin=Step(wait_ms=1000), fetch_ns=10.0, by_store=True),
    ),
)
MEGA = 1_000_000


def part(name: str, stage: int, megabytes: int) -> Slice:
    return Slice(
        name=name, stage=stage, ops=(name,), weight_bytes=megabytes * MEGA, peak_memory_bytes=0,
        memory_mb=1769, package_bytes=0, inputs=(), outputs=(), onnx="",
    )  # fmt: skip


def edge(producer: str, consumer: str, transport: str = "payload") -> Edge:
    return Edge(
        tensor=f"{producer}-{consumer}", dtype="float32", shape=(1,), bytes=4, producer=producer,
        consumer=consumer, transport=transport, reason="",
    )  # fmt: skip


SLICES = [part("a", 0, 50), part("b", 1, 150), part("c", 1, 20), part("d", 2, 10)]
TIMES = {each.name: 10.0 for each in SLICES}
EDGES = [edge("@input", "a"), edge("a", "b"), edge("a", "c"), edge("b", "d"), edge("d", "@output")]


def cold(
    edges: list[Edge] = EDGES, slices: list[Slice] = SLICES, **options: Any
) -> tuple[float, dict[str, float]]:
    """What a cold request takes longer than a warm one, and by slice."""
    found = predict(slices, edges, MODEL, TIMES, parallel=0.0, source="", **options)
    assert found.cold_latency_ms is not None
    assert found.latency_ms is not None
    by_slice = {each.name: each.cold_ms or 0.0 for each in found.slices}
    return found.cold_latency_ms - found.latency_ms, by_slice


def test_slices_that_start_together_take_as_long_as_the_slowest() -> None:
    total, by_slice = cold()

    assert by_slice == {"a": 1150, "b": 1250, "c": 1120, "d": 1110}
    assert total == pytest.approx(1000 + 60 + 1250)  # the coordinator's first part, then b


def test_without_the_warm_up_stages_add_up() -> None:
    total, _ = cold(warm_up=False)

    assert total == pytest.approx(1250 + 1150 + 1250 + 1110)


def test_objects_and_packaging_count_where_they_are() -> None:
    edges = [*EDGES[:2], edge("a", "c", "s3"), *EDGES[3:]]
    total, by_slice = cold(edges, [*SLICES[:3], replace(SLICES[3], packaging="streamed")])

    assert by_slice == {"a": 1400, "b": 1250, "c": 1400, "d": 1000 + 100 + 300 + 110}
    assert total == pytest.approx(1000 + 60 + 1510)


def test_the_coordinator_counts_where_it_is_slower_than_all_slices() -> None:
    slow = replace(MODEL, imports=replace(MODEL.imports, caller_ms=5000))
    found = predict(SLICES, EDGES, slow, TIMES, parallel=0.0, source="")

    assert found.cold_latency_ms and found.latency_ms
    assert found.cold_latency_ms - found.latency_ms == pytest.approx(6000)


def test_slices_of_one_stage_take_as_long_as_the_slowest_and_its_callers_part() -> None:
    model = replace(MODEL, call=Step(wait_ms=10, cpu_ms=2), period_ms=20)
    slices = [replace(each, inputs=("a-b",) * (each.name in "bc")) for each in SLICES]
    edges = [*EDGES[:2], edge("a", "b"), replace(edge("a", "b"), consumer="c"), *EDGES[3:]]
    slices[3] = replace(slices[3], inputs=("b-d",))
    times = {"a": 10.0, "b": 10.0, "c": 100.0, "d": 10.0}

    def found(**options: Any) -> Prediction:
        return predict(slices, edges, model, times, parallel=0.0, source="", **options)

    one_by_one, beside = found(most=1), found()
    assert one_by_one.latency_ms is not None and beside.latency_ms is not None
    # b and d run beside c, whose call waits for that of b and is delayed by the caller's share.
    saved = sum(part.call_ms + part.billed_ms for part in one_by_one.slices if part.name in "bd")
    expected = saved - 2 / model.steady_share(model.caller_memory_mb)
    assert one_by_one.latency_ms - beside.latency_ms == pytest.approx(expected, rel=1e-4)


def test_plans_written_before_cold_times_were_told_can_be_read() -> None:
    from slicewise.plan import SlicePrediction

    old = SlicePrediction(
        name="a", call_ms=1, receive_ms=1, compute_ms=1, send_ms=1, billed_ms=1,
        cost_per_million_usd=1,
    )  # fmt: skip
    assert old.cold_ms is None
