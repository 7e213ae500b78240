"""What `calibrate` writes and prints: the profile, each number with how it was found, and tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from slicewise.crossover import choices

from .calibrate_fit import P99_COUNT, Fit, Number
from .calibrate_rows import BOTH, PAIRS, Row
from .calibrate_site import FULL_MB
from .costs import cost_model
from .profile import Profile, Spread

# Of each section of the profile, the numbers that are measured.
SECTIONS: Mapping[str, Sequence[str]] = {
    "network": ("bytes_s",),
    "call": ("wait_ms", "caller_cpu_ms", "cpu_ms"),
    "payload": ("caller_send_cpu_ns", "caller_receive_cpu_ns", "send_cpu_ns", "receive_cpu_ns"),
    **dict.fromkeys(
        ("s3", "s3express"),
        ("put_ms", "get_ms", "put_cpu_ms", "get_cpu_ms", "put_cpu_ns", "get_cpu_ns"),
    ),
    "cold": ("placement_ms", "init_ms", "import_ms", "boto3_ms", "load_ns"),
}
MEANINGS = {
    "network.bytes_s": "all transfers, fitted together",
    "call.wait_ms": "from a function to a function, without CPU",
    "call.caller_cpu_ms": "the caller's clock",
    "call.cpu_ms": "the slice's clock",
    "cold.placement_ms": "a cold call, less Init Duration and a warm call",
    "cold.init_ms": "Init Duration, less imports and weights",
    "cold.import_ms": "the function's clock",
    "cold.boto3_ms": "the function's clock, with an S3 client",
    "cold.load_ns": "the function's clock, with and without weights",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One number of the profile as it will be: `text` in TOML, or None where the default stays.

    `words` say how good it is, or why there is none; `meaning` is what was measured.
    """

    section: str
    key: str
    text: str | None
    default: str
    words: str
    meaning: str = ""


def entries(fit: Fit, default: Profile, architecture: str) -> tuple[Entry, ...]:
    """Every number that `calibrate` can measure, in the profile's order."""
    found = []
    for section, keys in SECTIONS.items():
        for key in keys:
            name = f"{section}.{key}"
            old = getattr(getattr(default, section), key)
            if isinstance(old, Mapping):
                old = old[architecture]
                key = f"{key}.{architecture}"
            number = fit.numbers.get("network.byte_ns" if key == "bytes_s" else name)
            text, words = None, number.problem if number else "not measured"
            if number and not number.problem:
                text, words = _measured(key, number, old), _words(number, old)
            found.append(
                Entry(
                    section=section,
                    key=key,
                    text=text,
                    default=_toml(old),
                    words=words,
                    meaning=MEANINGS.get(name, ""),
                )
            )
    return tuple(found)


def _measured(key: str, number: Number, old: Any) -> str:
    if key == "bytes_s":
        return f"{float(f'{1e9 / number.p50:.3g}'):.0f}"
    if isinstance(old, Spread):
        p99 = number.p99 or number.p50 * old.p99 / old.p50
        return f"{{ p50 = {_rounded(number.p50)}, p99 = {_rounded(p99)} }}"
    return _rounded(number.p50)


def _words(number: Number, old: Any) -> str:
    words = [f"± {number.error / number.p50:.0%}"]
    if number.residual >= 0.005:
        words.append(f"fit off by {number.residual:.0%}")
    words.append(f"{number.count} times")
    if isinstance(old, Spread) and number.p99 is None:
        words.append(f"p99 is the default's part, it takes {P99_COUNT}")
    return ", ".join(words)


def _rounded(value: float) -> str:
    return f"{float(f'{value:.3g}'):g}"


def _toml(value: Any) -> str:
    if isinstance(value, Spread):
        return f"{{ p50 = {value.p50:g}, p99 = {value.p99:g} }}"
    return f"{value:.9g}"


def profile_text(
    found: Sequence[Entry], *, measured: str, architecture: str, region: str | None
) -> str:
    """A file for `read_profile`. `measured` says when, where and on what."""
    lines = [f"# Measured by slicewise calibrate: {measured}."]
    lines += [
        "# Behind each number: how it was found, its standard error, how far measurements that depend",
        "# on it lie from the fit (median), and how many those are. CPU is at one vCPU. All that is",
        "# not here stays as in the profile that ships with slicewise.",
        "schema = 1",
        f'architecture = "{architecture}"',
    ]
    if region:
        lines.append(f'region = "{region}"')
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        for entry in found:
            if entry.section == section and entry.text:
                words = f"{entry.meaning}; {entry.words}" if entry.meaning else entry.words
                lines.append(f"{entry.key} = {entry.text}  # {words}")
            elif entry.section == section:
                lines.append(f"# {entry.key} stays {entry.default}: {entry.words}")
    return "\n".join(lines) + "\n"


def crossovers(
    profile: Profile, transports: Sequence[str], memories_mb: Sequence[int]
) -> list[tuple[int, tuple[tuple[str, int | None], ...]]]:
    """By slice memory: the transports by size, as `compile` would choose them for latency."""
    model = cost_model(profile, profile.limits.payload_bytes_max)
    return [(mb, choices(model, transports, mb, (mb,))) for mb in memories_mb]


def report_text(
    found: Sequence[Entry], fit: Fit, profile: Profile, transports: Sequence[str]
) -> str:
    """Tables: the numbers, the crossover by memory size, and how far the model is off."""
    memories = sorted({row.memory_mb for row in fit.rows} | {FULL_MB})
    numbers = [
        (f"{entry.section}.{entry.key}", entry.text or "stays", entry.default, entry.words)
        for entry in found
    ]
    ways = [
        (f"{mb} MB", words, " / ".join(_sized(choice) for choice in row))
        for words, allowed in _allowed(transports)
        for mb, row in crossovers(profile, allowed, memories)
    ]
    return "\n".join(
        [
            _table(("number", "measured", "default", "how good"), numbers),
            "Which transport is the fastest, by bytes of the tensor",
            _table(("functions", "allowed", "transport"), ways),
            "The fit against what was measured (times; a smaller share only checks it)",
            _table(("memory", "rows", "predicted / measured", "of it CPU clocks"), _checks(fit)),
        ]
    )


def _allowed(transports: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """The default pair, and all when there are more."""
    pair = [way for way in transports if way != "s3express"]
    return [
        (", ".join(ways), ways) for ways in ([pair, transports] if pair != transports else [pair])
    ]


def _sized(choice: tuple[str, int | None]) -> str:
    way, most = choice
    return f"{way} above" if most is None else f"{way} up to {most:,}"


def _checks(fit: Fit) -> list[tuple[str, ...]]:
    """By memory: the median of predicted / measured."""
    by_memory: dict[int, dict[str, list[float]]] = {}
    for row, predicted in zip(fit.rows, fit.predicted, strict=True):
        if row.median > 0 and not row.what.startswith("cold"):
            clocks = by_memory.setdefault(row.memory_mb, {"wall": [], "cpu": []})
            clocks[row.clock].append(predicted / row.median)
    return [
        (
            f"{mb} MB",
            str(len(clocks["wall"])),
            *(f"{statistics.median(each):.2f}" if each else "–" for each in clocks.values()),
        )
        for mb, clocks in sorted(by_memory.items())
    ]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*row)
    out = StringIO()
    Console(file=out, width=120).print(table)
    return out.getvalue()


def one_step(rows: Sequence[Row]) -> dict[str, list[tuple[int, float]]]:
    """By transport: (bytes, ms) of what was measured of a tensor's way from a slice to the next with
    the call that it needs, all on full vCPUs; medians of `paired` rows.
    """
    full = [row for row in rows if row.is_full and row.clock == "wall"]
    call = min((row.bytes, row.median) for row in full if row.what == PAIRS["payload"][0])[1]
    found: dict[str, list[tuple[int, float]]] = {}
    for way, pair in PAIRS.items():
        both = [(row.bytes, row.median) for row in full if row.what == way + BOTH]
        if way == "payload":
            found[way] = [(size, ms - call) for size, ms in both]  # two calls, of which one counts
            continue
        least = [row for row in full if row.what in pair]
        if least:
            both.append((least[0].bytes, sum(row.median for row in least)))
            found[way] = [(size, call + ms) for size, ms in both]
    return {way: sorted(each) for way, each in found.items()}
