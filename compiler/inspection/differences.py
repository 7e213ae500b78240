"""Differences of two plans: what of a model moved, what crosses now, and what that changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from slicewise.plan import Edge, Plan
from slicewise.report import by_tensor, megabytes, route

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """From an `old` plan to a `new` one. `figures` are (what, old, new), those that differ; `moved`
    are (from slice, to slice, ops), None where the op is in one plan only. Slices are known to each
    other by most ops in common. Edges are (tensor, old, new) in words, empty where there is none.
    """

    figures: tuple[tuple[str, str, str], ...]
    moved: tuple[tuple[str | None, str | None, tuple[str, ...]], ...]
    edges: tuple[tuple[str, str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """As dicts and lists."""
        return asdict(self)


def differences(old: Plan, new: Plan) -> Differences:
    """What differs."""
    figures = [
        (what, before, after)
        for (what, before), (_, after) in zip(_figures(old), _figures(new), strict=True)
        if before != after
    ]
    return Differences(figures=tuple(figures), moved=_moved(old, new), edges=_edges(old, new))


def _figures(plan: Plan) -> list[tuple[str, str]]:
    found = plan.prediction

    def number(value: float | None, form: str) -> str:
        return "unknown" if value is None else form.format(value)

    return [
        ("model", plan.model.name),
        ("weights", megabytes(plan.model.weight_bytes)),
        ("objective", plan.objective),
        ("slices", str(len(plan.slices))),
        ("stages", str(len(plan.stages))),
        ("memory", ", ".join(f"{part.memory_mb:,} MB" for part in plan.slices)),
        ("coordinator", f"{plan.coordinator_memory_mb:,} MB"),
        ("bytes between slices", f"{plan.cross_slice_bytes:,}"),
        ("warm latency", number(found.latency_ms, "{:,.1f} ms")),
        ("99th percentile", number(found.latency_p99_ms, "{:,.1f} ms")),
        ("cold latency", number(found.cold_latency_ms, "{:,.0f} ms")),
        ("cost per million", number(found.cost_per_million_usd, "${:,.2f}")),
        ("certificate", plan.certificate.status),
    ]


def _moved(old: Plan, new: Plan) -> tuple[tuple[str | None, str | None, tuple[str, ...]], ...]:
    before, after = _homes(old), _homes(new)
    same = _same(before, after)
    groups: dict[tuple[str | None, str | None], list[str]] = {}
    for op in dict.fromkeys((*before, *after)):
        sources = before.get(op, ())
        destinations = after.get(op, ())
        if {same.get(source) for source in sources} == set(destinations):
            continue
        gone = [source for source in sources if same.get(source) not in destinations]
        kept = {same.get(source) for source in sources}
        added = [place for place in destinations if place not in kept]
        for index in range(max(len(gone), len(added))):
            key = (
                gone[index] if index < len(gone) else None,
                added[index] if index < len(added) else None,
            )
            groups.setdefault(key, []).append(op)
    return tuple((source, to, tuple(ops)) for (source, to), ops in groups.items())


def _same(
    before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """The new slice that each old one became: pairs by most ops in common, each slice once."""
    common = Counter(
        (old, new) for op, homes in before.items() for old in homes for new in after.get(op, ())
    )
    same: dict[str, str] = {}
    for (old, new), _ in common.most_common():
        if old not in same and new not in same.values():
            same[old] = new
    return same


def _homes(plan: Plan) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for part in plan.slices:
        for op in part.ops:
            found[op] = (*found.get(op, ()), part.name)
    return found


def _edges(old: Plan, new: Plan) -> tuple[tuple[str, str, str], ...]:
    before = {sent[0].tensor: _words(sent) for sent in by_tensor(old)}
    after = {sent[0].tensor: _words(sent) for sent in by_tensor(new)}
    return tuple(
        (tensor, before.get(tensor, ""), after.get(tensor, ""))
        for tensor in dict.fromkeys((*before, *after))
        if before.get(tensor) != after.get(tensor)
    )


def _words(sent: Sequence[Edge]) -> str:
    return f"{route(sent)}, {sent[0].bytes:,} bytes by {sent[0].transport}"


def difference_parts(found: Differences) -> list[RenderableType]:
    """For people."""
    from rich.markup import escape
    from rich.table import Table

    if found == Differences(figures=(), moved=(), edges=()):
        return ["The plans are the same."]
    lines: list[RenderableType] = []
    if found.figures:
        lines.append(_table(("", "old", "new"), found.figures))
    if found.moved:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("old slice", "new slice", "ops"):
            table.add_column(name, overflow="fold")
        for source, to, ops in found.moved:
            some = ", ".join(ops[:8]) + (f" and {len(ops) - 8} more" if len(ops) > 8 else "")
            table.add_row(source or "–", to or "–", escape(f"{len(ops)}: {some}"))
        lines += ["", "[bold]Ops that moved[/]", table]
    if found.edges:
        lines += ["", "[bold]Edges that changed[/]", _table(("tensor", "old", "new"), found.edges)]
    return lines


def _table(names: Sequence[str], rows: Sequence[tuple[str, str, str]]) -> RenderableType:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(escape(word or "–") for word in row))
    return table
