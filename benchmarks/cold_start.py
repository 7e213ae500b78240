"""Cold starts: what they consist of, and what a first request takes with and without the warm-up.

    .venv/bin/python benchmarks/cold_start.py [--quick] [--only slices|requests]

First: one slice by packaging, megabytes of weights and memory size (an image is a zip here).
The parts are the function's own: spawn (the interpreter and the runtime interface client), import, load
(the session), clients (what of boto3 is not there yet when the session is); then the first run against a
later one. Between the starts the platform ends all environments; files stay in the page cache, as no
figure of Lambda's disk is known. Packages have byte code, as those that are deployed.

Second: the first request of a plan of five slices, one stage each, and the bound that is to hold for
it: 1.3 times the cold start of its slowest slice, and a warm request. On Lambda functions that start at
once do not share cores; so that they do not here, all of them have so small a part of this machine's
that they could all run at the same time (`cpu_scale`). The cold start is that of a slice which starts
alone, from the call to its end, in the run without the warm-up.

Beside what the first request takes longer than a warm one stands what the cost model predicts for that:
with the profile's CPU times, at this share of a CPU, and this machine's own start of an interpreter.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import slicewise
from slicewise.cost import Imports, Step, caller_cold_ms, slice_cold_ms, warm_up_ms

costs = importlib.import_module("slicewise.targets.lambda.costs")
default_profile = importlib.import_module("slicewise.targets.lambda.profile").default_profile

MEGABYTES = (20, 90, 170)
MEMORIES_MB = (256, 512, 1024, 1769, 3008)
REPEATS = 3
WIDTH = 1024  # one layer has 4 MiB
PARTS = ("spawn_ms", "import_ms", "load_ms", "clients_ms")
STAGES = 5
BOUND = 1.3
CPU_SCALE = (
    0.13  # six inits of two vCPUs each then fit the two cores of this machine, and some is left
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repetition, fewer sizes")
    parser.add_argument("--only", choices=("slices", "requests"))
    chosen = parser.parse_args()
    sizes, repeats = ((20,), 1) if chosen.quick else (MEGABYTES, REPEATS)
    if chosen.only != "requests":
        print_parts(sizes, (512, 1769) if chosen.quick else MEMORIES_MB, repeats)
    if chosen.only != "slices":
        for size in sizes:
            print_first_requests(size, repeats)


def layers(megabytes: int) -> nn.Module:
    """Linear layers with ReLU between them."""
    torch.manual_seed(0)
    count = megabytes // 4
    found = [layer for _ in range(count) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*found).eval()


def print_parts(megabytes: tuple[int, ...], memories_mb: tuple[int, ...], repeats: int) -> None:
    print(f"Cold start of one slice, ms, medians of {repeats}")
    heads = ("init", "spawn", "import", "load", "clients", "first run", "later run")
    print(f"{'packaging':>12}{'weights':>9}{'memory':>9}" + "".join(f"{h:>11}" for h in heads))
    for packaging, options in PACKAGINGS.items():
        for size in megabytes:
            with tempfile.TemporaryDirectory() as folder:
                bundle = one_slice(size, Path(folder) / "bundle", options)
                for memory_mb in memories_mb:
                    found = start_parts(bundle, memory_mb, repeats)
                    row = "".join(f"{ms:11.0f}" for ms in found) if found else "   out of memory"
                    print(f"{packaging:>12}{size:6} MB{memory_mb:6} MB{row}", flush=True)


def one_slice(megabytes: int, directory: Path, options: dict[str, Any]) -> slicewise.Bundle:
    """Its packages, unpacked, as functions see them."""
    compiled = slicewise.compile(
        layers(megabytes), (torch.randn(1, WIDTH),), verify=False, progress=False, **options
    )
    assert len(compiled.plan.slices) == 1
    return saved(compiled, directory)


def saved(compiled: slicewise.Compiled, directory: Path) -> slicewise.Bundle:
    """The bundle, with byte code."""
    bundle = compiled.save(directory)
    compileall.compile_dir(bundle.directory / "functions", quiet=1)
    return bundle


PACKAGINGS: dict[str, dict[str, Any]] = {
    "zip": {"transports": ("payload",)},
    "zip, objects": {"transports": ("s3",)},
    "s3-weights": {"transports": ("payload",), "packaging": "s3-weights"},
}


def start_parts(bundle: slicewise.Bundle, memory_mb: int, repeats: int) -> list[float] | None:
    """Init and its parts, the first run and a later one; None when the function is too small."""
    set_memory(bundle, "slice0", memory_mb)
    x = torch.randn(1, WIDTH)
    rows = []
    endpoint: Any = bundle.serve()
    with endpoint:
        for _ in range(repeats):
            endpoint.platform.discard_idle()
            try:
                endpoint(x)
            except slicewise.SliceFailure:
                return None
            (first,) = endpoint.last_trace["slices"]
            endpoint(x)
            (later,) = endpoint.last_trace["slices"]
            assert first["cold"] and not later["cold"]
            parts = [first.get(name, 0.0) for name in PARTS]
            rows.append([first["init_ms"], *parts, first["compute_ms"], later["compute_ms"]])
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def set_memory(bundle: slicewise.Bundle, part: str, memory_mb: int) -> None:
    path = bundle.directory / "functions.json"
    data = json.loads(path.read_text())
    for entry in data["functions"]:
        if entry["package"] == f"functions/{part}":
            entry["memory_mb"] = memory_mb
    path.write_text(json.dumps(data))


def print_first_requests(megabytes: int, repeats: int) -> None:
    print(f"\nFirst request of {STAGES} slices of {megabytes} MB, ms, medians of {repeats}, "
          f"CPU scaled by {CPU_SCALE:.2f}")  # fmt: skip
    heads = (
        "network",
        "warm-up",
        "first",
        "warm",
        "coordinator",
        "slowest slice",
        "bound",
        "of it",
        "cold adds",
        "predicted",
    )
    print("".join(f"{head:>14}" for head in heads))
    compiled = slicewise.compile(
        layers(megabytes // 4 * 4 * STAGES), (torch.randn(1, WIDTH),), verify=False, progress=False,
        limits=slicewise.Limits(weight_bytes=int((megabytes + 1) * 2**20)),
    )  # fmt: skip
    assert len(compiled.plan.stages) == STAGES
    held, alone, spawn_ms = True, 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        bundle = saved(compiled, Path(folder) / "bundle")
        # Without the warm-up slices start one after the other, each alone.
        for warm_up, network in ((False, None), (True, None), (True, "aws")):
            set_warm_up(bundle, warm_up)
            first, warm, own, slowest, spawned = first_request(bundle, network, repeats)
            alone, spawn_ms = alone or slowest, spawn_ms or spawned
            bound = BOUND * alone + warm
            held = held and (not warm_up or first <= bound)
            predicted = predicted_ms(compiled.plan, spawn_ms, warm_up)
            print(
                f"{network or 'off':>14}{'yes' if warm_up else 'no':>14}"
                f"{first:14.0f}{warm:14.0f}{own:14.0f}{slowest:14.0f}"
                f"{bound:14.0f}{first / bound:14.2f}{first - warm:14.0f}{predicted:14.0f}",
                flush=True,
            )
    print(
        "first: as the caller sees it; coordinator, slowest slice: Init Durations in that request;\n"
        f"bound: {BOUND} x the slowest slice without the warm-up, and a warm request;\n"
        "of it: first / bound; cold adds: first less warm; predicted: the same by the cost model.\n"
        f"{'held' if held else 'FAILED':7}with the warm-up a first request is within the bound"
    )


def first_request(
    bundle: slicewise.Bundle, network: str | None, repeats: int
) -> tuple[float, float, float, float, float]:
    """Medians: the first request, a warm one, the coordinator's init and the slowest slice's, and of
    these the start of an interpreter.
    """
    x = torch.randn(1, WIDTH)
    rows = []
    endpoint: Any = bundle.serve(network=network, cpu_scale=CPU_SCALE)
    with endpoint:
        for _ in range(repeats):
            endpoint.platform.discard_idle()
            before = len(endpoint.reports)
            first = timed(lambda: endpoint(x))
            reports = endpoint.reports[before:]
            spawned = statistics.median(s["spawn_ms"] for s in endpoint.last_trace["slices"])
            inits = {r.function: r.init_ms for r in reports if r.init_ms is not None}
            assert len(inits) == 1 + STAGES
            own = inits.pop(endpoint.function)
            warm = statistics.median(timed(lambda: endpoint(x)) for _ in range(3))
            rows.append((first, warm, own, max(inits.values()), spawned))
    first, warm, own, slowest, spawned = map(statistics.median, zip(*rows, strict=True))
    return first, warm, own, slowest, spawned


def set_warm_up(bundle: slicewise.Bundle, warm_up: bool) -> None:
    path = bundle.directory / "functions" / "coordinator" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "warm_up": warm_up}))


def predicted_ms(plan: slicewise.Plan, spawn_ms: float, warm_up: bool) -> float:
    """What the cost model says that a request takes longer which finds no function started."""
    share = 2 * CPU_SCALE  # of a CPU, which an init has here
    model = costs.cost_model(default_profile(), plan.transport_rule.payload_bytes)
    begin = Step(wait_ms=spawn_ms)
    model = replace(
        model,
        imports=Imports(**{name: ms / share for name, ms in asdict(model.imports).items()}),
        load_ns=model.load_ns / share,
        starts=tuple(replace(start, begin=begin) for start in model.starts),
    )
    starts = [slice_cold_ms(model, part.weight_bytes, uses_store=False) for part in plan.slices]
    if warm_up:
        return warm_up_ms(model, max(starts), uses_store=False)
    return caller_cold_ms(model, uses_store=False) + sum(starts)


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    main()
