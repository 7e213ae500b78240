"""Relayout: the slices of a chosen plan, on the graph in which its shards are ops of their own.

Each shard is a slice of the ops that it became. What cuts a tensor for shards belongs to the slice that
makes the tensor, or for a tensor of the request (but see input_cuts.py) to the shard itself; what puts
results together belongs to the step after the shards. All other ops stay where they were chosen to be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slicewise.graph import Op, OpGraph
from slicewise.passes.joint.optimise import Choice, Chosen
from slicewise.passes.partitioning.ground import Ground
from slicewise.passes.partitioning.recompute import Layout, add_inlined, inlined_ops
from slicewise.passes.shards import Sharding
from slicewise.plan import BRANCHES


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What a sharding became: the ops of every shard, and those that cut its inputs and put its results
    together, by name.
    """

    shards: tuple[tuple[str, ...], ...]
    cuts: tuple[str, ...]
    combines: tuple[str, ...]


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """One slice: its step, and its place in it."""

    step: int
    index: int


def relayout(
    old: OpGraph, base: Ground, choice: Choice, applied: Sequence[Applied]
) -> tuple[Layout, list[Slot]]:
    """The ops of every slice on the new graph (`base`), and which slice of which step each one is."""
    graph = base.graph
    slots: list[Slot] = []
    homes: dict[str, list[Slot]] = {}
    left = iter(applied)
    together: list[str] = []  # ops that the next step begins with
    cuts: set[str] = set()
    for number, step in enumerate(choice.steps):
        if not step.shardings:
            here = [Slot(number, index) for index in range(len(step.ops))]
            for slot, ops in zip(here, step.ops, strict=True):
                for each in ops:
                    homes.setdefault(old.ops[each].name, []).append(slot)
            for name in together:
                homes[name] = here[:1]
            together = []
        else:
            here = [Slot(number, index) for index in range(step.width)]
            became = [next(left) for _ in step.shardings]
            names_of = [names for each in became for names in each.shards]
            for slot, names in zip(here, names_of, strict=True):
                for name in names:
                    homes[name] = [slot]
            together = list(became[-1].combines)
            cuts = cuts.union(name for each in became for name in each.cuts)
        slots += here
    _place_the_rest(graph, homes, cuts)
    members = {slot: set[int]() for slot in slots}
    for index, op in enumerate(graph.ops):
        for slot in homes.get(op.name, ()):
            members[slot].add(index)
    inlined = inlined_ops(base)
    for ops in members.values():
        add_inlined(base, ops, inlined)
    return [members[slot] for slot in slots], slots


def _place_the_rest(graph: OpGraph, homes: dict[str, list[Slot]], cuts: set[str]) -> None:
    """Cuts, and ops that nobody named, go where what they read is made, else to their readers."""

    def readers_of(op: Op) -> dict[Slot, None]:
        readers = [other for name in op.outputs for other in graph.consumers[name]]
        return {slot: None for other in readers for slot in homes.get(other, ())}

    for op in graph.ops:
        if op.name in homes and op.name not in cuts:
            continue
        makers = [graph.tensor[name].producer for name in op.inputs]
        made = [min(homes[maker]) for maker in makers if homes.get(maker)]
        # A cheap op may run in a later slice too; then whoever reads this runs both by itself.
        if made and not any(slot.step < max(made).step for slot in readers_of(op)):
            homes[op.name] = [max(made)]
    for op in reversed(graph.ops):
        if op.name not in homes:
            homes[op.name] = list(readers_of(op))


def group_records(
    graph: OpGraph, choice: Choice, slots: Sequence[Slot]
) -> list[dict[str, Any] | None]:
    """For every slice what the plan tells of it as a part of a group, None for the others.

    `kind` says what is split, or that it is one of several branches. `extra_bytes` are those that go to
    and from the slices beyond the whole tensors (halo, broadcast, partial sums), `redundant_compute` is
    the share of the group's compute time that is done more than once, `gain_ms` is against one slice of
    the same ops, None if none holds them.
    """
    numbers: dict[int, int] = {}
    found: list[dict[str, Any] | None] = []
    for slot in slots:
        step = choice.steps[slot.step]
        if step.width == 1:
            found.append(None)
            continue
        group = numbers.setdefault(slot.step, len(numbers))
        told = (
            _shards_told(graph, step.shardings) if step.shardings else _branches_told(graph, step)
        )
        gain = None if math.isnan(step.gain_ms) else step.gain_ms
        found.append({"group": group, "index": slot.index, "gain_ms": gain, **told})
    return found


def _shards_told(graph: OpGraph, shardings: Sequence[Sharding]) -> Mapping[str, Any]:
    parts = [part for sharding in shardings for part in sharding.parts]
    moved = [moved for part in parts for moved in (*part.received, *part.sent)]
    whole = {name: 0 for name, _ in moved}
    for sharding in shardings:  # what goes from one stage of a pipeline to the next goes there once
        for end in ("received", "sent"):
            for name in {name for part in sharding.parts for name, _ in getattr(part, end)}:
                whole[name] += graph.tensor[name].bytes
    once = sum(graph.op[name].time for sharding in shardings for name in sharding.ops)
    done = sum(graph.op[name].time * share for part in parts for name, share in part.work)
    return {
        "of": len(parts),
        "kind": shardings[0].kind,
        "extra_bytes": sum(size for _, size in moved) - sum(whole.values()),
        "redundant_compute": max(0.0, done / once - 1) if once else 0.0,
    }


def _branches_told(graph: OpGraph, step: Chosen) -> Mapping[str, Any]:
    """What several branches receive counts again for each but the first; so do ops that they all run."""
    received: list[str] = []
    ops = [[graph.ops[index] for index in sorted(branch)] for branch in step.ops]
    for branch in ops:
        made = {name for op in branch for name in op.outputs}
        received += {name for op in branch for name in op.inputs}.difference(made)
    once = {op.name: op.time for branch in ops for op in branch}
    done = sum(op.time for branch in ops for op in branch)
    total = sum(once.values())
    return {
        "of": len(ops),
        "kind": BRANCHES,
        "extra_bytes": sum(graph.tensor[name].bytes for name in received)
        - sum(graph.tensor[name].bytes for name in set(received)),
        "redundant_compute": done / total - 1 if total else 0.0,
    }
