"""Rules: for every kind of op, how it computes a part of its result. One entry per kind."""

# ruff: noqa: ARG001 - all rules take the same arguments

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from slicewise.graph import Op, OpGraph
from slicewise.passes.shards import moves
from slicewise.passes.shards.boxes import Box, box
from slicewise.passes.shards.parts import Part, Place, Shape, Step, base, references, shape_of
from slicewise.passes.shards.products import (
    ATTENTION,
    MATRICES,
    RECURRENT,
    attention,
    by_channels,
    embedding,
    linear,
    product,
    recurrent,
)
from slicewise.passes.shards.windows import (
    CONVOLUTIONS,
    LINEAR,
    NEAREST,
    POOLS,
    TRANSPOSED,
    along_space,
)

# Every number of the result comes from the numbers at its place.
ELEMENTWISE = {
    "aten.relu", "aten.relu_", "aten.relu6", "aten.hardtanh", "aten.hardswish", "aten.hardsigmoid",
    "aten.silu", "aten.gelu", "aten.mish", "aten.elu", "aten.selu", "aten.leaky_relu", "aten.sigmoid",
    "aten.tanh", "aten.softplus", "aten.erf", "aten.exp", "aten.log", "aten.sqrt", "aten.rsqrt",
    "aten.reciprocal", "aten.neg", "aten.abs", "aten.sin", "aten.cos", "aten.floor", "aten.pow",
    "aten.add", "aten.add_", "aten.sub", "aten.rsub", "aten.mul", "aten.div", "aten.minimum",
    "aten.maximum", "aten.clamp", "aten.clamp_min", "aten.clamp_max", "aten.where", "aten.masked_fill",
    "aten.eq", "aten.ne", "aten.lt", "aten.le", "aten.gt", "aten.ge", "aten.bitwise_and",
    "aten.bitwise_or", "aten.bitwise_not", "aten.logical_and", "aten.logical_or", "aten.logical_not",
    "aten.clone", "aten.alias", "aten.detach", "aten.contiguous", "aten.dropout", "aten._to_copy",
    "aten.to", "prims.convert_element_type",
}  # fmt: skip
_MOVES = {
    **dict.fromkeys(moves.RESHAPES, moves.reshaped),
    **dict.fromkeys(("aten.permute", "aten.transpose", "aten.t"), moves.permuted),
    "aten.unsqueeze": moves.unsqueezed,
    "aten.squeeze": moves.squeezed,
    "aten.expand": moves.expanded,
    "aten.select": moves.selected,
    "aten.slice": moves.sliced,
    "aten.cat": moves.concatenated,
}


def steps(graph: OpGraph, op: Op, tensor: str, wanted: Box) -> tuple[Step, ...] | None:
    """How `op` computes a box of its result `tensor`: a step along each of the box's dimensions, each
    with the arguments that the ones before it changed. None if it must compute it all.
    """
    found: list[Step] = []
    items: set[str] = set()  # arguments of which a step reads single items
    for part in wanted:
        one = step(graph, op, tensor, part)
        if one is None or not items.isdisjoint(name for name, _ in one.changed):
            return None
        found.append(one)
        items.update(name for (name, index), _ in one.reads if index >= 0)
        op = replace(op, arguments=tuple((dict(op.arguments) | dict(one.changed)).items()))
    return tuple(found) if read_boxes(found) is not None else None


def step(graph: OpGraph, op: Op, tensor: str, part: Part) -> Step | None:
    """How `op` computes a part of its result `tensor`, or None if it must compute it all."""
    output = graph.tensor[tensor].shape
    kind = base(op)
    if kind in ELEMENTWISE:
        return _elementwise(graph, op, output, part)
    if kind in _MOVES:
        return _MOVES[kind](graph, op, output, part)
    if kind in ("aten.split", "aten.split_with_sizes"):
        return moves.split(graph, op, output, part, op.items[op.outputs.index(tensor)])
    if kind in CONVOLUTIONS | TRANSPOSED:
        image = shape_of(graph, dict(op.arguments)["weight"])
        if len(output) != len(image):
            return None  # an image without a batch
        rule = by_channels if part.dim < 2 else along_space
        return rule(graph, op, output, part)
    if kind in POOLS | NEAREST | LINEAR:
        found = along_space(graph, op, output, part)
        return found or _channels_of_pool(op, output, part)
    if kind == "aten.linear":
        return linear(graph, op, output, part)
    if kind in MATRICES:
        return product(graph, op, output, part)
    if kind == ATTENTION:
        return attention(graph, op, output, part)
    if kind in RECURRENT:
        return recurrent(graph, op, output, part, op.items[op.outputs.index(tensor)])
    if kind == "aten.embedding":
        return embedding(graph, op, output, part)
    if kind in _NORMALISED:
        return _NORMALISED[kind](graph, op, output, part)
    return None


def read_boxes(taken: Sequence[Step]) -> dict[Place, Box] | None:
    """What the steps together read of which argument; None if two read along the same dimension."""
    parts: dict[Place, list[Part]] = {}
    for one in taken:
        for place, part in one.reads:
            parts.setdefault(place, []).append(part)
    found = {}
    for place, read in parts.items():
        both = box(read)
        if both is None:
            return None
        found[place] = both
    return found


def _elementwise(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step:
    """What is broadcast along the part's dimension is needed whole."""
    reads = []
    for place, reference in references(op):
        shape = shape_of(graph, reference)
        dim = part.dim - len(output) + len(shape)
        if dim >= 0 and shape[dim] == output[part.dim]:
            reads.append((place, Part(dim, part.start, part.end)))
    return Step(reads=tuple(reads))


def _channels_of_pool(op: Op, output: Shape, part: Part) -> Step | None:
    arguments = dict(op.arguments)
    spaces = int(base(op)[-2])
    if part.dim >= len(output) - spaces:
        return None
    return Step(reads=((("self" if "self" in arguments else "input", -1), part),))


def _layer_norm(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    arguments = dict(op.arguments)
    if part.dim >= len(output) - len(arguments["normalized_shape"]):
        return None
    return Step(reads=((("input", -1), part),))


def _batch_norm(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    if dict(op.arguments).get("training"):
        return None
    reads = [(("input", -1), part)]
    if part.dim == 1:
        reads += [
            (place, Part(0, part.start, part.end))
            for place, _ in references(op)
            if place[0] != "input"
        ]
    return Step(reads=tuple(reads))


def _along_others(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    """Softmax, reductions: of one or several dimensions, and not of the others."""
    arguments = dict(op.arguments)
    shape = shape_of(graph, arguments["self"])
    dims = arguments.get("dim")
    if dims is None:
        return None
    dims = {dim % len(shape) for dim in (dims if isinstance(dims, tuple) else (dims,))}
    kept = list(range(len(shape)))
    if len(output) < len(shape):
        kept = [dim for dim in kept if dim not in dims]
    dim = kept[part.dim]
    return None if dim in dims else Step(reads=((("self", -1), Part(dim, part.start, part.end)),))


_NORMALISED = {
    "aten.layer_norm": _layer_norm,
    "aten.rms_norm": _layer_norm,
    "aten.batch_norm": _batch_norm,
    "aten._native_batch_norm_legit_no_training": _batch_norm,
    **dict.fromkeys(
        ("aten.softmax", "aten._softmax", "aten.log_softmax", "aten.mean", "aten.sum", "aten.amax",
         "aten.argmax"), _along_others
    ),
}  # fmt: skip
