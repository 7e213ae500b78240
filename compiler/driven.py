"""What a request takes and costs when no coordinator drives the slices: "chain" and "stepfunctions"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from slicewise.cost import CostModel, Moved, SliceTime, slice_time
from slicewise.graph import OUTPUT
from slicewise.plan import Edge, Slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Driven:
    """Expected ms of a request within the functions and their calls, the variance of its waits (ms
    squared), US dollars per request, and each slice's billed ms and dollars by name.
    """

    ms: float
    variance: float
    usd: float
    billed_ms: Mapping[str, float]
    slice_usd: Mapping[str, float]


def chain(
    slices: Sequence[Slice],
    edges: Sequence[Edge],
    model: CostModel,
    alone: Mapping[str, SliceTime],
    entry: SliceTime,
    last_ms: float,
) -> Driven:
    """Each slice calls the next one and is paid for while it waits.

    A call takes what a coordinator's does, at the caller's own share of CPU, and inline tensors that
    are only passed through are received and sent once more. `alone` is each slice's time as a
    coordinator calls it, `entry` the caller's own call, `last_ms` what the first slice deletes for.
    """
    order = sorted(slices, key=lambda part: part.stage)
    position = {part.name: index for index, part in enumerate(order)}
    took: list[SliceTime] = []
    for index, part in enumerate(order):
        if index == 0:
            ways = {"begin_ms": entry.begin_ms, "call_ms": entry.call_ms, "end_ms": entry.end_ms}
            first = replace(alone[part.name], wait_ms=entry.wait_ms, **ways)
            took.append(replace(first, variance=first.variance + entry.variance))
            continue
        before = order[index - 1]
        # Of two times of the same slice the difference is what passing through adds.
        passing = slice_time(
            replace(model, caller_memory_mb=before.memory_mb),
            part.memory_mb,
            0.0,
            _passing(edges, position, index),
            [],
        )
        empty = slice_time(
            replace(model, caller_memory_mb=before.memory_mb), part.memory_mb, 0.0, [], []
        )
        own = alone[part.name]
        took.append(
            replace(
                own,
                begin_ms=own.begin_ms + passing.begin_ms - empty.begin_ms,
                end_ms=own.end_ms + passing.end_ms - empty.end_ms,
                receive_ms=own.receive_ms + passing.receive_ms,
                usd=own.usd + passing.receive_ms * model.gb_ms_usd(part.memory_mb),
            )
        )
    billed: dict[str, float] = {}
    usd: dict[str, float] = {}
    behind = 0.0  # what the slice at hand waits for
    for part, time in reversed(list(zip(order, took, strict=True))):
        waits = behind + (last_ms if part is order[0] else 0.0)
        billed[part.name] = time.billed_ms + waits
        usd[part.name] = time.usd + waits * model.gb_ms_usd(part.memory_mb)
        behind += time.total_ms
    return Driven(
        ms=sum(time.total_ms for time in took) + last_ms,
        variance=sum(time.variance for time in took),
        usd=sum(usd.values()),
        billed_ms=billed,
        slice_usd=usd,
    )


def _passing(edges: Sequence[Edge], position: Mapping[str, int], index: int) -> list[Moved]:
    """Inline tensors in the message to slice `index` that only later ones or the reply need."""
    needed: dict[str, tuple[int, int]] = {}  # tensor: bytes, the last reader's place
    own = set()
    for edge in edges:
        if edge.transport != "payload" or position.get(edge.producer, -1) >= index:
            continue
        reader = len(position) if edge.consumer == OUTPUT else position[edge.consumer]
        if reader == index:
            own.add(edge.tensor)
        if reader > index:
            needed[edge.tensor] = (edge.bytes, reader)
    return [
        Moved(transport="payload", bytes=size)
        for tensor, (size, _) in needed.items()
        if tensor not in own
    ]


def state_machine(
    slices: Sequence[Slice],
    model: CostModel,
    alone: Mapping[str, SliceTime],
    entry: SliceTime,
    last_ms: float,
) -> Driven:
    """A Standard state machine calls the slices; nobody is paid for waiting, every state has a price.

    Its first and last state are the caller's function, whose work is `entry`'s. Between two functions
    passes `model.transition`; a stage of several slices is a state more.
    """
    stages: dict[int, list[SliceTime]] = {}
    for part in slices:
        stages.setdefault(part.stage, []).append(alone[part.name])
    longest = [max(times, key=lambda time: time.billed_ms) for times in stages.values()]
    several = sum(len(times) > 1 for times in stages.values())
    states = 2 + len(slices) + several
    own_ms = entry.billed_ms + last_ms
    own_usd = 2 * model.request_usd + own_ms * model.gb_ms_usd(model.caller_memory_mb)
    gaps = 2 + len(longest)
    return Driven(
        ms=gaps * model.transition.wait_ms + own_ms + sum(time.billed_ms for time in longest),
        variance=gaps * model.transition.variance + sum(time.variance for time in longest),
        usd=own_usd + states * model.transition_usd + sum(time.usd for time in alone.values()),
        billed_ms={name: time.billed_ms for name, time in alone.items()},
        slice_usd={name: time.usd for name, time in alone.items()},
    )
