"""Products: convolution by channels, linear layers, matrix products, attention, embedding."""

# ruff: noqa: ARG001 - all rules take the same arguments

from __future__ import annotations

from slicewise.graph import Op, OpGraph
from slicewise.passes.shards.parts import Part, Place, Shape, Step, base, shape_of
from slicewise.passes.shards.windows import CONVOLUTIONS, TRANSPOSED, is_transposed

MATRICES = {"aten.matmul", "aten.mm", "aten.bmm", "aten.addmm", "aten.baddbmm"}
ATTENTION = "aten.scaled_dot_product_attention"
RECURRENT = {"aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu"}
# What shards must never all compute in full.
HEAVY = CONVOLUTIONS | TRANSPOSED | MATRICES | RECURRENT | {"aten.linear", ATTENTION}
TIME = "time"  # the axis of recurrent layers: a shard needs the state of the shard before it
_FACTORS = (("mat1", "mat2"), ("batch1", "batch2"), ("self", "mat2"), ("self", "other"))

Read = tuple[Place, Part]


def by_channels(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    """A convolution by its output channels, in groups with those of the input; by batch entries."""
    arguments = dict(op.arguments)
    if part.dim == 0:
        return Step(reads=((("input", -1), part),), axis="batch")
    weight, groups = shape_of(graph, arguments["weight"]), arguments["groups"]
    total, inputs = output[1], shape_of(graph, arguments["input"])[1]
    if not isinstance(total, int) or not isinstance(inputs, int):
        return None
    transposed = is_transposed(op)
    if groups == 1:
        reads: list[Read] = [(("weight", -1), Part(int(transposed), part.start, part.end))]
        if arguments["bias"]:
            reads.append((("bias", -1), Part(0, part.start, part.end)))
        return Step(reads=tuple(reads), axis="channels")
    made, read = total // groups, inputs // groups
    first, last = part.start // made, -(-part.end // made)
    rows = Part(0, first * int(weight[0]) // groups, last * int(weight[0]) // groups)
    reads = [(("weight", -1), rows), (("input", -1), Part(1, first * read, last * read))]
    if arguments["bias"]:
        reads.append((("bias", -1), Part(0, first * made, last * made)))
    exact = (last - first) * made == part.size
    begin = part.start - first * made
    return Step(
        reads=tuple(reads),
        changed=(("groups", last - first),),
        crop=None if exact else (begin, begin + part.size),
        axis="channels",
    )


def linear(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    """A linear layer by its output features, or by the rows of its input."""
    arguments = dict(op.arguments)
    if part.dim != len(output) - 1:
        return Step(reads=((("input", -1), part),), axis="tokens")
    features = Part(0, part.start, part.end)
    reads: list[Read] = [(("weight", -1), features)]
    if arguments["bias"]:
        reads.append((("bias", -1), features))
    return Step(reads=tuple(reads), axis="features")


def product(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    """A matrix product: columns of the right factor, rows of the left one, or both in a batch."""
    arguments = dict(op.arguments)
    left, right = factors(op)
    shapes = {name: shape_of(graph, arguments[name]) for name in (left, right)}
    from_right = len(output) - part.dim
    if any(len(shape) < 2 for shape in shapes.values()):
        return None
    if from_right == 1:
        dims, axis = {right: -1}, "features"
    elif from_right == 2:
        dims, axis = {left: -2}, "tokens"
    else:
        dims, axis = {left: -from_right, right: -from_right}, "batch"
    if base(op) in ("aten.addmm", "aten.baddbmm"):
        dims["self"] = -from_right
        shapes["self"] = shape_of(graph, arguments["self"])
    reads = []
    for name, dim in dims.items():
        shape = shapes[name]
        if -dim <= len(shape) and shape[dim] == output[part.dim]:
            reads.append(((name, -1), Part(len(shape) + dim, part.start, part.end)))
    return Step(reads=tuple(reads), axis=axis)


def attention(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    """Attention by heads (or whatever is left of them) or by queries; every query sees all keys."""
    arguments = dict(op.arguments)
    rank, from_right = len(output), len(output) - part.dim
    names = ["query", "key", "value", "attn_mask"]
    if from_right == 1:
        names = ["value"]
    elif from_right == 2:
        names = ["query", "attn_mask"]
        if arguments["is_causal"]:
            return None  # the mask would begin at the part
    if arguments.get("enable_gqa") and from_right == 3:
        return None
    reads = []
    for name in names:
        shape = shape_of(graph, arguments[name])
        dim = len(shape) - from_right
        if dim >= 0 and shape[dim] == output[part.dim]:
            reads.append(((name, -1), Part(dim, part.start, part.end)))
    axis = {1: "features", 2: "tokens", 3: "heads" if rank >= 4 else "batch"}
    return Step(reads=tuple(reads), axis=axis.get(from_right, "batch"))


def embedding(graph: OpGraph, op: Op, output: Shape, part: Part) -> Step | None:
    """An embedding by its columns, or by the indices that are looked up."""
    if part.dim == len(output) - 1:
        return Step(reads=((("weight", -1), Part(1, part.start, part.end)),), axis="features")
    return Step(reads=((("indices", -1), part),), axis="tokens")


def recurrent(graph: OpGraph, op: Op, output: Shape, part: Part, item: int) -> Step | None:
    """LSTM, GRU and RNN by batch entries, or by chunks of time, of which each but the first begins with
    the state that the one before ended with. What happens in one step of time is never cut.
    """
    arguments = dict(op.arguments)
    if (
        not isinstance(arguments.get("input"), str)
        or len(output) != 3
        or "batch_sizes" in arguments
    ):
        return None
    batch = 0 if arguments["batch_first"] else 1
    if part.dim == 1 - batch and item == 0 and not arguments["bidirectional"]:
        begins = (("hx", ()),) if part.start else ()
        return Step(reads=((("input", -1), part),), changed=begins, axis=TIME)
    if part.dim != (batch if item == 0 else 1):
        return None
    states = arguments["hx"]
    reads: list[Read] = [(("input", -1), Part(batch, part.start, part.end))]
    indices = range(len(states)) if isinstance(states, tuple) else (-1,)
    reads += [(("hx", index), Part(1, part.start, part.end)) for index in indices]
    return Step(reads=tuple(reads), axis="batch")


def factors(op: Op) -> tuple[str, str]:
    """The names of a product's two factors."""
    names = dict(op.arguments)
    return next(pair for pair in _FACTORS if pair[0] in names and pair[1] in names)
