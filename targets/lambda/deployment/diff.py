"""Diff: what an update would change: slices, edges, memory, transports, bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from slicewise.plan import Edge, Plan, Slice

IMAGE = "image"


@dataclass(frozen=True, kw_only=True)
class Side:
    """A bundle or a deployment: its plan, and of every part the SHA-256 and the bytes of its package;
    parts of the container image have one together (`IMAGE`), whose bytes nobody knows.
    """

    name: str
    plan: Plan
    packages: Mapping[str, tuple[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing that differs; None on the side that does not have it."""

    what: str
    old: str | None
    new: str | None

    def __str__(self) -> str:
        if self.old is None:
            return f"+ {self.what}: {self.new}"
        if self.new is None:
            return f"- {self.what}: {self.old}"
        return f"~ {self.what}: {self.old} -> {self.new}"


@dataclass(frozen=True, kw_only=True)
class Diff:
    """All that differs. `upload_bytes` of packages that the old side does not have."""

    old: str
    new: str
    lines: tuple[Line, ...]
    changed_packages: tuple[str, ...]
    upload_bytes: int

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.lines and not self.changed_packages:
            return f"{self.old} and {self.new} are the same."
        packages = ", ".join(self.changed_packages) or "none"
        return "\n".join(
            [
                *map(str, self.lines),
                f"packages to upload: {packages} ({self.upload_bytes:,} bytes)",
            ]
        )


def diff_of(old: Side, new: Side) -> Diff:
    """What differs between two sides."""
    had = {sha256 for sha256, _ in old.packages.values()}
    changed = {part: size for part, (sha, size) in new.packages.items() if sha not in had}
    return Diff(
        old=old.name,
        new=new.name,
        lines=(*_slices(old, new), *_edges(old.plan, new.plan), *_whole(old, new)),
        changed_packages=tuple(changed),
        upload_bytes=sum(changed.values()),
    )


def _slices(old: Side, new: Side) -> Iterator[Line]:
    before = {part.name: part for part in old.plan.slices}
    after = {part.name: part for part in new.plan.slices}
    for name in dict.fromkeys((*before, *after)):
        first, second = before.get(name), after.get(name)
        if first is None or second is None:
            yield Line(what=name, old=_shown(first), new=_shown(second))
            continue
        fields: tuple[tuple[str, Callable[[Slice], Any], str], ...] = (
            ("memory", lambda part: part.memory_mb, "MB"),
            ("weights", lambda part: part.weight_bytes, "bytes"),
            ("stage", lambda part: part.stage, ""),
        )
        for what, value, unit in fields:
            yield from _line(f"{name} {what}", value(first), value(second), unit)
        if first.ops != second.ops:
            came, went = set(second.ops) - set(first.ops), set(first.ops) - set(second.ops)
            words = f"{len(second.ops)} (+{len(came)} -{len(went)})"
            yield Line(what=f"{name} ops", old=str(len(first.ops)), new=words)
        yield from _package(name, old, new)
    slices = {part.name for part in (*old.plan.slices, *new.plan.slices)}
    for part in dict.fromkeys((*old.packages, *new.packages)):
        if part not in slices:
            yield from _package(part, old, new)


def _package(part: str, old: Side, new: Side) -> Iterator[Line]:
    first, second = old.packages.get(part), new.packages.get(part)
    if first and second and first[0] != second[0]:
        yield Line(
            what=f"{part} package",
            old=f"{first[0][:12]} ({first[1]:,} bytes)",
            new=f"{second[0][:12]} ({second[1]:,} bytes)",
        )


def _edges(old: Plan, new: Plan) -> Iterator[Line]:
    before, after = _by_ends(old), _by_ends(new)
    for ends in dict.fromkeys((*before, *after)):
        first, second = before.get(ends), after.get(ends)
        if first is None or second is None or _travels(first) != _travels(second):
            yield Line(what=f"edge {ends}", old=_travels(first), new=_travels(second))


def _whole(old: Side, new: Side) -> Iterator[Line]:
    first, second = old.plan, new.plan
    yield from _line("model", first.model.name, second.model.name)
    yield from _line("objective", first.objective, second.objective)
    yield from _line(
        "coordinator memory", first.coordinator_memory_mb, second.coordinator_memory_mb, "MB"
    )
    yield from _line(
        "bytes between slices", first.cross_slice_bytes, second.cross_slice_bytes, "bytes"
    )
    yield from _line(
        "transports",
        ", ".join(first.transport_rule.transports),
        ", ".join(second.transport_rule.transports),
    )
    yield from _line("wire type", first.transport_rule.wire_dtype, second.transport_rule.wire_dtype)
    predicted: tuple[tuple[str, float | None, float | None, str], ...] = (
        ("latency", first.prediction.latency_ms, second.prediction.latency_ms, "ms"),
        (
            "cost of a million requests",
            first.prediction.cost_per_million_usd,
            second.prediction.cost_per_million_usd,
            "USD",
        ),
    )
    for what, before, after, unit in predicted:
        yield from _line(f"predicted {what}", _number(before, unit), _number(after, unit))


def _line(what: str, old: Any, new: Any, unit: str = "") -> Iterator[Line]:
    if old != new:
        yield Line(what=what, old=_value(old, unit), new=_value(new, unit))


def _value(value: Any, unit: str) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return f"{text} {unit}".strip()


def _number(value: float | None, unit: str) -> str:
    return "unknown" if value is None else f"{value:,.2f} {unit}"


def _shown(part: Slice | None) -> str | None:
    if part is None:
        return None
    return f"{len(part.ops)} ops, {part.weight_bytes:,} bytes of weights, {part.memory_mb:,} MB"


def _by_ends(plan: Plan) -> dict[str, Edge]:
    return {f"{edge.tensor}: {edge.producer} -> {edge.consumer}": edge for edge in plan.edges}


def _travels(edge: Edge | None) -> str | None:
    return None if edge is None else f"{edge.bytes:,} bytes by {edge.transport}"
