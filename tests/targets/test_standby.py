"""Standby: what being ready costs per month, by hand."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest

from slicewise.errors import TargetError
from slicewise.limits import Limits
from slicewise.plan import (
    Certificate,
    ModelInfo,
    Plan,
    Prediction,
    Slice,
    SlicePrediction,
    TransportRule,
)

standby_module: Any = importlib.import_module("slicewise.targets.lambda.standby")
profiles: Any = importlib.import_module("slicewise.targets.lambda.profile")
DEFAULT = profiles.default_profile()
GB_S = 0.0000166667


def part(name: str, stage: int) -> Slice:
    return Slice(
        name=name, stage=stage, ops=(), weight_bytes=0, peak_memory_bytes=0, memory_mb=2048,
        package_bytes=0, inputs=(), outputs=(), onnx="",
    )  # fmt: skip


def predicted(name: str) -> SlicePrediction:
    """100 ms of 2 GB."""
    usd = 2 * 0.1 * GB_S + 2e-7
    return SlicePrediction(
        name=name, call_ms=0, receive_ms=0, compute_ms=100, send_ms=0, billed_ms=100,
        cost_per_million_usd=usd * 1e6, cold_ms=700,
    )  # fmt: skip


# The coordinator has 1 GB for 300 ms.
PLAN = Plan(
    model=ModelInfo(name="m", parameters=0, weight_bytes=0), target="lambda", objective="bytes",
    limits=Limits(), slices=(part("a", 0), part("b", 1)), edges=(),
    certificate=Certificate(status="optimal", lower_bound=0, gap=0, method="", seconds=0),
    transport_rule=TransportRule(transports=("payload",), payload_bytes=1),
    coordinator_memory_mb=1024,
    prediction=Prediction(
        latency_ms=300, cold_latency_ms=1500,
        cost_per_million_usd=1e6 * (2 * (2 * 0.1 * GB_S + 2e-7) + 0.3 * GB_S + 2e-7),
        slices=(predicted("a"), predicted("b")),
    ),
)  # fmt: skip
GB, USED_GB_S, MONTH_S = 5, 2 * 0.2 + 0.3, 730 * 3600


def test_nothing_kept_costs_nothing_and_starts_cold() -> None:
    on_demand, _, _ = standby_module.standby(PLAN, DEFAULT)

    assert (on_demand.usd_month, on_demand.cold_ms) == (0, 1200)
    assert on_demand.month_usd(1e6, 1e3) == 0


def test_provisioned_environments_cost_all_month_and_less_per_request() -> None:
    _, found, _ = standby_module.standby(PLAN, DEFAULT, environments=3)

    assert found.cold_ms == 0
    assert found.usd_month == pytest.approx(3 * GB * MONTH_S * 0.0000041667)
    assert found.request_usd == pytest.approx(USED_GB_S * (0.0000097222 - GB_S))
    million = found.usd_month - 1e6 * USED_GB_S * (GB_S - 0.0000097222)
    assert found.month_usd(1e6, 0) == pytest.approx(million)


def test_snapshots_cost_per_version_and_per_restore() -> None:
    _, _, found = standby_module.standby(PLAN, DEFAULT, versions=2)

    assert found.usd_month == pytest.approx(2 * GB * MONTH_S * 0.0000015046)
    assert found.cold_usd == pytest.approx(GB * 0.0001397998)
    restore_ms = DEFAULT.cold.placement_ms + DEFAULT.snapstart.restore_ms
    assert found.cold_ms == 2 * restore_ms
    one_by_one = standby_module.standby(replace(PLAN, warm_up=False), DEFAULT)[2]
    assert one_by_one.cold_ms == 3 * restore_ms


def test_a_dear_region_costs_its_ratio() -> None:
    dear = DEFAULT.model_copy(update={"region": "af-south-1"})
    ratio = 0.0000221 / GB_S

    for usual, found in zip(
        standby_module.standby(PLAN, DEFAULT), standby_module.standby(PLAN, dear), strict=True
    ):
        assert found.usd_month == pytest.approx(usual.usd_month * ratio)


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(TargetError, match="environments=0"):
        standby_module.standby(PLAN, DEFAULT, environments=0)
    with pytest.raises(TargetError, match="no prediction"):
        standby_module.standby(replace(PLAN, prediction=Prediction()), DEFAULT)
