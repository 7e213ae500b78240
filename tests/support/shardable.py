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
