"""What the platform records of every invocation, in Lambda's own words."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal

from .network import OFF

Status = Literal["success", "error", "timeout"]
MAX_REPORTS = 100_000
MAX_LOG_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One invocation.

    `duration_ms` runs from handing the event to the runtime until its response is there.
    `init_ms` is the cold start (process start, imports, module code), None on a warm instance; it
    is billed. `max_memory_mb` is the instance's highest unreclaimable memory (MiB) since it
    started; memory.py says how it is measured. `network` is the emulated network, or "off"; its
    waits are part of the caller's time and of the function's own calls, never of a cold start.
    """

    function: str
    request_id: str
    instance: str
    duration_ms: float
    billed_ms: int
    memory_mb: int
    max_memory_mb: float
    init_ms: float | None
    status: Status
    error_type: str | None = None
    network: str = OFF

    def __str__(self) -> str:
        """Lambda's REPORT line, and which network was emulated."""
        fields = [
            f"REPORT RequestId: {self.request_id}",
            f"Duration: {self.duration_ms:.2f} ms",
            f"Billed Duration: {self.billed_ms} ms",
            f"Memory Size: {self.memory_mb} MB",
            f"Max Memory Used: {min(math.ceil(self.max_memory_mb), self.memory_mb)} MB",
        ]
        if self.init_ms is not None:
            fields.append(f"Init Duration: {self.init_ms:.2f} ms")
        if self.status != "success":
            fields.append(f"Status: {self.status}")
        if self.error_type:
            fields.append(f"Error Type: {self.error_type}")
        fields.append(f"Network: {self.network}")
        return "\t".join(fields)


class Journal:
    """The reports and logs of a platform; old ones make room for new ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reports: deque[Report] = deque(maxlen=MAX_REPORTS)
        self._logs: dict[str, deque[bytes]] = {}
        self._log_bytes: dict[str, int] = {}

    @property
    def reports(self) -> tuple[Report, ...]:
        """All reports, oldest first."""
        with self._lock:
            return tuple(self._reports)

    def add_report(self, report: Report) -> None:
        """Record an invocation."""
        with self._lock:
            self._reports.append(report)

    def add_log(self, function: str, text: bytes) -> None:
        """Append to a function's log."""
        if not text:
            return
        with self._lock:
            log = self._logs.setdefault(function, deque())
            log.append(text[-MAX_LOG_BYTES:])
            size = self._log_bytes.get(function, 0) + len(log[-1])
            while size > MAX_LOG_BYTES:
                size -= len(log.popleft())
            self._log_bytes[function] = size

    def log(self, function: str) -> str:
        """The last MiB of a function's log."""
        with self._lock:
            return b"".join(self._logs.get(function, ())).decode("utf-8", "replace")
