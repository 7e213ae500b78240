"""Sweep: all ways to split all runs of ops that end at one place, in one pass backwards for each way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slicewise.graph import TENSOR, Op, OpGraph
from slicewise.passes.shards.along import Along, Share, choices, results_of, shares, unevenly
from slicewise.passes.shards.boxes import Box, fraction
from slicewise.passes.shards.layout import Backwards, Boxes, in_sequence
from slicewise.passes.shards.measure import work_of
from slicewise.passes.shards.products import TIME


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """One way to split the ops from `start` to the end of what was swept.

    By shard: `work_ms`, the boxes of tensors that it receives, the one that it returns of each, and the
    memory of the weights that it holds at least. `once_ms` is what the ops take unsplit.
    `is_by_time`: each shard needs the state of recurrent layers that the one before ends with.
    """

    start: int
    along: Along
    degree: int
    once_ms: float
    work_ms: tuple[float, ...]
    received: tuple[Mapping[str, Boxes], ...]
    sent: tuple[Mapping[str, Box], ...]
    held_bytes: tuple[int, ...]
    is_by_time: bool


def sweep(
    graph: OpGraph, ops: Sequence[Op], starts: Sequence[int], degrees: Sequence[int]
) -> list[Swept]:
    """The ways to split `ops[start:]` for every start, of those along the same dimension (or sum) into
    as many shards the one whose slowest shard takes least. `ops` are in an order in which they could
    run.

    What ops before the last start return to others ends the sweep: groups have one way out.
    """
    if not starts:
        return []
    results = results_of(graph, ops[max(starts) :])
    inner = set(results_of(graph, ops)).difference(results)
    found: dict[tuple[object, ...], Swept] = {}
    for alongs in choices(graph, ops, results):
        for degree in degrees:
            tried = set()
            for along in (o for a in alongs for o in unevenly(graph, a, results, degree)):
                shared = shares(graph, results, along, degree)
                known = tuple((*share.results.items(), share.partial) for share in shared)
                if not shared or known in tried:
                    continue
                tried.add(known)
                for way in _swept(graph, ops, set(starts), shared, along, inner):
                    key = (way.start, along.key, degree)
                    if key not in found or _load(way) < _load(found[key]):
                        found[key] = way
    return list(found.values())


def _swept(
    graph: OpGraph,
    ops: Sequence[Op],
    starts: set[int],
    shared: Sequence[Share],
    along: Along,
    inner: set[str],
) -> list[Swept]:
    """One way, for all starts that it reaches."""
    shards = [_Shard(graph, share) for share in shared]
    wanted = set(shared[0].results)
    found: list[Swept] = []
    once, is_split = 0.0, False
    for index in range(len(ops) - 1, -1, -1):
        op = ops[index]
        if not inner.isdisjoint(op.outputs):
            break
        amounts = [shard.take(op) for shard in shards]
        if any(amount is None for amount in amounts):
            break
        if not in_sequence([shard.back for shard in shards], op):
            break
        once += op.time
        is_split = is_split or any(amount not in (0, 1) for amount in amounts)
        wanted.difference_update(op.outputs)
        if index in starts and is_split and not wanted:
            received = tuple(shard.back.needed(TENSOR) for shard in shards)
            if not along.summed or any(along.summed == one.name for one in ops[index:]):
                found.append(
                    Swept(
                        start=index,
                        along=along,
                        degree=len(shards),
                        once_ms=once,
                        work_ms=tuple(shard.work_ms for shard in shards),
                        received=received,
                        sent=tuple(share.results for share in shared),
                        held_bytes=tuple(int(shard.held_bytes) for shard in shards),
                        is_by_time=TIME in shards[0].back.axes,
                    )
                )
    return found


def _load(way: Swept) -> tuple[float, float]:
    return max(way.work_ms), sum(way.work_ms)


class _Shard:
    """One shard on its way back."""

    def __init__(self, graph: OpGraph, share: Share) -> None:
        self.back = Backwards(graph, share)
        self.work_ms = self.held_bytes = 0.0
        self._held: dict[str, float] = {}
        self._graph, self._share = graph, share

    def take(self, op: Op) -> float | None:
        """The share of the op that it does, None if the op cannot be split."""
        if not self.back.take(op):
            return None
        amount = work_of(self._graph, op, self.back, self._share)
        self.work_ms += amount * op.time
        for name, boxes in self.back.needed_weights(op.weights):
            weight = self._graph.weight[name]
            held = weight.memory_bytes * fraction(weight.shape, boxes)
            self.held_bytes += held - self._held.get(name, 0.0)
            self._held[name] = held
        return amount
