"""Layout: which parts of every tensor one shard computes, found from its result backwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slicewise.graph import TENSOR, WEIGHT, Op, OpGraph
from slicewise.passes.shards.along import Share
from slicewise.passes.shards.parts import Part, Step, base, is_reference, merged, references
from slicewise.passes.shards.products import HEAVY
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


def layout(graph: OpGraph, group: Sequence[Op], share: Share) -> Layout | None:
    """The layout of the shard of a group that returns this share. None if it would have to do all of a
    product (`HEAVY`).
    """
    needs = _Needs()
    for name, part in share.results.items():
        needs.add(TENSOR + name, part)
    made: dict[str, Parts] = {}
    steps: dict[tuple[str, Part | None], Step | None] = {}
    axes = set()
    for op in reversed(group):
        for tensor in op.outputs:
            if TENSOR + tensor not in needs.of:
                continue
            parts = merged(needs.of.pop(TENSOR + tensor))
            found: list[tuple[Part | None, Step | None]]
            if share.partial and op.name == share.partial[0]:
                parts, found = None, [(None, summed(graph, op, share.partial[1]))]
            else:
                found = [
                    (part, step(graph, op, tensor, part) if part else None)
                    for part in parts or (None,)
                ]
            if any(one is None for _, one in found):
                if base(op) in HEAVY:
                    return None
                parts, found = None, [(None, None)]
            made[tensor] = parts
            for part, one in found:
                steps[tensor, part] = one
                axes.add(one.axis if one else "")
                for reference, seen in reads(op, one):
                    needs.add(reference, seen)
    read = {name[1:]: merged(parts) for name, parts in needs.of.items() if name[0] == TENSOR}
    held = {name[1:]: merged(parts) for name, parts in needs.of.items() if name[0] == WEIGHT}
    return Layout(made=made, read=read, held=held, steps=steps, axes=frozenset(axes - {""}))


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
