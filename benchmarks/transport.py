"""The joint plan against the published systems, side by side over one emulated network.

    python benchmarks/transport.py [--only MODEL ...] [--requests 30] [--side 224] [--plot FILE]

Every row is a bundle that runs on the local platform with the latencies and bandwidth of AWS
(`network="aws"`, the same seed for all); warm requests go round the rows, so that what disturbs the
machine disturbs all of them. All slices have 1,769 MB, the coordinator what the joint plan chose.

  a  the published system: equal compute, payload only, an encoder of one element at a time
  b  the published hybrid: the same cut and encoder, tensors of 800,000 bytes or more by S3
  c, d, e  our cut and encoder, every crossing tensor by the payload, by S3, by S3 Express. Where the
     payload cannot carry our cut, c is the best cut that it can
  f  slicewise.compile(objective="latency") with all three transports, by its own stages, without the
     measuring of memory

Request and reply travel inside the messages in every row. Rows of equal bundles are measured as one.
`published.py` says how a and b are made. `predicted` is the median; `compute` is what the sessions of a
request took, about the same in all rows.
`late` is the share of waits that this machine overran: there the real platform would be faster.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from crossings import MEMORY_MB, TRANSPORTS, crossover, edges_of, plot
from models import IMAGE_MODELS, image_model
from published import THRESHOLD_BYTES, equal_compute, moved, use_published_encoder

from slicewise import Limits
from slicewise.cost import CostModel
from slicewise.errors import InfeasibleError
from slicewise.passes import Partition
from slicewise.passes.place import Settings
from slicewise.pipeline import Work, cut, plan_of, prepare, write
from slicewise.plan import Plan
from slicewise.plots import check_plotting
from slicewise.progress import steps

MODELS = ("ResNet-50", "VGG-16", "WRN-34-3", "WRN-34-4", "WRN-50-3")
TITLES = {
    "a": "published, payload only", "b": "published hybrid", "c": "payload only",
    "d": "s3 only", "e": "s3express only", "f": "joint plan",
}  # fmt: skip
PUBLISHED = "ab"
TOLERANCE = 1e-4  # of the largest output: as `compile` verifies


@dataclass
class Row:
    """A plan with the cost model that it was made by, and what its requests took, ms."""

    plan: Plan
    model: CostModel
    note: str = ""
    took: list[float] = field(default_factory=list)
    traces: list[Mapping[str, Any]] = field(default_factory=list)
    difference: float = 0.0
    late: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.took)

    @property
    def compute(self) -> float:
        return statistics.median(
            sum(call["compute_ms"] for call in trace["slices"]) for trace in self.traces
        )


def rows_of(work: Work) -> dict[str, Row]:
    """All rows by letter; c is missing where no cut can do with the payload."""
    target = work.target
    only = replace(work, rule=target.transport_rule(work.limits, ("payload",)))
    hybrid = replace(work, rule=target.transport_rule(work.limits, ("payload", "s3")))
    ours, joint = cut(work, "latency", None, target.overheads(work.rule))

    def settings(found: Partition, ways: Mapping[str, str]) -> Settings:
        sizes = {part.name: MEMORY_MB for part in found.slices}
        return Settings(memory_mb=sizes, model=joint.model, transports=ways)

    def row(which: Work, found: Partition, ways: Mapping[str, str], note: str = "") -> Row:
        plan = plan_of(which, "latency", found, settings(found, ways))
        return Row(plan, joint.model, note)

    narrow = target.overheads(only.rule)
    equal = equal_compute(work, narrow)
    by_size = {
        name: "s3" if work.graph.tensor[name].bytes >= THRESHOLD_BYTES else "payload"
        for name in _crossing(equal)
    }
    rows = {
        "a": row(only, equal, {}, "cut as b"),
        "b": row(hybrid, equal, by_size, moved(work, narrow)),
    }
    try:
        rows["c"] = row(only, ours, {})
    except InfeasibleError:
        try:
            rows["c"] = row(only, cut(only, "latency", None, narrow)[0], {}, "a cut of its own")
        except InfeasibleError as error:
            print(f"no row c: {error}")
    rows["d"] = row(hybrid, ours, dict.fromkeys(_crossing(ours), "s3"))
    rows["e"] = row(work, ours, dict.fromkeys(_crossing(ours), "s3express"))
    sizes = sorted(set(joint.memory_mb.values()))
    note = "" if sizes == [MEMORY_MB] else f"the joint plan chose {sizes} MB"
    rows["f"] = row(work, ours, joint.transports, note)
    merged: dict[Any, Row] = {}
    for name in sorted(rows, reverse=True):  # f first: others are as it is
        rows[name] = merged.setdefault(_decided(name, rows[name].plan), rows[name])
    return rows


def _decided(name: str, plan: Plan) -> Any:
    """What makes a row's requests take the time that they take."""
    edges = [(e.tensor, e.producer, e.consumer, e.transport) for e in plan.edges]
    return name in PUBLISHED, tuple(part.ops for part in plan.slices), tuple(edges)


def _crossing(found: Partition) -> list[str]:
    made = {name for part in found.slices for name in part.outputs}
    return sorted(made & {name for part in found.slices for name in part.inputs})


def measure(
    work: Work, rows: Mapping[str, Row], folder: Path, x: Any, expected: Any, requests: int
) -> None:
    """Serve all rows at once and send each of them `requests` warm requests in turn."""
    with ExitStack() as stack:
        endpoints = {}
        written: dict[tuple[tuple[str, ...], ...], Any] = {}
        for name in {id(row): name for name, row in rows.items()}.values():
            row = rows[name]
            layout = tuple(part.ops for part in row.plan.slices)
            if layout not in written:  # rows of one cut share the weights on the disk
                written[layout] = write(work, row.plan, steps(False))
            bundle = replace(written[layout], plan=row.plan).save(folder / name)
            if name in PUBLISHED:
                use_published_encoder(bundle.directory)
            served = bundle.serve(network="aws", network_seed=0, init_timeout_s=120.0)
            endpoints[name] = stack.enter_context(served)
        for name, endpoint in endpoints.items():
            found = endpoint(x)
            rows[name].difference = float((found - expected).abs().max() / expected.abs().max())
            endpoint(x)
        for _ in range(requests):
            for name, endpoint in endpoints.items():
                started = time.perf_counter()
                endpoint(x)
                rows[name].took.append((time.perf_counter() - started) * 1e3)
                rows[name].traces.append(endpoint.last_trace)
        for name, endpoint in endpoints.items():
            counts = endpoint.platform.network_counts.values()
            all_of_them = max(1, sum(count.operations for count in counts))
            rows[name].late = sum(count.late for count in counts) / all_of_them


def show(rows: Mapping[str, Row]) -> None:
    print(
        f"{'':26}{'slices':>7}{'MB cross':>9}{'median ms':>11}{'mean':>8}{'p99':>8}{'/ f':>6}"
        f"{'predicted':>11}{'compute':>9}{'late':>6}{'differs':>9}  transports"
    )
    for name, row in rows.items():
        plan = row.plan
        ways = Counter(e.transport for e in plan.edges if e.crosses)
        words = ", ".join(f"{count} {way}" for way, count in sorted(ways.items()))
        twin = next(other for other in sorted(rows, reverse=True) if rows[other] is row)
        note = row.note if twin == name else f"the bundle of row {twin}"
        p99 = np.percentile(row.took, 99)
        predicted = "-" if name in PUBLISHED else f"{plan.prediction.latency_p50_ms:,.0f}"
        print(
            f"{name} {TITLES[name]:24}{len(plan.slices):7}{plan.cross_slice_bytes / 1e6:9.2f}"
            f"{row.median:11,.0f}{statistics.mean(row.took):8,.0f}{p99:8,.0f}"
            f"{row.median / rows['f'].median:6.2f}{predicted:>11}{row.compute:9,.0f}"
            f"{row.late:6.0%}{row.difference:9.0e}  {words or 'nothing crosses'}"
            f"{'; ' * bool(note) + note}",
            flush=True,
        )


def claims(found: Mapping[str, Mapping[str, Row]]) -> list[str]:
    lines = []
    for model, rows in found.items():
        ours = rows["f"].median
        if model == "WRN-50-3":
            saved = 1 - ours / rows["b"].median
            lines.append(_claim(f"{model}: f at least 25 % below b", saved >= 0.25, f"{saved:.1%}"))
        saved = 1 - ours / rows["a"].median
        lines.append(_claim(f"{model}: f at least 17.3 % below a", saved >= 0.173, f"{saved:.1%}"))
        best = min((name for name in "cde" if name in rows), key=lambda name: rows[name].median)
        above = ours / rows[best].median - 1
        wanted = f"{model}: f at most 2 % above the best of c to e"
        lines.append(_claim(wanted, above <= 0.02, f"{above:+.1%} against {best}"))
        worst = max(row.difference for row in rows.values())
        wanted = f"{model}: all rows compute what PyTorch does"
        lines.append(_claim(wanted, worst <= TOLERANCE, f"{worst:.0e}"))
    return lines


def _claim(wanted: str, held: bool, detail: str) -> str:
    return f"{'held' if held else 'FAILED':<7} {wanted} ({detail})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(IMAGE_MODELS), default=list(MODELS))
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--side", type=int, default=224, help="pixels of the square image")
    parser.add_argument("--weights-mb", type=int, help="most weights of a slice, MiB")
    parser.add_argument("--plot", type=Path, help="write the crossover as a picture")
    options = parser.parse_args()
    if options.plot:
        check_plotting()
    cap = None if options.weights_mb is None else options.weights_mb * 2**20
    limits = Limits(memory_mb=MEMORY_MB, weight_bytes=cap)
    found: dict[str, dict[str, Row]] = {}
    for name in options.only:
        model, inputs = image_model(name, options.side)
        with torch.no_grad():
            expected = model(*inputs)
        work = prepare(
            model, inputs, steps(False), target="lambda", limits=limits, dynamic_shapes=None,
            transports=TRANSPORTS, profile=None, measure_times=True, time_limit_s=60.0,
        )  # fmt: skip
        rows = rows_of(work)
        print(
            f"\n{name}, {options.side} x {options.side}, {work.graph.weight_bytes / 1e6:,.0f} MB of "
            f"weights, {rows['f'].plan.coordinator_memory_mb:,} MB coordinator, network aws, "
            f"{options.requests} warm requests each, op times {work.times.source}"
        )
        with tempfile.TemporaryDirectory(prefix="slicewise-") as folder:
            measure(work, rows, Path(folder), *inputs, expected, options.requests)
        show(rows)
        found[name] = rows
    print()
    crossover(rows["f"].model)
    print("\n" + "\n".join(claims(found)))
    if options.plot:
        edges = [
            edge
            for rows in found.values()
            for name, row in rows.items()
            for edge in edges_of(row.plan, row.model, row.traces, published=name in PUBLISHED)
        ]
        plot(rows["f"].model, edges, options.plot)


if __name__ == "__main__":
    main()
