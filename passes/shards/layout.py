"""Layout: which parts of every tensor one shard computes, found from its result backwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from slicewise.graph import TENSOR, WEIGHT, Op, OpGraph
from slicewise.passes.shards.along import Share
from slicewise.passes.shards.boxes import WHOLE, Box, merged
from slicewise.passes.shards.parts import Step, base, is_reference, references
from slicewise.passes.shards.products import HEAVY, TIME
from slicewise.passes.shards.rules import read_boxes, steps
from slicewise.passes.shards.sums import summed

Boxes = tuple[Box, ...]  # disjoint, along the same dimensions
Steps = tuple[Step, ...]  # one along each dimension of a box; none: as the unsharded model does it


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What one shard does. `made` and `read` are by tensor: what it computes, and receives; `held` is by
    weight. `steps` says how each op computes the boxes of its results. `axes` are the words for what was
    split.
    """

    made: Mapping[str, Boxes]
    read: Mapping[str, Boxes]
    held: Mapping[str, Boxes]
    steps: Mapping[tuple[str, Box], Steps]
    axes: frozenset[str]


@dataclass(slots=True)
class _Needs:
    of: dict[str, list[Box]] = field(default_factory=dict)

    def add(self, reference: str, box: Box) -> None:
        self.of.setdefault(reference, []).append(box)


class Backwards:
    """The ops of one shard, from the last one back: every op that is taken must be read by no op but
    those taken before it.
    """

    def __init__(self, graph: OpGraph, share: Share) -> None:
        self.made: dict[str, Boxes] = {}
        self.steps: dict[tuple[str, Box], Steps] = {}
        self.axes: set[str] = set()
        self._graph, self._partial = graph, share.partial
        self._needs = _Needs()
        for name, box in share.results.items():
            self._needs.add(TENSOR + name, box)

    def take(self, op: Op) -> bool:
        """Whether the shard does only a part of the op, or all of one that is no product (`HEAVY`)."""
        graph, needs = self._graph, self._needs
        for tensor in op.outputs:
            if TENSOR + tensor not in needs.of:
                continue
            boxes = merged(needs.of.pop(TENSOR + tensor))
            found: dict[Box, Steps | None] = {box: steps(graph, op, tensor, box) for box in boxes}
            if self._partial and op.name == self._partial[0]:
                one = summed(graph, op, self._partial[1])
                found = {WHOLE: None if one is None else (one,)}
            if any(taken is None or not (box or taken) for box, taken in found.items()):
                if base(op) in HEAVY:
                    return False
                found = {WHOLE: ()}
            self.made[tensor] = tuple(found)
            for box, taken in found.items():
                assert taken is not None
                self.steps[tensor, box] = taken
                self.axes.update(one.axis for one in taken)
                for reference, seen in reads(op, taken):
                    needs.add(reference, seen)
        return True

    def needed(self, kind: str) -> dict[str, Boxes]:
        """The boxes that the ops taken so far need from outside, of tensors or of weights."""
        needs = self._needs.of.items()
        return {name[1:]: merged(boxes) for name, boxes in needs if name[0] == kind}

    def needed_weights(self, names: Iterable[str]) -> Iterator[tuple[str, Boxes]]:
        """The boxes that they need of these weights, those of which they need any."""
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
        chunks = [
            [
                part
                for part, one in zip(box, shard.steps[tensor, box], strict=False)
                if one.axis == TIME
            ]
            for shard in shards
            for box in shard.made.get(tensor, ())
        ]
        if any(chunks):
            ends = [(part.start, part.end) for parts in chunks for part in parts]
            if (
                len(ends) != len(shards)
                or ends[0][0]
                or any(before[1] != after[0] for before, after in pairwise(ends))
            ):
                return False
    return True


def reads(op: Op, taken: Steps) -> list[tuple[str, Box]]:
    """What the steps read of which tensors and weights."""
    if not taken:
        return [(reference, WHOLE) for _, reference in references(op)]
    boxes = read_boxes(taken)
    assert boxes is not None
    arguments: dict[str, Any] = dict(op.arguments)
    for one in taken:
        arguments.update(one.changed)
    is_moved = any(one.is_moved for one in taken)
    found = []
    for name, value in arguments.items():
        items = enumerate(value) if isinstance(value, tuple) else ((-1, value),)
        for index, item in items:
            if is_reference(item) and (not is_moved or (name, index) in boxes):
                found.append((item, boxes.get((name, index), WHOLE)))
    return found
