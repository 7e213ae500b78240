"""Which transport is best for a tensor of any size: where the lines of the cost model cross."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slicewise.cost import CostModel, Transport

Choices = tuple[tuple[str, int | None], ...]


def choices(
    model: CostModel,
    allowed: Sequence[str],
    sender_mb: int | None,
    reader_mbs: Sequence[int],
    usd_weight: float = 0.0,
) -> Choices:
    """The best transport of a tensor by its size: (name, up to so many bytes); the last is endless.

    Best is the smallest ms + `usd_weight` * US dollars; see `line`. `allowed` names at least one of
    the model's transports. That the last one fits is not promised: only the message knows.
    """
    lines = {
        transport.name: line(model, transport, sender_mb, reader_mbs, usd_weight)
        for transport in model.transports
        if transport.name in allowed
    }
    found = envelope(lines)
    return (*found[:-1], (found[-1][0], None))


def line(
    model: CostModel,
    transport: Transport,
    sender_mb: int | None,
    reader_mbs: Sequence[int],
    usd_weight: float = 0.0,
) -> tuple[float, float, int | None]:
    """What a tensor costs by this transport: (at 0 bytes, per byte, most bytes), as `slice_time` counts
    for slices that compute longer than their first quota lasts, and a caller that does not.

    It goes from a slice of `sender_mb` (None: from outside, at a full vCPU and free of charge) through
    the caller into one slice per entry of `reader_mbs`.
    """
    # (step, share of a vCPU, US dollars per ms): the caller is paid for while slices work, too.
    waits = model.gb_ms_usd(model.caller_memory_mb)
    caller = (1.0, waits)
    outside = (1.0, 0.0)
    sender = outside if sender_mb is None else _worker(model, sender_mb, waits)
    steps = [(transport.send, *sender), (transport.collect, *caller)]
    for reader_mb in reader_mbs:
        steps.append((transport.pass_on, *caller))
        steps.append((transport.receive, *_worker(model, reader_mb, waits)))
    start = usd_weight * (transport.send_usd + transport.receive_usd * len(reader_mbs))
    slope = usd_weight * (transport.send_byte_usd + transport.receive_byte_usd * len(reader_mbs))
    for step, share, ms_usd in steps:
        weight = 1.0 + usd_weight * ms_usd
        start += weight * (step.wait_ms + step.cpu_ms / share)
        slope += weight * (step.wait_ns + step.cpu_ns / share) * 1e-6
    return start, slope, transport.max_bytes


def _worker(model: CostModel, memory_mb: int, waits: float) -> tuple[float, float]:
    return model.steady_share(memory_mb), model.gb_ms_usd(memory_mb) + waits


def envelope(
    lines: Mapping[str, tuple[float, float, int | None]],
) -> Choices:
    """The cheapest line by size: (name, largest size for which it is), the last may be endless.

    `lines` are (value at 0, value per byte, largest size it may be used for or None) by name.
    """
    ends = {most for _, _, most in lines.values() if most is not None}
    for start, slope, _ in lines.values():
        for other_start, other_slope, _ in lines.values():
            if slope > other_slope and start < other_start:
                ends.add(int((other_start - start) / (slope - other_slope)))
    found: list[tuple[str, int | None]] = []
    size = 0
    for end in (*sorted(ends), None):
        left = {n: line for n, line in lines.items() if line[2] is None or size <= line[2]}
        if not left:
            break
        name = min(left, key=lambda n: (left[n][0] + left[n][1] * size, left[n][1]))
        if found and found[-1][0] == name:
            found.pop()
        found.append((name, end))
        size = (end or 0) + 1
    return tuple(found)


def pinned(choices: Choices, order: Sequence[str], size: int, wanted: str) -> Choices:
    """The choices with `wanted` for a tensor of `size` bytes; `order` has transports for small tensors
    first. Other sizes keep theirs as far as that goes together.
    """
    chosen = next(name for name, most in choices if most is None or size <= most)
    if chosen == wanted:
        return choices
    ends = dict(choices)
    found: list[tuple[str, int | None]] = []
    for name in order:
        if name != wanted and name not in ends:
            continue
        most = ends.get(name)
        if order.index(name) < order.index(wanted):
            most = size - 1 if most is None else min(most, size - 1)
        elif name == wanted:
            most = None if name in ends and most is None else max(most or 0, size)
        last = found[-1][1] if found else 0
        if last is not None and (most is None or most > last):
            found.append((name, most))
    return (*found[:-1], (found[-1][0], None))
