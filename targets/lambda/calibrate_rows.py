"""What `calibrate` measures: times, each with what the cost model says that it is made of."""

from __future__ import annotations

import base64
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slicewise.errors import TargetError

from .calibrate_site import Site

_INIT = re.compile(r"Init Duration: ([\d.]+) ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Times of one kind, ms. Expected is the sum of number * value over `terms`, whose names are the
    profile's. `clock` is "wall" or "cpu"; `is_full` says that all functions had a full vCPU.
    """

    what: str
    clock: str
    bytes: int
    memory_mb: int
    terms: tuple[tuple[str, float], ...]
    is_full: bool
    ms: tuple[float, ...]

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
        is_full: bool = True,
    ) -> None:
        """One more time, to the row of its like."""
        named = tuple(terms.items())
        self._found.setdefault((what, clock, size, memory_mb, named, is_full), []).append(ms)

    def rows(self) -> tuple[Row, ...]:
        """All, in the order in which they began."""
        return tuple(
            Row(what=what, clock=clock, bytes=size, memory_mb=mb, terms=terms, is_full=is_full,
                ms=tuple(ms))
            for (what, clock, size, mb, terms, is_full), ms in self._found.items()
        )  # fmt: skip


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
