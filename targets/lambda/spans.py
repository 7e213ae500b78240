"""OpenTelemetry spans of requests, built from their traces in the process that asks.

Only where the program uses OpenTelemetry itself: nothing is imported for it, the functions need
nothing, and nobody's clock but this process's is used.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from slicewise.waterfall import Row, rows


def record(
    model: str,
    request_id: str,
    started_ns: int,
    ended_ns: int,
    trace: Mapping[str, Any],
    error: BaseException | None = None,
) -> None:
    """A span of the request, one of every slice's call in it, and one of every phase in that.

    The coordinator's own time is put into the middle of the request's. Times are of time.time_ns().
    """
    if "opentelemetry.trace" not in sys.modules:
        return
    from opentelemetry import trace as otel

    tracer = otel.get_tracer("slicewise")
    attributes = {"slicewise.model": model, "slicewise.request_id": request_id}
    span = tracer.start_span("slicewise.request", start_time=started_ns, attributes=attributes)
    if error is not None:
        span.record_exception(error, timestamp=ended_ns)
        span.set_status(otel.Status(otel.StatusCode.ERROR, str(error)))
    here = otel.set_span_in_context(span)
    outside_ns = max(0, ended_ns - started_ns - int(trace.get("total_ms", 0.0) * 1e6))
    began_ns = started_ns + outside_ns // 2
    for row in rows(trace):
        call = tracer.start_span(
            f"slicewise.{row.name}",
            context=here,
            start_time=began_ns + int(row.start_ms * 1e6),
            attributes=_attributes(row),
        )
        within = otel.set_span_in_context(call)
        for phase in row.phases:
            if phase.end_ms > phase.start_ms:
                start_ns = began_ns + int(phase.start_ms * 1e6)
                inner = tracer.start_span(phase.name, context=within, start_time=start_ns)
                inner.end(began_ns + int(phase.end_ms * 1e6))
        call.end(began_ns + int(row.end_ms * 1e6))
    span.end(ended_ns)


def _attributes(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"slicewise.cold": bool(row.trace.get("cold"))}
    if row.trace.get("peak_mb"):
        found["slicewise.peak_mb"] = row.trace["peak_mb"]
    for side in ("received", "sent"):
        for tensor, edge in row.trace.get(side, {}).items():
            found[f"slicewise.{side}.{tensor}.bytes"] = edge["bytes"]
            found[f"slicewise.{side}.{tensor}.transport"] = edge["transport"]
    return found
