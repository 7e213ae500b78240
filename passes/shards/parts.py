"""Parts of tensors, and how an op computes a part of its result from parts of what it reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from slicewise.graph import TENSOR, WEIGHT, Op, OpGraph

Place = tuple[str, int]  # an argument's name, and which item of it if it is a list (else -1)
Shape = tuple[int | str, ...]


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """The indices `start` to `end` (exclusive) of a tensor along its dimension `dim`."""

    dim: int
    start: int
    end: int

    @property
    def size(self) -> int:
        """Number of indices."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How an op computes one part of its result.

    `reads` are the parts that it needs; of all other arguments it needs the whole. `changed` are
    arguments that differ from the op's own. `pad` is what is added (or, if negative, taken away) along
    the part's dimension before and after what the op reads first, of the value `fill`. Of the result,
    `crop` is kept, and multiplied by `scale` along the part's dimension. With `is_moved`, the result is
    what it reads and there is no op. `axis` says in words along what the op is split, "" if that is
    no property of the op.
    """

    reads: tuple[tuple[Place, Part], ...] = ()
    changed: tuple[tuple[str, Any], ...] = ()
    pad: tuple[int, int] = (0, 0)
    fill: float = 0.0
    crop: tuple[int, int] | None = None
    scale: tuple[float, ...] = ()
    is_moved: bool = False
    axis: str = ""


def is_reference(item: Any) -> bool:
    """Whether an argument refers to a tensor or a weight."""
    return isinstance(item, str) and item[:1] in (TENSOR, WEIGHT)


def references(op: Op) -> Iterator[tuple[Place, str]]:
    """Where the op's arguments refer to tensors and weights, and to which ("%name", "#name")."""
    for name, value in op.arguments:
        items = enumerate(value) if isinstance(value, tuple) else ((-1, value),)
        for index, item in items:
            if is_reference(item):
                yield (name, index), item


def shape_of(graph: OpGraph, reference: Any) -> Shape:
    """The shape of what an argument refers to; () for a number or None."""
    if not isinstance(reference, str):
        return ()
    if reference[:1] == WEIGHT:
        return graph.weight[reference[1:]].shape
    return graph.tensor[reference[1:]].shape


def base(op: Op) -> str:
    """The op's kind without its overload."""
    return ".".join(op.kind.split(".")[:2])
