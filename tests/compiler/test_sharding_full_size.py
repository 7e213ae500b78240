"""VGG-16 and WRN-50-3 in full size: four shards by rows compute what the model computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shardable import close, core_of, run, run_onnx, sharded, vgg16, wide_resnet50
from torch import nn

from slicewise.passes.shards import shardings


@pytest.mark.slow
@pytest.mark.parametrize("build", [vgg16, wide_resnet50])
def test_four_shards_by_rows(build: Any, tmp_path: Any) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(1, 3, 224, 224),)
    model: nn.Module = build()
    core = core_of(model, inputs)
    kinds = [op.kind for op in core.graph.ops]
    last = next(i for i, kind in enumerate(kinds) if kind.startswith(("aten.mean", "aten.view")))
    groups = [[op.name for op in core.graph.ops[:last]]]
    (way,) = [w for w in shardings(core.graph, groups[0], [4]) if w.kind == "rows"]
    wanted = run(core.converted.program, inputs)
    close(run(sharded(core, [way]), inputs), wanted)
    close(run_onnx(sharded(core, [way]), inputs, tmp_path), wanted)
