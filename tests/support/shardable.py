"""Models that shards split, and how tests get their graphs and programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from slicewise.analyse import analyse
from slicewise.batchnorm import fold_batch_norms
from slicewise.capture import Captured, capture
from slicewise.codegen.convert import Converted, convert
from slicewise.graph import OpGraph


@dataclass(frozen=True, kw_only=True)
class Core:
    """A model in core ops."""

    captured: Captured
    converted: Converted
    graph: OpGraph


def core_of(model: nn.Module, inputs: Any, **options: Any) -> Core:
    """The model as `compile` converts it, before anything is cut."""
    captured = capture(model.eval(), inputs, **options)
    converted = convert(fold_batch_norms(captured.program))
    graph, _ = analyse(
        converted.program,
        name=captured.name,
        aliases=converted.aliases,
        dim_names=captured.dim_names,
    )
    return Core(captured=captured, converted=converted, graph=graph)


def graph_of(model: nn.Module, inputs: Any, **options: Any) -> OpGraph:
    """The graph of the model's core ops."""
    return core_of(model, inputs, **options).graph


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int = 10, inner: int = 24) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(functional.gelu(self.up(x)))
        return out


class Residual(nn.Module):
    """The blocks of a ResNet: a stem with a pool, an identity block, and one of stride 2."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 7, stride=2, padding=3)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.a, self.b = _conv(width, width), _conv(width, width)
        self.c, self.d = _conv(width, 2 * width, stride=2), _conv(2 * width, 2 * width)
        self.shortcut = nn.Conv2d(width, 2 * width, 1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.norm(self.stem(x))))
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        return torch.relu(self.shortcut(x) + self.d(torch.relu(self.c(x))))


class Inception(nn.Module):
    """Branches of several kernels and a pool, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 3, 1)
        self.three = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1))
        self.five = nn.Sequential(
            nn.Conv2d(4, 3, (1, 7), padding=(0, 3)), nn.Conv2d(3, 3, (7, 1), padding=(3, 0))
        )
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 2, 1))
        self.last = nn.Conv2d(13, 4, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = [self.one(x), self.three(x), self.five(x), self.pool(x)]
        out: torch.Tensor = self.last(torch.cat(branches, 1))
        return out


class MobileBlock(nn.Module):
    """Two inverted residuals of a MobileNet: depthwise convolutions, ReLU6, an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = self._block(8, 1), self._block(8, 2)

    @staticmethod
    def _block(width: int, stride: int) -> nn.Sequential:
        inner = 2 * width
        return nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, width, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(x + self.first(x))
        return out


def vgg(width: int = 6) -> nn.Module:
    """The first blocks of a VGG, with its head."""
    return nn.Sequential(
        _conv(3, width), nn.ReLU(), _conv(width, width), nn.ReLU(), nn.MaxPool2d(2),
        _conv(width, 2 * width), nn.ReLU(), _conv(2 * width, 2 * width), nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
    )  # fmt: skip


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
