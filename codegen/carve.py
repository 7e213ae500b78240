"""Carve: one ONNX model per slice, cut out of the one converted model, each with one weights file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slicewise.codegen.convert import Converted
from slicewise.codegen.fold import fold_transposed
from slicewise.codegen.widen import widen_bfloat16
from slicewise.plan import Slice

if TYPE_CHECKING:
    import onnx_ir

ONNX_FILE = "model.onnx"
WEIGHTS_FILE = "model.data"


def carve(converted: Converted, slices: Sequence[Slice], directory: Path) -> None:
    """Write `directory/<slice name>/model.onnx` and `model.data` for every slice.

    The inputs and outputs of each model are named as the plan's tensors, in the plan's order.
    """
    values = _values(converted)
    for part in slices:
        model = _carve_one(converted, part, values)
        _save(model, directory / part.name)


def _values(converted: Converted) -> dict[str, onnx_ir.Value]:
    """Tensor name -> ONNX value. A value that several fx nodes share has the last one's name."""
    graph = converted.model.graph
    values = {value.name: value for value in graph.inputs if value.name}
    for node in graph:
        values.update({value.name: value for value in node.outputs if value.name})
    for alias, source in converted.aliases.items():
        root = source
        while root in converted.aliases:
            root = converted.aliases[root]
        if root not in values and alias in values:
            values[root] = values[alias]
    return values


def _carve_one(
    converted: Converted, part: Slice, values: dict[str, onnx_ir.Value]
) -> onnx_ir.Model:
    import onnx_ir

    inputs = [values[name] for name in part.inputs]
    outputs = [values[name] for name in part.outputs]
    graph = onnx_ir.convenience.extract(converted.model.graph, inputs, outputs)
    for value, name in zip(graph.inputs, part.inputs, strict=True):
        value.name = name
    for value, name in zip(graph.outputs, part.outputs, strict=True):
        value.name = name
    graph.name = part.name
    fold_transposed(graph)
    widen_bfloat16(graph)
    _forget_origins(graph)
    _in_order(graph)
    used = {(node.domain, node.op_type, node.overload) for node in graph}
    functions = [f for key, f in converted.model.functions.items() if key in used]
    return onnx_ir.Model(
        graph,
        ir_version=converted.model.ir_version,
        producer_name="slicewise",
        functions=list(converted.model.functions.values()) if functions else [],
    )


def _forget_origins(graph: onnx_ir.Graph) -> None:
    """Stack traces with the developer's paths do not ship, nor those in branches and loops."""
    import onnx_ir

    for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
        node.metadata_props.clear()
        assert node.graph is not None
        node.graph.metadata_props.clear()
        for value in (*node.outputs, *node.graph.inputs):
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    graph.metadata_props.clear()


def _in_order(graph: onnx_ir.Graph) -> None:
    """Weights by name: `extract` collects them in a set, and equal slices must have equal bytes, or an
    update would upload and move slices that have not changed.
    """
    values = [graph.initializers[name] for name in sorted(graph.initializers)]
    graph.initializers.clear()
    for value in values:
        graph.initializers.add(value)


def _save(model: onnx_ir.Model, directory: Path) -> None:
    import onnx_ir

    directory.mkdir(parents=True, exist_ok=True)
    onnx_ir.save(model, directory / ONNX_FILE, external_data=WEIGHTS_FILE)
