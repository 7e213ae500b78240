"""Windows: convolution, pooling and resizing along the dimensions of space, with the exact halo."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from slicewise.graph import Op, OpGraph
from slicewise.passes.shards.parts import Part, Shape, Step, base, shape_of

CONVOLUTIONS = {"aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution"}
TRANSPOSED = {"aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d"}
POOLS = {"aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d",
         "aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d"}  # fmt: skip
NEAREST = {"aten.upsample_nearest1d", "aten.upsample_nearest2d", "aten.upsample_nearest3d"}
LINEAR = {"aten.upsample_linear1d", "aten.upsample_bilinear2d"}
_AXES = ("planes", "rows", "columns")


def is_transposed(op: Op) -> bool:
    """Whether the op is a transposed convolution."""
    return base(op) in TRANSPOSED or bool(dict(op.arguments).get("transposed"))


def along_space(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    """How an op with windows computes a part of its result along a dimension of space.

    An index o of the result sees the indices o * stride - padding + k * dilation of the input, for
    0 <= k < kernel (torch.nn.Conv2d, torch.nn.MaxPool2d); in a transposed convolution the roles change.
    Only at the true borders there is padding.
    """
    arguments = dict(op.arguments)
    image = "self" if "self" in arguments else "input"
    shape = shape_of(graph, arguments[image])
    spaces = _spaces(op, shape)
    which = part.dim - (len(shape) - spaces)
    size = shape[part.dim]
    if which < 0 or not isinstance(size, int) or not isinstance(output[part.dim], int):
        return None
    axis = _AXES[3 - spaces + which]
    kind = base(op)
    if kind in NEAREST | LINEAR:
        return _resized(arguments, output, size, part, axis, kind in LINEAR)
    if arguments["padding"] == "same" and _is_uneven(graph, arguments, spaces):
        return None
    window = _Window(graph, arguments, spaces, which)
    if is_transposed(op):
        return _transposed(window, size, part, axis, which, arguments)
    low = part.start * window.stride - window.padding
    high = (part.end - 1) * window.stride - window.padding + window.reach
    start, end = max(0, low), min(size, high)
    if start >= end:
        return None  # it would see nothing but padding
    pads = (start - low, high - end)
    changed: dict[str, Any] = {}
    scale: tuple[float, ...] = ()
    if pads == (window.padding, window.padding):
        pads = (0, 0)  # as the op itself does
    else:
        changed["padding"] = _with(window.paddings, which, 0)
        if "avg_pool" in kind and not arguments.get("divisor_override"):
            scale = _shares(window, size, part, bool(arguments["count_include_pad"]))
    return Step(
        reads=(((image, -1), Part(part.dim, start, end)),),
        changed=tuple(changed.items()),
        pad=pads,
        fill=-math.inf if "max_pool" in kind else 0.0,
        scale=scale,
        axis=axis,
    )


def _transposed(
    window: _Window, size: int, part: Part, axis: str, which: int, arguments: Mapping[str, Any]
) -> Step | None:
    """Index i of the input adds to the indices i * stride - padding + k * dilation of the result."""
    first, last = part.start + window.padding, part.end - 1 + window.padding
    start = max(0, -((window.reach - 1 - first) // window.stride))
    start = min(start, first // window.stride, size - 1)
    end = min(size, last // window.stride + 1)
    if start >= end:
        return None
    begin = first - start * window.stride
    crop = (begin, begin + part.size)
    made = (end - start - 1) * window.stride + window.reach
    extra = _each(arguments["output_padding"], len(window.paddings))
    return Step(
        reads=((("input", -1), Part(part.dim, start, end)),),
        changed=(
            ("padding", _with(window.paddings, which, 0)),
            ("output_padding", _with(extra, which, max(0, crop[1] - made))),
        ),
        crop=crop,
        axis=axis,
    )


def _resized(
    arguments: Mapping[str, Any], output: Shape, size: int, part: Part, axis: str, is_linear: bool
) -> Step | None:
    """Every index becomes `factor` ones; linear interpolation mixes in one neighbour."""
    total = output[part.dim]
    assert isinstance(total, int)
    factor = total // size
    if total % size or arguments.get("align_corners"):
        return None
    start, end = part.start // factor, (part.end - 1) // factor + 1
    if is_linear:  # o lies at (o + 0.5) / factor - 0.5
        start = max(0, (2 * part.start + 1 - factor) // (2 * factor))
        end = min(size, (2 * part.end - 1 - factor) // (2 * factor) + 2)
    changed = []
    if arguments.get("output_size") is not None:
        dim = part.dim - len(output)
        sizes = list(arguments["output_size"])
        sizes[dim] = (end - start) * factor
        changed.append(("output_size", tuple(sizes)))
    begin = part.start - start * factor
    image = "self" if "self" in arguments else "input"
    return Step(
        reads=(((image, -1), Part(part.dim, start, end)),),
        changed=tuple(changed),
        crop=(begin, begin + part.size),
        axis=axis,
    )


def _shares(window: _Window, size: int, part: Part, include: bool) -> tuple[float, ...]:
    """What the mean over a full window is multiplied by: the op counts less at the borders."""
    found = []
    for index in range(part.start, part.end):
        first = index * window.stride - window.padding
        end = min(first + window.kernel, size + window.padding)
        count = end - first if include else min(end, size) - max(first, 0)
        found.append(window.kernel / count)
    return tuple(found) if any(share != 1 for share in found) else ()


class _Window:
    """Kernel, stride, padding and dilation along one dimension."""

    def __init__(
        self, graph: OpGraph, arguments: Mapping[str, Any], spaces: int, which: int
    ) -> None:
        if "weight" in arguments:
            kernels: Any = shape_of(graph, arguments["weight"])[-spaces:]
        else:
            kernels = _each(arguments["kernel_size"], spaces)
        strides = _each(arguments.get("stride") or kernels, spaces)
        dilations = _each(arguments.get("dilation", 1), spaces)
        padding = arguments["padding"]
        if padding == "valid":
            padding = 0
        elif padding == "same":
            padding = tuple(d * (k - 1) // 2 for d, k in zip(dilations, kernels, strict=True))
        self.paddings = _each(padding, spaces)
        self.kernel, self.stride, self.padding, self.dilation = (
            kernels[which], strides[which], self.paddings[which], dilations[which],
        )  # fmt: skip
        self.reach = (self.kernel - 1) * self.dilation + 1  # indices from the first to the last


def _spaces(op: Op, shape: Shape) -> int:
    kind = base(op)
    return int(kind[-2]) if kind[-1] == "d" and kind[-2].isdigit() else len(shape) - 2


def _each(value: Any, spaces: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * spaces if len(values) == 1 else values


def _with(values: tuple[int, ...], which: int, value: int) -> tuple[int, ...]:
    return (*values[:which], value, *values[which + 1 :])


def _is_uneven(graph: OpGraph, arguments: Mapping[str, Any], spaces: int) -> bool:
    """Whether "same" pads more at the end than at the beginning, which no other argument can say."""
    kernels = shape_of(graph, arguments["weight"])[-spaces:]
    dilations = _each(arguments["dilation"], spaces)
    return any(d * (int(k) - 1) % 2 for k, d in zip(kernels, dilations, strict=True))
