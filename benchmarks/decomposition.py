"""What cutting a model costs and saves: warm requests to 1, 2, 3, 5 and 10 slices.

    python benchmarks/decomposition.py [--requests N] [--slices 1 2 ...] [models]

Published decompositions into 10 slices took 5.2 times as long for 20 % less memory. Here every function
has one full vCPU, once on the bare local platform ("off": what calls wait for is this machine's
loopback) and once with the latencies and bandwidth of the profile ("aws"). Requests to all numbers of
slices take turns, because the speed of a virtual machine drifts. `peak` is the largest function's,
`share` what its slice adds to the base, which is a function with an empty session.

Claims, with the network off: the most slices take at most 1.3 times the unsliced time and what the
added transport is predicted to take; no function takes more than 1.1 times the base and what its slice
is predicted to add to it, and the largest takes less than unsliced.
"""

from __future__ import annotations

import argparse
import importlib
import os
from dataclasses import dataclass

import serving
from models import bert_base, image_model

from slicewise import Plan

MODELS = ("MobileNetV2", "ResNet-50", "BERT-base")
SLICES = (1, 2, 3, 5, 10)
SLOWER = 1.3
MORE_MEMORY = 1.1
MB = 1024 * 1024

profile = importlib.import_module("slicewise.targets.lambda.profile").default_profile()
BASE_MB = profile.estimate.runtime_held_mb


@dataclass(frozen=True, kw_only=True)
class Row:
    """A plan with the prediction for its network, and what it took."""

    plan: Plan
    served: serving.Served

    @property
    def transport_ms(self) -> float:
        """Predicted: all but the slices' computing, the slowest of each stage."""
        slices = {part.name: part.compute_ms for part in self.plan.prediction.slices}
        computing = sum(max(slices[part.name] for part in stage) for stage in self.plan.stages)
        return (self.plan.prediction.latency_ms or 0.0) - computing

    @property
    def peak_mb(self) -> float:
        """Of the largest function."""
        return max(self.served.peak_mb[part.name] for part in self.plan.slices)

    def excess(self) -> tuple[float, str]:
        """The most that a function takes as a multiple of the base and its slice's share."""
        return max(
            (self.served.peak_mb[part.name] / (part.peak_memory_bytes / MB), part.name)
            for part in self.plan.slices
        )


def measured(name: str, counts: list[int], requests: int) -> list[Row]:
    """Print a line for each number of slices and network; the rows without a network."""
    model, inputs = bert_base() if name == "BERT-base" else image_model(name)
    work = serving.prepared(model, inputs, max(counts))
    print(f"\n{name}: {work.graph.weight_bytes / MB:.0f} MB of weights, {work.times.source}")
    print(f"{'slices':>6}{'network':>9}{'median ms':>11}{'/ unsliced':>12}{'predicted':>11}"
          f"{'stages':>8}{'crossing kB':>13}{'peak MB':>9}{'share':>7}{'predicted':>11}")  # fmt: skip
    plans = [serving.cut_into(work, count) for count in counts]
    quiet = [serving.without_network(work, plan) for plan in plans]
    found: list[Row] = []
    for network, shown in ((None, quiet), ("aws", plans)):
        served = serving.measured_in_turn(
            [(work, plan) for plan in plans], inputs, requests=requests, network=network
        )
        rows = [Row(plan=plan, served=each) for plan, each in zip(shown, served, strict=True)]
        if network is None:
            found = rows
        for count, row in zip(counts, rows, strict=True):
            plan, median = row.plan, row.served.median_ms
            expected = max(part.peak_memory_bytes for part in plan.slices) / MB
            print(f"{count:6}{network or 'off':>9}{median:11.1f}"
                  f"{median / rows[0].served.median_ms:12.2f}"
                  f"{plan.prediction.latency_p50_ms or 0:11.1f}{len(plan.stages):8}"
                  f"{plan.cross_slice_bytes / 1e3:13,.0f}{row.peak_mb:9.1f}"
                  f"{row.peak_mb - BASE_MB:7.1f}{expected - BASE_MB:11.1f}", flush=True)  # fmt: skip
    return found


def claims(name: str, found: list[Row]) -> None:
    one, many = found[0], found[-1]
    count = len(many.plan.slices)
    added = many.transport_ms - one.transport_ms
    allowed = SLOWER * one.served.median_ms + added
    _claim(
        f"{name}: {count} slices take {many.served.median_ms:.1f} ms, at most {SLOWER} x "
        f"{one.served.median_ms:.1f} ms and {added:.1f} ms of transport",
        many.served.median_ms <= allowed,
    )
    worst, part = many.excess()
    _claim(
        f"{name}: {part} of {count} takes {worst:.2f} times the base of {BASE_MB} MB and its share, "
        f"at most {MORE_MEMORY} times",
        worst <= MORE_MEMORY,
    )
    _claim(
        f"{name}: the largest of {count} functions takes {many.peak_mb:.0f} MB, unsliced "
        f"{one.peak_mb:.0f} MB",
        many.peak_mb < one.peak_mb,
    )


def _claim(text: str, held: bool) -> None:
    print(f"{'held' if held else 'FAILED':7}{text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; all unless named")
    parser.add_argument("--slices", nargs="+", type=int, default=list(SLICES))
    parser.add_argument("--requests", type=int, default=30)
    options = parser.parse_args()
    counts = sorted({1, *options.slices})
    print(f"load {os.getloadavg()[0]:.1f}, {options.requests} warm requests each, one at a time")
    found_of = {name: measured(name, counts, options.requests) for name in options.models or MODELS}
    print()
    for name, found in found_of.items():
        claims(name, found)


if __name__ == "__main__":
    main()
