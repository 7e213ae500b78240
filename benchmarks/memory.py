"""Peak memory: what is predicted against what functions take when they answer the largest request.

`estimate` is predicted from the graph alone, `planned` was measured while compiling, in functions with
room to spare; `served` is what the bundle takes in functions of their real size. Both must lie within
10 % of that and not below it by more than 3 %, and no function may run out of memory.

`--probe` measures instead what the estimate's formula needs to know of transports, with models that do
nothing else, and prints it as the profile's [estimate] has it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import slicewise
from slicewise import Limits, targets

MB = 1024 * 1024
LOWEST, HIGHEST = 0.97, 1.10


def bert() -> tuple[nn.Module, Any, Any, Limits]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048
    )
    ids = torch.randint(0, 30_000, (2, 128))
    batch = torch.export.Dim("batch", min=1, max=8)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return BertModel(config), inputs, {k: {0: batch} for k in inputs}, Limits(memory_mb=224)


def gpt2() -> tuple[nn.Module, Any, Any, Limits]:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(n_embd=384, n_layer=8, n_head=6, use_cache=False)
    ids = torch.randint(0, 50_000, (4, 256))
    return GPT2Model(config), {"input_ids": ids}, None, Limits(memory_mb=256)


def resnet50() -> tuple[nn.Module, Any, Any, Limits]:
    from transformers import ResNetConfig, ResNetModel

    images = torch.randn(2, 3, 224, 224)
    return ResNetModel(ResNetConfig()), {"pixel_values": images}, None, Limits(memory_mb=192)


def vit() -> tuple[nn.Module, Any, Any, Limits]:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=384, num_hidden_layers=8, num_attention_heads=6, intermediate_size=1536
    )
    return (
        ViTModel(config),
        {"pixel_values": torch.randn(4, 3, 224, 224)},
        None,
        Limits(memory_mb=192),
    )


def mlp() -> tuple[nn.Module, Any, Any, Limits]:
    layers = [layer for _ in range(6) for layer in (nn.Linear(2048, 2048), nn.ReLU())]
    return nn.Sequential(*layers), (torch.randn(256, 2048),), None, Limits(memory_mb=192)


def lstm() -> tuple[nn.Module, Any, Any, Limits]:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20_000, 256)
            self.lstm = nn.LSTM(256, 768, num_layers=2, batch_first=True)
            self.head = nn.Linear(768, 10_000)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.lstm(self.embedding(tokens))[0][:, -1])
            return out

    return Tagger(), (torch.randint(0, 20_000, (4, 64)),), None, Limits(memory_mb=256)


def denoiser() -> tuple[nn.Module, Any, Any, Limits]:
    """Messages near the limit of a payload, in and out, and activations below and above."""
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))
    return nn.Sequential(*layers), (torch.randn(1, 3, 608, 608),), None, Limits(memory_mb=256)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any, Any, Limits]]] = {
    f.__name__: f for f in (bert, gpt2, resnet50, vit, mlp, lstm, denoiser)
}


def rows(name: str) -> list[tuple[str, str, int, float, float, float]]:
    """(model, slice, function MB, estimated, planned and served MB) of every slice."""
    torch.manual_seed(0)
    model, inputs, dynamic, limits = MODELS[name]()
    compiled = slicewise.compile(model.eval(), inputs, dynamic_shapes=dynamic, limits=limits)
    plan = compiled.plan
    target = targets.load(plan.target)
    request = _largest(plan, inputs)
    with tempfile.TemporaryDirectory() as folder:
        bundle = compiled.save(Path(folder) / "bundle")
        with bundle.serve() as endpoint:
            for _ in range(2):
                endpoint(**request)
            reports = endpoint.reports
    found = []
    for part in plan.slices:
        served = max(r.max_memory_mb for r in reports if r.function.endswith(f"-{part.name}"))
        estimate = (
            target.estimate_memory(compiled.graph, part, plan.edges, plan.transport_rule) / MB
        )
        planned = part.peak_memory_bytes / MB
        found.append((name, part.name, part.memory_mb, estimate, planned, served))
    return found


def _largest(plan: slicewise.Plan, inputs: Any) -> dict[str, Any]:
    """The example with every dynamic dimension at its maximum (numbers repeated)."""
    sizes = {dim.name: dim.max for dim in plan.dims}
    keys = plan.input_structure["keys"]
    named = inputs if isinstance(inputs, dict) else dict(zip(keys, inputs, strict=True))
    made = {}
    for spec in plan.inputs:
        value = named[spec.name]
        for axis, size in enumerate(spec.shape):
            wanted = sizes.get(size, value.shape[axis]) if isinstance(size, str) else size
            index = torch.arange(int(wanted)) % value.shape[axis]
            value = value.index_select(axis, index)
        made[spec.name] = value
    return made


class _Probe(nn.Module):
    """Takes a tensor of any size and returns `rows` KiB, computing next to nothing."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.sum().reshape(1, 1)
        return y.expand(self.rows, 256) * 1.0 if self.rows else y


def probed(transport: str, received_mb: float, sent_mb: float) -> float:
    """MB that a function takes which receives and sends this much."""
    request = torch.rand(max(1, int(received_mb * 1024)), 256)  # its sum is far from zero
    compiled = slicewise.compile(
        _Probe(int(sent_mb * 1024)).eval(), (request,), transports=(transport,)
    )
    (part,) = compiled.plan.slices
    return part.peak_memory_bytes / MB


def probe() -> None:
    """Print the coefficients of transports: constants, and slopes between two sizes each.

    Multiplying leaves two results of the size sent in ONNX Runtime; the arena's gaps come on top.
    """
    bare, by_s3 = probed("payload", 0, 0), probed("s3", 0, 0)
    print(f"runtime_held_mb = {bare:.1f}  # and what a session of real ops adds, about 1.2")
    print(f"s3_client_mb = {by_s3 - bare:.1f}")
    for transport, small, large in (("payload", 2, 4), ("s3", 16, 48)):
        received = probed(transport, large, 0) - probed(transport, small, 0)
        sent = probed(transport, 0, large) - probed(transport, 0, small)
        print(f"receive_{transport}_factor = {received / (large - small):.2f}")
        print(f"send_{transport}_factor = {sent / (large - small) - 2:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--probe", action="store_true", help="measure the estimate's coefficients")
    options = parser.parse_args()
    if options.probe:
        probe()
        return
    print(f"{'model':10}{'slice':8}{'function':>10}{'estimate':>12}{'planned':>12}{'served':>12}"
          f"{'est/served':>12}{'plan/served':>12}")  # fmt: skip
    estimates, plans = [], []
    for name in options.models:
        for model, part, function, estimate, planned, served in rows(name):
            estimates.append(estimate / served)
            plans.append(planned / served)
            print(f"{model:10}{part:8}{function:7} MB{estimate:9.1f} MB{planned:9.1f} MB"
                  f"{served:9.1f} MB{estimates[-1]:12.2f}{plans[-1]:12.2f}", flush=True)  # fmt: skip
    for what, ratios in (("estimate", estimates), ("planned", plans)):
        held = all(LOWEST <= ratio <= HIGHEST for ratio in ratios)
        print(f"{what} within 10 % of served, never below by more than 3 %: "
              f"{'held' if held else 'FAILED'} on {len(ratios)} slices "
              f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
