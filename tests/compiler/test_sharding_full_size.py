"""The benchmark's models in full size: shards compute what the model computes, in torch and in ONNX
Runtime, at more than one degree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from shardable import Core, close, core_of, run, run_onnx, sharded, vgg16, wide_resnet50

from slicewise.passes.shards import Sharding, shardings


def image_model(build: Callable[[], Any]) -> tuple[Core, Any]:
    torch.manual_seed(0)
    inputs = (torch.randn(1, 3, 224, 224),)
    return core_of(build(), inputs), inputs


@pytest.mark.slow
@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("build", [vgg16, wide_resnet50])
def test_images_by_rows(build: Any, degree: int, tmp_path: Any) -> None:
    core, inputs = image_model(build)
    kinds = [op.kind for op in core.graph.ops]
    last = next(i for i, kind in enumerate(kinds) if kind.startswith(("aten.mean", "aten.view")))
    group = [op.name for op in core.graph.ops[:last]]
    (way,) = [w for w in shardings(core.graph, group, [degree]) if w.kind == "rows"]
    wanted = run(core.converted.program, inputs)
    close(run(sharded(core, [way]), inputs), wanted)
    close(run_onnx(sharded(core, [way]), inputs, tmp_path), wanted)


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
