"""What `calibrate` measures: times, each with what the cost model says that it is made of."""

from __future__ import annotations

import base64
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slicewise.errors import TargetError

from .calibrate_site import Site

Slow = tuple[tuple[float, tuple[str, ...], int], ...]
_INIT = re.compile(r"Init Duration: ([\d.]+) ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Times of one kind, ms. Expected is the sum of number * value over `terms`, whose names are the
    profile's, with CPU at a full vCPU. `clock` is "wall" or "cpu"; `slow` are the functions that have
    less than that: the share of each, which terms are its CPU, and in how many bursts.
    """

    what: str
    clock: str
    bytes: int
    memory_mb: int
    terms: tuple[tuple[str, float], ...]
    ms: tuple[float, ...]
    slow: Slow = ()

    @property
    def is_full(self) -> bool:
        """Whether all functions had a full vCPU."""
        return not self.slow

    @property
    def median(self) -> float:
        """Of the times."""
        return statistics.median(self.ms)


class Rows:
    """Rows that grow."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], list[float]] = {}

    def add(
        self,
        what: str,
        clock: str,
        size: int,
        memory_mb: int,
        ms: float,
        terms: Mapping[str, float],
        slow: Slow = (),
    ) -> None:
        """One more time, to the row of its like. Functions of a full vCPU are dropped from `slow`."""
        named, slower = tuple(terms.items()), tuple(each for each in slow if each[0] < 1.0)
        self._found.setdefault((what, clock, size, memory_mb, named, slower), []).append(ms)

    def rows(self) -> tuple[Row, ...]:
        """All, in the order in which they began."""
        return tuple(
            Row(what=what, clock=clock, bytes=size, memory_mb=mb, terms=terms, slow=slow,
                ms=tuple(ms))
            for (what, clock, size, mb, terms, slow), ms in self._found.items()
        )  # fmt: skip


# Two ways that a tensor always takes both, by transport.
PAIRS = {
    "payload": ("call, request", "call, reply"),
    "s3": ("s3 put", "s3 get"),
    "s3express": ("s3express put", "s3express get"),
}
BOTH = ", both ways"


def paired(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with wall times of both ways added up, but those of a transport's smallest size.

    The profile has one speed for both ways, and a tensor takes both: where they differ (the local
    platform's S3 reads several times as fast as it writes), their sum must be right.
    """
    found = list(rows)
    for transport, pair in PAIRS.items():
        there, back = (
            {(row.bytes, row.memory_mb, row.slow): row for row in rows
             if row.what == what and row.clock == "wall"}
            for what in pair
        )  # fmt: skip
        least = min((key[0] for key in there), default=0)
        for key in there.keys() & back.keys():
            if key[0] > least:
                one, two = there[key], back[key]
                found[found.index(one)] = _sum(transport, one, two)
                found.remove(two)
    return tuple(found)


def _sum(transport: str, one: Row, two: Row) -> Row:
    terms = dict(one.terms)
    for name, number in two.terms:
        terms[name] = terms.get(name, 0.0) + number
    return replace(
        one,
        what=transport + BOTH,
        terms=tuple(terms.items()),
        slow=tuple((share, names, 2 * bursts) for share, names, bursts in one.slow),
        ms=tuple(first + second for first, second in zip(one.ms, two.ms, strict=False)),
    )


def invoke(site: Site, function: str, event: dict[str, Any]) -> tuple[Any, float | None]:
    """The reply and, after a cold start, the Init Duration. Raises `TargetError`."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = site.functions.invoke(
            FunctionName=function, Payload=json.dumps(event).encode(), LogType="Tail"
        )
        reply = json.loads(answer["Payload"].read())
    except (BotoCoreError, ClientError) as error:
        raise TargetError(f"the probe {function} was not called: {error}") from error
    log = base64.b64decode(answer.get("LogResult", "")).decode(errors="replace")
    if "FunctionError" in answer:
        raise TargetError(
            f"the probe {function} failed: {json.dumps(reply)[:1000]}\nIts log ends with:\n{log}"
        )
    found: Sequence[str] = _INIT.findall(log)
    return reply, float(found[-1]) if found else None
