"""What a served bundle tells of a request: its trace, lines of JSON, metrics, OpenTelemetry spans."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import slicewise


def ask(endpoint: Any, rows: int) -> Any:
    return endpoint(torch.zeros(rows, 8), torch.ones(rows, dtype=torch.int64))


def lines(endpoint: Any, function: str) -> list[dict[str, Any]]:
    """What a function's log has of JSON."""
    found = endpoint.platform.logs(function).splitlines()
    return [json.loads(line) for line in found if line.startswith("{")]


def test_the_trace_tells_phases_memory_and_bytes_of_every_edge(wide: Any) -> None:
    ask(wide, 80)  # large enough for S3
    trace = wide.last_trace

    assert [part["slice"] for part in trace["slices"]] == ["slice0", "slice1", "slice2"]
    for part in trace["slices"]:
        assert part["fetch_ms"] + part["decode_ms"] == pytest.approx(part["receive_ms"])
        assert part["encode_ms"] + part["put_ms"] == pytest.approx(part["send_ms"])
        assert part["call_ms"] >= part["receive_ms"] + part["compute_ms"] + part["send_ms"]
        assert 10 < part["peak_mb"] < 1000
        assert part["cold"] in (True, False)
        assert part["began_ms"] >= 0
    middle = trace["slices"][0]["sent"]
    assert {"bytes": 80 * 16384 * 4, "transport": "s3"} in middle.values()
    assert trace["slices"][1]["received"].items() >= middle.items()
    assert trace["slices"][1]["fetch_ms"] > 0
    assert trace["slices"][0]["put_ms"] > 0


def test_requests_and_failures_are_lines_of_json_and_metrics(
    wide_bundle: slicewise.Bundle,
) -> None:
    variables = {"SLICEWISE_LOG": "requests", "SLICEWISE_METRICS": "models"}
    endpoint: Any = wide_bundle.serve(environment=variables)
    with endpoint:
        ask(endpoint, 2)
        client = endpoint.platform.client("lambda")
        client.invoke(FunctionName=endpoint.function, Payload=b'{"request_id": "mine-0001"}')
        client.invoke(
            FunctionName="wide-slice1",
            Payload=b'{"request_id": "mine-0002", "plan": "another", "tensors": {}}',
        )
        entry = lines(endpoint, endpoint.function)
        slices = lines(endpoint, "wide-slice1")

    right, refused = entry
    assert (right["level"], right["status"], right["cold"]) == ("INFO", 200, True)
    assert (refused["level"], refused["status"]) == ("ERROR", 400)
    assert (refused["request_id"], "missing" in refused["error"]) == ("mine-0001", True)
    assert slices[0]["request_id"] == right["request_id"]
    assert (slices[1]["request_id"], slices[1]["failed"]) == ("mine-0002", 1)
    assert "belongs to plan" in slices[1]["error"]
    for line in (*entry, *slices):
        (directive,) = line["_aws"]["CloudWatchMetrics"]
        assert directive["Namespace"] == "models"
        assert directive["Dimensions"] == [["function"]]
        names = [metric["Name"] for metric in directive["Metrics"]]
        assert {"failed", "cold_starts"} <= set(names)
        assert all(isinstance(line[name], (int, float)) for name in names)
        assert abs(line["_aws"]["Timestamp"] - line["time_ms"]) < 1000
    metrics = {m["Name"]: m["Unit"] for m in slices[0]["_aws"]["CloudWatchMetrics"][0]["Metrics"]}
    assert metrics["compute_ms"] == "Milliseconds"
    assert metrics["peak_mb"] == "Megabytes"


def test_without_being_asked_only_failures_are_logged(wide: Any) -> None:
    ask(wide, 1)
    client = wide.platform.client("lambda")
    client.invoke(FunctionName=wide.function, Payload=b'{"request_id": "mine-0003"}')
    found = lines(wide, wide.function)
    assert all(line["status"] != 200 for line in found)
    assert found[-1]["request_id"] == "mine-0003"
    assert "_aws" not in found[-1]


def lies_within(inner: Any, outer: Any, slack_ns: int = 0) -> bool:
    begins = outer.start_time <= inner.start_time
    return bool(begins and inner.start_time <= inner.end_time <= outer.end_time + slack_ns)


def test_spans_lie_within_each_other(wide: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(otel, "get_tracer", provider.get_tracer)  # the global one is set only once

    ask(wide, 2)
    with pytest.raises(slicewise.RequestError):
        ask(wide, 81)

    spans: Any = exporter.get_finished_spans()
    good, bad = (span for span in spans if span.name == "slicewise.request")
    assert bad.status.status_code is otel.StatusCode.ERROR
    calls = [span for span in spans if span.parent and span.parent.span_id == good.context.span_id]
    assert sorted(span.name for span in calls) == [f"slicewise.slice{n}" for n in range(3)]
    for call in calls:
        assert lies_within(call, good)
        assert any(str(key).endswith(".bytes") for key in call.attributes or {})
        inner = [s for s in spans if s.parent and s.parent.span_id == call.context.span_id]
        assert "compute" in {span.name for span in inner}
        for span in inner:
            assert lies_within(span, call, slack_ns=1)
