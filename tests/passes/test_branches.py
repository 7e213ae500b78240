"""Branches of real models: found where they take long, left alone where they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from shardable import Inception, Mlp, graph_of
from torch import nn
from torch.nn import functional

from slicewise.passes.joint.optimise import Choice
from tests.passes.test_groups import timed
from tests.passes.test_parallel import best


class Experts(nn.Module):
    """A dense mixture: every expert's answer, weighted by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(10, 3)
        self.experts = nn.ModuleList(Mlp() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.gate(x).softmax(-1)
        found = torch.stack([expert(x) for expert in self.experts], -1)
        out: torch.Tensor = (found * weights.unsqueeze(-2)).sum(-1)
        return out


class Towers(nn.Module):
    """Two inputs, each with its own network, compared."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = Mlp(), Mlp()

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = (self.user(user) * self.item(item)).sum(-1)
        return out


class Prompted(nn.Module):
    """An image's encoder, a prompt's, and a decoder that reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 10, 3))
        self.prompt, self.decoder = Mlp(), Mlp()

    def forward(self, image: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        seen = self.image(image).mean((2, 3))
        found: torch.Tensor = self.decoder(seen + self.prompt(prompt))
        return found


class Ensemble(nn.Module):
    """The mean of four models' answers."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(Mlp() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


class WideAttention(nn.Module):
    """Query, key and value of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = [
            layer(x).view(2, 5, 4, 4).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        found = functional.scaled_dot_product_attention(*heads)
        out: torch.Tensor = self.out(found.transpose(1, 2).reshape(2, 5, 16))
        return out


def rows() -> torch.Tensor:
    return torch.randn(4, 10)


# In how many slices the branches are.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], int]] = {
    "inception": (Inception, (torch.randn(1, 4, 19, 18),), 3),  # the short ones are in one
    "experts": (Experts, (rows(),), 4),  # the gate is one
    "towers": (Towers, (rows(), rows()), 2),
    "encoder and prompt": (Prompted, (torch.randn(4, 3, 9, 9), rows()), 2),
    "ensemble": (Ensemble, (rows(),), 4),
    "query, key and value": (WideAttention, (torch.randn(2, 5, 16),), 3),
}


def plan(name: str, ms: float) -> Choice:
    build, inputs, _ = MODELS[name]
    return best(timed(graph_of(build(), inputs), ms), 4)


@pytest.mark.parametrize("name", MODELS)
def test_branches_are_found_where_they_pay(name: str) -> None:
    _, _, branches = MODELS[name]
    choice = plan(name, 60)
    widest = max(choice.steps, key=lambda step: len(step.ops))
    assert len(widest.ops) == branches
    assert widest.gain_ms > 50
    assert all(
        one.isdisjoint(other) for i, one in enumerate(widest.ops) for other in widest.ops[:i]
    )


@pytest.mark.parametrize("name", MODELS)
def test_short_branches_stay_in_one_slice(name: str) -> None:
    assert [len(step.ops) for step in plan(name, 0.5).steps] == [1]
