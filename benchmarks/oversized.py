"""Models with ops that fit no function, at full size: VGG-16's classifier, a 128k x 4096 tied embedding.

    python benchmarks/oversized.py [--directory DIR] [vgg] [tied]

Each is compiled under the limits of a zip package on AWS Lambda, saved, and run on the local platform.
The weights are random: the pieces are compared with eager PyTorch. Each model runs in a process of its
own, so that the peak memory is its own; "before" is the peak with the model alone. The bundle of the
tied embedding is 4 GB on disk for a while.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MB = 1024 * 1024


def vgg() -> tuple[Any, Any]:
    """VGG-16's classifier (25088 x 4096, 4096 x 4096, 4096 x 1000) behind its pooling."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(25088, 4096), nn.ReLU(), nn.Dropout(),
        nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 1000),
    )  # fmt: skip
    return model.eval(), (torch.randn(1, 512, 7, 7),)


def tied() -> tuple[Any, Any]:
    """A language model's two ends: embedding and output head are one weight of 2 GB."""
    import torch
    from torch import nn

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(128_000, 4096)
            self.mix = nn.Linear(4096, 4096)
            self.head = nn.Linear(4096, 128_000, bias=False, device="meta")
            self.head.weight = self.embedding.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embedding(tokens)
            return self.head(torch.tanh(self.mix(x)))

    torch.manual_seed(0)
    return Tied().eval(), (torch.randint(0, 128_000, (1, 8)),)


MODELS = {"vgg": vgg, "tied": tied}


def measure(name: str, directory: Path) -> dict[str, Any]:
    import torch

    import slicewise

    model, inputs = MODELS[name]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    compiled = slicewise.compile(model, inputs, progress=True)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    bundle = compiled.save(directory / name)
    saving = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(compiled.plan, file=sys.stderr)
    with torch.no_grad():
        expected = model(*inputs)
    with bundle.serve() as endpoint:
        found = endpoint(*inputs)
    plan = bundle.plan
    return {
        "model": name,
        "weights MB": plan.model.weight_bytes / MB,
        "pieces": " + ".join(str(len(split.sizes)) for split in plan.splits),
        "axis": ", ".join(dict.fromkeys(split.axis for split in plan.splits)),
        "slices": len(plan.slices),
        "stages": len(plan.stages),
        "crossing": plan.cross_slice_bytes,
        "proof": plan.certificate.status,
        "cut s": plan.certificate.seconds,
        "compile s": seconds,
        "save s": saving,
        "peak RSS MB": peak,
        "before MB": before,
        "largest function MB": max(p.peak_memory_bytes for p in plan.slices) / MB,
        "max difference": float((found - expected).abs().max() / expected.abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="vgg | tied", help="all unless named")
    parser.add_argument("--directory", type=Path, help="where bundles are written, then deleted")
    parser.add_argument("--one", choices=MODELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.directory)))
        return
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="oversized-") as directory:
        for name in options.models or MODELS:
            command = [sys.executable, __file__, "--one", name, "--directory", directory]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            for key, value in json.loads(run.stdout.splitlines()[-1]).items():
                shown = f"{value:,.1f}" if isinstance(value, float) else value
                print(f"{key:>19}  {shown if key != 'max difference' else f'{value:.1e}'}")
            print()


if __name__ == "__main__":
    main()
