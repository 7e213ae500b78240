"""A coordinator, a chain and both types of state machines drive the same slices to right answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from botocore.exceptions import ClientError
from torch import nn

import slicewise

ORCHESTRATIONS = ("coordinator", "chain", "stepfunctions", "express")


class Branches(nn.Module):
    """Two branches, each a slice, and a slice that joins them; every slice makes an output."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(8, 3000), nn.ReLU(), nn.Linear(3000, 8))
        self.right = nn.Sequential(nn.Linear(8, 3000), nn.Tanh(), nn.Linear(3000, 8))
        self.join = nn.Linear(16, 2500)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        left, right = self.left(x), self.right(x)
        joined = self.join(torch.cat([left, right * scale], 1))
        return {"y": joined, "left": left, "right": right}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Branches().eval()


@pytest.fixture(scope="module", params=ORCHESTRATIONS)
def endpoint(
    request: pytest.FixtureRequest, model: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    express = request.param == "express"
    orchestration = "stepfunctions" if express else request.param
    batch = torch.export.Dim("batch", min=1, max=16)
    compiled = slicewise.compile(
        model,
        (torch.randn(2, 8), torch.ones(1)),
        dynamic_shapes={"x": {0: batch}, "scale": None},
        limits=slicewise.Limits(weight_bytes=215_000),
        orchestration=orchestration,
    )
    assert [len(stage) for stage in compiled.plan.stages] == [2, 1]
    bundle = compiled.save(tmp_path_factory.mktemp(request.param) / "bundle")
    assert slicewise.load(bundle.directory).plan.orchestration == orchestration
    with bundle.serve(express=express) as served:
        yield served


def objects(endpoint: Any) -> list[str]:
    if "s3" not in endpoint.buckets:
        return []
    listed = endpoint.platform.client("s3").list_objects_v2(Bucket=endpoint.buckets["s3"])
    return [each["Key"] for each in listed.get("Contents", ())]


def check(endpoint: Any, model: nn.Module, rows: int, seed: int = 0) -> None:
    torch.manual_seed(seed)
    x, scale = torch.randn(rows, 8), torch.randn(1)
    with torch.no_grad():
        expected = model(x, scale)
    found = endpoint(x, scale)
    for name, right in expected.items():
        np.testing.assert_allclose(found[name].numpy(), right.numpy(), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_answers_are_the_models_and_nothing_is_left(
    endpoint: Any, model: nn.Module, rows: int
) -> None:
    check(endpoint, model, rows)

    assert objects(endpoint) == []
    names = [part["slice"] for part in endpoint.last_trace["slices"]]
    assert names == [part.name for stage in endpoint.plan.stages for part in stage]
    assert endpoint.last_trace["total_ms"] > 0


def test_each_slice_is_called_once_a_request_by_whom_the_plan_says(
    endpoint: Any, model: nn.Module
) -> None:
    before = len(endpoint.reports)
    check(endpoint, model, 3)
    called = [report.function.rpartition("-")[2] for report in endpoint.reports[before:]]

    slices = [part.name for part in endpoint.plan.slices]
    others = {"coordinator": 1, "chain": 0, "stepfunctions": 2}[endpoint.plan.orchestration]
    assert sorted(called) == sorted([*slices, *["coordinator"] * others])
    if endpoint.plan.orchestration == "chain":
        assert called == slices[::-1]  # the last to be called is the first to end


def test_requests_at_the_same_time_keep_apart(endpoint: Any, model: nn.Module) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda seed: check(endpoint, model, 1 + seed, seed), range(6)))
    assert objects(endpoint) == []


def test_a_bad_request_is_refused_by_name(endpoint: Any, model: nn.Module) -> None:
    with pytest.raises(slicewise.RequestError, match="batch is 17") as refusal:
        endpoint(torch.zeros(17, 8), torch.ones(1))
    assert (refusal.value.status, refusal.value.field) == (400, "x")
    assert "Traceback" not in str(refusal.value)
    assert objects(endpoint) == []
    check(endpoint, model, 2)


def test_a_slice_that_fails_is_named_and_leaves_nothing(
    endpoint: Any, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the last slice is gone: its function cannot start."""
    last = endpoint.plan.stages[-1][-1].name
    function = next(f for f in endpoint.platform._functions if f.name.endswith(last))
    hidden = function.package / "model.onnx"
    endpoint.platform.discard_idle()
    hidden.rename(function.package / "hidden")
    try:
        with pytest.raises(slicewise.SliceFailure) as failure:
            endpoint(torch.zeros(2, 8), torch.ones(1))
    finally:
        (function.package / "hidden").rename(hidden)
    assert "Traceback" not in str(failure.value)
    assert objects(endpoint) == []
    check(endpoint, model, 2)


def test_the_state_machine_holds_references_only(endpoint: Any, model: nn.Module) -> None:
    if endpoint.plan.orchestration != "stepfunctions":
        pytest.skip("this is of state machines")
    check(endpoint, model, 2)
    states = endpoint.platform.client("stepfunctions")
    told = states.describe_state_machine(stateMachineArn=endpoint.function)
    assert told["type"] == ("EXPRESS" if endpoint.client._is_express else "STANDARD")
    text = (Path(endpoint.directory) / "statemachine.asl.json").read_text()
    definition = json.loads(text)
    kinds = [state["Type"] for state in definition["States"].values()]
    assert "Parallel" in kinds
    (execution, *_) = states.list_executions(stateMachineArn=endpoint.function)["executions"]
    history = states.get_execution_history(executionArn=execution["executionArn"])
    assert execution["status"] == "SUCCEEDED"
    assert '"data"' not in json.dumps(history["events"], default=str)


def test_an_inline_request_to_the_state_machine_is_put_into_objects(
    endpoint: Any, model: nn.Module
) -> None:
    if endpoint.plan.orchestration != "stepfunctions":
        pytest.skip("this is of state machines")
    inputs = {"x": {"data": [[1.0] * 8]}, "scale": {"data": [0.5]}}
    # What looks like a state's result is the caller's own and must not be taken for one.
    for extra, status in (
        ({}, "SUCCEEDED"),
        ({"begin": {"request_id": "other-request"}}, "FAILED"),
    ):
        states = endpoint.platform.client("stepfunctions")
        text = json.dumps({"inputs": inputs, **extra})
        wanted = {"stateMachineArn": endpoint.function, "name": f"inline-{status}", "input": text}
        if endpoint.client._is_express:
            found = states.start_sync_execution(**wanted)
        else:
            started, found = states.start_execution(**wanted), {"status": "RUNNING"}
        while found["status"] == "RUNNING":
            found = states.describe_execution(executionArn=started["executionArn"])
        assert found["status"] == status
        if status == "SUCCEEDED":
            assert set(json.loads(found["output"])["outputs"]) == {"y", "left", "right"}
        else:
            assert json.loads(found["cause"])["error"]["field"] == "begin"


def test_slices_that_a_state_machine_calls_know_the_deadline(endpoint: Any) -> None:
    if endpoint.plan.orchestration != "stepfunctions" or endpoint.client._is_express:
        pytest.skip("this is of Standard state machines")
    states, before = endpoint.platform.client("stepfunctions"), objects(endpoint)
    inputs = {"x": {"data": [[1.0] * 8]}, "scale": {"data": [0.5]}}
    started = states.start_execution(
        stateMachineArn=endpoint.function,
        name="no-time-at-all",
        input=json.dumps({"inputs": inputs, "remaining_ms": 1}),
    )
    found = {"status": "RUNNING"}
    while found["status"] == "RUNNING":
        found = states.describe_execution(executionArn=started["executionArn"])
    cause = json.loads(found["cause"])
    assert (found["status"], cause["status"]) == ("FAILED", 504)
    assert cause["error"]["type"] == "DeadlineExceeded"
    assert cause["error"]["slice"] in {part.name for part in endpoint.plan.stages[0]}
    assert objects(endpoint) == before


def test_only_express_state_machines_answer_at_once(endpoint: Any) -> None:
    if endpoint.plan.orchestration != "stepfunctions" or endpoint.client._is_express:
        pytest.skip("this is of Standard state machines")
    states = endpoint.platform.client("stepfunctions")
    with pytest.raises(ClientError, match="StateMachineTypeNotSupported"):
        states.start_sync_execution(stateMachineArn=endpoint.function, input="{}")


def test_what_cannot_be_is_refused(model: nn.Module) -> None:
    example = (torch.randn(2, 8), torch.ones(1))
    with pytest.raises(slicewise.LimitsError, match="choose coordinator, chain, stepfunctions"):
        slicewise.compile(model, example, orchestration="ring")
    with pytest.raises(slicewise.LimitsError, match="256 KiB"):
        slicewise.compile(
            model, example, orchestration="stepfunctions", transports=["payload", "s3"]
        )
