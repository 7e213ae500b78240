"""The models that end-to-end tests and benchmarks cut: real architectures in small configurations.

Each factory returns a `Case`: the model in eval mode with seeded random weights, example inputs,
dynamic shapes (or None), and limits that cut it into three or more slices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from slicewise.limits import Limits


class Scaled(nn.Module):
    """Tensors of one size go in, between its slices, and out; its weights are small."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.rand(columns))
        self.second = nn.Parameter(torch.rand(columns))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.relu(x * self.first) * self.second
        return found


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model to cut."""

    model: nn.Module
    inputs: tuple[Any, ...] | dict[str, Any]
    limits: Limits
    dynamic_shapes: Any = None


def _ready(model: nn.Module) -> nn.Module:
    """As users have it: parameters require gradients, which changes what torch traces (T5)."""
    return model.eval()


def _thirds(model: nn.Module, slack: float = 1.3) -> Limits:
    """Limits of weights under which about three slices are needed."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    largest = max(p.numel() * p.element_size() for p in model.parameters())
    return Limits(weight_bytes=max(int(total / 3 * slack), int(largest * 1.05)))


def resnet50() -> Case:
    """ResNet-50's layout with a quarter of its channels, for 64 x 64 images."""
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[64, 128, 256, 512], depths=[3, 4, 6, 3])
    model = _ready(ResNetModel(config))
    return Case(
        model=model, inputs={"pixel_values": torch.randn(2, 3, 64, 64)}, limits=_thirds(model)
    )


def gpt2() -> Case:
    """A small GPT-2 whose output head is tied to its embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=500, n_positions=64, n_embd=64, n_layer=4, n_head=4, use_cache=False
    )
    model = _ready(GPT2LMHeadModel(config))
    return Case(
        model=model,
        inputs={"input_ids": torch.randint(0, 500, (2, 16))},
        limits=_thirds(model, slack=1.4),
    )


def vit() -> Case:
    """A small vision transformer with dynamic batch 1..8."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128,
        image_size=32, patch_size=8,
    )  # fmt: skip
    model = _ready(ViTForImageClassification(config))
    return Case(
        model=model,
        inputs={"pixel_values": torch.randn(2, 3, 32, 32)},
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1, max=8)}},
        limits=_thirds(model),
    )


def t5() -> Case:
    """A small T5 encoder-decoder; the encoder's output feeds every decoder layer."""
    from transformers import T5Config, T5Model

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=500, d_model=64, d_kv=16, d_ff=128, num_layers=3, num_heads=4, use_cache=False
    )
    model = _ready(T5Model(config))
    return Case(
        model=model,
        inputs={
            "input_ids": torch.randint(0, 500, (2, 12)),
            "decoder_input_ids": torch.randint(0, 500, (2, 7)),
        },
        limits=_thirds(model),
    )


class _LstmClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(300, 48)
        self.first = nn.LSTM(48, 64, batch_first=True, bidirectional=True)
        self.second = nn.LSTM(128, 64, batch_first=True)
        self.head = nn.Linear(64, 5)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        features, _ = self.first(self.embedding(tokens))
        features, (hidden, _) = self.second(features)
        scores = self.head(hidden[-1])
        return {"scores": scores, "best": scores.argmax(-1)}


def lstm() -> Case:
    """Two LSTM layers, one of them bidirectional, and a classifier; returns a dict."""
    torch.manual_seed(0)
    model = _ready(_LstmClassifier())
    return Case(
        model=model, inputs=(torch.randint(0, 300, (2, 10)),), limits=Limits(weight_bytes=240_000)
    )


class _UNet(nn.Module):
    def __init__(self, width: int = 8, depth: int = 3) -> None:
        super().__init__()
        sizes = [width * 2**level for level in range(depth + 1)]
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(sizes)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(sizes))
        self.merge = nn.ModuleList(nn.Conv2d(2 * a, a, 3, padding=1) for a in sizes[:-1])
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(image))
        skips = []
        for down in self.down:
            skips.append(x)
            x = torch.relu(down(x))
        for up, merge, skip in zip(
            reversed(self.up), reversed(self.merge), reversed(skips), strict=True
        ):
            x = torch.relu(merge(torch.cat([up(x), skip], dim=1)))
        out: torch.Tensor = self.last(x)
        return out


def unet() -> Case:
    """A U-Net: skips over many slices."""
    torch.manual_seed(0)
    model = _ready(_UNet())
    return Case(model=model, inputs=(torch.randn(1, 3, 32, 32),), limits=_thirds(model))


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(200, 32)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(8))
        self.head = nn.Linear(32, 200, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.embedding(tokens) * self.scale
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x), x.mean(dim=1)


def tied() -> Case:
    """An embedding tied to the output head, with a buffer; cut so that both ends need the weight."""
    torch.manual_seed(0)
    model = _ready(_Tied())
    return Case(
        model=model, inputs=(torch.randint(0, 200, (2, 6)),), limits=Limits(weight_bytes=30_000)
    )


CASES: dict[str, Callable[[], Case]] = {
    "resnet50": resnet50,
    "gpt2": gpt2,
    "vit": vit,
    "t5": t5,
    "lstm": lstm,
    "unet": unet,
    "tied": tied,
}
