"""Split: which ops are too large for one function, and into which pieces each becomes small enough.

The decision only; `slicewise.rewrite` carries it out. It is taken on the graph of the captured
program, before the conversion, so that an op that cannot be split is refused before slow work.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from slicewise.errors import InfeasibleError
from slicewise.graph import Op, OpGraph, Weight
from slicewise.limits import MB, Limits, Overheads
from slicewise.passes.ways import Way, is_weight_view, ways

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
    """A weight that is cut into pieces of `sizes` along its dimension `dim`, for all its `uses`."""

    weight: str
    weight_bytes: int
    dim: int
    sizes: tuple[int, ...]
    uses: tuple[Use, ...]
    reason: str


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
    """One dimension of the weight to cut along, with the way that this means for every user."""

    dim: int
    ways: tuple[Way, ...]
    sizes: tuple[int, ...]

    def moved(self) -> int:
        """Bytes that cross if every piece is in a slice of its own."""
        return sum(way.moved(len(self.sizes)) for way in self.ways)


def split_oversized(graph: OpGraph, limits: Limits, overheads: Overheads) -> tuple[Split, ...]:
    """The splits after which no op's weights are too large for a slice.

    Guarantees: an op is split only if it alone exceeds what a slice may hold; the sizes of a split add
    up to the weight's dimension; every piece fits a slice of its own; no number of pieces smaller
    along the same dimension does; among dimensions the one that moves the fewest bytes is taken; all
    uses of a tied weight are split into the same pieces. Ops that are too large because of their
    activations alone are left to the partitioner.

    Raises `InfeasibleError` for an op that no split makes fit.
    """
    caps = _caps(limits, overheads)
    if caps.weights is None and caps.memory is None:
        return ()
    found = []
    for weight, users in _users(graph):
        oversized = [user for user in users if _is_oversized(graph, weight, user, caps)]
        if oversized:
            split = _split(graph, weight, users, oversized[0], limits, overheads, caps)
            found += [split] if split is not None else []
    return tuple(found)


def _caps(limits: Limits, overheads: Overheads) -> _Caps:
    weights = [limits.weight_bytes] if limits.weight_bytes is not None else []
    if limits.package_mb is not None:
        weights.append(math.floor(limits.package_mb * MB) - overheads.package_bytes)
    memory = None
    if limits.memory_mb is not None:
        memory = limits.memory_mb * MB - overheads.memory_bytes
    return _Caps(min(weights, default=None), memory, overheads.max_edge_bytes, overheads.edge_factor)


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
        users = [_User(op, ways(graph, op, weight, view)) for op, view in readers.get(weight.name, ())]
        yield weight, users


def _is_oversized(graph: OpGraph, weight: Weight, user: _User, caps: _Caps) -> bool:
    """Whether this op cannot be in any slice, or only if others spare it most of its buffers."""
    if caps.weights is not None and weight.bytes > caps.weights:
        return True
    if not user.ways:
        return False  # a composite op may have parts that fit: the partitioner will see
    whole = user.ways[0]
    if caps.weights is not None and weight.bytes + whole.companion_bytes > caps.weights:
        return True
    if caps.memory is None or whole.memory(1.0, 0.0) - whole.weight_memory > caps.memory:
        return False
    alone = whole.memory(1.0, caps.edge_factor)
    mostly_weights = 2 * whole.weight_memory > alone
    return whole.memory(1.0, 0.0) > caps.memory or (mostly_weights and alone > caps.memory)


def _split(
    graph: OpGraph,
    weight: Weight,
    users: Sequence[_User],
    culprit: _User,
    limits: Limits,
    overheads: Overheads,
    caps: _Caps,
) -> Split | None:
    must_all = caps.weights is not None and weight.bytes > caps.weights
    rigid = [user for user in users if not user.ways]
    if rigid and must_all:
        raise _refusal(rigid[0].op, weight, None, limits, overheads, caps)
    users = [user for user in users if user.ways]
    choices = _choices(users, caps)
    if not choices:
        if not must_all and caps.weights is not None and culprit.ways:
            held = weight.bytes + culprit.ways[0].companion_bytes
            must_all = held > caps.weights
        if not must_all:
            return None  # memory: the activations are too large for any split to help
        raise _refusal(culprit.op, weight, users, limits, overheads, caps)

    def price(choice: _Choice) -> tuple[bool, int, int]:
        count = len(choice.sizes)
        crowded = any(caps.edge is not None and way.edge(1 / count) > caps.edge for way in choice.ways)
        return crowded, choice.moved(), count

    best, *others = sorted(choices, key=price)
    reason = _reason(weight, culprit, caps)
    if others:
        worse = f"{others[0].moved():,} bytes by {others[0].ways[0].axis}"
        reason += f"; moves {best.moved():,} bytes at most, {worse}"
    return Split(
        weight=weight.name,
        weight_bytes=weight.bytes,
        dim=best.dim,
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


def _choices(users: Sequence[_User], caps: _Caps) -> list[_Choice]:
    """Every dimension along which all users can be split into pieces that fit.

    Pieces that fit a slice alone, buffers included, with headroom; only if there are none, pieces
    that fit if others in the slice spare them the buffers.
    """
    by_dim = [{way.dim: way for way in user.ways} for user in users]
    common = [dim for dim in by_dim[0] if all(dim in found for found in by_dim)]
    for headroom, factor in ((HEADROOM, caps.edge_factor), (1.0, 0.0)):
        found = []
        for dim in common:
            together = tuple(ways[dim] for ways in by_dim)
            if len({way.unit for way in together}) > 1:
                continue
            most = min(_largest(way, caps, headroom, factor) for way in together)
            sizes = _sizes(together[0], most)
            if sizes and len(sizes) <= MAX_PIECES:
                found.append(_Choice(dim, together, sizes))
        if found:
            return found
    return []


def _largest(way: Way, caps: _Caps, headroom: float, factor: float) -> int:
    """The largest size of a piece that fits, 0 if none does."""

    def fits(size: int) -> bool:
        share = size / way.total
        if caps.weights is not None and way.weights(share) > caps.weights:
            return False
        return caps.memory is None or way.memory(share, factor) <= headroom * caps.memory

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
    whole = culprit.ways[0]
    held = weight.bytes + whole.companion_bytes
    if caps.weights is not None and held > caps.weights:
        return f"{_mb(held)} of weights, and a slice may hold {_mb(caps.weights)}"
    assert caps.memory is not None
    need = whole.memory(1.0, caps.edge_factor)
    return f"{_mb(need)} of memory, and a slice may take {_mb(caps.memory)}"


def _refusal(
    op: Op,
    weight: Weight,
    users: Sequence[_User] | None,
    limits: Limits,
    overheads: Overheads,
    caps: _Caps,
) -> InfeasibleError:
    """`users` is None for an op that cannot be split at all, else those whose pieces do not fit."""
    what = f"the op {op.name!r} ({op.kind}{f' of {op.module}' if op.module else ''})"
    weights, memory = weight.bytes, 0
    if users is not None:
        weights, memory = _least(users)
    assert caps.weights is not None
    if weights > caps.weights:
        if limits.weight_bytes is not None and weights > limits.weight_bytes:
            name, limit, smallest = "weight_bytes", limits.weight_bytes, weights
        else:
            assert limits.package_mb is not None
            name, limit = "package_mb", int(limits.package_mb)
            smallest = -(-(weights + overheads.package_bytes) // MB)
        allowed = f"a slice may hold {_mb(caps.weights)} of weights"
    else:
        assert caps.memory is not None
        name, limit = "memory_mb", limits.memory_mb or 0
        smallest = -(-(memory + overheads.memory_bytes) // MB)
        allowed = f"a slice may take {_mb(caps.memory)} of memory"
    why = (
        "and this kind of op cannot be split"
        if users is None
        else f"and even {MAX_PIECES} pieces, or as many as it has, do not fit"
    )
    return InfeasibleError(
        f"{what} uses {weight.name!r} of {_mb(weight.bytes)}; {allowed} (the limit {name}={limit:,}), "
        f"{why}. Raise {name} to at least {smallest}.",
        op=op.name,
        limit_name=name,
        needed=smallest,
        limit=limit,
        smallest_limit=smallest,
    )


def _least(users: Iterable[_User]) -> tuple[int, int]:
    """Weights and memory of the smallest pieces that any dimension allows."""
    by_dim: dict[int, list[Way]] = {}
    for user in users:
        for way in user.ways:
            by_dim.setdefault(way.dim, []).append(way)
    least = []
    for together in by_dim.values():
        shares = [way.smallest(MAX_PIECES) / way.total for way in together]
        pairs = list(zip(together, shares, strict=True))
        weights = max(way.weights(share) for way, share in pairs)
        least.append((weights, max(way.memory(share, 0.0) for way, share in pairs)))
    return min(least)


def _mb(amount: int) -> str:
    return f"{amount / MB:,.1f} MB" if amount >= MB / 10 else f"{amount:,} bytes"
