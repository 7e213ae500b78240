"""Slices at the same time against one function and against slices one after the other.

    python benchmarks/parallel.py [MODEL ...] [--requests N] [--at-once N] [--cores N] [--steps]

Every function has the memory that just holds the whole model. All CPU shares are scaled down alike, so
that `--at-once` slices and the coordinator together take no more than `--cores` of this machine's two;
the rest is for the platform and the client. The times are those of a machine whose vCPUs are slower by
`scale`, and the profile says so, and that nothing is encrypted on the way, so that the plans are made
for it. The network is emulated and is not scaled: the slower the vCPUs, the more there is to gain.

Rows: `single`, the whole model in one function; `sequential`, the plan of the least latency of slices
one after the other; `everywhere`, Gillis' rule (ICDCS 2021) by our own search and execution: `--at-once`
shards of every run of layers that can be split into so many, without asking whether it pays, the runs
chosen best; `parallel`, the plan that `compile` chooses. Requests to all plans of a model take turns, a
few of one plan after one that does not count: functions that were idle are slower. A row whose plan is
the one of a row before has that one's numbers. Columns: the caller's median and what was predicted of
it, compute seconds (billed time of the slices), bytes that cross between slices, US dollars per million
requests. For the models of the last claim also what would be predicted if messages were free: calls,
halo and what cannot be split are what is left. Claims: `parallel` is never slower than `sequential` by
more than 3 %, predictions are within 10 %, answers are the model's own but for the order of sums, and
four shards make VGG-16 and WRN-50-3 at least 2.5 times as fast.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import serving
import torch
from models import StackedLstm, bert_base, image_model
from torch import nn
from torch.utils._pytree import tree_leaves

from slicewise import InfeasibleError, Plan
from slicewise.passes import Partition
from slicewise.passes.joint.goal import Bounds, optimum
from slicewise.passes.place import Settings
from slicewise.pipeline import (
    Work,
    all_choices,
    carried_out,
    cut,
    cut_in_shards,
    plan_of,
    prepare,
)
from slicewise.progress import steps

CORES = 1.0  # of two
BURST = 4  # requests of one plan before the next one's turn
VCPU_MB = 1769
SLOWER = 0.03
MOST_DIFFERENCE = 1e-4  # of an answer, of its largest value
MOST_ERROR = 0.10
WIDE, LEAST_GAIN = {"VGG-16", "WRN-50-3"}, 2.5
PROFILE = """
schema = 1
[limits]
package_mb_max = 10240
[cpu]
mb_per_vcpu = {vcpu}
"""
PLAIN = """
[payload]  # the profile's without its 0.7 for TLS
caller_send_cpu_ns = 2.1
caller_receive_cpu_ns = 0.7
"""
FREE = """
[payload]
caller_send_cpu_ns = 0
caller_receive_cpu_ns = 0
send_cpu_ns = 0
receive_cpu_ns = 0
[network]
bytes_s = 1e15
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
    difference: float

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was measured."""
        return (self.plan.prediction.latency_p50_ms or 0.0) / self.served.median_ms - 1

    @property
    def compute_s(self) -> float:
        billed = self.served.billed_ms
        return sum(ms for name, ms in billed.items() if name != "coordinator") / 1e3


def prepared(model: nn.Module, inputs: Any, scale: float, messages: str = PLAIN) -> Work:
    """All that is known before the cut, for vCPUs that are slower by `scale`."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as profile:
        profile.write(PROFILE.format(vcpu=round(VCPU_MB / scale)) + messages)
        profile.flush()
        return prepare(
            model.eval().requires_grad_(False), inputs, steps(False), target="lambda", limits=None,
            dynamic_shapes=None, transports=None, profile=profile.name, measure_times=True,
            time_limit_s=60,
        )  # fmt: skip


def limited(work: Work, memory_mb: int, at_once: int, most: int | None = None) -> Work:
    """The same for functions of this memory, at most `most` of them and `at_once` at the same time."""
    limits = replace(work.limits, memory_mb=memory_mb, max_slices=most, max_parallel=at_once)
    return replace(work, limits=limits)


def plan_in(found: tuple[Work, Partition, Settings], memory_mb: int) -> tuple[Work, Plan]:
    """The plan of a cut, all functions of `memory_mb`, and the work that has its program."""
    held, partition, settings = found
    sizes = dict.fromkeys(settings.memory_mb, memory_mb)
    model = replace(settings.model, caller_memory_mb=VCPU_MB)
    settings = replace(settings, memory_mb=sizes, model=model)
    return held, plan_of(held, "latency", partition, settings, warm_up=False)


def everywhere(work: Work) -> tuple[Work, Partition, Settings] | None:
    """Cut by Gillis' rule: groups of exactly `max_parallel` shards, and slices of what none can split;
    None where nothing can be split so, or no functions of this memory hold what is left.
    """
    overheads = work.target.overheads(work.rule)
    found = all_choices(work, "latency", None, overheads, shards=True)
    optimiser = copy(found.optimiser)
    search = optimiser.search = copy(found.optimiser.search)
    arcs, pairs = search.arcs, search.pairs
    if arcs is None:
        return None
    fits = [
        len(group.runs) == 1
        and group.width == work.limits.max_parallel
        and search.shard_needs(number) <= search.cap_mb * 2**20
        for number, group in enumerate(arcs.groups)
    ]
    kept = np.array(fits, dtype=bool)[arcs.group]
    if not kept.any():
        return None
    need = np.where(kept, arcs.values["need"], np.inf)
    search.arcs = replace(arcs, values={**arcs.values, "need": need})
    ends = {
        (pairs.prefixes[pairs.state_prefix[a]], pairs.prefixes[pairs.state_prefix[b]])
        for a, b in zip(arcs.source[kept], arcs.target[kept], strict=True)
    }
    search.need = search.need.copy()
    for pair, (a, b) in enumerate(zip(pairs.source, pairs.target, strict=True)):
        first, last = (pairs.prefixes[pairs.state_prefix[state]] for state in (a, b))
        if any(first & ~f == 0 and to & ~last == 0 for f, to in ends):
            search.need[pair] = np.inf
    try:
        choice = optimum(optimiser, "latency", Bounds())
    except InfeasibleError as error:
        print(f"  everywhere: {error}")
        return None
    return carried_out(work, found, choice, overheads)


def rows_of(name: str, options: argparse.Namespace) -> dict[str, Row]:
    """Measure the plans of one model and print a line for each."""
    model, inputs = MODELS[name]()
    work = prepared(model, inputs, 1.0)
    overheads = work.target.overheads(work.rule)
    alone = replace(work, limits=replace(work.limits, max_slices=1))
    partition, settings = cut(alone, "bytes", None, overheads)
    (part,), (whole,) = partition.slices, plan_of(alone, "bytes", partition, settings).slices
    memory_mb = -(-max(part.memory_bytes, whole.peak_memory_bytes) // 2**20)
    try:
        cut(limited(work, memory_mb, 1, 1), "latency", None, overheads)
    except InfeasibleError as error:  # it holds the model, but not every op between two messages
        memory_mb = max(memory_mb, error.smallest_limit or 0)
    scale = min(1.0, options.cores * VCPU_MB / (options.at_once * memory_mb + VCPU_MB))
    work = prepared(model, inputs, scale)
    print(f"{name}: {memory_mb} MB each, CPU scaled by {scale:.3f}, op times {work.times.source}")
    found = {
        "single": cut_in_shards(limited(work, memory_mb, 1, 1), "latency", None, overheads),
        "sequential": cut_in_shards(limited(work, memory_mb, 1), "latency", None, overheads),
        "everywhere": everywhere(limited(work, memory_mb, options.at_once)),
        "parallel": cut_in_shards(
            limited(work, memory_mb, options.at_once), "latency", None, overheads
        ),
    }
    plans = {kind: plan_in(cut, memory_mb) for kind, cut in found.items() if cut is not None}
    different: dict[str, tuple[Work, Plan]] = {}
    same_as: dict[str, str] = {}
    for kind, (held, plan) in plans.items():
        for other, (_, known) in different.items():
            if (known.slices, known.edges) == (plan.slices, plan.edges):
                same_as[kind] = other
        if kind not in same_as:
            different[kind] = held, plan
    measured = dict(
        zip(
            different,
            serving.measured_in_turn(
                list(different.values()), inputs, requests=options.requests, network="aws",
                cpu_scale=scale, burst=BURST,
            ),
            strict=True,
        )
    )  # fmt: skip
    with torch.no_grad():
        wanted = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    rows = {}
    for kind, (_, plan) in plans.items():
        served = measured[same_as.get(kind, kind)]
        rows[kind] = Row(plan=plan, served=served, difference=difference(served.answer, wanted))
    for kind, row in rows.items():
        served, plan = row.served, row.plan
        gain = rows["single"].served.median_ms / served.median_ms
        print(
            f"  {kind:12}{len(plan.slices):4}{max(map(len, plan.stages)):4}{served.median_ms:10.1f}"
            f"{plan.prediction.latency_p50_ms or 0.0:10.1f}{row.error:+7.0%}{gain:7.2f}"
            f"{row.compute_s:9.2f}{plan.cross_slice_bytes:12,}{served.usd_per_million:9.2f}"
            f"{'  as ' + same_as[kind] if kind in same_as else ''}",
            flush=True,
        )
        if options.steps and kind not in same_as:
            print(plan)
            show_steps(row)
    if name in WIDE:
        free = limited(prepared(model, inputs, scale, FREE), memory_mb, options.at_once)
        held, plan = plan_in(cut_in_shards(free, "latency", None, overheads), memory_mb)
        least = plan.prediction.latency_p50_ms or 0.0
        single = rows["single"].plan.prediction.latency_p50_ms or 0.0
        print(
            f"  if bytes took neither CPU nor time on the network: {least:.1f} ms predicted at least, "
            f"{single / least:.2f} times as fast",
            flush=True,
        )
    return rows


def difference(found: Any, wanted: Any) -> float:
    """The largest of any number, relative to the largest number of its tensor."""
    pairs = zip(tree_leaves(found), tree_leaves(wanted), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def show_steps(row: Row) -> None:
    """Every slice's times, measured and predicted."""
    predicted = {each.name: each for each in row.plan.prediction.slices}
    names = ("began", "call", "receive", "compute", "send")
    print(
        "    ms, measured / predicted: " + ", ".join(names) + " (begin and call are the caller's)"
    )
    for index, part in enumerate(row.plan.slices):
        told = [trace["slices"][index] for trace in row.served.traces]
        guess = predicted[part.name]
        took = {n: statistics.median(each[f"{n}_ms"] for each in told) for n in names}
        expected = {"receive": guess.receive_ms, "compute": guess.compute_ms, "send": guess.send_ms,
                    "call": guess.call_ms + guess.billed_ms}  # fmt: skip
        print(f"    {part.name:9}" + "".join(
            f"{took[n]:8.1f} /{expected[n]:7.1f}" if n in expected else f"{took[n]:8.1f}"
            for n in names
        ))  # fmt: skip
    totals = [trace["total_ms"] for trace in row.served.traces]
    print(f"    in the coordinator: {statistics.median(totals):.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; all unless named")
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--at-once", type=int, default=4, help="slices at the same time")
    parser.add_argument(
        "--cores", type=float, default=CORES, help="that all functions take together"
    )
    parser.add_argument(
        "--steps", action="store_true", help="print every plan and its slices' times"
    )
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, {options.requests} warm requests each, one at a time")
    print(f"  {'plan':12}{'n':>4}{'par':>4}{'ms':>10}{'predicted':>10}{'error':>7}{'gain':>7}"
          f"{'compute s':>9}{'bytes':>12}{'$/million':>9}")  # fmt: skip
    found = {name: rows_of(name, options) for name in options.models or MODELS}
    print()
    slower = {
        name: rows["parallel"].served.median_ms / rows["sequential"].served.median_ms - 1
        for name, rows in found.items()
    }
    worst = max(slower, key=lambda name: slower[name])
    verdict(slower[worst] <= SLOWER, f"parallel against sequential: at most {slower[worst]:+.1%} "
            f"({worst}), allowed {SLOWER:.0%}")  # fmt: skip
    gains = {
        name: rows["single"].served.median_ms / rows["parallel"].served.median_ms
        for name, rows in found.items()
    }
    for name in WIDE.intersection(found):
        verdict(gains[name] >= LEAST_GAIN, f"{name}: {gains[name]:.2f} times as fast as the single "
                f"function, asked {LEAST_GAIN}")  # fmt: skip
    worst = max((row.difference, name) for name, rows in found.items() for row in rows.values())
    verdict(worst[0] <= MOST_DIFFERENCE, f"answers differ from the model's by at most {worst[0]:.1e} "
            f"({worst[1]}), allowed {MOST_DIFFERENCE:.0e}")  # fmt: skip
    errors = [abs(row.error) for rows in found.values() for row in rows.values()]
    verdict(max(errors) <= MOST_ERROR, f"predictions: median error {statistics.median(errors):.1%}, "
            f"largest {max(errors):.1%}, allowed {MOST_ERROR:.0%}")  # fmt: skip


def verdict(held: bool, text: str) -> None:
    print(f"{'held' if held else 'FAILED':7}{text}")


if __name__ == "__main__":
    main()
