"""The start of an execution environment: what each part of it took, told with its first reply."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from . import STARTED

# How an environment came to be; only the first was made for a request.
ON_DEMAND, PROVISIONED, SNAPSHOT = "on-demand", "provisioned-concurrency", "snap-start"
AHEAD_S = 2.0  # between the init phase and a request that waits for it there are milliseconds


class Start:
    """Made when the imports are done; `mark` ends each further part, `ready` the init phase.

    `tell` says once {"cold": True} with the parts in ms, after that {"cold": False}: `init_ms` is all
    since the process began, `spawn_ms` the interpreter and the runtime interface client.
    """

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._parts = {"import_ms": (self._last - STARTED) * 1e3}
        self._is_told = False
        self._ready_at = 0.0

    @property
    def is_for_a_request(self) -> bool:
        """Whether this environment starts because a request waits for it."""
        return initialization_type() == ON_DEMAND

    @property
    def was_ahead(self) -> bool:
        """Whether the request came so late that the environment was frozen since it was ready."""
        return time.time() - self._ready_at > AHEAD_S

    def mark(self, name: str) -> None:
        """What was done since the last mark is the part of this name."""
        now = time.perf_counter()
        self._parts[name] = (now - self._last) * 1e3
        self._last = now

    def ready(self) -> None:
        """The init phase is over. A provisioned environment is not cold, a restored one did not take
        this long.
        """
        kind = initialization_type()
        self._ready_at = time.time()
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


def initialization_type() -> str | None:
    """As Lambda says it."""
    return os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE")


def process_age_ms() -> float | None:
    """How long ago this process began, to 10 ms; None where the system does not tell."""
    try:
        # Behind the name, which may have any character but ends with the last parenthesis.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return (time.clock_gettime(time.CLOCK_BOOTTIME) - began) * 1e3
    except (OSError, ValueError, IndexError, AttributeError):  # no Linux
        return None
