"""The benchmark's models in full size: shards compute what the model computes, in torch and in ONNX
Runtime, at more than one degree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from shardable import Core, close, core_of, run, run_onnx, sharded, vgg16, wide_resnet50
from torch import nn

from slicewise.passes.shards import Sharding, shardings


def resnet50() -> nn.Module:
    return wide_resnet50(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "size", "degree"),
    [
        (vgg16, (224, 224), 2),
        (vgg16, (229, 251), 3),
        (vgg16, (224, 224), 4),
        (vgg16, (253, 225), 6),
        (wide_resnet50, (224, 224), 2),
        (wide_resnet50, (224, 224), 4),
        (resnet50, (223, 191), 3),
        (resnet50, (257, 224), 8),
    ],
)
def test_images_by_rows_and_tiles(
    build: Callable[[], nn.Module], size: tuple[int, int], degree: int, tmp_path: Any
) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(1, 3, *size),)
    core = core_of(build(), inputs)
    kinds = [op.kind for op in core.graph.ops]
    last = next(i for i, kind in enumerate(kinds) if kind.startswith(("aten.mean", "aten.view")))
    group = [op.name for op in core.graph.ops[:last]]
    ways = {way.kind: way for way in shardings(core.graph, group, [degree])}
    wanted = run(core.converted.program, inputs)
    assert ("tiles" in ways) == (degree in (4, 6, 8))
    for kind in {"rows", "tiles"}.intersection(ways):
        (tmp_path / kind).mkdir()
        close(run(sharded(core, [ways[kind]]), inputs), wanted)
        close(run_onnx(sharded(core, [ways[kind]]), inputs, tmp_path / kind), wanted)


def blocks(core: Core, degree: int) -> list[Sharding]:
    """Every attention block of a BERT by heads, and the two linear layers after it by features."""
    names = [op.name for op in core.graph.ops]
    linears = [names.index(op.name) for op in core.graph.ops if op.kind.startswith("aten.linear")]
    found = []
    for layer in range(0, len(linears), 6):
        query, _, _, out, up, down = linears[layer : layer + 6]
        for first, last, kind in ((query, out, "heads"), (up, down, "features")):
            ways = shardings(core.graph, names[first : last + 1], [degree])
            found.append(next(w for w in ways if (w.kind, w.combine) == (kind, "sum")))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("degree", [3, 4])
def test_bert_base_by_heads_and_features(degree: int, tmp_path: Any) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    inputs = (torch.randint(0, 30_000, (1, 65)),)
    core = core_of(BertModel(BertConfig(), add_pooling_layer=False), inputs)
    program, wanted = sharded(core, blocks(core, degree)), run(core.converted.program, inputs)
    close(run(program, inputs), wanted)
    close(run_onnx(program, inputs, tmp_path), wanted)
