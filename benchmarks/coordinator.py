"""How much memory the coordinator needs: a request's time beyond what its slices spend themselves.

The coordinator only passes JSON on, but below some CPU share it delays every call. The slices are
four linear layers with 256 KB between them; each memory size of the coordinator serves the same
bundle, and the medians of its warm requests are printed.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import slicewise

SIZES_MB = (128, 256, 512, 1024, 1769)
REQUESTS = 15


def main() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Linear(512, 512), nn.ReLU())]
    x = torch.randn(128, 512)
    compiled = slicewise.compile(
        nn.Sequential(*layers).eval(),
        (x,),
        limits=slicewise.Limits(weight_bytes=1_100_000),
        verify=False,
    )
    count = len(compiled.plan.slices)
    print(f"{count} slices, {compiled.plan.cross_slice_bytes:,} bytes cross; medians of {REQUESTS}")
    print(f"{'coordinator':>12}{'request ms':>12}{'slices ms':>11}{'beyond, per call':>18}")
    with tempfile.TemporaryDirectory() as folder:
        bundle = compiled.save(Path(folder) / "bundle")
        functions = bundle.directory / "functions.json"
        data = json.loads(functions.read_text())
        for memory_mb in SIZES_MB:
            for entry in data["functions"]:
                if entry["name"] == data["entry"]:
                    entry["memory_mb"] = memory_mb
            functions.write_text(json.dumps(data))
            totals, own = [], []
            with bundle.serve() as endpoint:
                endpoint(x)
                for _ in range(REQUESTS):
                    started = time.perf_counter()
                    endpoint(x)
                    totals.append((time.perf_counter() - started) * 1e3)
                    parts = endpoint.last_trace["slices"]
                    own.append(
                        sum(p[k] for p in parts for k in ("receive_ms", "compute_ms", "send_ms"))
                    )
            total, inside = statistics.median(totals), statistics.median(own)
            beyond = (total - inside) / (count + 1)
            print(f"{memory_mb:9} MB{total:12.1f}{inside:11.1f}{beyond:15.1f} ms", flush=True)


if __name__ == "__main__":
    main()
