"""Compile time and peak memory: BERT-base into four slices against a plain export and save.

Each row is a process of its own, the two taking turns; the medians and their ratio are printed.
The bounds that we hold ourselves to: at most 1.15 times the plain export, and a peak of at most
2.2 times the model's weights plus 1 GB.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WEIGHT_LIMIT = 125 * 1024 * 1024


def _model() -> tuple[Any, dict[str, Any], Any]:
    import torch
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig()).eval()
    ids = torch.randint(0, 30_000, (2, 128))
    batch = torch.export.Dim("batch", min=1, max=8)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return model, inputs, {name: {0: batch} for name in inputs}


def plain(directory: Path) -> dict[str, Any]:
    """Capture, one plain torch.onnx.export, save."""
    import torch

    model, inputs, dynamic = _model()
    started = time.perf_counter()
    program = torch.export.export(model, (), inputs, dynamic_shapes=dynamic, strict=False)
    captured = time.perf_counter()
    onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx is not None
    converted = time.perf_counter()
    onnx.save(directory / "model.onnx", external_data=True)
    return {
        "seconds": time.perf_counter() - started,
        "capture": captured - started,
        "convert": converted - captured,
        "save": time.perf_counter() - converted,
        "slices": 1,
    }


def sliced(directory: Path) -> dict[str, Any]:
    """slicewise.compile without verification, and save."""
    import slicewise

    model, inputs, dynamic = _model()
    started = time.perf_counter()
    compiled = slicewise.compile(
        model,
        inputs,
        dynamic_shapes=dynamic,
        limits=slicewise.Limits(weight_bytes=WEIGHT_LIMIT),
        verify=False,
    )
    compiled.save(directory / "bundle")
    return {
        "seconds": time.perf_counter() - started,
        "cut": compiled.plan.certificate.seconds,
        "slices": len(compiled.plan.slices),
        "status": compiled.plan.certificate.status,
        "weights": compiled.plan.model.weight_bytes,
    }


def _measure(kind: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, __file__, "--only", kind, "--directory", directory]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=["plain", "sliced"])
    parser.add_argument("--directory", type=Path)
    arguments = parser.parse_args()
    if arguments.only:
        result = {"plain": plain, "sliced": sliced}[arguments.only](arguments.directory)
        result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(result))
        return

    rows: dict[str, list[dict[str, Any]]] = {"plain": [], "sliced": []}
    for _ in range(arguments.runs):
        for kind, results in rows.items():
            results.append(_measure(kind))
    print(f"BERT-base, {arguments.runs} runs each in turn, medians")
    print(f"{'':28}{'seconds':>9}{'peak MB':>9}{'slices':>8}")
    for kind, label in (("plain", "export, convert, save"), ("sliced", "slicewise.compile, save")):
        seconds = statistics.median(r["seconds"] for r in rows[kind])
        peak = statistics.median(r["peak_mb"] for r in rows[kind])
        print(f"{label:28}{seconds:9.2f}{peak:9.0f}{rows[kind][0]['slices']:8}")
    pairs = [
        s["seconds"] / p["seconds"] for s, p in zip(rows["sliced"], rows["plain"], strict=True)
    ]
    weights = rows["sliced"][0]["weights"] / 1024 / 1024
    print(f"ratio by pairs: median {statistics.median(pairs):.2f} "
          f"({min(pairs):.2f} to {max(pairs):.2f}); bound 1.15")  # fmt: skip
    print(f"peak bound 2.2 x {weights:.0f} MB + 1,024 MB = {2.2 * weights + 1024:.0f} MB")
    cut = [r["cut"] for r in rows["sliced"]]
    print(f"the cut itself: {statistics.median(cut):.2f} s, {rows['sliced'][0]['status']}")


if __name__ == "__main__":
    main()
