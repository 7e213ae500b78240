"""Models that shards split, and how tests get their graphs and programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn import functional

from slicewise.analyse import analyse
from slicewise.batchnorm import fold_batch_norms
from slicewise.capture import Captured, capture
from slicewise.codegen.convert import Converted, convert
from slicewise.graph import OpGraph
from slicewise.passes.shards import Sharding
from slicewise.sharding import apply_shardings


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


def run(program: ExportedProgram, inputs: Any) -> list[torch.Tensor]:
    """The outputs of a program in torch."""
    with torch.no_grad():
        found = (
            program.module()(**inputs) if isinstance(inputs, dict) else program.module()(*inputs)
        )
    leaves: list[torch.Tensor] = torch.utils._pytree.tree_leaves(found)
    return leaves


def run_onnx(program: ExportedProgram, inputs: Any, directory: Path) -> list[torch.Tensor]:
    """The outputs of a program that is converted once more, in ONNX Runtime."""
    onnx_ir.save(convert(program, keep_names=True).model, directory / "m.onnx")
    session = onnxruntime.InferenceSession(directory / "m.onnx")
    arrays = [t.numpy() for t in torch.utils._pytree.tree_leaves(inputs)]
    names = [value.name for value in session.get_inputs()]
    feeds = dict(zip(names, arrays, strict=True))
    return [torch.from_numpy(np.asarray(found)) for found in session.run(None, feeds)]


def close(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> None:
    """Equal but for the order of additions."""
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        scale = float(other.abs().max())
        assert float((one - other).abs().max()) <= 1e-5 * max(scale, 1e-3)


def sharded(core: Core, chosen: Sequence[Sharding]) -> ExportedProgram:
    """The model with these groups in shards, whose ops are as told and replace those of the groups."""
    program, told = apply_shardings(core.converted.program, chosen, aliases=core.converted.aliases)
    names = {node.name for node in program.graph.nodes}
    own = [name for one in told for name in one.ops]
    assert len(told) == sum(way.degree for way in chosen)
    assert len(own) == len(set(own))
    assert names.issuperset(own)
    assert not names & {name for way in chosen for name in way.ops}
    return program


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


def vgg16() -> nn.Module:
    """VGG-16 (Simonyan and Zisserman, 2014), configuration D."""
    layers: list[nn.Module] = []
    inputs = 3
    for repeats, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(repeats):
            layers += [_conv(inputs, width), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), *head, nn.Linear(4096, 1000))


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.main(x) + self.shortcut(x))


def wide_resnet50(factor: int = 3) -> nn.Module:
    """WRN-50-3 (Zagoruyko and Komodakis, 2016): a ResNet-50 with `factor` times wider bottlenecks."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    inputs = 64
    for index, repeats in enumerate((3, 4, 6, 3)):
        width, outputs = factor * 64 * 2**index, 256 * 2**index
        for block in range(repeats):
            stride = 2 if index and not block else 1
            layers.append(_Bottleneck(inputs, width, outputs, stride))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))
