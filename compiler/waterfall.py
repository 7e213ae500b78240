"""A request's trace as rows on one time axis, and as a picture of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

# A phase's sign, so that the picture needs no colour, its colour, and its name.
PHASES = {
    "queue": ("·", "bright_black"),
    "init": ("░", "magenta"),
    "fetch": ("<", "cyan"),
    "decode": ("-", "blue"),
    "compute": ("█", "green"),
    "encode": ("=", "yellow"),
    "send": (">", "red"),
}
BAR_MIN, BAR_MAX = 12, 72


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a slice's call, ms from the start of the request in the coordinator."""

    name: str
    start_ms: float
    end_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One slice's call. `trace` is what the request's trace says of it."""

    name: str
    phases: tuple[Phase, ...]
    trace: Mapping[str, Any]

    @property
    def start_ms(self) -> float:
        """When it was called, or waited for."""
        return self.phases[0].start_ms

    @property
    def end_ms(self) -> float:
        """When its reply was there."""
        return self.phases[-1].end_ms

    def ms(self, phase: str) -> float:
        """How long it was in a phase."""
        return sum(p.end_ms - p.start_ms for p in self.phases if p.name == phase)


def rows(trace: Mapping[str, Any]) -> tuple[Row, ...]:
    """The slices of a trace, as `last_trace` has it.

    "queue" is what a call took beyond the function's start and work: the way there and back, and
    waiting for an environment. The clocks of two machines are never compared, so half of it is drawn
    before the work and half after.
    """
    return tuple(_row(part) for part in trace.get("slices", ()))


def _row(part: Mapping[str, Any]) -> Row:
    fetch, decode = part.get("fetch_ms", 0.0), part.get("decode_ms", part["receive_ms"])
    encode = part.get("encode_ms", part["send_ms"])
    work = {
        "fetch": fetch,
        "decode": decode,
        "compute": part["compute_ms"],
        "encode": encode,
        "send": part.get("put_ms", 0.0),
    }
    # A slice that was warmed up was waited for before it was called; another one starts within.
    warmed, starts = part.get("warm_up_ms"), part.get("init_ms", 0.0)
    left = max(0.0, part["call_ms"] - sum(work.values()))
    init = 0.0 if warmed is not None else min(left, starts)
    half = (left - init) / 2
    steps = [
        ("init", warmed or 0.0),
        ("queue", half),
        ("init", init),
        *work.items(),
        ("queue", half),
    ]
    phases, at = [], part.get("began_ms", 0.0)
    for name, ms in steps:
        phases.append(Phase(name=name, start_ms=at, end_ms=at + ms))
        at += ms
    return Row(name=part["slice"], phases=tuple(phases), trace=part)


def waterfall_text(trace: Mapping[str, Any], *, color: bool = False, width: int = 100) -> str:
    """The trace as a picture: a bar per slice on one axis, then each phase and edge in numbers."""
    from slicewise.report import text

    return text([_picture(trace, width)], color=color, width=width)


def _picture(trace: Mapping[str, Any], width: int) -> Group:
    from rich.console import Group
    from rich.text import Text

    found = rows(trace)
    total = max([trace.get("total_ms", 0.0), *(row.end_ms for row in found)])
    start = "cold" if trace.get("cold") else "warm"
    lines = [Text.assemble((f"{total:,.1f} ms", "bold"), f" in the coordinator ({start})")]
    names = max((len(row.name) for row in found), default=0)
    bar = max(BAR_MIN, min(BAR_MAX, width - names - 12))
    for row in found:
        line = Text(f"{row.name:<{names}} ", no_wrap=True, overflow="crop")
        line.append_text(_bar(row, total, bar))
        lines.append(line.append(f" {row.end_ms - row.start_ms:>8,.1f}"))
    legend = Text()
    for name in (name for name in PHASES if any(row.ms(name) >= 0.05 for row in found)):
        legend.append(PHASES[name][0] * 2, PHASES[name][1]).append(f" {name}  ")
    return Group(*lines, legend, *(_numbers(row) for row in found))


def _bar(row: Row, total: float, width: int) -> Any:
    """A cell has the sign of the phase in its middle; a call too short for one has one anyway."""
    from rich.text import Text

    text = Text()
    first = min(width - 1, int(row.start_ms / total * width))
    for cell in range(width):
        middle = (cell + 0.5) / width * total
        name = next((p.name for p in row.phases if p.start_ms <= middle < p.end_ms), None)
        if name is None and cell == first:
            name = max(row.phases, key=lambda p: p.end_ms - p.start_ms).name
        text.append(*PHASES[name] if name else (" ",))
    return text


def _numbers(row: Row) -> Any:
    from rich.text import Text

    from slicewise.report import megabytes

    shown = [f"{name} {row.ms(name):,.1f}" for name in PHASES if row.ms(name) >= 0.05]
    words = [", ".join(shown) + " ms"]
    words.append("cold" if row.trace.get("cold") else "warm")
    if row.trace.get("peak_mb"):
        words.append(f"{row.trace['peak_mb']:,.0f} MB in RAM at most")
    for side, sign in (("received", "in"), ("sent", "out")):
        for tensor, edge in row.trace.get(side, {}).items():
            words.append(f"{sign} {tensor} {megabytes(edge['bytes'])} by {edge['transport']}")
    return Text(f"{row.name}: " + "; ".join(words))
