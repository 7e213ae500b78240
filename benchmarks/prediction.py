"""Latency, cost and peak memory of 20 plans: predicted against measured, with the network emulated.

    python benchmarks/prediction.py [--requests N] [--plans N] [--parts] [--plot FILE]

Models, numbers of slices and memory sizes vary. Latency is the caller's median, cost follows from the
billed durations of all functions and the prices of the profile, and peak memory is the largest
function's. Claim: the median of the 20 errors is at most 10 %, for each of the three. `--parts` prints
where the time of every slice goes, to see which part of a prediction is off.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import serving
import torch
from models import bert_base, image_model
from torch import nn

from slicewise import Plan
from slicewise.plots import check_plotting

MOST_ERROR = 0.10
MB = 1024 * 1024
QUANTITIES = {"latency": "ms", "cost": "US dollars per million", "memory": "MB"}


class Tagger(nn.Module):
    """Two LSTMs over word embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20_000, 256)
        self.lstm = nn.LSTM(256, 512, num_layers=2, batch_first=True)
        self.head = nn.Linear(512, 10_000)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.lstm(self.embedding(tokens))[0][:, -1])
        return found


def lstm() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return Tagger(), (torch.randint(0, 20_000, (1, 64)),)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "MobileNetV2": lambda: image_model("MobileNetV2"),
    "ResNet-50": lambda: image_model("ResNet-50"),
    "BERT-base": bert_base,
    "LSTM": lstm,
}
# (slices, MB of every function)
PLANS: dict[str, tuple[tuple[int, int], ...]] = {
    "MobileNetV2": ((1, 512), (1, 1769), (2, 1024), (3, 512), (5, 1769)),
    "ResNet-50": ((1, 1024), (2, 512), (3, 1769), (4, 1024), (5, 512)),
    "BERT-base": ((1, 1769), (2, 1024), (3, 1769), (4, 512), (5, 1024)),
    "LSTM": ((1, 512), (1, 1769), (2, 1024), (3, 512), (3, 1769)),
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """(predicted, measured) of one plan by quantity."""

    model: str
    values: dict[str, tuple[float, float]]

    def error(self, quantity: str) -> float:
        """Relative to what was measured; above zero when predicted too high."""
        predicted, found = self.values[quantity]
        return predicted / found - 1


def points(name: str, requests: int, most: int, parts: bool) -> list[Point]:
    """Measure the plans of one model and print a line for each."""
    model, inputs = MODELS[name]()
    chosen = PLANS[name][:most]
    work = serving.prepared(model, inputs, max(count for count, _ in chosen))
    print(f"{name}: op times {work.times.source}")
    found = []
    for seed, (count, memory_mb) in enumerate(chosen):
        plan = serving.cut_into(work, count, memory_mb)
        served = serving.measured(
            work, plan, inputs, requests=requests, network="aws", seed=seed
        )  # fmt: skip
        predicted = plan.prediction
        point = Point(
            model=name,
            values={
                "latency": (predicted.latency_p50_ms or 0.0, served.median_ms),
                "cost": (predicted.cost_per_million_usd or 0.0, served.usd_per_million),
                "memory": (
                    max(part.peak_memory_bytes for part in plan.slices) / MB,
                    max(served.peak_mb[part.name] for part in plan.slices),
                ),
            },
        )
        shown = "".join(
            f"{expected:9.2f}{actual:9.2f}{point.error(quantity):+7.0%}"
            for quantity, (expected, actual) in point.values.items()
        )
        print(f"{name:12}{count:7}{memory_mb:6}{shown}", flush=True)
        if parts:
            print_parts(plan, served)
        found.append(point)
    return found


def print_parts(plan: Plan, served: serving.Served) -> None:
    """Predicted against measured for every slice: the expected value and the median of the requests.

    "around" is what its function is billed for besides its handler's own steps, "call" what the
    coordinator waits beyond that.
    """
    for index, part in enumerate(plan.prediction.slices):
        traces = [trace["slices"][index] for trace in served.traces]
        steps = {k: [t[f"{k}_ms"] for t in traces] for k in ("receive", "compute", "send", "call")}
        got = {name: statistics.median(values) for name, values in steps.items()}
        billed = served.billed_ms[part.name]
        inside = got["receive"] + got["compute"] + got["send"]
        handle = part.billed_ms - part.receive_ms - part.compute_ms - part.send_ms
        values = {
            "receive": (part.receive_ms, got["receive"]),
            "compute": (part.compute_ms, got["compute"]),
            "send": (part.send_ms, got["send"]),
            "around": (handle, billed - inside),
            "call": (part.call_ms, got["call"] - billed),
        }
        shown = "".join(f"  {name} {a:.1f} / {b:.1f}" for name, (a, b) in values.items())
        print(f"    {part.name}{shown}")


def plot(found: list[Point], path: Path) -> None:
    """Predicted against measured, a picture per quantity; the lines are the claim's 10 %."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure, pictures = pyplot.subplots(1, 3, figsize=(13, 4.3), layout="constrained")
    for axes, (quantity, unit) in zip(pictures, QUANTITIES.items(), strict=True):
        for name in dict.fromkeys(point.model for point in found):
            pairs = [point.values[quantity] for point in found if point.model == name]
            axes.scatter([actual for _, actual in pairs], [p for p, _ in pairs], label=name, s=22)
        ends = [value for point in found for value in point.values[quantity]]
        line = [min(ends) * 0.9, max(ends) * 1.1]
        for factor, style in ((1.0, "-"), (1 - MOST_ERROR, ":"), (1 + MOST_ERROR, ":")):
            axes.plot(line, [x * factor for x in line], style, color="grey", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_title(quantity)
        axes.set_xlabel(f"measured, {unit}")
        axes.set_ylabel(f"predicted, {unit}")
    pictures[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; all unless named")
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--plans", type=int, default=5, help="of every model, at most")
    parser.add_argument("--parts", action="store_true", help="print every slice's times")
    parser.add_argument("--plot", type=Path, help="where to write a picture")
    options = parser.parse_args()
    if options.plot:
        check_plotting()
    # Op times of this hour, not of an earlier one: this machine's speed drifts by 10 %.
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="slicewise-")
    print(f"load {os.getloadavg()[0]:.1f}, {options.requests} warm requests each, one at a time; "
          "predicted, measured, error")  # fmt: skip
    print(f"{'model':12}{'slices':>7}{'MB':>6}"
          + "".join(f"{f'{quantity}, {unit}':>25}" for quantity, unit in
                    zip(QUANTITIES, ("ms", "$/million", "MB"), strict=True)))  # fmt: skip
    found = [
        point
        for name in options.models or MODELS
        for point in points(name, options.requests, options.plans, options.parts)
    ]
    print()
    for quantity in QUANTITIES:
        errors = [abs(point.error(quantity)) for point in found]
        median = statistics.median(errors)
        print(f"{'held' if median <= MOST_ERROR else 'FAILED':7}{quantity}: the median error of "
              f"{len(found)} plans is {median:.1%}, at most {MOST_ERROR:.0%}; the largest is "
              f"{max(errors):.0%}")  # fmt: skip
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
