"""Widen: bfloat16 in a converted model becomes float32, because ONNX Runtime's CPU kernels lack it.

Weights stay bfloat16 in the file and are cast when the session loads, so a package holds half the
bytes; every product is computed in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir


def widen_bfloat16(graph: onnx_ir.Graph) -> None:
    """Let the graph compute in float32 wherever it computes in bfloat16, in place."""
    import onnx_ir

    narrow, wide = onnx_ir.DataType.BFLOAT16, onnx_ir.DataType.FLOAT
    values = [value for node in graph for value in node.outputs]
    for value in (*graph.inputs, *values):
        if value.dtype == narrow:
            value.dtype = wide
    for node in list(graph):
        _widen_attributes(node)
    for name, value in list(graph.initializers.items()):
        if value.dtype != narrow:
            continue
        uses = list(value.uses())
        cast = onnx_ir.Node("", "Cast", [value], [onnx_ir.AttrInt64("to", int(wide))])
        cast.outputs[0].name = f"{name}.float32"
        cast.outputs[0].dtype, cast.outputs[0].shape = wide, value.shape
        for node, index in uses:
            node.replace_input_with(index, cast.outputs[0])
        graph.insert_before(graph[0], cast)


def _widen_attributes(node: onnx_ir.Node) -> None:
    import onnx_ir

    narrow, wide = onnx_ir.DataType.BFLOAT16, onnx_ir.DataType.FLOAT
    for attribute in list(node.attributes.values()):
        if attribute.name in ("to", "dtype") and attribute.type == onnx_ir.AttributeType.INT:
            if attribute.as_int() == int(narrow):
                node.attributes[attribute.name] = onnx_ir.AttrInt64(attribute.name, int(wide))
        elif attribute.type == onnx_ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.dtype == narrow:
                floats = tensor.numpy().astype("float32")
                node.attributes[attribute.name] = onnx_ir.AttrTensor(
                    attribute.name, onnx_ir.tensor(floats)
                )
