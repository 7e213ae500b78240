"""Boxes: parts of tensors along one dimension or several, as of tiles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from slicewise.graph import Tensor
from slicewise.passes.shards.parts import Part

# What lies in all of these parts, which are along different dimensions, in order.
Box = tuple[Part, ...]
WHOLE: Box = ()


def box(parts: Iterable[Part]) -> Box | None:
    """The box of these parts; None if two are along the same dimension."""
    found = tuple(sorted(parts))
    return found if len({part.dim for part in found}) == len(found) else None


def merged(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """Disjoint boxes along the same dimensions that hold all of these, each as it is if it can be."""
    found = sorted(set(boxes))
    common = set.intersection(*({part.dim for part in one} for one in found))
    found = [tuple(part for part in one if part.dim in common) for one in found]
    done: list[Box] = []
    while found:
        one = found.pop()
        for index, other in enumerate(done):
            if overlap(one, other) is not None:
                found.append(_hull(one, done.pop(index)))
                break
        else:
            done.append(one)
    return tuple(sorted(done))


def _hull(one: Box, other: Box) -> Box:
    return tuple(
        Part(a.dim, min(a.start, b.start), max(a.end, b.end))
        for a, b in zip(one, other, strict=True)
    )


def overlap(one: Box, other: Box) -> Box | None:
    """What is in both boxes; None if that is nothing."""
    found = {part.dim: part for part in one}
    for part in other:
        own = found.get(part.dim, part)
        both = Part(part.dim, max(own.start, part.start), min(own.end, part.end))
        if both.size <= 0:
            return None
        found[part.dim] = both
    return tuple(sorted(found.values()))


def is_within(inner: Box, outer: Box) -> bool:
    """Whether the outer box holds all of the inner one."""
    return overlap(inner, outer) == inner


def cuts(inner: Box, outer: Box) -> Iterator[tuple[Part, Part]]:
    """What to cut out of the outer box to get the inner one: of each part its indices there, and it."""
    begins = {part.dim: part.start for part in outer}
    for part in inner:
        if part not in outer:
            begin = begins.get(part.dim, 0)
            yield Part(part.dim, part.start - begin, part.end - begin), part


def fraction(shape: Sequence[int | str], boxes: Iterable[Box]) -> float:
    """How much of a tensor of this shape disjoint boxes are."""
    return sum(math.prod(part.size / int(shape[part.dim]) for part in one) for one in boxes)


def bytes_of(tensor: Tensor, boxes: Iterable[Box], most: bool = False) -> int:
    """Bytes of disjoint boxes of a tensor at the example's sizes, or at most."""
    total, found = tensor.max_bytes if most else tensor.bytes, 0
    for one in boxes:
        whole = math.prod(int(tensor.shape[part.dim]) for part in one)
        found += total * math.prod(part.size for part in one) // whole
    return found


def pieces(have: Sequence[Box], need: Sequence[Box]) -> list[tuple[int, Box]]:
    """Which shard sends which piece to one that needs these boxes of a tensor that lies in boxes."""
    return [
        (maker, piece)
        for wanted in need
        for maker, own in enumerate(have)
        if (piece := overlap(own, wanted)) is not None
    ]
