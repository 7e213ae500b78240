"""The cold starts of `calibrate`, taken apart by the platform's clock and the function's own."""

from __future__ import annotations

import statistics
import time

from .calibrate_rows import Rows, invoke
from .calibrate_site import FULL_MB, Site


def start_cold(site: Site, rows: Rows) -> None:
    """Starts a function that loads next to nothing and the one with weights.

    Init Duration is the platform's; imports and loading are by the function's own clock, and the rest
    of it is the interpreter's. What the caller waits beyond that and a warm call is placement.
    """
    site.make_cold()
    for function in (site.probes[FULL_MB], site.loader):
        cold, parts, init = _timed_parts(site, function)
        warm = statistics.median(_timed_parts(site, function)[0] for _ in range(3))
        size = int(parts["bytes"])
        for part in ("import_ms", "boto3_ms"):
            rows.add(f"cold, {part}", "wall", 0, FULL_MB, parts[part], {f"cold.{part}": 1.0})
        if init is not None:
            own = init - parts["own_ms"]
            rows.add("cold, init", "wall", 0, FULL_MB, own, {"cold.init_ms": 1.0})
            placed = cold - init - warm
            rows.add("cold, placement", "wall", 0, FULL_MB, placed, {"cold.placement_ms": 1.0})
        terms = {"cold.load_ms": 1.0, "cold.load_ns": size * 1e-6}
        rows.add("cold, weights", "wall", size, FULL_MB, parts["load_ms"], terms)


def _timed_parts(site: Site, function: str) -> tuple[float, dict[str, float], float | None]:
    """Milliseconds of a call from here, what the function says of its start, and its init (cold)."""
    began = time.perf_counter()
    parts, init = invoke(site, function, {"do": "parts"})
    return (time.perf_counter() - began) * 1e3, parts, init
