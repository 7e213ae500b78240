"""Pieces: one op of a torch.fx graph as several ops on parts of its weight, and what combines them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import fx

from slicewise.arguments import arguments_of, as_called

_aten = torch.ops.aten
# What the two factors of a product are called in the ops' schemas.
_FACTORS = (("mat1", "mat2"), ("batch1", "batch2"), ("self", "mat2"), ("self", "other"))

Range = tuple[int, int]
Arguments = Mapping[str, Any]


class Editor(Protocol):
    """Writes nodes in the place of one original node."""

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """An op on nodes and constants."""
        ...

    def part(self, node: fx.Node, dim: int, start: int, end: int, name: str = "") -> fx.Node:
        """A part of a tensor along one dimension; a part of a weight is a weight of that name."""
        ...


def write_pieces(
    edit: Editor,
    node: fx.Node,
    weight: fx.Node,
    *,
    axis: str,
    combine: str,
    sizes: Sequence[int],
    names: Sequence[str],
) -> fx.Node:
    """Write what computes the same as `node` from parts of `weight`; the node of the result.

    `axis` and `combine` are those of a `slicewise.passes.split.Use`.
    """
    ends = list(accumulate(sizes, initial=0))
    ranges = list(pairwise(ends))
    given = arguments_of(node)
    if "indices" in given:
        results, dim = _embedding(edit, node, given, axis, ranges, names), -1
    elif "groups" in given:
        results, dim = _convolution(edit, node, given, axis, ranges, names)
    elif node.target is _aten.linear.default:
        results, dim = _linear(edit, node, given, axis, ranges, names), -1
    else:
        results, dim = _product(edit, node, given, weight, axis, ranges, names)
    if combine == "concatenate":
        return edit(_aten.cat.default, results, dim)
    if combine == "sum":
        return edit(_aten.sum.dim_IntList, edit(_aten.stack.default, results), [0])
    return reduce(lambda one, other: edit(_aten.add.Tensor, one, other), results)


def _again(edit: Editor, node: fx.Node, given: Arguments, **changed: Any) -> fx.Node:
    """The same op with some arguments changed."""
    args, kwargs = as_called(node.target, {**given, **changed})
    return edit(node.target, *args, **kwargs)


def _linear(
    edit: Editor,
    node: fx.Node,
    given: Arguments,
    axis: str,
    ranges: Sequence[Range],
    names: Sequence[str],
) -> list[fx.Node]:
    x, weight, bias = given["input"], given["weight"], given["bias"]
    results = []
    for (start, end), name in zip(ranges, names, strict=True):
        if axis == "output features":
            changed = {
                "weight": edit.part(weight, 0, start, end, name),
                "bias": bias and edit.part(bias, 0, start, end),
            }
        else:
            changed = {
                "input": edit.part(x, -1, start, end),
                "weight": edit.part(weight, 1, start, end, name),
                "bias": None if start else bias,  # once
            }
        results.append(_again(edit, node, given, **changed))
    return results


def _embedding(
    edit: Editor,
    node: fx.Node,
    given: Arguments,
    axis: str,
    ranges: Sequence[Range],
    names: Sequence[str],
) -> list[fx.Node]:
    weight, indices = given["weight"], given["indices"]
    results = []
    for (start, end), name in zip(ranges, names, strict=True):
        if axis == "embedding columns":
            part = edit.part(weight, 1, start, end, name)
            results.append(_again(edit, node, given, weight=part))
            continue
        part = edit.part(weight, 0, start, end, name)
        results.append(vocabulary_rows(edit, part, indices, (start, end), ranges[-1][1]))
    return results


def vocabulary_rows(
    edit: Editor, weight: fx.Node, indices: fx.Node, rows: Range, total: int
) -> fx.Node:
    """What an embedding finds in these rows, which are `weight`, and zeros for all other indices.

    Indices below the first row or above the last of `total` stay what they are: wrong, and refused when
    the model runs.
    """
    start, end = rows
    first, last = start == 0, end == total
    local = indices if first else edit(_aten.sub.Scalar, indices, start)
    local = edit(
        _aten.clamp.default, local, None if first else 0, None if last else end - start - 1
    )
    outside = [] if first else [edit(_aten.lt.Scalar, indices, start)]
    outside += [] if last else [edit(_aten.ge.Scalar, indices, end)]
    elsewhere = reduce(lambda one, other: edit(_aten.logical_or.default, one, other), outside)
    found = edit(_aten.embedding.default, weight, local)
    return edit(_aten.masked_fill.Scalar, found, edit(_aten.unsqueeze.default, elsewhere, -1), 0)


def _convolution(
    edit: Editor,
    node: fx.Node,
    given: Arguments,
    axis: str,
    ranges: Sequence[Range],
    names: Sequence[str],
) -> tuple[list[fx.Node], int]:
    x, weight, bias, groups = (given[key] for key in ("input", "weight", "bias", "groups"))
    shape = weight.meta["val"].shape
    channels = 1 - len(shape)  # the dimension of an image's channels, from the right
    transposed = "transpose" in str(node.target) or bool(given.get("transposed"))
    out_dim = 1 if transposed else 0
    unit = shape[0] // groups  # rows of the weight in one group
    bias_unit = shape[1] if transposed else unit
    results = []
    for (start, end), name in zip(ranges, names, strict=True):
        changed: dict[str, Any]
        if axis == "output channels":
            changed = {
                "weight": edit.part(weight, out_dim, start, end, name),
                "bias": bias and edit.part(bias, 0, start, end),
            }
        elif axis == "input channels":
            changed = {
                "input": edit.part(x, channels, start, end),
                "weight": edit.part(weight, 1 - out_dim, start, end, name),
                "bias": None if start else bias,
            }
        else:  # whole groups, or a part of the output channels of one
            low, high = start // unit, -(-end // unit)
            width = unit if transposed else shape[1]  # input channels of one group
            whole = end - start >= unit
            bias_range = (low * bias_unit, high * bias_unit) if whole else (start, end)
            changed = {
                "input": edit.part(x, channels, low * width, high * width),
                "weight": edit.part(weight, 0, start, end, name),
                "bias": bias and edit.part(bias, 0, *bias_range),
                "groups": high - low,
            }
        results.append(_again(edit, node, given, **changed))
    return results, channels


def _product(
    edit: Editor,
    node: fx.Node,
    given: Arguments,
    weight: fx.Node,
    axis: str,
    ranges: Sequence[Range],
    names: Sequence[str],
) -> tuple[list[fx.Node], int]:
    """A product of matrices, with the weight as either factor, and of addmm with what is added."""
    left, right = next(pair for pair in _FACTORS if pair[0] in given and pair[1] in given)
    on_right = given[right] is weight
    key, other_key = (right, left) if on_right else (left, right)
    other, added = given[other_key], given["self"] if left != "self" else None
    rank, other_rank = weight.meta["val"].dim(), other.meta["val"].dim()
    features, summed = (-1, -2) if on_right else (-2, -1)
    # A vector has only the dimension that is summed over.
    other_summed = -1 if on_right or other_rank == 1 else -2
    out_dim = -1 if on_right or other_rank == 1 else -2
    if axis == "batch entries":
        out_dim = -rank
    total = ranges[-1][1]
    results = []
    for (start, end), name in zip(ranges, names, strict=True):
        changed = {}
        if axis == "input features":
            changed[key] = edit.part(weight, summed, start, end, name)
            changed[other_key] = edit.part(other, other_summed, start, end)
            if start and added is not None:
                results.append(_without_added(edit, given, changed[left], changed[right]))
                continue
        else:
            dim = features if axis == "output features" else 0
            changed[key] = edit.part(weight, dim, start, end, name)
            if axis == "batch entries" and _size(other, -rank) == total:
                changed[other_key] = edit.part(other, -rank, start, end)
            if added is not None and _size(added, out_dim) == total:
                changed["self"] = edit.part(added, out_dim, start, end)
        results.append(_again(edit, node, given, **changed))
    return results, out_dim


def _size(node: fx.Node, dim: int) -> int | None:
    """The size of a dimension counted from the right, if it is there and fixed."""
    shape = node.meta["val"].shape
    size = shape[dim] if -dim <= len(shape) else None
    return size if isinstance(size, int) else None


def _without_added(edit: Editor, given: Arguments, left: fx.Node, right: fx.Node) -> fx.Node:
    """The product alone: what addmm adds is in the first piece."""
    product = edit(_aten.matmul.default, left, right)
    return product if given["alpha"] == 1 else edit(_aten.mul.Scalar, product, given["alpha"])
