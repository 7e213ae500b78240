"""Along: the ways to split a group of ops, and which shard gets what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from slicewise.graph import Op, OpGraph
from slicewise.passes.shards.boxes import WHOLE, Box
from slicewise.passes.shards.moves import RESHAPES
from slicewise.passes.shards.parts import Part, base
from slicewise.passes.shards.sums import sum_size
from slicewise.passes.shards.windows import CONVOLUTIONS, TRANSPOSED

# What a partial result may pass through before it is summed.
_PASSED_ON = {"aten.permute", "aten.transpose", "aten.t", "aten.unsqueeze", "aten.squeeze", "aten.clone",
              "aten.alias", "aten.detach", "aten.contiguous", "aten.dropout"}  # fmt: skip


_OUTER = (1, 2, 3, 4, 6, 8)
_ACROSS = (2, 3, 4)  # tiles side by side


@dataclass(frozen=True, slots=True, kw_only=True)
class Along:
    """Along what a group is split: the dimension `dim` of its results, in multiples of `unit`; or what
    the op `summed` sums over, and then its partial results are summed. The parts at both ends have
    `outer` units more than those between, which have a halo on both sides. With `tiles`, so many lie
    side by side along the dimension `across`.
    """

    dim: int
    unit: int = 1
    summed: str = ""
    outer: int = 0
    across: int = 0
    tiles: int = 1

    @property
    def key(self) -> tuple[int, bool, int]:
        """Equal for ways along the same dimensions."""
        return self.dim, bool(self.summed), self.across


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one shard returns: a box of every result; and for a summand of all of it, which op sums over
    which part.
    """

    results: Mapping[str, Box]
    partial: tuple[str, Part] | None = None


def unevenly(graph: OpGraph, along: Along, results: Sequence[str], degree: int) -> list[Along]:
    """The same with larger parts at both ends, where the results may have dimensions of space."""
    sizes = [graph.tensor[name].shape[along.dim] for name in results]
    degree //= along.tiles
    if degree < 3 or along.summed or along.dim < 2 or not all(isinstance(s, int) for s in sizes):
        return [along]
    most = min(int(size) for size in sizes) // degree // 2
    return [along, *(replace(along, outer=outer) for outer in _OUTER if outer <= most)]


def results_of(graph: OpGraph, group: Sequence[Op]) -> tuple[str, ...]:
    """The tensors of the group that are read outside of it."""
    members = {op.name for op in group}
    return tuple(
        tensor
        for op in group
        for tensor in op.outputs
        if tensor in graph.outputs or any(c not in members for c in graph.consumers[tensor])
    )


def choices(graph: OpGraph, group: Sequence[Op], results: Sequence[str]) -> Iterator[list[Along]]:
    """Along what the group might be split; of the units of one choice the best is taken."""
    if not results:
        return
    units = _units(graph, group)
    shapes = [graph.tensor[name].shape for name in results]
    ranks = {len(shape) for shape in shapes}
    for dim in range(ranks.pop()) if len(ranks) == 1 else ():
        sizes = [shape[dim] for shape in shapes]
        yield [Along(dim=dim, unit=unit) for unit in _dividing(units, sizes)]
    for dim, across in combinations(range(2, max(map(len, shapes))), 2):
        if all(len(shape) >= 4 and _dividing((), (shape[dim], shape[across])) for shape in shapes):
            yield [Along(dim=dim, across=across, tiles=tiles) for tiles in _ACROSS]
    last = _summing(graph, group, results)
    if last is not None:
        sizes = [sum_size(graph, last)]
        yield [Along(dim=0, unit=unit, summed=last.name) for unit in _dividing(units, sizes)]


def _units(graph: OpGraph, group: Sequence[Op]) -> list[int]:
    """Sizes of what should stay together: what reshapes merge (a head), a group's channels."""
    found: set[int] = set()
    for op in group:
        if base(op) in RESHAPES:
            shapes = [graph.tensor[name].shape for name in (*op.inputs, *op.outputs)]
            found.update(size for shape in shapes for size in shape if isinstance(size, int))
        elif base(op) in CONVOLUTIONS | TRANSPOSED:
            groups, channels = dict(op.arguments)["groups"], graph.tensor[op.outputs[0]].shape[1]
            if isinstance(channels, int):
                found.add(channels // groups)
    return sorted(found - {0, 1})


def _dividing(units: Sequence[int], sizes: Sequence[int | str]) -> list[int]:
    numbers = [size for size in sizes if isinstance(size, int)]
    if len(numbers) < len(sizes) or min(numbers) < 2:
        return []
    return [1, *(unit for unit in units if all(n % unit == 0 and n > unit for n in numbers))]


def _summing(graph: OpGraph, group: Sequence[Op], results: Sequence[str]) -> Op | None:
    """The op whose partial results may be summed after the group, for only moves follow it."""
    if len(results) != 1:
        return None
    members = {op.name for op in group}
    tensor = results[0]
    while True:
        op = graph.op[graph.tensor[tensor].producer]
        if sum_size(graph, op) > 1:
            return op
        if base(op) not in RESHAPES | _PASSED_ON or len(op.inputs) != 1:
            return None
        tensor = op.inputs[0]
        if graph.tensor[tensor].producer not in members or len(graph.consumers[tensor]) > 1:
            return None


def shares(graph: OpGraph, results: Sequence[str], along: Along, degree: int) -> tuple[Share, ...]:
    """What each of `degree` shards returns, as even as can be; none if there is too little to share."""
    if along.summed:
        total = sum_size(graph, graph.op[along.summed])
        return tuple(
            Share(results=dict.fromkeys(results, WHOLE), partial=(along.summed, part))
            for part in _evenly(total, along, degree)
        )
    found = [_boxes(graph.tensor[name].shape, along, degree) for name in results]
    if not all(found):
        return ()
    return tuple(
        Share(results=dict(zip(results, boxes, strict=True))) for boxes in zip(*found, strict=True)
    )


def _boxes(shape: Sequence[int | str], along: Along, degree: int) -> list[Box]:
    deep, left = divmod(degree, along.tiles)
    parts = _evenly(int(shape[along.dim]), along, deep)
    if along.tiles == 1:
        return [(part,) for part in parts]
    beside = _evenly(int(shape[along.across]), Along(dim=along.across), along.tiles)
    return [] if left or deep < 2 else [(part, other) for part in parts for other in beside]


def _evenly(total: int, along: Along, degree: int) -> list[Part]:
    units, outer = total // along.unit, along.outer
    if units - 2 * outer < degree:
        return []
    inner = [outer + (units - 2 * outer) * index // degree for index in range(1, degree)]
    ends = [0, *(end * along.unit for end in inner), total // along.unit * along.unit]
    return [Part(along.dim, start, end) for start, end in pairwise(ends)]
