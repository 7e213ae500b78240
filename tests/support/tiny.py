"""Tiny models, and the ways a unit test takes through the compiler: analysed, cut by hand, run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slicewise.analyse import analyse
from slicewise.capture import Captured, capture
from slicewise.codegen.carve import carve
from slicewise.codegen.convert import Converted, convert
from slicewise.compiled import _to_numpy
from slicewise.graph import OpGraph
from slicewise.limits import Limits
from slicewise.plan import Certificate, ModelInfo, Plan, Slice, TransportRule
from slicewise.signature import Signature
from slicewise.structure import bind, leaves
from slicewise.verify import Runner


def tiny_model(forward: Callable[..., Any], **parts: Any) -> Any:
    """A module in eval mode with this forward; tensors among `parts` become buffers."""
    model = type("Tiny", (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
            model.register_buffer(name, part)
        else:
            setattr(model, name, part)
    return model.eval()


@dataclass(frozen=True, kw_only=True)
class Analysed:
    """A model on its way, before it is cut."""

    captured: Captured
    converted: Converted
    graph: OpGraph
    signature: Signature

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        """The example's arrays by tensor name."""
        bound = bind(self.signature.input_structure, self.captured.args, self.captured.kwargs)
        return {name: _to_numpy(value) for name, value in bound.items()}

    def eager(self) -> dict[str, np.ndarray]:
        """What the model itself returns for the example, by output name."""
        with torch.no_grad():
            result = self.captured.call(*self.captured.args, **self.captured.kwargs)
        values = torch.utils._pytree.tree_leaves(result)
        return {
            leaf["tensor"]: _to_numpy(value)
            for leaf, value in zip(leaves(self.signature.output_structure), values, strict=True)
            if "tensor" in leaf
        }


def analysed(model: Any, example: Any = None, dynamic_shapes: Any = None) -> Analysed:
    """Capture, convert and analyse a model."""
    captured = capture(model, example, dynamic_shapes=dynamic_shapes)
    converted = convert(captured.program)
    graph, signature = analyse(
        converted.program,
        name="tiny",
        aliases=converted.aliases,
        dim_names=captured.dim_names,
    )
    return Analysed(captured=captured, converted=converted, graph=graph, signature=signature)


def plan_of(made: Analysed, *groups: tuple[str, ...]) -> Plan:
    """A plan with one slice per group of op names; only what carving and running need is real."""
    slices = tuple(
        _slice(made.graph, f"slice{index}", index, ops) for index, ops in enumerate(groups) if ops
    )
    return Plan(
        model=ModelInfo(name="tiny", parameters=0, weight_bytes=0),
        target="lambda",
        objective="bytes",
        limits=Limits(),
        slices=slices,
        edges=(),
        certificate=Certificate(
            status="optimal", lower_bound=0, gap=0.0, method="by hand", seconds=0.0
        ),
        transport_rule=TransportRule(transports=("payload",), payload_bytes=10_000),
        inputs=made.signature.inputs,
        outputs=made.signature.outputs,
        dims=made.signature.dims,
        input_structure=made.signature.input_structure,
        output_structure=made.signature.output_structure,
    )


def every_cut(made: Analysed) -> Iterator[tuple[Plan, Path, dict[str, np.ndarray]]]:
    """The plan, slice files and outputs of every cut of the op order into two slices."""
    names = tuple(op.name for op in made.graph.ops)
    for cut in range(len(names)):
        plan = plan_of(made, names[:cut], names[cut:])
        with tempfile.TemporaryDirectory() as folder:
            yield plan, Path(folder), run(made, plan, Path(folder), made.feeds)


def run(
    made: Analysed, plan: Plan, folder: Path, feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Carve the plan's slices into `folder` and run them."""
    carve(made.converted, plan.slices, folder)
    return Runner(plan, folder).run(feeds)


def _slice(graph: OpGraph, name: str, stage: int, ops: tuple[str, ...]) -> Slice:
    members = set(ops)
    ordered = [op for op in graph.ops if op.name in members]
    read = [t for op in ordered for t in op.inputs if graph.tensor[t].producer not in members]
    left = [
        tensor
        for op in ordered
        for tensor in op.outputs
        if tensor in graph.outputs or any(c not in members for c in graph.consumers[tensor])
    ]
    return Slice(
        name=name,
        stage=stage,
        ops=ops,
        weight_bytes=0,
        peak_memory_bytes=0,
        memory_mb=128,
        package_bytes=0,
        inputs=tuple(dict.fromkeys(read)),
        outputs=tuple(dict.fromkeys(left)),
        onnx=f"functions/{name}/model.onnx",
    )
