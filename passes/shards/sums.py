"""Sums: how an op computes a partial result, from a part of what it sums over."""

from __future__ import annotations

from slicewise.graph import Op, OpGraph
from slicewise.passes.shards.parts import Part, Step, base, shape_of
from slicewise.passes.shards.products import MATRICES, factors
from slicewise.passes.shards.windows import CONVOLUTIONS, TRANSPOSED, is_transposed


def sum_size(graph: OpGraph, op: Op) -> int:
    """Over how many indices the op sums; 0 if it is not one that can be summed in parts."""
    arguments = dict(op.arguments)
    kind = base(op)
    size: int | str = 0
    if kind == "aten.linear":
        size = shape_of(graph, arguments["weight"])[1]
    elif kind in CONVOLUTIONS | TRANSPOSED and arguments["groups"] == 1:
        size = shape_of(graph, arguments["weight"])[0 if is_transposed(op) else 1]
    elif kind in MATRICES and arguments.get("alpha", 1) == arguments.get("beta", 1) == 1:
        left, right = factors(op)
        shapes = shape_of(graph, arguments[left]), shape_of(graph, arguments[right])
        size = shapes[0][-1] if min(map(len, shapes)) > 1 else 0
    elif kind == "aten.embedding":
        size = shape_of(graph, arguments["weight"])[0]
    return size if isinstance(size, int) else 0


def summed(graph: OpGraph, op: Op, part: Part) -> Step | None:
    """The partial result of a part of the indices that the op sums over; its `dim` is not used.

    What the op adds (a bias) is in the partial result of the first part.
    """
    arguments = dict(op.arguments)
    kind = base(op)
    start, end = part.start, part.end
    changed: list[tuple[str, None]] = []
    if kind == "aten.linear":
        rank = len(shape_of(graph, arguments["input"]))
        reads = [(("input", -1), Part(rank - 1, start, end)), (("weight", -1), Part(1, start, end))]
        axis, added = "features", "bias"
    elif kind in CONVOLUTIONS | TRANSPOSED:
        dim = 0 if is_transposed(op) else 1
        reads = [(("input", -1), Part(1, start, end)), (("weight", -1), Part(dim, start, end))]
        axis, added = "channels", "bias"
    elif kind in MATRICES:
        left, right = factors(op)
        ranks = len(shape_of(graph, arguments[left])), len(shape_of(graph, arguments[right]))
        reads = [
            ((left, -1), Part(ranks[0] - 1, start, end)),
            ((right, -1), Part(ranks[1] - 2, start, end)),
        ]
        axis, added = "features", "self" if left != "self" else ""
    elif kind == "aten.embedding":
        reads, axis, added = [(("weight", -1), Part(0, start, end))], "vocabulary", ""
    else:
        return None
    if start and added and arguments.get(added) is not None:
        changed.append((added, None))
    return Step(reads=tuple(reads), changed=tuple(changed), axis=axis)
