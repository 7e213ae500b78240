"""Slices at the same time against one function and against slices one after the other.

    python benchmarks/parallel.py [MODEL ...] [--requests N] [--at-once N] [--plans]

Every function has the memory that just holds the whole model, and every CPU share is scaled down alike,
so that all slices of a stage run at the same time on two cores: the times are those of a machine that is
slower by `scale`, and the profile says so, so that the plans are made for it. The network is emulated.

Rows: `single`, the whole model in one function; `sequential`, the plan of the least latency of slices
one after the other; `parallel`, the plan that `compile` chooses. Columns: the caller's median and what
was predicted of it, compute seconds (billed ms of the slices), bytes that cross between slices, US
dollars per million requests. Claims: `parallel` is never slower than `sequential` by more than 3 %, and
predictions are within 10 %.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import serving
import torch
from models import StackedLstm, bert_base, image_model
from torch import nn

from slicewise import Limits, Plan
from slicewise.pipeline import Work, cut, cut_in_shards, plan_of, prepare
from slicewise.progress import steps

CORES = 1.8  # of two, the rest is for the platform and the client
VCPU_MB = 1769
SLOWER = 0.03
MOST_ERROR = 0.10
PROFILE = """
schema = 1
[limits]
package_mb_max = 10240
[cpu]
mb_per_vcpu = {vcpu}
"""


class _Inception(nn.Module):
    """Modules of four paths each, as of Inception-v1, at a third of its depth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 64, 7, 2), nn.MaxPool2d(2), _conv(64, 192, 3))
        self.blocks = nn.ModuleList(_Paths(width) for width in (192, 480, 480, 480))
        self.head = nn.Linear(480, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        found: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return found


class _Paths(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList((
            _conv(channels, 128, 1),
            nn.Sequential(_conv(channels, 128, 1), _conv(128, 192, 3)),
            nn.Sequential(_conv(channels, 96, 1), _conv(96, 96, 5)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv(channels, 64, 1)),
        ))  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([path(x) for path in self.paths], dim=1)


def _conv(channels: int, outer: int, size: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, outer, size, stride, size // 2), nn.ReLU())


def inception() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return _Inception(), (torch.randn(1, 3, 224, 224),)


def gpt2() -> tuple[nn.Module, Any]:
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(use_cache=False))
    return model, {"input_ids": torch.randint(0, 50_000, (1, 128))}


def lstm() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return StackedLstm(layers=4, width=512), (torch.randint(0, 5000, (1, 64)),)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "VGG-16": lambda: image_model("VGG-16"),
    "ResNet-50": lambda: image_model("ResNet-50"),
    "WRN-50-3": lambda: image_model("WRN-50-3"),
    "Inception": inception,
    "BERT-base": bert_base,
    "GPT-2": gpt2,
    "LSTM": lstm,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One plan of a model, predicted and measured."""

    plan: Plan
    served: serving.Served

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was measured."""
        return (self.plan.prediction.latency_p50_ms or 0.0) / self.served.median_ms - 1

    @property
    def compute_s(self) -> float:
        billed = self.served.billed_ms
        return sum(ms for name, ms in billed.items() if name != "coordinator") / 1e3


def prepared(model: nn.Module, inputs: Any, scale: float) -> Work:
    """All that is known before the cut, for vCPUs that are slower by `scale`."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as profile:
        profile.write(PROFILE.format(vcpu=round(VCPU_MB / scale)))
        profile.flush()
        return prepare(
            model.eval().requires_grad_(False), inputs, steps(False), target="lambda", limits=None,
            dynamic_shapes=None, transports=None, profile=profile.name, measure_times=True,
            time_limit_s=60,
        )  # fmt: skip


def planned(work: Work, limits: Limits) -> tuple[Work, Plan]:
    """The plan of the least latency within the limits, all functions of `memory_mb`, and its program."""
    held = replace(work, limits=replace(work.limits, **{
        name: getattr(limits, name) for name in ("memory_mb", "max_slices", "max_parallel")
    }))  # fmt: skip
    held, found, settings = cut_in_shards(held, "latency", None, work.target.overheads(work.rule))
    assert limits.memory_mb is not None
    sizes = dict.fromkeys(settings.memory_mb, limits.memory_mb)
    model = replace(settings.model, caller_memory_mb=VCPU_MB)
    settings = replace(settings, memory_mb=sizes, model=model)
    return held, plan_of(held, "latency", found, settings, warm_up=False)


def rows_of(name: str, requests: int, at_once: int, show: bool) -> dict[str, Row]:
    """Measure the plans of one model and print a line for each."""
    model, inputs = MODELS[name]()
    work = prepared(model, inputs, 1.0)
    whole, _ = cut(replace(work, limits=replace(work.limits, max_slices=1)), "bytes", None,
                           work.target.overheads(work.rule))  # fmt: skip
    memory_mb = max(-(-part.memory_bytes // 2**20) for part in whole.slices)
    scale = min(1.0, CORES / (at_once * memory_mb / VCPU_MB))
    work = prepared(model, inputs, scale)
    print(f"{name}: {memory_mb} MB each, CPU scaled by {scale:.3f}, op times {work.times.source}")
    plans = {
        "single": planned(work, Limits(memory_mb=memory_mb, max_slices=1, max_parallel=1)),
        "sequential": planned(work, Limits(memory_mb=memory_mb, max_parallel=1)),
        "parallel": planned(work, Limits(memory_mb=memory_mb, max_parallel=at_once)),
    }
    found = {}
    for kind, (held, plan) in plans.items():
        if show:
            print(plan)
        served = serving.measured(
            held, plan, inputs, requests=requests, network="aws", cpu_scale=scale
        )
        row = found[kind] = Row(plan=plan, served=served)
        widest = max(len(stage) for stage in plan.stages)
        gain = found["single"].served.median_ms / served.median_ms
        print(
            f"  {kind:12}{len(plan.slices):4}{widest:4}{served.median_ms:10.1f}"
            f"{plan.prediction.latency_p50_ms or 0.0:10.1f}{row.error:+7.0%}{gain:7.2f}"
            f"{row.compute_s:9.2f}{plan.cross_slice_bytes:12,}{served.usd_per_million:9.2f}",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; all unless named")
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--at-once", type=int, default=4, help="slices at the same time")
    parser.add_argument("--plans", action="store_true", help="print every plan")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, {options.requests} warm requests each, one at a time")
    print(f"  {'plan':12}{'n':>4}{'par':>4}{'ms':>10}{'predicted':>10}{'error':>7}{'gain':>7}"
          f"{'compute s':>9}{'bytes':>12}{'$/million':>9}")  # fmt: skip
    found = {
        name: rows_of(name, options.requests, options.at_once, options.plans)
        for name in options.models or MODELS
    }
    print()
    slower = {
        name: rows["parallel"].served.median_ms / rows["sequential"].served.median_ms - 1
        for name, rows in found.items()
    }
    worst = max(slower, key=lambda name: slower[name])
    verdict(slower[worst] <= SLOWER, f"parallel against sequential: at most {slower[worst]:+.1%} "
            f"({worst}), allowed {SLOWER:.0%}")  # fmt: skip
    errors = [abs(row.error) for rows in found.values() for row in rows.values()]
    verdict(max(errors) <= MOST_ERROR, f"predictions: median error {statistics.median(errors):.1%}, "
            f"largest {max(errors):.1%}, allowed {MOST_ERROR:.0%}")  # fmt: skip


def verdict(held: bool, text: str) -> None:
    print(f"{'held' if held else 'FAILED':7}{text}")


if __name__ == "__main__":
    main()
