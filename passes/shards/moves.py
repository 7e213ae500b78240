"""Moves: ops that only rearrange, and which part of what they read a part of their result is."""

# ruff: noqa: ARG001 - all rules take the same arguments

from __future__ import annotations

import math

from slicewise.graph import Op, OpGraph
from slicewise.passes.shards.parts import Part, Shape, Step, base, shape_of

RESHAPES = {"aten.view", "aten.reshape", "aten._unsafe_view"}


def reshaped(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    """Of `view` and the like. A dimension that is cut must be the outermost of those it is merged with
    or split into; parts that begin within an index of the input are cut out of it.
    """
    arguments = dict(op.arguments)
    shape = shape_of(graph, arguments["self"])
    sizes = next((name for name in ("size", "shape") if name in arguments), None)
    found = _through_reshape(shape, output, part)
    if found is None or sizes is None:
        return None
    read, made, begin = found
    local = list(arguments[sizes])
    if local[part.dim] != -1:
        local[part.dim] = made
    return Step(
        reads=((("self", -1), read),),
        changed=((sizes, tuple(local)),),
        crop=None if made == part.size else (begin, begin + part.size),
    )


def _through_reshape(shape: Shape, output: Shape, part: Part) -> tuple[Part, int, int] | None:
    """The part of the input, how many indices along the part's dimension it becomes, and where among
    them the part begins.
    """
    before = 0  # equal dimensions from the left, and from the right
    while before < min(len(shape), len(output)) and shape[before] == output[before]:
        before += 1
    if part.dim < before:
        return part, part.size, 0
    after = 0
    while after < min(len(shape), len(output)) - before and shape[-1 - after] == output[-1 - after]:
        after += 1
    if part.dim >= len(output) - after:
        read = Part(part.dim - len(output) + len(shape), part.start, part.end)
        return read, part.size, 0
    if any(isinstance(size, str) for size in shape[before : len(shape) - after]):
        return None
    if any(isinstance(size, str) for size in output[before : len(output) - after]):
        return None
    outer = _product(output[before : part.dim])
    dim, passed = before, 1
    while dim < len(shape) - after and passed < outer:
        passed *= int(shape[dim])
        dim += 1
    while dim < len(shape) - after - 1 and shape[dim] == 1:
        dim += 1
    if passed != outer or dim >= len(shape) - after:
        return None
    # Numbers of one index: of the result's dimension, and of the input's.
    fine = _product(output[part.dim + 1 : len(output) - after])
    coarse = _product(shape[dim + 1 : len(shape) - after])
    start, end = part.start * fine // coarse, -(-part.end * fine // coarse)
    if (end - start) * coarse % fine or start * coarse % fine:
        return None
    made = (end - start) * coarse // fine
    return Part(dim, start, end), made, part.start - start * coarse // fine


def _product(sizes: Shape) -> int:
    return math.prod(int(size) for size in sizes)


def permuted(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    """Of `permute`, `transpose` and `t`."""
    arguments = dict(op.arguments)
    rank = len(output)
    order = list(range(rank))
    if base(op) == "aten.permute":
        order = [dim % rank for dim in arguments["dims"]]
    elif rank > 1:
        one, other = arguments.get("dim0", 0) % rank, arguments.get("dim1", 1) % rank
        order[one], order[other] = order[other], order[one]
    return _read(Part(order[part.dim], part.start, part.end))


def unsqueezed(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    """Of `unsqueeze`."""
    added = dict(op.arguments)["dim"] % len(output)
    if part.dim == added:
        return None
    return _read(Part(part.dim - (part.dim > added), part.start, part.end))


def squeezed(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    """Of `squeeze` along given dimensions."""
    arguments = dict(op.arguments)
    shape = shape_of(graph, arguments["self"])
    dims = arguments.get("dim", tuple(range(len(shape))))
    dims = dims if isinstance(dims, tuple) else (dims,)
    gone = {dim % len(shape) for dim in dims if shape[dim] == 1}
    kept = [dim for dim in range(len(shape)) if dim not in gone]
    return _read(Part(kept[part.dim], part.start, part.end))


def expanded(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    """Of `expand`: a dimension that it repeats takes no part of the input."""
    arguments = dict(op.arguments)
    shape = shape_of(graph, arguments["self"])
    sizes = list(arguments["size"])
    dim = part.dim - len(output) + len(shape)
    repeats = dim < 0 or (shape[dim] == 1 and output[part.dim] != 1)
    sizes[part.dim] = part.size
    reads = () if repeats else ((("self", -1), Part(dim, part.start, part.end)),)
    return Step(reads=reads, changed=(("size", tuple(sizes)),))


def selected(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    """Of `select`, which takes one index of a dimension away."""
    dim = dict(op.arguments)["dim"] % (len(output) + 1)
    return _read(Part(part.dim + (part.dim >= dim), part.start, part.end))


def sliced(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    """Of `slice`."""
    arguments = dict(op.arguments)
    dim = arguments["dim"] % len(output)
    if part.dim != dim:
        return _read(part)
    total = shape_of(graph, arguments["self"])[dim]
    start = arguments["start"] or 0
    if arguments["step"] != 1 or not isinstance(start, int) or not isinstance(total, int):
        return None
    start = max(0, start + total if start < 0 else start)
    return _moved(Part(dim, start + part.start, start + part.end))


def split(graph: OpGraph, op: Op, output: Shape, part: Part, item: int) -> Step | None:
    """Of `split` and `split_with_sizes`: of one of their results."""
    arguments = dict(op.arguments)
    dim = arguments["dim"] % len(output)
    if part.dim != dim:
        return _read(part)
    sizes = arguments["split_size"] if "split_size" in arguments else arguments["split_sizes"]
    start = item * sizes if isinstance(sizes, int) else sum(sizes[:item])
    return _moved(Part(dim, start + part.start, start + part.end))


def concatenated(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    """Of `cat`: along another dimension a part of every tensor, along its own of those that overlap."""
    arguments = dict(op.arguments)
    dim, tensors = arguments["dim"] % len(output), arguments["tensors"]
    if part.dim != dim:
        return Step(reads=tuple((("tensors", index), part) for index in range(len(tensors))))
    begin, taken = 0, []
    for tensor in tensors:
        size = shape_of(graph, tensor)[dim]
        if not isinstance(size, int):
            return None
        start, end = max(begin, part.start), min(begin + size, part.end)
        if start < end:
            taken.append((tensor, Part(dim, start - begin, end - begin)))
        begin += size
    return Step(
        reads=tuple((("tensors", index), read) for index, (_, read) in enumerate(taken)),
        changed=(("tensors", tuple(tensor for tensor, _ in taken)),),
        is_moved=len(taken) == 1,
    )


def _read(part: Part) -> Step:
    return Step(reads=((("self", -1), part),))


def _moved(part: Part) -> Step:
    return Step(reads=((("self", -1), part),), is_moved=True)
