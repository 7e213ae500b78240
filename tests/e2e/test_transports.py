"""Payload and S3: chosen by the plan, decided by the actual size, nothing left behind."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import nn

import slicewise

lambda_endpoint = importlib.import_module("slicewise.targets.lambda.endpoint")
local_network = importlib.import_module("slicewise.targets.lambda.local.network")
default_profile = importlib.import_module("slicewise.targets.lambda.profile").default_profile


def objects(endpoint: Any) -> list[str]:
    if not endpoint.buckets:
        return []
    s3 = endpoint.platform.client("s3")
    listed = [s3.list_objects_v2(Bucket=bucket) for bucket in endpoint.buckets.values()]
    return [item["Key"] for found in listed for item in found.get("Contents", [])]


def check(endpoint: Any, model: nn.Module, rows: int) -> None:
    x, mask = torch.randn(rows, 8), torch.randint(0, 2, (rows,))
    found = endpoint(x, mask)
    with torch.no_grad():
        expected = model(x, mask)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4)


def test_the_actual_size_decides(wide: Any, wide_model: nn.Module) -> None:
    """The plan says payload at 2 rows; 80 rows make 5.2 MB, above the edge's choice of payload."""
    assert {edge.transport for edge in wide.plan.edges} == {"payload"}
    check(wide, wide_model, 2)
    before = len(wide.reports)
    check(wide, wide_model, 80)
    assert len(wide.reports) - before == 4
    assert objects(wide) == []


@pytest.mark.parametrize("transport", ["payload", "s3", "s3express"])
def test_one_transport_alone_serves_the_model(
    transport: str, wide_model: nn.Module, tmp_path: Path
) -> None:
    compiled = slicewise.compile(
        wide_model,
        (torch.randn(2, 8), torch.ones(2, dtype=torch.int64)),
        limits=slicewise.Limits(weight_bytes=700_000),
        transports=[transport],
        warm_up=False,  # its calls would take draws of the emulated network, in any order
    )
    assert {edge.transport for edge in compiled.plan.edges} == {transport}
    bundle = compiled.save(tmp_path / "bundle")
    with bundle.serve() as endpoint:
        check(endpoint, wide_model, 2)
        assert objects(endpoint) == []
    check_emulated(bundle, wide_model, transport)


def test_messages_above_the_payload_limit_go_through_s3(tmp_path: Path) -> None:
    """Input, crossing tensor and output of 8 MB each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh()).eval()
    x = torch.randn(32_768, 64)
    compiled = slicewise.compile(model, (x,), limits=slicewise.Limits(weight_bytes=17_000))
    assert {edge.transport for edge in compiled.plan.edges} == {"s3"}
    with compiled.save(tmp_path / "bundle").serve() as endpoint, torch.no_grad():
        torch.testing.assert_close(endpoint(x), model(x), rtol=0, atol=1e-5)
        assert objects(endpoint) == []


def check_emulated(bundle: slicewise.Bundle, model: nn.Module, transport: str) -> None:
    """Three slices, one after the other: their waits add up, and the answer is the same."""
    endpoint: Any = bundle.serve(network="aws", network_seed=3)
    with endpoint:
        began = time.monotonic()
        check(endpoint, model, 2)
        elapsed_ms = (time.monotonic() - began) * 1000
        trace = endpoint.last_trace
        counts = endpoint.platform.network_counts
        assert objects(endpoint) == []
    traffic = local_network.Traffic(lambda_endpoint.aws_network(default_profile(), seed=3))
    waits = {
        kind: [1000 * traffic.draw_s(kind) for _ in range(count.operations)]
        for kind, count in counts.items()
    }
    first, *calls = waits["call"]
    objects_ms = 0.0
    if transport == "s3":  # every slice gets and puts at least once
        objects_ms = 3 * min(waits["s3 put"]) + 3 * min(waits["s3 get"])

    for part, wait in zip(trace["slices"], calls, strict=True):
        assert part["call_ms"] >= wait
    assert trace["total_ms"] >= sum(calls) + objects_ms
    assert elapsed_ms >= first + trace["total_ms"]
    assert endpoint.network == trace["network"] == "aws (seed 3)"
    assert {report.network for report in endpoint.reports} == {"aws (seed 3)"}


def test_the_trace_says_that_no_network_was_emulated(wide: Any, wide_model: nn.Module) -> None:
    check(wide, wide_model, 2)
    assert wide.network == wide.last_trace["network"] == "off"
    assert {report.network for report in wide.reports} == {"off"}


@pytest.mark.parametrize(
    ("rows", "columns", "transports", "between"),
    [
        # What a plan of payloads alone allows: the target's bound on what a slice receives.
        (64, 18404, ["payload"], "payload"),
        # What fits one message exactly: 6,291,456 bytes less 1,024 and 512, of which 3/4 are raw.
        (63, 18720, ["payload", "s3"], "s3"),
        (63, 18720, ["payload", "s3express"], "s3express"),
    ],
)
def test_the_largest_tensors_pass(
    rows: int, columns: int, transports: list[str], between: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x = zoo.Scaled(columns).eval(), torch.randn(rows, columns)
    limits = slicewise.Limits(weight_bytes=columns * 4 + 100)
    compiled = slicewise.compile(model, (x,), limits=limits, transports=transports, verify=False)
    ways = {(e.producer, e.consumer): e.transport for e in compiled.plan.edges}
    assert ways["@input", "slice0"] == ways["slice1", "@output"] == "payload"
    assert ways["slice0", "slice1"] == between
    with compiled.save(tmp_path / "bundle").serve() as endpoint, torch.no_grad():
        torch.testing.assert_close(endpoint(x), model(x), rtol=0, atol=1e-6)
        assert objects(endpoint) == []


def test_a_tensor_above_the_largest_needs_another_transport() -> None:
    model, x = zoo.Scaled(18404).eval(), torch.randn(65, 18404)
    limits = slicewise.Limits(weight_bytes=18404 * 4 + 100)
    with pytest.raises(slicewise.InfeasibleError):
        slicewise.compile(model, (x,), limits=limits, transports=["payload"], verify=False)
