"""Shardings: all ways to split a run of ops between several slices, and what each slice then does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slicewise.graph import Op, OpGraph
from slicewise.passes.shards.along import Along, Share, choices, results_of, shares
from slicewise.passes.shards.layout import Layout, in_sequence, layout
from slicewise.passes.shards.measure import ShardPart, measure
from slicewise.passes.shards.products import TIME

CONCATENATE, SUM = "concatenate", "sum"
# A split is called by the first of these that some op of it is split along.
_KINDS = (
    TIME,
    "heads",
    "planes",
    "rows",
    "columns",
    "vocabulary",
    "channels",
    "features",
    "tokens",
    "batch",
)
_BY_RANK = {5: ("batch", "channels", "planes", "rows", "columns"),
            4: ("batch", "channels", "rows", "columns"),
            3: ("batch", "tokens", "features"), 2: ("batch", "features")}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """One way to split a group of ops between `degree` slices.

    `ops` are consecutive in graph order. `kind` says in a word along what: "rows", "columns",
    "tiles" (rows by columns), "planes", "channels", "heads", "features", "vocabulary", "tokens",
    "batch", "time".
    Shards by time (of recurrent layers) need the state that the shard before ends with, others nothing
    of each other. `combine` says what the next slice does with the results: "concatenate" or "sum".
    """

    ops: tuple[str, ...]
    kind: str
    degree: int
    parts: tuple[ShardPart, ...]
    combine: str
    along: Along


def shardings(graph: OpGraph, ops: Sequence[str], degrees: Sequence[int]) -> tuple[Sharding, ...]:
    """All ways to split exactly this run of ops, for each degree; empty when it cannot be split.

    No shard of a way that is returned does all of a product (convolution, linear layer, attention).
    """
    group = [graph.op[name] for name in ops]
    results = results_of(graph, group)
    found = []
    for alongs in choices(graph, group, results):
        for degree in degrees:
            ways = [_sharding(graph, group, results, along, degree) for along in alongs]
            known = [way for way in ways if way is not None]
            if known:
                found.append(min(known, key=_total_work))
    return tuple(found)


def sharding(graph: OpGraph, ops: Sequence[str], along: Along, degree: int) -> Sharding | None:
    """This run of ops split in this way, None if it cannot be."""
    group = [graph.op[name] for name in ops]
    return _sharding(graph, group, results_of(graph, group), along, degree)


def layouts(graph: OpGraph, sharding: Sharding) -> tuple[tuple[Share, Layout], ...]:
    """What each shard of a sharding of this graph returns, and how."""
    group = [graph.op[name] for name in sharding.ops]
    found = []
    for share in shares(graph, results_of(graph, group), sharding.along, sharding.degree):
        one = layout(graph, group, share)
        assert one is not None, "this is no sharding of this graph"
        found.append((share, one))
    return tuple(found)


def _sharding(
    graph: OpGraph, group: Sequence[Op], results: Sequence[str], along: Along, degree: int
) -> Sharding | None:
    parts: list[ShardPart] = []
    layouts: list[Layout] = []
    axes: set[str] = set()
    for share in shares(graph, results, along, degree):
        one = layout(graph, group, share)
        if one is None:
            return None
        parts.append(measure(graph, group, one, share))
        layouts.append(one)
        axes |= one.axes
    if TIME in axes and not all(in_sequence(layouts, op) for op in group):
        return None
    if not parts or all(amount == 1 for part in parts for _, amount in part.work):
        return None
    return Sharding(
        ops=tuple(op.name for op in group),
        kind=_kind(axes, along, len(graph.tensor[results[0]].shape)),
        degree=degree,
        parts=tuple(parts),
        combine=SUM if along.summed else CONCATENATE,
        along=along,
    )


def _kind(axes: set[str], along: Along, rank: int) -> str:
    if along.tiles > 1:
        return "tiles"
    for kind in _KINDS:
        if kind in axes:
            return kind
    return _BY_RANK[rank][along.dim] if rank in _BY_RANK else f"dimension {along.dim}"


def _total_work(sharding: Sharding) -> float:
    return sum(amount for part in sharding.parts for _, amount in part.work)
