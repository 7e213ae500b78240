"""Slices that run at the same time, on the real local platform: right answers, and really at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import slicewise
from slicewise.pipeline import all_choices, carried_out, plan_of, prepare, write
from slicewise.plan import ORCHESTRATIONS
from slicewise.progress import steps

# Calls and bytes cost little, and a vCPU takes more memory than functions have: parallel slices pay.
PROFILE = """
schema = 1
[call]
wait_ms = { p50 = 0.5, p99 = 0.6 }
caller_cpu_ms = 0.2
cpu_ms = 0.2
[cpu]
mb_per_vcpu = 10240
period_ms = 0.001
[network]
bytes_s = 10000000000
[payload]
caller_send_cpu_ns = 0.1
caller_receive_cpu_ns = 0.1
send_cpu_ns = 0.1
receive_cpu_ns = 0.1
"""

# A state machine moves objects only.
OBJECTS = """
[s3]
put_ms = { p50 = 0.2, p99 = 0.3 }
get_ms = { p50 = 0.2, p99 = 0.3 }
put_cpu_ms = 0.1
get_cpu_ms = 0.1
put_cpu_ns = 0.1
get_cpu_ns = 0.1
"""


class Towers(nn.Module):
    """Three towers of different depth and a head that reads them all."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            nn.Sequential(*(nn.Sequential(nn.Linear(256, 256), nn.Tanh()) for _ in range(depth)))
            for depth in (9, 7, 5)
        )
        self.head = nn.Linear(3 * 256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(torch.cat([tower(x) for tower in self.towers], dim=-1))
        return found


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "fast.toml"
    path.write_text(PROFILE)
    return path


@pytest.fixture(scope="module")
def towers() -> nn.Module:
    torch.manual_seed(0)
    return Towers().eval()


def test_branches_run_at_the_same_time(towers: nn.Module, profile: Path, tmp_path: Path) -> None:
    rows = torch.export.Dim("rows", max=512)
    found = slicewise.compile(
        towers, (torch.randn(512, 256),), objective="latency", profile=profile,
        limits=slicewise.Limits(max_parallel=4),
        measure_times=False, dynamic_shapes=({0: rows},), hedge=0.9,
    )  # fmt: skip
    assert [len(stage) for stage in found.plan.stages] == [3, 1]
    assert "groups" in found.plan.certificate.method
    with found.save(tmp_path / "bundle").serve() as endpoint, torch.no_grad():
        for count in (512, 5):
            x = torch.randn(count, 256)
            torch.testing.assert_close(endpoint(x), towers(x), rtol=0, atol=1e-5)
        trace = {part["slice"]: part for part in endpoint.last_trace["slices"]}
    names = [part.name for part in found.plan.stages[0]]
    for name in names:  # each begins before any of them has ended
        assert all(
            trace[name]["began_ms"] < trace[other]["began_ms"] + trace[other]["call_ms"]
            for other in names
        )


def test_goals_and_frontiers_have_groups(towers: nn.Module, profile: Path) -> None:
    inputs = (torch.randn(512, 256),)

    def plan(most: int | None, **options: Any) -> slicewise.Plan:
        return slicewise.compile(
            towers, inputs, profile=profile, measure_times=False, verify=False,
            limits=slicewise.Limits(max_parallel=most), **options,
        ).plan  # fmt: skip

    def latency(found: slicewise.Plan) -> float:
        assert found.prediction.latency_ms is not None
        return found.prediction.latency_ms

    alone, together = plan(1, objective="latency"), plan(None, objective="latency")
    assert max(len(stage) for stage in alone.stages) == 1
    assert max(len(stage) for stage in together.stages) in (2, 3, 4)
    assert latency(together) < 0.9 * latency(alone)
    between = (latency(alone) + latency(together)) / 2
    with pytest.raises(slicewise.InfeasibleError, match="no plan keeps latency_ms"):
        plan(1, goal=slicewise.Goal(latency_ms=between))
    asked = plan(4, goal=slicewise.Goal(latency_ms=between))
    assert latency(asked) <= between
    assert max(len(stage) for stage in asked.stages) > 1
    plans = slicewise.frontier(
        towers, inputs, profile=profile, measure_times=False, points=4,
        limits=slicewise.Limits(max_parallel=4),
    )  # fmt: skip
    assert latency(plans[0]) == pytest.approx(latency(together), rel=0.01)
    assert max(len(stage) for stage in plans[0].stages) > 1
    costs = [found.prediction.cost_per_million_usd or 0.0 for found in plans]
    assert costs == sorted(costs, reverse=True)


def convolutions() -> tuple[nn.Module, torch.Tensor]:
    """With a stride, a residual add, and sizes that no degree divides."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(32, 32, 3, padding=1)
            self.two = nn.Conv2d(32, 32, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.two(torch.relu(self.one(x))))

    model = nn.Sequential(
        nn.Conv2d(3, 32, 5, stride=2, padding=2), Block(), nn.MaxPool2d(2), Block(), Block(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return model, torch.randn(1, 3, 157, 131)


def perceptrons() -> tuple[nn.Module, torch.Tensor]:
    layers = [nn.Linear(256, 2048), nn.GELU(), nn.Linear(2048, 256), nn.LayerNorm(256)]
    return nn.Sequential(*layers, *(nn.Linear(256, 2048), nn.GELU(), nn.Linear(2048, 256))), \
        torch.randn(1, 64, 256)  # fmt: skip


@pytest.mark.parametrize("build", [convolutions, pytest.param(perceptrons, marks=pytest.mark.slow)])
def test_shards_compute_what_the_model_computes(
    build: Callable[[], tuple[nn.Module, torch.Tensor]], profile: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x = build()
    model.eval()
    found = slicewise.compile(
        model, (x,), objective="latency", profile=profile, measure_times=False,
        limits=slicewise.Limits(max_parallel=3),
    )  # fmt: skip
    shards = [part.shard for part in found.plan.slices if part.shard]
    assert shards
    assert {shard["of"] for shard in shards} <= {2, 3}
    assert {shard["index"] for shard in shards if shard["group"] == 0} == set(
        range(shards[0]["of"])
    )
    assert f"Group 0: {shards[0]['kind']}" in str(found.plan)
    bundle = found.save(tmp_path / "bundle")
    assert slicewise.Plan.from_json(found.plan.to_json()) == found.plan
    with bundle.serve() as endpoint, torch.no_grad():
        torch.testing.assert_close(endpoint(x), model(x), rtol=0, atol=1e-5)


class Recurrent(nn.Module):
    """LSTM layers with a sum around each, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(512, 512, batch_first=True) for _ in range(3))
        self.head = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)[0]
        found: torch.Tensor = self.head(x)
        return found


def recurrent() -> tuple[nn.Module, torch.Tensor]:
    return Recurrent(), torch.randn(1, 96, 512)


def large_convolutions() -> tuple[nn.Module, torch.Tensor]:
    model, _ = convolutions()
    return model, torch.randn(1, 3, 317, 251)


@pytest.mark.parametrize("build", [large_convolutions, recurrent])
@pytest.mark.parametrize("orchestration", ORCHESTRATIONS)
def test_groups_under_every_orchestration(
    build: Callable[[], tuple[nn.Module, torch.Tensor]],
    orchestration: str,
    profile: Path,
    tmp_path: Path,
) -> None:
    """The plan that a coordinator would have, whoever drives it: a chain gains nothing by it."""
    torch.manual_seed(0)
    model, x = build()
    model.eval()
    if orchestration == "stepfunctions":
        text, profile = profile.read_text(), tmp_path / "objects.toml"
        profile.write_text(text + OBJECTS)
    work = prepare(
        model, (x,), steps(False), target="lambda", limits=slicewise.Limits(max_parallel=4),
        dynamic_shapes=None, transports=None, profile=profile, measure_times=False,
        time_limit_s=20, orchestration=orchestration,
    )  # fmt: skip
    overheads = work.target.overheads(work.rule)
    found = all_choices(work, "latency", None, overheads, shards=True)
    kinds = {sharding.kind for sharding in found.choices[0].shardings}
    assert kinds <= ({"time", "tokens"} if build is recurrent else {"tiles"})
    assert kinds
    made = carried_out(work, found, found.choices[0], overheads)
    assert made is not None
    plan = plan_of(made[0], "latency", *made[1:], warm_up=False)
    # Shards are sent their parts of an inline input, and fetch one that is an object.
    assert bool(plan.input_cuts) == (orchestration != "stepfunctions")
    bundle = write(made[0], plan, steps(False)).save(tmp_path / "bundle")
    with bundle.serve() as endpoint, torch.no_grad():
        torch.testing.assert_close(endpoint(x), model(x), rtol=0, atol=1e-5)
        names = {part["slice"] for part in endpoint.last_trace["slices"]}
    assert names == {part.name for part in plan.slices}
