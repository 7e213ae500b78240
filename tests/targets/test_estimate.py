"""The estimate of a function's memory, against what the local platform measures of it.

The tolerance is the one that benchmarks/memory.py claims.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import slicewise
from slicewise import Limits, targets

LOWEST, HIGHEST = 0.97, 1.10


def convolutions() -> tuple[nn.Module, torch.Tensor, Limits]:
    """Reordered while they are loaded: more is needed then than while they run."""
    layers = [
        layer
        for _ in range(4)
        for layer in (nn.Conv2d(384, 384, 3, padding=1, bias=False), nn.BatchNorm2d(384), nn.ReLU())
    ]
    return nn.Sequential(*layers), torch.randn(1, 384, 14, 14), Limits(weight_bytes=16_000_000)


def mapped_convolution() -> tuple[nn.Module, torch.Tensor, Limits]:
    """Over one dimension: its weights stay in the file."""
    return nn.Conv1d(1024, 1024, 5, padding=2), torch.randn(1, 1024, 64), Limits()


def patches() -> tuple[nn.Module, torch.Tensor, Limits]:
    """Fewer points than channels: the second writes all patches of its image, 5 MB."""
    first, second = (nn.Conv1d(a, b, 5, padding=2) for a, b in ((512, 1024), (1024, 512)))
    return nn.Sequential(first, nn.GELU(), second), torch.randn(1, 512, 256), Limits()


def blocks() -> tuple[nn.Module, torch.Tensor, Limits]:
    """What is computed in blocks of channels is copied for who wants none: the reply, 8 MB."""
    layers = [nn.Conv2d(64, 128, 3, padding=1), nn.GroupNorm(8, 128), nn.SiLU()]
    layers += [nn.Conv2d(128, 128, 3, padding=1), nn.Upsample(scale_factor=2)]
    return nn.Sequential(*layers), torch.randn(1, 64, 64, 64), Limits()


def linears() -> tuple[nn.Module, torch.Tensor, Limits]:
    layers = [layer for _ in range(4) for layer in (nn.Linear(1536, 1536), nn.Tanh())]
    return nn.Sequential(*layers), torch.randn(100, 1536), Limits(weight_bytes=20_000_000)


class _Tied(nn.Module):
    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9000, 640)
        self.head = nn.Linear(640, 9000, bias=False)
        self.head.weight = self.embedding.weight
        self.dimensions = dimensions

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.embedding(tokens))
        x = x[:, -1] if self.dimensions == 2 else x
        return self.head(x)  # type: ignore[no-any-return]


def tied() -> tuple[nn.Module, torch.Tensor, Limits]:
    """The head is transposed while it is loaded, beside the embedding that the file has."""
    return _Tied(3), torch.randint(0, 9000, (1, 8)), Limits()


def tied_gemm() -> tuple[nn.Module, torch.Tensor, Limits]:
    """Of two dimensions, the product reads the weight as it is."""
    return _Tied(2), torch.randint(0, 9000, (1, 8)), Limits()


class _Larger(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, torch.tanh(x)])


def sends_by_s3() -> tuple[nn.Module, torch.Tensor, Limits]:
    """16 MB in, 32 MB out."""
    return _Larger(), torch.randn(4096, 1024), Limits()


def sends_in_messages() -> tuple[nn.Module, torch.Tensor, Limits]:
    """1.5 MB in, 3 MB out."""
    return _Larger(), torch.randn(384, 1024), Limits()


@pytest.mark.parametrize(
    "make",
    [
        convolutions,
        mapped_convolution,
        patches,
        blocks,
        linears,
        tied,
        tied_gemm,
        sends_by_s3,
        sends_in_messages,
    ],
)
def test_the_estimate_is_close_and_not_below(
    make: Callable[[], tuple[nn.Module, torch.Tensor, Limits]],
) -> None:
    torch.manual_seed(0)
    model, x, limits = make()
    compiled = slicewise.compile(model.eval(), (x,), limits=limits)

    target: Any = targets.load("lambda")
    for part in compiled.plan.slices:
        estimate = target.estimate_memory(
            compiled.graph, part, compiled.plan.edges, compiled.plan.transport_rule
        )
        measured = part.peak_memory_bytes
        assert measured != estimate, "nothing was measured"
        assert LOWEST <= estimate / measured <= HIGHEST, (part.name, estimate, measured)
