"""What a function tells of its work: where a call's time went, and, if asked, lines of JSON in its log.

SLICEWISE_LOG=requests      one line for every request; without it only for those that fail
SLICEWISE_METRICS=name      these lines also are CloudWatch metrics of this namespace (embedded metric
                            format, docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/
                            CloudWatch_Embedded_Metric_Format_Specification.html), one line a request
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .messages import lift
from .store import BUCKET_VARIABLES, Object, Store

LOG, METRICS = "SLICEWISE_LOG", "SLICEWISE_METRICS"


class Phases:
    """The phases of one call in ms, one after the other; `end` ends the current one."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.ms: dict[str, float] = {}

    def end(self, name: str) -> None:
        """What was done since the last phase ended is the phase of this name."""
        now = time.perf_counter()
        self.ms[name] = (now - self._last) * 1e3
        self._last = now


class TimedStore:
    """A store that counts how long its caller waits for what it gets."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.waited_ms = 0.0

    def start_get(self, place: Object, *how: Any) -> Callable[[], bytes | memoryview]:
        """See `Store.start_get`."""
        get = self._store.start_get(place, *how)

        def timed() -> bytes | memoryview:
            started = time.perf_counter()
            try:
                return get()
            finally:
                self.waited_ms += (time.perf_counter() - started) * 1e3

        return timed


def ways(records: Mapping[str, Any]) -> dict[str, Any]:
    """By tensor how many bytes travel and by which transport."""
    found = {}
    for name, record in records.items():
        if isinstance(record, dict):
            way = next((way for way in BUCKET_VARIABLES if way in record), "payload")
            found[name] = {"bytes": record.get("bytes"), "transport": way}
    return found


def peak_mb() -> float | None:
    """The most memory that this process had in RAM so far, MiB; None where the system does not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except (OSError, ValueError, IndexError):  # no Linux
        pass
    return None


def told(part: str, request_id: str, status: int, trace: Mapping[str, Any], **more: str) -> None:
    """Log a request that has ended, if it failed or all are asked for."""
    if status == 200 and not _asked():
        return
    line: dict[str, Any] = {
        "level": "INFO" if status == 200 else "ERROR",
        "time_ms": int(time.time() * 1e3),
        "part": part,
        "request_id": request_id,
        "status": status,
        **more,
        **trace,
    }
    if namespace := os.environ.get(METRICS):
        line |= _metrics(namespace, line)
    print(json.dumps(line), file=sys.stdout, flush=True)  # noqa: T201 - this is Lambda's log


def telling(handler: Callable[[Any, Any], bytes]) -> Callable[[Any, Any], bytes]:
    """The coordinator's handler, which then logs its requests as slices do."""

    def answer(event: Any, context: Any) -> bytes:
        started = time.perf_counter()
        reply = handler(event, context)
        is_right = reply.startswith(b'{"status": 200,')
        if is_right and not _asked():
            return reply
        trace = {"total_ms": (time.perf_counter() - started) * 1e3, "peak_mb": peak_mb()}
        head = lift(reply, "outputs")
        trace["cold"] = bool(head.get("trace", {}).get("cold"))
        more = {} if is_right else {"error": head["error"]["message"]}
        told("coordinator", head["request_id"], head["status"], trace, **more)
        return reply

    return answer


def _asked() -> bool:
    """Whether requests that succeed are logged."""
    return bool(os.environ.get(METRICS)) or os.environ.get(LOG) == "requests"


def _metrics(namespace: str, line: Mapping[str, Any]) -> dict[str, Any]:
    """What makes CloudWatch take the line's times, its memory and failures for metrics."""
    units = {"ms": "Milliseconds", "mb": "Megabytes"}
    metrics = [
        {"Name": name, "Unit": units[name.rpartition("_")[2]]}
        for name, value in line.items()
        if name != "time_ms" and isinstance(value, float) and name.rpartition("_")[2] in units
    ]
    counted = {"failed": int(line["status"] != 200), "cold_starts": int(bool(line.get("cold")))}
    metrics += [{"Name": name, "Unit": "Count"} for name in counted]
    function = os.environ.get("AWS_LAMBDA_FUNCTION_NAME", line["part"])
    directive = {"Namespace": namespace, "Dimensions": [["function"]], "Metrics": metrics[:100]}
    aws = {"Timestamp": line["time_ms"], "CloudWatchMetrics": [directive]}
    return {**counted, "function": function, "_aws": aws}
