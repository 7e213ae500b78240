"""The start of an execution environment: what each part of it took, told with its first reply."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from . import STARTED

# What a request finds that was not made for it.
PROVISIONED, SNAPSHOT = "provisioned-concurrency", "snap-start"


class Start:
    """Made when the imports are done; `mark` ends each further part, `ready` the init phase.

    `tell` says once {"cold": True} with the parts in ms, after that {"cold": False}: `init_ms` is all
    since the process began, `spawn_ms` the interpreter and the runtime interface client.
    """

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._parts = {"import_ms": (self._last - STARTED) * 1e3}
        self._is_told = False

    def mark(self, name: str) -> None:
        """What was done since the last mark is the part of this name."""
        now = time.perf_counter()
        self._parts[name] = (now - self._last) * 1e3
        self._last = now

    def ready(self) -> None:
        """The init phase is over. A provisioned environment is not cold, a restored one did not take
        this long.
        """
        kind = os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE")
        self._is_told = kind == PROVISIONED
        age = process_age_ms()
        if kind == SNAPSHOT or age is None:
            self._parts.clear()
            return
        own = (time.perf_counter() - STARTED) * 1e3
        self._parts = {"init_ms": age, "spawn_ms": max(0.0, age - own), **self._parts}

    def tell(self) -> dict[str, Any]:
        """For the trace of one call."""
        if self._is_told:
            return {"cold": False}
        self._is_told = True
        return {"cold": True, **self._parts}


def process_age_ms() -> float | None:
    """How long ago this process began, to 10 ms; None where the system does not tell."""
    try:
        # Behind the name, which may have any character but ends with the last parenthesis.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return (time.clock_gettime(time.CLOCK_BOOTTIME) - began) * 1e3
    except (OSError, ValueError, IndexError, AttributeError):  # no Linux
        return None
