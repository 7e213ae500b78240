"""Layout: which parts of every tensor one shard computes, found from its result backwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from slicewise.graph import TENSOR, WEIGHT, Op, OpGraph
from slicewise.passes.shards.along import Share
from slicewise.passes.shards.parts import Part, Step, base, is_reference, merged, references
from slicewise.passes.shards.products import HEAVY, TIME
from slicewise.passes.shards.rules import step
from slicewise.passes.shards.sums import summed

Parts = tuple[Part, ...] | None  # disjoint parts along one dimension; None is the whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What one shard does. `made` and `read` are by tensor: what it computes, and receives; `held` is by
    weight. `steps` says how each op computes the parts of its results: a step per (tensor, part), None
    for an op that it does as the unsharded model does. `axes` are the words for what was split.
    """

    made: Mapping[str, Parts]
    read: Mapping[str, Parts]
    held: Mapping[str, Parts]
    steps: Mapping[tuple[str, Part | None], Step | None]
    axes: frozenset[str]


@dataclass(slots=True)
class _Needs:
    of: dict[str, list[Part | None]] = field(default_factory=dict)

    def add(self, reference: str, part: Part | None) -> None:
        self.of.setdefault(reference, []).append(part)


class Backwards:
    """The ops of one shard, from the last one back: every op that is taken must be read by no op but
    those taken before it.
    """

    def __init__(self, graph: OpGraph, share: Share) -> None:
        self.made: dict[str, Parts] = {}
        self.steps: dict[tuple[str, Part | None], Step | None] = {}
        self.axes: set[str] = set()
        self._graph, self._partial = graph, share.partial
        self._needs = _Needs()
        for name, part in share.results.items():
            self._needs.add(TENSOR + name, part)

    def take(self, op: Op) -> bool:
        """Whether the shard does only a part of the op, or all of one that is no product (`HEAVY`)."""
        graph, needs = self._graph, self._needs
        for tensor in op.outputs:
            if TENSOR + tensor not in needs.of:
                continue
            parts = merged(needs.of.pop(TENSOR + tensor))
            found: list[tuple[Part | None, Step | None]]
            if self._partial and op.name == self._partial[0]:
                parts, found = None, [(None, summed(graph, op, self._partial[1]))]
            else:
                found = [
                    (part, step(graph, op, tensor, part) if part else None)
                    for part in parts or (None,)
                ]
            if any(one is None for _, one in found):
                if base(op) in HEAVY:
                    return False
                parts, found = None, [(None, None)]
            self.made[tensor] = parts
            for part, one in found:
                self.steps[tensor, part] = one
                self.axes.add(one.axis if one else "")
                for reference, seen in reads(op, one):
                    needs.add(reference, seen)
        return True

    def needed(self, kind: str) -> dict[str, Parts]:
        """The parts that the ops taken so far need from outside, of tensors or of weights."""
        needs = self._needs.of.items()
        return {name[1:]: merged(parts) for name, parts in needs if name[0] == kind}

    def needed_weights(self, names: Iterable[str]) -> Iterator[tuple[str, Parts]]:
        """The parts that they need of these weights, those of which they need any."""
        for name in names:
            if WEIGHT + name in self._needs.of:
                yield name, merged(self._needs.of[WEIGHT + name])


def layout(graph: OpGraph, group: Sequence[Op], share: Share) -> Layout | None:
    """The layout of the shard of a group that returns this share. None if it would have to do all of a
    product (`HEAVY`).
    """
    shard = Backwards(graph, share)
    if not all(shard.take(op) for op in reversed(group)):
        return None
    return Layout(
        made=shard.made,
        read=shard.needed(TENSOR),
        held=shard.needed(WEIGHT),
        steps=shard.steps,
        axes=frozenset(shard.axes - {""}),
    )


def in_sequence(shards: Sequence[Layout | Backwards], op: Op) -> bool:
    """Whether an op by time has one chunk in each shard, each chunk from where the one before ends."""
    for tensor in op.outputs:
        chunks = [shard.made.get(tensor) or () for shard in shards]
        steps = [
            shard.steps.get((tensor, part))
            for shard, parts in zip(shards, chunks, strict=True)
            for part in parts
        ]
        if any(one is not None and one.axis == TIME for one in steps):
            ends = [(part.start, part.end) for parts in chunks for part in parts]
            if (
                len(ends) != len(shards)
                or ends[0][0]
                or any(before[1] != after[0] for before, after in pairwise(ends))
            ):
                return False
    return True


def reads(op: Op, one: Step | None) -> list[tuple[str, Part | None]]:
    """What a step reads of which tensors and weights."""
    if one is None:
        return [(reference, None) for _, reference in references(op)]
    parts = dict(one.reads)
    arguments: dict[str, Any] = dict(op.arguments) | dict(one.changed)
    found = []
    for name, value in arguments.items():
        items = enumerate(value) if isinstance(value, tuple) else ((-1, value),)
        for index, item in items:
            if is_reference(item):
                place = (name, index)
                if not one.is_moved or place in parts:
                    found.append((item, parts.get(place)))
    return found
