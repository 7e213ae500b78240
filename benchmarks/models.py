"""The models that the benchmarks measure, in plain torch.nn with random weights.

`resnet(depth, width)` multiplies every channel count by `width` (Gillis calls it WRN-depth-width).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class _Basic(nn.Module):
    expansion = 1

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(channels, inner, 3, stride), nn.ReLU(), _conv(inner, inner, 3)
        )
        same = channels == inner and stride == 1
        self.shortcut = nn.Identity() if same else _conv(channels, inner, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        outer = inner * 4
        self.body = nn.Sequential(
            _conv(channels, inner, 1), nn.ReLU(),
            _conv(inner, inner, 3, stride), nn.ReLU(),
            _conv(inner, outer, 1),
        )  # fmt: skip
        same = channels == outer and stride == 1
        self.shortcut = nn.Identity() if same else _conv(channels, outer, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class _Inverted(nn.Module):
    def __init__(self, channels: int, outer: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = channels * expand
        widen = [_conv(channels, inner, 1), nn.ReLU6()] if expand > 1 else []
        self.body = nn.Sequential(
            *widen, _conv(inner, inner, 3, stride, inner), nn.ReLU6(), _conv(inner, outer, 1)
        )
        self.adds = stride == 1 and channels == outer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def _conv(channels: int, outer: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, outer, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outer),
    )


def resnet(depth: int, width: int = 1) -> nn.Module:
    """ResNet-34 or -50 with every channel count times `width`."""
    block, counts = {34: (_Basic, (3, 4, 6, 3)), 50: (_Bottleneck, (3, 4, 6, 3))}[depth]
    channels = 64 * width
    layers: list[nn.Module] = [_conv(3, channels, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for stage, count in enumerate(counts):
        inner = 64 * width * 2**stage
        for index in range(count):
            layers.append(block(channels, inner, 2 if stage and not index else 1))
            channels = inner * block.expansion
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    return nn.Sequential(*layers)


def vgg16() -> nn.Module:
    """VGG-16 without dropout."""
    layers: list[nn.Module] = []
    channels = 3
    for outer in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if outer:
            layers += [nn.Conv2d(channels, outer, 3, padding=1), nn.ReLU()]
            channels = outer
        else:
            layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(25088, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4096, 1000))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 at width 1."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for expand, outer, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):  # fmt: skip
        for index in range(count):
            layers.append(_Inverted(channels, outer, stride if not index else 1, expand))
            channels = outer
    layers += [_conv(channels, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(1280, 1000))


def bert_base(tokens: int = 128) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """BERT-base with random weights, and a request of `tokens` tokens."""
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(), add_pooling_layer=False)
    return model, (torch.randint(0, 30_000, (1, tokens)),)


class StackedLstm(nn.Module):
    """Embedding, LSTM layers with a sum around each, and a head: `layers` of `width`."""

    def __init__(self, layers: int = 4, width: int = 256, words: int = 5000) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.layers = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(layers))
        self.head = nn.Linear(width, words)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + layer(x)[0]
        found: torch.Tensor = self.head(x)
        return found


IMAGE_MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-50": lambda: resnet(50),
    "VGG-16": vgg16,
    "WRN-34-3": lambda: resnet(34, 3),
    "WRN-34-4": lambda: resnet(34, 4),
    "WRN-50-3": lambda: resnet(50, 3),
    "MobileNetV2": mobilenet_v2,
}


def image_model(name: str, side: int = 224) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A model in eval mode and one image."""
    torch.manual_seed(0)
    return IMAGE_MODELS[name]().eval(), (torch.randn(1, 3, side, side),)
