"""Fold: what the exporter computes from weights alone is computed once, here, not at every start.

ONNX Runtime would fold it too, but while loading, and it keeps both forms: a stack of Linear layers
takes 1.8 times its weights then, and 1.0 times when the file holds them transposed (measured).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir
    import torch

# Which of torch's gates stands where in ONNX: torch has i f g o and r z n, ONNX i o f g and z r n.
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


def fold_weights(model: onnx_ir.Model) -> None:
    """Replace the computed weights of convolutions and recurrent layers by initializers, in place."""
    _absent_biases(model)
    _recurrent(model)


def _absent_biases(model: onnx_ir.Model) -> None:
    """A convolution without a bias has two inputs: the exporter makes zeros, of a wrong shape in 3-d.

    An empty third input would keep ONNX Runtime from its blocked kernels, which take half the time.
    """
    for node in model.graph:
        if node.op_type not in ("Conv", "ConvTranspose") or len(node.inputs) < 3:
            continue
        expand = _maker(node.inputs[2], "Expand")
        cast = _maker(expand.inputs[0], "CastLike") if expand is not None else None
        zero = _maker(cast.inputs[0], "Constant") if cast is not None else None
        value = zero.attributes["value"].as_tensor().numpy() if zero is not None else None
        if value is not None and not value.any():
            node.resize_inputs(2)


def _maker(value: onnx_ir.Value | None, op_type: str) -> onnx_ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def fold_transposed(graph: onnx_ir.Graph) -> None:
    """Store the weights that one slice only uses transposed so, as views of torch's memory, in place.

    Decided per slice: a weight that this slice also uses as it is (an embedding tied to the output
    head) keeps its Transpose, or the slice would hold it twice in its package.
    """
    import onnx_ir
    import torch

    for node in list(graph):
        axes = _axes(node)
        weight = node.inputs[0] if axes is not None else None
        if node.graph is None or axes is None or weight is None or not weight.is_initializer():
            continue
        tensor = weight.const_value
        raw = getattr(tensor, "raw", None)
        if tensor is None or not isinstance(raw, torch.Tensor):
            continue
        uses = [user for user, _ in weight.uses()]
        if any(_axes(user) != axes or user.outputs[0].is_graph_output() for user in uses):
            continue
        stored = onnx_ir.Value(
            name=f"{weight.name}.transposed",
            type=weight.type,
            shape=onnx_ir.Shape([raw.shape[axis] for axis in axes]),
            const_value=_stored(tensor, raw.permute(axes), f"{weight.name}.transposed"),
        )
        graph.initializers[stored.name or ""] = stored
        for user in uses:
            onnx_ir.convenience.replace_all_uses_with(user.outputs[0], stored)
        graph.remove(uses, safe=True)
        del graph.initializers[weight.name or ""]


def _axes(node: onnx_ir.Node) -> list[int] | None:
    permutation = node.attributes.get("perm")
    if node.op_type != "Transpose" or permutation is None:
        return None
    return list(permutation.as_ints())


def _recurrent(model: onnx_ir.Model) -> None:
    """The gate weights of LSTM and GRU layers, in ONNX's order of gates instead of torch's.

    The exporter slices and concatenates them at run time, by sizes that it reads off other tensors.
    """
    import onnx_ir
    import torch

    for node in model.graph:
        order = _GATES.get(node.op_type)
        if order is None:
            continue
        for index in (1, 2, 3):  # input weights, recurrent weights, biases
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or value.is_initializer():
                continue
            parts = _initializers(value)
            tensors = [part.const_value for part in parts]
            raws = [
                raw for t in tensors if isinstance(raw := getattr(t, "raw", None), torch.Tensor)
            ]
            if not raws or len(raws) != len(parts):
                continue
            reordered = []
            for raw in raws:
                gates = raw.chunk(len(order))
                reordered.append(torch.cat([gates[gate] for gate in order]))
            if index == 3:  # the biases of input and recurrence stand one after the other
                reordered = [torch.cat(pair) for pair in zip(*[iter(reordered)] * 2, strict=True)]
            stacked = torch.stack(reordered)
            name = f"{node.outputs[0].name}.{('', 'w', 'r', 'b')[index]}"
            stored = onnx_ir.Value(
                name=name,
                type=parts[0].type,
                shape=onnx_ir.Shape(stacked.shape),
                const_value=_stored(tensors[0], stacked, name),
            )
            model.graph.initializers[name] = stored
            node.replace_input_with(index, stored)


def _stored(like: Any, values: torch.Tensor, name: str) -> Any:
    """`values` as the exporter stores a weight: written from torch's memory, without a copy."""
    return type(like)(values, name=name)


def _initializers(value: onnx_ir.Value) -> list[onnx_ir.Value]:
    """The initializers that a value is put together from, from left to right, each once."""
    if value.is_initializer():
        return [value]
    node = value.producer()
    if node is None or node.op_type not in ("Slice", "Concat", "Unsqueeze"):
        return []
    sources = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    found = [v for source in sources if source is not None for v in _initializers(source)]
    return list(dict.fromkeys(found))
