"""Ways: along what an op can be split, and what its pieces then hold, receive and send."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from slicewise.graph import Op, OpGraph, Tensor, Weight

WEIGHT_VIEWS = {"aten.t", "aten.numpy_T", "aten.transpose", "aten.permute", "aten.mT", "aten.alias",
          "aten.detach"}  # fmt: skip
_MATRIX = {"aten.matmul", "aten.mm", "aten.bmm", "aten.addmm", "aten.baddbmm"}
_CONVOLUTION = (
    "aten.conv1d",
    "aten.conv2d",
    "aten.conv3d",
    "aten.conv_transpose",
    "aten.convolution",
)

Shape = Sequence[int | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to split an op: `axis` in words, which is the dimension `dim` of the weight, `total` long.

    Each piece receives a share of the input or all of it, and returns a share of the output or a
    partial result of full size. Pieces are multiples of `unit`, or parts of one if `divisible`.
    `companion_bytes` are the op's other weights, `shared_companion_bytes` those of which a piece holds
    its share, such as the bias of its features. Sizes of tensors count at the example's (for what
    crosses) and at most (for memory).
    """

    axis: str
    dim: int
    total: int
    shares_input: bool
    shares_output: bool
    weight_bytes: int
    weight_memory: int
    companion_bytes: int
    companion_memory: int
    shared_companion_bytes: int
    shared_companion_memory: int
    scratch: int
    input_bytes: int
    input_max: int
    output_bytes: int
    output_max: int
    unit: int = 1
    divisible: bool = True

    def moved(self, pieces: int) -> int:
        """Bytes from and to the pieces, if each is in a slice of its own."""
        times = pieces
        if self.shares_input:  # the parts of one group all need that group's input
            times = max(1, pieces * self.unit // self.total) if self.unit > 1 else 1
        return times * self.input_bytes + self.output_bytes * (1 if self.shares_output else pieces)

    def weights(self, size: int) -> int:
        """Bytes of weights of a piece of this size."""
        shared = self.weight_bytes + self.shared_companion_bytes
        return -(-shared * size // self.total) + self.companion_bytes

    def memory(self, size: int, edge_factor: float) -> int:
        """Memory of such a piece alone in a slice, with its buffers."""
        shared = self.weight_memory + self.shared_companion_memory
        weights = -(-shared * size // self.total) + self.companion_memory
        return math.ceil(weights + self.scratch + sum(self.edges(size)) * (1 + edge_factor))

    def edges(self, size: int) -> tuple[int, int]:
        """The most bytes that such a piece receives and sends."""
        reads = max(size, self.unit) if self.shares_input else self.total
        makes = size if self.shares_output else self.total
        return -(-self.input_max * reads // self.total), -(-self.output_max * makes // self.total)

    def smallest(self, most_pieces: int) -> int:
        """The size of the largest piece when there are as many as possible."""
        if self.unit == 1:
            return -(-self.total // most_pieces)
        groups = self.total // self.unit
        if self.divisible and most_pieces > groups:
            return -(-self.unit // (most_pieces // groups))
        return self.unit * -(-groups // most_pieces)


def is_weight_view(op: Op) -> bool:
    """Whether the op only reorders the dimensions of what it reads."""
    base = _base(op)
    one = len(op.weights) + len(op.inputs) == 1 and len(op.outputs) == 1
    return one and base in WEIGHT_VIEWS


def ways(graph: OpGraph, op: Op, weight: Weight, view: str | None = None) -> tuple[Way, ...]:
    """All ways to split `op` along a dimension of `weight`, which it may read through a `view`.

    None unless the weight is the largest of the op and everything else about it is plain.
    """
    others = [graph.weight[name] for name in op.weights if name != weight.name]
    inputs = [graph.tensor[name] for name in op.inputs if name != view]
    plain = len(op.outputs) == 1 and inputs and all(o.bytes <= weight.bytes for o in others)
    if not plain:
        return ()
    output = graph.tensor[op.outputs[0]]
    shape = graph.tensor[view].shape if view else weight.shape
    axes = _axes(_base(op), shape, inputs, output)
    if not axes:
        return ()
    stored = _stored_dims(weight.shape, shape, through_view=view is not None)
    if stored is None:
        return ()
    found = []
    for words, dim, shares_input, shares_output, unit, divisible in axes:
        total = weight.shape[stored[dim]]
        shared = [other for other in others if shares_output and _is_cut(other, words, total)]
        whole = [other for other in others if other not in shared]
        if total > 1:
            way = Way(
                axis=words,
                dim=stored[dim],
                total=total,
                shares_input=shares_input,
                shares_output=shares_output,
                weight_bytes=weight.bytes,
                weight_memory=weight.memory_bytes,
                companion_bytes=sum(other.bytes for other in whole),
                companion_memory=sum(other.memory_bytes for other in whole),
                shared_companion_bytes=sum(other.bytes for other in shared),
                shared_companion_memory=sum(other.memory_bytes for other in shared),
                scratch=op.memory_bytes,
                input_bytes=sum(tensor.bytes for tensor in inputs),
                input_max=sum(tensor.max_bytes for tensor in inputs),
                output_bytes=output.bytes,
                output_max=output.max_bytes,
                unit=unit,
                divisible=divisible,
            )
            found.append(way)
    return tuple(found)


def _is_cut(companion: Weight, axis: str, total: int) -> bool:
    """Whether a bias is cut with the output: it may be of one value, or the same for a whole batch."""
    if axis == "batch entries":
        return len(companion.shape) >= 3 and companion.shape[0] == total
    return companion.shape[-1:] != (1,)


_Axis = tuple[str, int, bool, bool, int, bool]  # words, dim, shares input, output, unit, divisible


def _axes(base: str, shape: Shape, inputs: Sequence[Tensor], output: Tensor) -> list[_Axis]:
    if base == "aten.embedding" and len(shape) == 2:
        return [
            ("embedding columns", 1, False, True, 1, True),
            ("vocabulary rows", 0, False, False, 1, True),
        ]
    if base == "aten.linear" and len(shape) == 2:
        return [
            ("output features", 0, False, True, 1, True),
            ("input features", 1, True, False, 1, True),
        ]
    if base in _MATRIX and len(shape) >= 2:
        return _matrix(shape, inputs, output.shape)
    if base.startswith(_CONVOLUTION) and len(shape) >= 3:
        return _convolution(base, shape, inputs[0].shape, output.shape)
    return []


def _matrix(shape: Shape, inputs: Sequence[Tensor], result: Shape) -> list[_Axis]:
    """The weight on the right of a product, or on its left."""
    rank = len(shape)
    columns = shape[-1]
    for tensor in inputs:  # beside the factor there may be what is added
        factor = tensor.shape
        if not factor:
            continue
        outer = len(factor) > 1 and len(result) > 1
        if factor[-1] == shape[-2] and result and result[-1] == columns:
            features, summed = rank - 1, rank - 2
        elif factor[-2 if outer else -1] == columns and result[-2 if outer else -1] == shape[-2]:
            features, summed = rank - 2, rank - 1
        else:
            continue
        axes: list[_Axis] = [
            ("output features", features, False, True, 1, True),
            ("input features", summed, True, False, 1, True),
        ]
        if rank >= 3 and isinstance(shape[0], int) and shape[0] > 1:
            shared = len(factor) >= rank and factor[-rank] == shape[0]
            axes.insert(0, ("batch entries", 0, shared, True, 1, True))
        return axes
    return []


def _convolution(base: str, shape: Shape, image: Shape, result: Shape) -> list[_Axis]:
    position = len(result) - (len(shape) - 2) - 1  # of the channels: an image may have no batch
    if position < 0 or len(image) != len(result):
        return []
    channels_in, channels_out = image[position], result[position]
    numbers = (shape[0], shape[1], channels_in, channels_out)
    if not all(isinstance(number, int) for number in numbers):
        return []
    first, second, ins, outs = (int(number) for number in numbers)
    transposed = "transpose" in base or first != outs
    groups = (outs if transposed else ins) // second
    if groups > 1:
        unit = first // groups
        return [("groups of channels", 0, True, True, unit, not transposed)]
    out_dim = 1 if transposed else 0
    return [
        ("output channels", out_dim, False, True, 1, True),
        ("input channels", 1 - out_dim, True, False, 1, True),
    ]


def _stored_dims(stored: Shape, seen: Shape, through_view: bool) -> dict[int, int] | None:
    """Dimension of the weight as the op sees it -> as it is stored: the last two may be swapped."""
    rank = len(seen)
    same = {dim: dim for dim in range(rank)}
    if len(stored) != rank:
        return None
    swapped = same | {rank - 1: rank - 2, rank - 2: rank - 1}
    for mapping in (swapped, same) if through_view else (same,):
        if tuple(stored[mapping[dim]] for dim in range(rank)) == tuple(seen):
            return mapping
    return None


def _base(op: Op) -> str:
    return ".".join(op.kind.split(".")[:2])
