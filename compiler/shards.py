"""Shards: the program in which chosen groups are ops of their own, converted once more; its slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slicewise.analyse import analyse
from slicewise.capture import Captured
from slicewise.codegen.convert import Converted, convert
from slicewise.compiled import example_arrays
from slicewise.graph import OpGraph
from slicewise.limits import MB, Limits, Overheads
from slicewise.optime import op_times, with_times
from slicewise.passes import Partition
from slicewise.passes.input_cuts import cut_on_arrival
from slicewise.passes.joint.decide import Choices, certificate
from slicewise.passes.joint.optimise import Choice
from slicewise.passes.joint.relayout import Applied, group_records, relayout
from slicewise.passes.partitioning.ground import breaks, ground
from slicewise.passes.partitioning.partitioner import describe
from slicewise.passes.partitioning.recompute import measures
from slicewise.passes.place import Settings
from slicewise.passes.wire import on_wire
from slicewise.plan import TransportRule
from slicewise.sharding import ShardOps, apply_shardings


@dataclass(frozen=True, kw_only=True)
class Applying:
    """What shards are applied to: `crossing` is the graph that the choice was made on."""

    captured: Captured
    converted: Converted
    crossing: OpGraph
    rule: TransportRule
    limits: Limits
    measure_times: bool


def with_shards(
    given: Applying, found: Choices, choice: Choice, overheads: Overheads
) -> tuple[dict[str, Any], Partition, Settings] | None:
    """The program with the shards of a choice (what is known of it, by name), its slices and settings.

    None where a slice turns out to need more than its limits: what shards need is only estimated
    before they are ops.
    """
    program, told = apply_shardings(
        given.converted.program, choice.shardings, aliases=given.converted.aliases
    )
    converted = convert(program, keep_names=True)
    captured = given.captured
    graph, signature = analyse(
        converted.program,
        name=captured.name,
        aliases=converted.aliases,
        dim_names=captured.dim_names,
    )
    arrays = example_arrays(signature.input_structure, captured)
    feeds = {spec.tensor: arrays[spec.name] for spec in signature.inputs}
    times = op_times(converted, graph, feeds, run=given.measure_times)
    cuts = (name for one in told for name in one.cuts)
    timed, input_cuts = cut_on_arrival(
        with_times(graph, times), cuts, found.optimiser.input_transports
    )
    crossing = on_wire(timed, given.rule)
    base = ground(crossing, given.limits, overheads)
    layout, slots = relayout(given.crossing, base, choice, _applied(told))
    kept = [index for index, ops in enumerate(layout) if ops]  # shards may exchange without a join
    layout, slots = [layout[index] for index in kept], [slots[index] for index in kept]
    if any(breaks(base, measured) for measured in measures(base, layout)):
        return None
    crossing_bytes, parts = describe(base, layout)
    partition = Partition(
        slices=parts,
        cross_slice_bytes=crossing_bytes,
        certificate=certificate(choice, found.objective, found.seconds),
    )
    records = group_records(given.crossing, choice, slots)
    settings = Settings(
        memory_mb={
            part.name: max(choice.steps[slot.step].memory_mb, -(-part.memory_bytes // MB))
            for part, slot in zip(parts, slots, strict=True)
        },
        model=found.optimiser.caller(choice.caller_mb),
        transports={
            name: way for name, way in choice.transports.items() if name in crossing.tensor
        },
        usd_weight=choice.usd_weight,
        shards={
            part.name: record
            for part, record in zip(parts, records, strict=True)
            if record is not None
        },
    )
    rewritten = {
        "converted": converted,
        "graph": timed,
        "crossing": crossing,
        "signature": signature,
        "times": times,
        "input_cuts": input_cuts,
    }
    return rewritten, partition, settings


def _applied(told: tuple[ShardOps, ...]) -> list[Applied]:
    by_group: dict[int, list[ShardOps]] = {}
    for one in told:
        by_group.setdefault(one.sharding, []).append(one)
    return [
        Applied(
            shards=tuple(one.ops for one in group),
            cuts=tuple(dict.fromkeys(name for one in group for name in one.cuts)),
            combines=group[0].combines,
        )
        for _, group in sorted(by_group.items())
    ]
