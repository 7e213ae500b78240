"""Batch norms disappear into the convolution or linear layer before them.

In eval mode a batch norm multiplies and shifts every channel by constants, which the op before it can
do with another weight and bias (Jacob et al., 2018, section 3.2; `torch.nn.utils.fusion`):

    scale = gamma / sqrt(variance + eps)
    weight' = weight * scale of its output channel,  bias' = (bias - mean) * scale + beta

ONNX Runtime could do it, but at every start, and it holds old and new weights meanwhile. A norm stays
where the op's result or weight has other uses, and in half precision, where rounding the new weights
would show.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from slicewise.analyse import weight_identity, weight_tensors
from slicewise.program import copied_graph, with_graph

_TRANSPOSED = ("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
_PLAIN = ("aten.linear", "aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution")


@dataclass(frozen=True)
class _Norm:
    """A batch norm in eval mode: the node that holds its result, and what it computes with."""

    result: fx.Node
    input: Any
    statistics: tuple[Any, ...]  # gamma, beta, mean, variance: nodes, the first two may be None
    epsilon: float


def fold_batch_norms(program: ExportedProgram) -> ExportedProgram:
    """The program with every batch norm folded that can be; the given one and the model stay.

    Computed in float64, stored in the weight's type and under the names of the op's own parameters.
    """
    weights = weight_tensors(program)
    tensors = {placeholder: tensor for placeholder, _, tensor in weights}
    targets = {placeholder: target for placeholder, target, _ in weights}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    state, constants = dict(program.state_dict), dict(program.constants)
    graph = copied_graph(program)
    uses = Counter(
        weight_identity(tensors[source.name])
        for node in graph.nodes
        for source in node.all_input_nodes
        if source.name in tensors
    )

    def store(placeholder: fx.Node, value: torch.Tensor) -> None:
        tensors[placeholder.name] = value  # what a second norm after this one folds into
        target = targets[placeholder.name]
        if target in constants:
            constants[target] = value
        else:
            state[target] = nn.Parameter(value, requires_grad=False)

    renamed = {}
    for node in list(graph.nodes):
        norm = _norm(node)
        folded = _folded(norm, tensors, uses) if norm is not None else None
        if norm is None or folded is None:
            continue
        op = norm.input
        weight, bias = op.args[1], op.args[2] if len(op.args) > 2 else None
        if bias is None or uses[weight_identity(tensors[bias.name])] > 1:
            name = targets[weight.name].removesuffix("weight") + "bias"
            while name in state or name in constants:
                name += "_"
            with graph.inserting_before(weight):
                added = graph.placeholder("p_" + name.replace(".", "_"))
            fake_mode = weight.meta["val"].fake_mode
            added.meta["val"] = fake_mode.from_tensor(folded[1], static_shapes=True)
            argument = TensorArgument(name=added.name)
            specs[added.name] = InputSpec(kind=InputKind.PARAMETER, arg=argument, target=name)
            op.args = (*op.args[:2], added, *op.args[3:])
            targets[added.name], bias = name, added
        store(weight, folded[0])
        store(bias, folded[1])
        renamed[norm.result.name] = op.name
        norm.result.replace_all_uses_with(op)
        for gone in dict.fromkeys((norm.result, node)):
            graph.erase_node(gone)
    if not renamed:
        return program
    return with_graph(
        program, graph, specs=specs, renamed=renamed, state=state, constants=constants
    )


def _norm(node: fx.Node) -> _Norm | None:
    """The batch norm in eval mode that a node is."""
    if node.op != "call_function" or node.kwargs:
        return None
    if _kind(node) == "aten.batch_norm" and not node.args[5]:  # `training`
        return _Norm(node, node.args[0], node.args[1:5], node.args[7])  # type: ignore[arg-type]
    if _kind(node) == "aten._native_batch_norm_legit_no_training":
        users = list(node.users)  # of its three results, two serve the gradient
        if len(users) == 1 and users[0].target is operator.getitem and users[0].args[1] == 0:
            return _Norm(users[0], node.args[0], node.args[1:5], node.args[6])  # type: ignore[arg-type]
    return None


def _folded(
    norm: _Norm, tensors: Mapping[str, torch.Tensor], uses: Counter[Any]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The new weight and bias of the op before a batch norm; None where the norm has to stay."""
    op = norm.input
    if (
        op.op != "call_function"
        or _kind(op) not in (*_PLAIN, *_TRANSPOSED)
        or op.kwargs
        or len(op.users) > 1
    ):
        return None
    operands = [*op.args[1:3], *(() if len(op.args) > 2 else (None,)), *norm.statistics]
    if any(node is not None and node.name not in tensors for node in operands):
        return None  # computed, or of the request
    weight, bias, gamma, beta, mean, variance = (
        None if node is None else tensors[node.name].detach() for node in operands
    )
    if weight is None or mean is None or variance is None:
        return None
    if weight.dtype not in (torch.float32, torch.float64) or uses[weight_identity(weight)] > 1:
        return None
    if op.meta["val"].dim() != weight.dim():
        return None  # without a batch the norm's dimension 1 is not the channels
    scale = (variance.double() + norm.epsilon).rsqrt()
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() if bias is None else bias.double() - mean.double()
    shift = shift * scale
    if beta is not None:
        shift = shift + beta.double()
    scaled = (weight.double() * _per_weight(op, weight, scale)).to(weight.dtype)
    shift = shift.to(weight.dtype)
    return (scaled, shift) if bool(scaled.isfinite().all() & shift.isfinite().all()) else None


def _per_weight(op: fx.Node, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The scales of the output channels, in a shape that multiplies the weight.

    Channels are the first dimension, but the second one, within each group, if it is transposed.
    """
    rest = (1,) * (weight.dim() - 2)
    arguments = [argument.name for argument in op.target._schema.arguments]  # type: ignore[union-attr]
    given = dict(zip(arguments, op.args, strict=False))
    if _kind(op) not in _TRANSPOSED and not given.get("transposed"):
        return scale.reshape(-1, 1, *rest)
    groups = int(given.get("groups", 1))
    by_group = scale.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
    return by_group.reshape(weight.shape[0], weight.shape[1], *rest)


def _kind(node: fx.Node) -> str:
    return ".".join(str(node.target).split(".")[:2])
