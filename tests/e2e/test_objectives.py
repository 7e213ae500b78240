"""Plans for latency and cost, served for real, and their predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import slicewise


class Tower(nn.Module):
    """Convolutions whose tensors shrink from 1.6 MB to 50 KB."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for wide in (32, 64, 128, 256):
            layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            channels = wide
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.body(x))
        return found


LIMITS = slicewise.Limits(weight_bytes=1_200_000)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Tower().eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(1, 3, 112, 112)


@pytest.fixture(scope="module", params=["latency", "cost"])
def compiled(request: Any, model: nn.Module, x: torch.Tensor) -> slicewise.Compiled:
    return slicewise.compile(
        model, (x,), objective=request.param, limits=LIMITS,
        transports=["payload", "s3", "s3express"],
    )  # fmt: skip


def test_the_plan_serves_and_says_what_it_takes(
    compiled: slicewise.Compiled, model: nn.Module, x: torch.Tensor, tmp_path: Path
) -> None:
    plan = compiled.plan
    assert plan.certificate.status == "optimal"
    found = plan.prediction
    assert found.latency_ms and found.latency_p50_ms and found.latency_p99_ms
    assert found.latency_p50_ms < found.latency_ms < found.latency_p99_ms
    assert found.cost_per_million_usd and found.cold_latency_ms
    assert found.source.startswith("op times measured on")
    assert [part.name for part in found.slices] == [part.name for part in plan.slices]
    value = found.latency_ms if plan.objective == "latency" else found.cost_per_million_usd
    assert plan.certificate.lower_bound == pytest.approx(value, rel=0.01)

    saved = compiled.save(tmp_path / "bundle")
    assert slicewise.load(tmp_path / "bundle").plan == plan
    functions = json.loads((tmp_path / "bundle" / "functions.json").read_text())["functions"]
    coordinator = next(f for f in functions if f["name"].endswith("coordinator"))
    assert coordinator["memory_mb"] == plan.coordinator_memory_mb
    with saved.serve() as endpoint, torch.no_grad():
        torch.testing.assert_close(endpoint(x), model(x), rtol=0, atol=1e-4)


def test_cost_buys_time(model: nn.Module) -> None:
    # Small images take less than the quota that each call begins with.
    x = torch.randn(1, 3, 448, 448)
    limits = replace(LIMITS, max_parallel=1)
    plans = slicewise.frontier(model, (x,), limits=limits, points=4, measure_times=False)

    latencies = [plan.prediction.latency_ms or 0 for plan in plans]
    costs = [plan.prediction.cost_per_million_usd or 0 for plan in plans]
    assert 2 <= len(plans) <= 4
    assert latencies == sorted(latencies)
    assert costs == sorted(costs, reverse=True)

    bound = (costs[0] + costs[-1]) / 2
    goal = slicewise.Goal(cost_per_million_usd=bound)
    found = slicewise.compile(
        model, (x,), goal=goal, limits=limits, verify=False, measure_times=False
    ).plan
    assert found.objective == "latency"
    assert (found.prediction.cost_per_million_usd or 0) <= bound * 1.01
    assert latencies[0] <= (found.prediction.latency_ms or 0) <= latencies[-1]


def test_a_goal_out_of_reach_is_refused(model: nn.Module, x: torch.Tensor) -> None:
    with pytest.raises(slicewise.InfeasibleError, match=r"latency_ms.*nearest one reaches"):
        slicewise.compile(model, (x,), goal=slicewise.Goal(latency_ms=1.0), limits=LIMITS)


def test_a_profile_of_ones_own_changes_the_plan(
    model: nn.Module, x: torch.Tensor, tmp_path: Path
) -> None:
    profile = tmp_path / "near.toml"
    near = "{p50 = 0.01, p99 = 0.02}"
    profile.write_text(
        f"[s3]\nput_ms = {near}\nget_ms = {near}\nput_cpu_ms = 0\nget_cpu_ms = 0\n"
        "put_cpu_ns = 0\nget_cpu_ns = 0\n"
    )
    plan = slicewise.compile(
        model, (x,), objective="latency", limits=LIMITS, profile=profile, verify=False
    ).plan
    assert {edge.transport for edge in plan.edges if edge.crosses} == {"s3"}
