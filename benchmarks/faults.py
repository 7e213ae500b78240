"""Faults, one by one and at random: how every request ends.

A model of three slices is served with `faults=True`. For every request a fault is armed that is drawn
from a seed; in the second half four clients send at once. A request must end with the right answer or
an error that names what failed, within its deadline. Afterwards `gc` must delete all that is left.

    python benchmarks/faults.py [--requests 500] [--seed 0] [--kind throttle ...]
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import slicewise

faults_module = importlib.import_module("slicewise.targets.lambda.local.faults")

DEADLINE_S = 30.0
GRACE_S = 0.5  # the thread that waits must get its turn on a machine that is full
TOLERANCE = 1e-4
FEW, MANY = 2, 96  # rows: all tensors inline; the wide one and the answer by S3
# Faults that only requests with objects meet; and only with them an instance needs more memory.
THEIRS = ("s3", "kill in fetch", "kill in send", "out of memory")


class Wide(nn.Module):
    """64 KB per row between the slices."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Linear(8, 16384)
        self.narrow = nn.Linear(16384, 8)
        self.last = nn.Linear(8, 16384)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.narrow(torch.relu(self.widen(x))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kind", action="append", help="Only faults of this kind; may be repeated."
    )
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model = Wide().eval()
    with tempfile.TemporaryDirectory() as directory:
        bundle = compiled(model, Path(directory) / "bundle")
        with bundle.serve(faults=True, cpu_scale=8.0, init_timeout_s=30.0) as endpoint:
            failed = run(endpoint, model, options)
    sys.exit(failed)


def compiled(model: nn.Module, directory: Path) -> Any:
    batch = torch.export.Dim("batch", min=1, max=MANY)
    return slicewise.compile(
        model,
        (torch.randn(2, 8),),
        dynamic_shapes={"x": {0: batch}},
        limits=slicewise.Limits(weight_bytes=700_000),
        verify=False,
    ).save(directory)


def run(endpoint: Any, model: nn.Module, options: argparse.Namespace) -> int:
    """Send the requests, print the table; 1 if one ended as none may, else 0."""
    count, seed = options.requests, options.seed
    kinds = tuple(options.kind or faults_module.KINDS)
    endpoint.client.deadline_s = DEADLINE_S
    parts = [part.name for part in endpoint.plan.slices]
    stack = endpoint.function.removesuffix("-coordinator")
    functions = [f"{stack}-{part}" for part in (*parts, "coordinator")]
    drawn = itertools.islice(faults_module.random_faults(seed, functions, kinds), count)
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    longest: dict[str, float] = defaultdict(float)
    struck: Counter[str] = Counter()
    lock = threading.Lock()

    def request(index: int, fault: Any, alone: bool) -> None:
        if fault.kind.startswith("s3"):  # wherever an operation of its kind is next
            fault = replace(fault, function=None)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        rows = MANY if index % 2 or fault.kind.startswith(THEIRS) else FEW
        x = torch.randn(rows, 8, generator=generator)
        if fault.kind.startswith(("kill", "out", "full", "clock")) and index % 3 == 0:
            endpoint.platform.discard_idle()  # these meet cold starts, too
        endpoint.platform.faults.arm(fault)
        began = time.monotonic()
        ended = outcome(endpoint, model, x)
        took = time.monotonic() - began
        if took > DEADLINE_S + GRACE_S:
            ended = "TOO LATE: " + ended
        print(f"{index:4} {fault}: {ended}, {took:.1f} s", file=sys.stderr, flush=True)
        with lock:
            kind = fault.kind if alone else "(at random, 4 at once)"
            struck[kind] += endpoint.platform.faults.clear() if alone else 0
            outcomes[kind][ended] += 1
            longest[kind] = max(longest[kind], took)

    half, started = count // 2, time.monotonic()
    for index, fault in enumerate(itertools.islice(drawn, half)):
        request(index, fault, True)
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(request, half + index, fault, False) for index, fault in enumerate(drawn)
        ]
        for job in jobs:
            job.result()
    struck["(at random, 4 at once)"] = endpoint.platform.faults.clear()

    print(f"{'fault':24} {'struck':>6} {'right':>6} {'error':>6} {'longest':>8}  errors")
    for kind, found in outcomes.items():
        right = found.pop("right", 0)
        errors = ", ".join(f"{name} {n}" for name, n in found.most_common())
        print(
            f"{kind:24} {struck[kind]:6} {right:6} {found.total():6} {longest[kind]:7.1f}s  {errors}"
        )
        outcomes[kind] = found
    bad = [
        end for found in outcomes.values() for end in found if end.isupper() or "TOO LATE" in end
    ]
    healthy = outcome(endpoint, model, torch.ones(2, 8))
    settle(endpoint)
    collected, left = endpoint.gc(), endpoint.gc()
    print(f"{count} requests in {time.monotonic() - started:.0f} s; after them one is {healthy}")
    print(f"objects that gc found: {collected}; after it: {left}")
    print(f"wrong answers, unnamed errors or late ones: {len(bad)} {bad or ''}")
    return int(bool(bad) or left > 0 or healthy != "right")


def outcome(endpoint: Any, model: nn.Module, x: torch.Tensor) -> str:
    """ "right", or what the error is called; in capitals what must not happen."""
    try:
        found = endpoint(x)
    except slicewise.SliceFailure as failure:
        named = failure.slice or failure.request_id
        cause = failure.kind
        return cause if named and cause else "UNNAMED"
    except slicewise.RequestError as refused:
        return f"RequestError ({refused.status})"
    except Exception as error:
        return f"UNNAMED {type(error).__name__}: {error}".upper()
    with torch.no_grad():
        right = torch.allclose(found, model(x), rtol=TOLERANCE, atol=TOLERANCE)
    return "right" if right else "WRONG"


def settle(endpoint: Any) -> None:
    """Wait until duplicates have ended, which nobody waits for."""
    seen = -1
    while seen != len(endpoint.reports):
        seen = len(endpoint.reports)
        time.sleep(3)


if __name__ == "__main__":
    main()
