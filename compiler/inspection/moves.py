"""Moves: what a plan would take if an op were in the slice before its own, or in the one after.

Every move is carried out and counted as the partitioner counts: the slices are measured against the
limits, placed, and predicted again. An op does not move alone where the plan would have a cycle: what
it needs of its slice goes along to an earlier one, what needs it to a later one. Cheap ops run
again where that saves bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from slicewise.errors import SlicewiseError
from slicewise.graph import INPUT, Op
from slicewise.inspection.detail import Detail
from slicewise.limits import MB, Limits
from slicewise.passes import Partition
from slicewise.passes.partitioning.ground import Ground, Measure, ground
from slicewise.passes.partitioning.partitioner import describe
from slicewise.passes.partitioning.recompute import (
    Layout,
    add_inlined,
    inlined_ops,
    measures,
    tidy,
)
from slicewise.passes.place import Settings, place
from slicewise.passes.wire import on_wire
from slicewise.plan import Plan
from slicewise.predict import predict
from slicewise.report import megabytes
from slicewise.target import Target

_USD_WEIGHT = 1e9  # ms per dollar: for plans of the least cost, of new edges only the money counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is compared of two plans: bytes between slices, expected ms, US dollars per million."""

    cross_slice_bytes: int
    latency_ms: float | None
    cost_per_million_usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """An op of slice `source` moved to slice `destination`, None where there is no such slice.

    `along` are the ops of `source` that have to come too. `figures` are None when no plan can be made;
    `refused` says why the plan may not be so, empty when it may.
    """

    way: Literal["earlier", "later", "not again"]
    source: str
    destination: str | None
    along: tuple[str, ...] = ()
    figures: Figures | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """Where an op runs, what it reads from and is read by, and what moving it would take."""

    op: Op
    slices: tuple[str, ...]
    reads: tuple[tuple[str, str, int], ...]
    read_by: tuple[tuple[str, str], ...]
    now: Figures
    moves: tuple[Move, ...]


def why(plan: Plan, detail: Detail, target: Target, name: str) -> Why:
    """Why the op `name` is where it is. Raises `SlicewiseError` for a name that the graph lacks."""
    found = _Moves(plan, detail, target)
    graph = found.base.graph
    if name not in graph.op:
        raise SlicewiseError(f"the plan has no op {name!r}." + near(name, graph.op))
    number = next(index for index, op in enumerate(graph.ops) if op.name == name)
    homes = [index for index, ops in enumerate(found.layout) if number in ops]
    if len(homes) > 1:
        moves = [found.not_again(number, home) for home in homes[1:]]
    else:
        moves = [found.move(number, homes[0], way) for way in ("earlier", "later")]
    op = graph.op[name]
    names = [part.name for part in plan.slices]
    slices_of = {op: part.name for part in reversed(plan.slices) for op in part.ops}
    slices_of[INPUT] = "request"
    return Why(
        op=op,
        slices=tuple(names[home] for home in homes),
        reads=tuple(
            (tensor.name, slices_of[tensor.producer], tensor.bytes)
            for tensor in (graph.tensor[read] for read in op.inputs)
        ),
        read_by=tuple(
            (reader, slices_of[reader]) for made in op.outputs for reader in graph.consumers[made]
        ),
        now=found.now,
        moves=tuple(moves),
    )


def near(name: str, known: Iterable[str]) -> str:
    """The names that a user may have meant, as the end of a message."""
    import difflib

    every = list(known)
    close = difflib.get_close_matches(name, every, n=5) or [each for each in every if name in each]
    if not close:
        close = every
    more = " …" if len(close) > 5 else ""
    return f" There are: {', '.join(close[:5])}{more}."


class _Moves:
    """A plan as the layout that it was made from, and what other layouts take."""

    def __init__(self, plan: Plan, detail: Detail, target: Target) -> None:
        graph = on_wire(detail.graph, plan.transport_rule)
        overheads = target.overheads(plan.transport_rule)
        number = {op.name: index for index, op in enumerate(graph.ops)}
        self.plan, self.detail, self.target = plan, detail, target
        self.base = ground(graph, plan.limits, overheads)
        self.inlined = inlined_ops(self.base)
        self.layout: Layout = [{number[op] for op in part.ops} for part in plan.slices]
        self.now = self._figures(self.layout, [part.memory_mb for part in plan.slices])

    def move(self, op: int, source: int, way: Literal["earlier", "later"]) -> Move:
        """The op in the slice before or after."""
        base, names = self.base, [part.name for part in self.plan.slices]
        destination = source - 1 if way == "earlier" else source + 1
        if not 0 <= destination < len(names):
            return Move(
                way=way, source=names[source], destination=None,
                refused=f"{names[source]} is the {'first' if way == 'earlier' else 'last'} slice",
            )  # fmt: skip
        moving = _needed(base, op, self.layout[source], back=way == "earlier")
        layout = [set(ops) for ops in self.layout]
        layout[destination] |= moving
        layout[source] -= moving
        for ops in layout:
            add_inlined(base, ops, self.inlined)
        self._drop_useless(layout)
        tidied = tidy(base, layout)
        if len(tidied) == len(layout):
            layout = tidied
        along = tuple(base.graph.ops[other].name for other in sorted(moving) if other != op)
        return self._counted(
            Move(way=way, source=names[source], destination=names[destination], along=along), layout
        )

    def not_again(self, op: int, home: int) -> Move:
        """The op not run in a slice where it runs again: what it makes is sent there."""
        names = [part.name for part in self.plan.slices]
        layout = [set(ops) for ops in self.layout]
        layout[home].discard(op)
        self._drop_useless(layout)
        return self._counted(Move(way="not again", source=names[home], destination=None), layout)

    def _counted(self, move: Move, layout: Layout) -> Move:
        memory = [part.memory_mb for part in self.plan.slices]
        names = [part.name for part in self.plan.slices]
        kept = [index for index, ops in enumerate(layout) if ops]
        layout = [layout[index] for index in kept]
        refused = [
            f"{names[index]} would {words}"
            for index, found in zip(kept, measures(self.base, layout), strict=True)
            for words in broken(self.base, found)
        ]
        figures = self._figures(layout, [memory[index] for index in kept])
        return replace(move, figures=figures, refused="; ".join(refused))

    def _figures(self, layout: Layout, memory_mb: list[int]) -> Figures:
        plan, detail = self.plan, self.detail
        graph, target = self.base.graph, self.target
        # What breaks a limit is told of, and still counted.
        free = ground(graph, Limits(), replace(self.base.overheads, max_edge_bytes=None))
        crossing, parts = describe(free, layout)
        chosen = {} if plan.objective == "bytes" else {e.tensor: e.transport for e in plan.edges}
        settings = Settings(
            memory_mb={part.name: mb for part, mb in zip(parts, memory_mb, strict=True)},
            model=replace(
                target.cost_model(plan.limits), caller_memory_mb=plan.coordinator_memory_mb
            ),
            transports=chosen,
            usd_weight=_USD_WEIGHT if plan.objective == "cost" else 0.0,
        )
        packagings = tuple(dict.fromkeys(part.packaging for part in plan.slices))
        packed = {p.name: target.pack(p.weight_bytes, packagings, None, plan.limits) for p in parts}
        partition = Partition(
            slices=parts, cross_slice_bytes=crossing, certificate=plan.certificate
        )
        slices, edges = place(graph, partition, target, settings, packed, rule=plan.transport_rule)
        found = predict(
            slices, edges, settings.model, {op.name: op.time for op in graph.ops},
            parallel=detail.parallel, source="", warm_up=plan.warm_up,
        )  # fmt: skip
        return Figures(
            cross_slice_bytes=crossing,
            latency_ms=found.latency_ms,
            cost_per_million_usd=found.cost_per_million_usd,
        )

    def _drop_useless(self, layout: Layout) -> None:
        """Remove the cheap ops that a slice runs for nobody: others have run them before."""
        base, before = self.base, set[int]()
        for ops in layout:
            for op in sorted(ops, reverse=True):
                if not base.cheap[op]:
                    continue
                read = any(reader in ops for t in base.makes[op] for reader in base.readers[t])
                if not read and (op in before or not _leaves(base, op, ops)):
                    ops.discard(op)
            before |= ops


def _leaves(base: Ground, op: int, ops: set[int]) -> bool:
    return any(
        base.leaves[t] or any(reader not in ops for reader in base.readers[t])
        for t in base.makes[op]
    )


def _needed(base: Ground, op: int, inside: set[int], *, back: bool) -> set[int]:
    """The op with what it needs (`back`), or what needs it, in one slice."""
    found, queue = {op}, [op]
    while queue:
        current = queue.pop()
        if back:
            others = [base.producer[t] for t in base.reads[current]]
        else:
            others = [reader for t in base.makes[current] for reader in base.readers[t]]
        new = [other for other in others if other in inside and other not in found]
        found.update(new)
        queue.extend(new)
    return found


def broken(base: Ground, found: Measure) -> list[str]:
    """In words every limit that a slice with this measure exceeds."""
    overheads, limits = base.overheads, base.limits
    words = []
    for amount, cap, what in (
        (found.weight_bytes, limits.weight_bytes, "weights"),
        (
            found.weight_bytes + overheads.package_bytes,
            None if limits.package_mb is None else int(limits.package_mb * MB),
            "package",
        ),
        (
            found.memory + overheads.memory_bytes,
            None if limits.memory_mb is None else limits.memory_mb * MB,
            "memory",
        ),
        (found.received, overheads.max_edge_bytes, "received tensors"),
        (found.sent, overheads.max_edge_bytes, "sent tensors"),
    ):
        if cap is not None and amount > cap:
            words.append(f"have {megabytes(amount)} of {what}, over the limit of {megabytes(cap)}")
    return words
