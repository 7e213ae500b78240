"""Split: which ops are too large for one function, and into which pieces each becomes small enough.

The decision only; `slicewise.rewrite` carries it out. It is taken on the graph of the captured
program, before the conversion, so that an op that cannot be split is refused before slow work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from slicewise.errors import InfeasibleError
from slicewise.graph import Op, OpGraph, Weight
from slicewise.limits import MB, Limits, Overheads
from slicewise.passes.ways import Way, is_weight_view, ways
from slicewise.plan import SplitRecord

MAX_PIECES = 256  # more would be a graph of pieces, and a limit that nobody wants
HEADROOM = 0.9  # of the memory for a piece: what is estimated here is measured later
STEPS = (64, 8, 1)  # piece sizes are multiples of the first that costs no further piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One op that reads a split weight.

    `axis` says in words along what the op is split, `combine` how the pieces' results become one:
    "concatenate", "sum" (all at once) or "sum in turn" (where all at once would take too much memory).
    """

    op: str
    kind: str
    module: str
    axis: str
    combine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A weight that is cut into pieces of `sizes`, along what its `uses` say."""

    weight: str
    weight_bytes: int
    sizes: tuple[int, ...]
    uses: tuple[Use, ...]
    reason: str

    @property
    def pieces(self) -> tuple[str, ...]:
        """The names of the weights that take this one's place."""
        return tuple(f"{self.weight}_piece{index}" for index in range(len(self.sizes)))


@dataclass(frozen=True, slots=True)
class _Caps:
    """What one slice may hold, after the function's own overheads; None where nothing is said."""

    weights: int | None
    memory: int | None
    edge: int | None
    edge_factor: float


@dataclass(frozen=True, slots=True)
class _User:
    """An op that reads the weight, with all ways to split it."""

    op: Op
    ways: tuple[Way, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    """One dimension of the weight to cut along: what it means for every user, and the sizes."""

    ways: tuple[Way, ...]
    sizes: tuple[int, ...]

    def moved(self) -> int:
        """Bytes that cross if every piece is in a slice of its own."""
        return sum(way.moved(len(self.sizes)) for way in self.ways)


def split_oversized(graph: OpGraph, limits: Limits, overheads: Overheads) -> tuple[Split, ...]:
    """The splits after which no op's weights are too large for a slice.

    Guarantees: an op is split only if it alone exceeds what a slice may hold; the sizes of a split add
    up to the weight's dimension and are as few as fit; every piece fits a slice of its own; among
    dimensions the one that moves the fewest bytes is taken; all uses of a tied weight are split into
    the same pieces. Ops that are too large because of their
    activations alone are left to the partitioner.

    Raises `InfeasibleError` for an op that no split makes fit.
    """
    caps = _caps(limits, overheads)
    if caps.weights is None and caps.memory is None:
        return ()
    found = []
    for weight, users in _users(graph):
        oversized = {user.op.name: _exceeds(weight, user, caps) for user in users}
        for user in users:
            if oversized[user.op.name]:
                must = "weights" in oversized.values()
                split = _split(weight, users, user, must, limits, overheads, caps)
                found += [split] if split is not None else []
                break
    return tuple(found)


def records(splits: Sequence[Split], converted: OpGraph) -> tuple[SplitRecord, ...]:
    """What the plan tells of the splits: the pieces by their names in the graph that is cut."""
    readers: dict[str, list[str]] = {}
    for op in converted.ops:
        for weight in op.weights:
            readers.setdefault(weight, []).append(op.name)
    found = []
    for split in splits:
        # A piece is read once for each use, in the order of the uses.
        named = [readers.get(piece, []) for piece in split.pieces]
        paired = all(len(ops) == len(split.uses) for ops in named)
        found += [
            SplitRecord(
                op=use.op,
                module=use.module,
                kind=use.kind,
                axis=use.axis,
                sizes=split.sizes,
                pieces=tuple(op for ops in named for op in (ops[number:][:1] if paired else ops)),
                weight=split.weight,
                weight_bytes=split.weight_bytes,
                reason=split.reason,
            )
            for number, use in enumerate(split.uses)
        ]
    return tuple(found)


def _caps(limits: Limits, overheads: Overheads) -> _Caps:
    weights = [limits.weight_bytes] if limits.weight_bytes is not None else []
    if limits.package_mb is not None:
        weights.append(math.floor(limits.package_mb * MB) - overheads.package_bytes)
    memory = None
    if limits.memory_mb is not None:
        memory = limits.memory_mb * MB - overheads.memory_bytes
    return _Caps(
        min(weights, default=None), memory, overheads.max_edge_bytes, overheads.edge_factor
    )


def _users(graph: OpGraph) -> Iterator[tuple[Weight, list[_User]]]:
    """Every weight with the ops that compute with it, also through views such as a transpose."""
    readers: dict[str, list[tuple[Op, str | None]]] = {}
    source: dict[str, str] = {}  # a view of a weight -> the weight
    for op in graph.ops:
        viewed = {source[name]: name for name in op.inputs if name in source}
        if is_weight_view(op) and (op.weights or viewed):
            source[op.outputs[0]] = op.weights[0] if op.weights else next(iter(viewed))
            continue
        for name in dict.fromkeys((*op.weights, *viewed)):
            readers.setdefault(name, []).append((op, viewed.get(name)))
    for weight in graph.weights:
        users = [
            _User(op, ways(graph, op, weight, view)) for op, view in readers.get(weight.name, ())
        ]
        yield weight, users


def _exceeds(weight: Weight, user: _User, caps: _Caps) -> str:
    """What is too large for any slice with this op: its "weights", its "memory", or ""."""
    if caps.weights is not None and weight.bytes > caps.weights:
        return "weights"
    if not user.ways:
        return ""  # a composite op may have parts that fit: the partitioner will see
    whole = user.ways[0]
    if caps.weights is not None and whole.weights(whole.total) > caps.weights:
        return "weights"
    if caps.memory is None:
        return ""
    least, alone = whole.memory(whole.total, 0.0), whole.memory(whole.total, caps.edge_factor)
    if least - whole.weight_memory > caps.memory:
        return ""  # the activations alone
    # Its neighbours may spare the op its buffers, but not when it is mostly weights.
    mostly_weights = 2 * whole.weight_memory > alone
    return "memory" if least > caps.memory or (mostly_weights and alone > caps.memory) else ""


def _split(
    weight: Weight,
    users: Sequence[_User],
    culprit: _User,
    must: bool,
    limits: Limits,
    overheads: Overheads,
    caps: _Caps,
) -> Split | None:
    rigid = [user for user in users if not user.ways]
    if rigid and caps.weights is not None and weight.bytes > caps.weights:
        raise _refusal(rigid[0].op, weight, (), limits, overheads, caps)
    users = [user for user in users if user.ways]
    together = _together(users)
    choices = _choices(together, caps)
    if not choices:
        if not must:
            return None  # the activations are too large for any split to help
        raise _refusal(culprit.op, weight, together, limits, overheads, caps)

    best, *others = sorted(choices, key=lambda choice: (choice.moved(), len(choice.sizes)))
    reason = _reason(weight, culprit, caps)
    if others:
        axes = " and ".join(dict.fromkeys(way.axis for way in others[0].ways))
        reason += f"; {best.moved():,} bytes to and from them, {others[0].moved():,} by {axes}"
    return Split(
        weight=weight.name,
        weight_bytes=weight.bytes,
        sizes=best.sizes,
        uses=tuple(
            Use(
                op=user.op.name,
                kind=user.op.kind,
                module=user.op.module,
                axis=way.axis,
                combine=_combine(way, len(best.sizes), caps),
            )
            for user, way in zip(users, best.ways, strict=True)
        ),
        reason=reason,
    )


def _together(users: Sequence[_User]) -> list[tuple[Way, ...]]:
    """For every dimension of the weight along which all users can be split, the way of each."""
    by_dim = [{way.dim: way for way in user.ways} for user in users]
    common = [dim for dim in by_dim[0] if all(dim in found for found in by_dim)]
    found = [tuple(by[dim] for by in by_dim) for dim in common]
    return [same for same in found if len({way.unit for way in same}) == 1]


def _choices(together: Sequence[tuple[Way, ...]], caps: _Caps) -> list[_Choice]:
    """The dimensions along which the pieces fit.

    Pieces that fit a slice alone, buffers included, with headroom; only if there are none, pieces
    that fit if others in the slice spare them the buffers.
    """
    for headroom, factor in ((HEADROOM, caps.edge_factor), (1.0, 0.0)):
        found = []
        for same in together:
            most = min(_largest(way, caps, headroom, factor) for way in same)
            sizes = _sizes(same[0], most)
            if 0 < len(sizes) <= MAX_PIECES:
                found.append(_Choice(same, sizes))
        if found:
            return found
    return []


def _largest(way: Way, caps: _Caps, headroom: float, factor: float) -> int:
    """The largest size of a piece that fits, 0 if none does."""

    def fits(size: int) -> bool:
        if caps.weights is not None and way.weights(size) > caps.weights:
            return False
        return caps.memory is None or way.memory(size, factor) <= headroom * caps.memory

    low, high = 0, way.total - 1  # at least two pieces
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _sizes(way: Way, most: int) -> tuple[int, ...]:
    """The fewest sizes of at most `most` that cover the dimension, balanced and not too odd."""
    if most < 1:
        return ()
    if way.unit > 1:
        groups = way.total // way.unit
        if most >= way.unit:
            count = -(-groups // (most // way.unit))
            return tuple(way.unit * size for size in _balanced(groups, count))
        return tuple(_balanced(way.unit, -(-way.unit // most))) * groups if way.divisible else ()
    count = -(-way.total // most)
    for step in STEPS:
        steps = -(-way.total // step)
        if most >= step and -(-steps // (most // step)) == count:
            sizes = [step * size for size in _balanced(steps, count)]
            sizes[-1] -= step * steps - way.total
            if sizes[-1] > 0:
                return tuple(sizes)
    return tuple(_balanced(way.total, count))


def _balanced(total: int, count: int) -> list[int]:
    return [total // count + (index < total % count) for index in range(count)]


def _combine(way: Way, pieces: int, caps: _Caps) -> str:
    if way.shares_output:
        return "concatenate"
    partials, result = pieces * way.output_max, way.output_max
    memory = 2 * partials + caps.edge_factor * (partials + result)
    too_much = caps.memory is not None and memory > HEADROOM * caps.memory
    crowded = caps.edge is not None and pieces * way.output_max > caps.edge
    return "sum in turn" if too_much or crowded else "sum"


def _reason(weight: Weight, culprit: _User, caps: _Caps) -> str:
    if caps.weights is not None and weight.bytes > caps.weights:
        return f"{_mb(weight.bytes)} of weights, and a slice may hold {_mb(caps.weights)}"
    whole = culprit.ways[0]
    held = whole.weights(whole.total)
    if caps.weights is not None and held > caps.weights:
        return f"{_mb(held)} of weights, and a slice may hold {_mb(caps.weights)}"
    assert caps.memory is not None
    need = whole.memory(whole.total, caps.edge_factor)
    return f"{_mb(need)} of memory, and a slice may take {_mb(caps.memory)}"


def _refusal(
    op: Op,
    weight: Weight,
    together: Sequence[tuple[Way, ...]],
    limits: Limits,
    overheads: Overheads,
    caps: _Caps,
) -> InfeasibleError:
    """Why no split of the ways that there are, if any, makes the op fit."""
    what = f"the op {op.name!r} ({op.kind}{f' of {op.module}' if op.module else ''})"
    weights, memory = _least(together, caps) if together else (weight.bytes, 0)
    smallest: int
    if caps.weights is not None and weights > caps.weights:
        allowed = f"a slice may hold {_mb(caps.weights)} of weights"
        if limits.weight_bytes is not None and weights > limits.weight_bytes:
            name, limit, smallest = "weight_bytes", limits.weight_bytes, weights
        else:
            assert limits.package_mb is not None
            name, limit = "package_mb", int(limits.package_mb)
            smallest = -(-(weights + overheads.package_bytes) // MB)
    else:
        assert caps.memory is not None and limits.memory_mb is not None
        allowed = f"a slice may take {_mb(caps.memory)} of memory"
        name, limit = "memory_mb", limits.memory_mb
        smallest = -(-(memory + overheads.memory_bytes) // MB)
    why = f"and even {MAX_PIECES} pieces, or as many as it has, do not fit"
    if not together:
        why = "and it is used in a way that cannot be split"
    return InfeasibleError(
        f"{what} uses {weight.name!r} of {_mb(weight.bytes)}; {allowed} (the limit {name}={limit:,}), "
        f"{why}. Raise {name} to at least {smallest}"
        f"{', or allow another packaging' if name == 'package_mb' else ''}.",
        op=op.name,
        limit_name=name,
        needed=smallest,
        limit=limit,
        smallest_limit=smallest,
    )


def _least(together: Sequence[tuple[Way, ...]], caps: _Caps) -> tuple[int, int]:
    """The least weights and memory limits under which some dimension's pieces fit."""
    sizes = [same[0].smallest(MAX_PIECES) for same in together]
    pairs = list(zip(together, sizes, strict=True))
    weights = [max(way.weights(size) for way in same) for same, size in pairs]
    memory = [max(way.memory(size, caps.edge_factor) for way in same) for same, size in pairs]
    return min(weights), math.ceil(min(memory) / HEADROOM)


def _mb(amount: int) -> str:
    return f"{amount / MB:,.1f} MB" if amount >= MB else f"{amount:,} bytes"
