"""The coordinator: tensors go from reply to message as they are, and nothing is left behind."""

from __future__ import annotations

import importlib
import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import ClientError

early = importlib.import_module("slicewise.targets.lambda.runtime.early")
coordinator = importlib.import_module("slicewise.targets.lambda.runtime.coordinator")
messages = importlib.import_module("slicewise.targets.lambda.runtime.messages")
arrays = importlib.import_module("slicewise.targets.lambda.runtime.arrays")
start = importlib.import_module("slicewise.targets.lambda.runtime.start")
wire = importlib.import_module("slicewise.targets.lambda.runtime.wire")

ID = "0123abcd"
X = {"data": [1.0, 2.0]}
PLAN = {
    "id": "plan",
    "inputs": [{"name": "x", "dtype": "float32", "shape": [2]}],
    "outputs": [{"name": "y", "tensor": "last"}],
    "dims": [],
    "rule": {"transports": ["payload", "s3"], "payload_bytes": 6_000},
    "warm_up": False,
    "max_parallel": 2,
    "hedge": None,
    "input_cuts": [],
    "planned_transports": ["payload", "s3"],
    "choices": {name: [["payload", 4000], ["s3", None]] for name in ("x", "middle", "last")},
    "stack": "f",
    "timeout_s": 60,
    "deadline_s": 120,
    "stages": [
        [{"name": "a", "stage": 0, "inputs": ["x"], "outputs": ["middle"]}],
        [{"name": "b", "stage": 1, "inputs": ["x", "middle"], "outputs": ["last"]}],
    ],
}


def record(array: np.ndarray) -> dict[str, Any]:
    raw = arrays.to_bytes(array, str(array.dtype))
    found: dict[str, Any] = wire.inline(wire.describe(array, raw, str(array.dtype)), raw)
    return found


MAKERS = {"middle": "a", "first": "a", "second": "b", "third": "c"}


def reply(trace: Any = None, by: str | None = None, **tensors: Any) -> bytes:
    name = by or MAKERS.get(next(iter(tensors), ""), "b")
    head = {"slice": name, "plan": "plan", "request_id": ID, "trace": trace or {}}
    joined: bytes = messages.join(head, "tensors", tensors)
    return joined


class Fakes:
    """Lambda and S3 clients that answer by function and keep what they were sent."""

    def __init__(self, **answers: bytes | Callable[[Fakes], bytes]) -> None:
        self.answers = answers
        self.sent: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}

    def invoke(self, FunctionName: str, Payload: bytes) -> dict[str, Any]:  # noqa: N803
        self.sent[FunctionName] = Payload
        answer = self.answers[FunctionName.removeprefix("f-")]
        return {"Payload": io.BytesIO(answer if isinstance(answer, bytes) else answer(self))}

    def put_object(self, *, Key: str, Body: bytes, **_: Any) -> dict[str, str]:  # noqa: N803
        self.objects[Key] = Body
        return {"ETag": '"etag"'}

    def delete_objects(self, *, Delete: dict[str, Any], **_: Any) -> dict[str, Any]:  # noqa: N803
        for entry in Delete["Objects"]:
            self.objects.pop(entry["Key"], None)
        return {}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def answer(fakes: Fakes, plan: dict[str, Any] = PLAN, **event: Any) -> Any:
        manifest = tmp_path / "manifest.json"
        manifest.write_text(json.dumps(plan))
        monkeypatch.setenv("SLICEWISE_BUCKET", "bucket")
        monkeypatch.setattr("boto3.client", lambda *_, **__: fakes)
        monkeypatch.setattr(coordinator, "functions_client", lambda *_: fakes)
        handler = coordinator.coordinator_handler(
            manifest=manifest, warm_up=early.start_slices(manifest)
        )
        raw = handler(
            {"request_id": ID, "inputs": {"x": X}, **event},
            SimpleNamespace(aws_request_id="aws-0001"),
        )
        return json.loads(raw)

    return answer


WARM = {**PLAN, "warm_up": True}
MIDDLE, LAST = record(np.arange(600, dtype=np.float32)), record(np.ones(3, np.float32))


def test_a_deployment_names_its_functions_and_their_versions(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLICEWISE_STACK", "mine")
    monkeypatch.setenv("SLICEWISE_VERSIONS", "a=7,b=12")
    answers = {"mine-a:7": reply(middle=MIDDLE), "mine-b:12": reply(last=LAST)}

    assert run(Fakes(**answers))["status"] == 200


def warmed(fakes: Fakes, answer: bytes | None, then: bytes) -> Callable[[Fakes], bytes]:
    """Slice b: answers the warm call with `answer` (None: not at all), the real one with `then`."""

    def slice_b(_: Fakes) -> bytes:
        if json.loads(fakes.sent["f-b"]) == {"warm": "plan"}:
            if answer is None:
                raise ClientError({"Error": {"Code": "TooManyRequestsException"}}, "Invoke")
            return answer
        return then

    return slice_b


@pytest.mark.parametrize(
    ("answer", "cold"),
    [
        (b'{"trace": {"cold": true, "init_ms": 5}}', True),
        (b'{"error": {"type": "ValueError", "message": "of another plan"}}', None),
        (b"<html>", None),
        (None, None),
    ],
)
def test_the_first_request_warms_later_stages_and_no_failure_of_that_fails_it(
    answer: bytes | None, cold: bool | None, run: Callable[..., Any]
) -> None:
    fakes = Fakes(a=reply(middle=MIDDLE))
    fakes.answers["b"] = warmed(fakes, answer, reply(last=LAST))

    found = run(fakes, WARM, trace=True)

    assert found["status"] == 200
    assert json.loads(fakes.sent["f-b"])["tensors"].keys() == {"x", "middle"}
    first, second = found["trace"]["slices"]
    assert "warm_up_ms" not in first
    assert second["warm_up_ms"] >= 0
    assert second.get("cold") == cold
    assert found["trace"]["cold"] is True


@pytest.mark.parametrize("was_ahead", [False, True])
def test_what_a_frozen_environment_was_told_is_asked_again(
    was_ahead: bool, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the calls in the init phase: they fail here, and only the second try can succeed."""
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", "http://127.0.0.1:9")  # discard
    monkeypatch.setattr(start, "AHEAD_S", -1.0 if was_ahead else 1e9)
    fakes = Fakes(a=reply(middle=MIDDLE))
    fakes.answers["b"] = warmed(fakes, b'{"trace": {"cold": true}}', reply(last=LAST))

    found = run(fakes, WARM, trace=True)

    assert found["status"] == 200
    first, second = found["trace"]["slices"]
    assert ("warm_up_ms" in first) == (not was_ahead)  # the first stage is asked in the init phase
    assert second.get("cold") == (True if was_ahead else None)


def test_a_request_that_fails_early_leaves_no_warm_call_under_way(run: Callable[..., Any]) -> None:
    ended = threading.Event()

    def slow(_: Fakes) -> bytes:
        time.sleep(0.05)
        ended.set()
        return b"{}"

    found = run(Fakes(a=FAILED, b=slow), WARM)

    assert found["error"]["slice"] == "a"
    assert ended.is_set()


def test_a_request_that_is_refused_warms_nothing(run: Callable[..., Any]) -> None:
    fakes = Fakes()

    assert run(fakes, WARM, inputs={})["status"] == 400
    assert fakes.sent == {}


def test_a_tensor_is_passed_on_as_it_came(run: Callable[..., Any]) -> None:
    fakes = Fakes(a=reply(middle=MIDDLE), b=reply(last=LAST))

    found = run(fakes)

    assert found["outputs"]["y"]["data"] == LAST["data"].decode()
    assert json.loads(fakes.sent["f-b"])["tensors"]["middle"]["data"] == MIDDLE["data"].decode()
    assert json.loads(fakes.sent["f-b"])["plan"] == "plan"
    assert fakes.objects == {}


def test_what_no_message_holds_goes_through_s3_and_is_deleted(run: Callable[..., Any]) -> None:
    large = record(np.arange(4000, dtype=np.float32))
    fakes = Fakes(a=reply(middle=large), b=reply(last=LAST))

    found = run(fakes)

    assert found["status"] == 200
    assert json.loads(fakes.sent["f-b"])["tensors"]["middle"]["s3"] == f"requests/{ID}/middle"
    assert fakes.objects == {}


def test_what_the_reply_names_stays_for_the_caller(run: Callable[..., Any]) -> None:
    fakes = Fakes(a=reply(middle=MIDDLE), b=reply(last=record(np.ones(4000, np.float32))))

    found = run(fakes)

    assert found["outputs"]["y"]["s3"] == f"requests/{ID}/last"
    assert list(fakes.objects) == [f"requests/{ID}/last"]


@pytest.mark.parametrize(
    "answer",
    [b"<html>", b'{"tensors": {"middle": {"data": 3}}}', reply()[:-2] + b', "data": "A"}}'],
)
def test_a_reply_that_is_no_message_is_the_slices_fault(
    answer: bytes, run: Callable[..., Any]
) -> None:
    found = run(Fakes(a=answer))

    assert found["status"] == 502
    assert found["error"]["slice"] == "a"
    assert "something other than its tensors" in found["error"]["message"]


def test_a_trace_never_makes_a_reply_too_large(run: Callable[..., Any]) -> None:
    """Of so many slices that nothing is left for it beside the outputs."""
    trace = {f"step{index}": 0.123456789 for index in range(200)}
    fakes = Fakes(a=reply(trace, middle=MIDDLE), b=reply(last=record(np.ones(800, np.float32))))

    assert run(fakes, trace=True)["trace"] == {}
    assert run(Fakes(a=reply(middle=MIDDLE), b=reply(last=LAST)), trace=True)["trace"]["slices"]


def test_a_repeated_request_gets_the_first_reply(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same id with other tensors is a request of its own."""
    fakes = Fakes(a=reply(middle=MIDDLE), b=reply(last=LAST))
    first = run(fakes)
    manifest = tmp_path / "manifest.json"
    handler = coordinator.coordinator_handler(
        manifest=manifest, warm_up=early.start_slices(manifest)
    )
    context = SimpleNamespace(aws_request_id="aws-0001")
    request = {"request_id": ID, "inputs": {"x": X}}

    assert json.loads(handler(request, context)) == first
    fakes.sent.clear()
    assert json.loads(handler(request, context)) == first
    assert fakes.sent == {}
    handler({**request, "inputs": {"x": {"data": [1.0, 3.0]}}}, context)
    assert fakes.sent.keys() == {"f-a", "f-b"}


@pytest.mark.parametrize("remaining", [0, -5, "1", True, None])
def test_a_caller_can_set_a_deadline(remaining: Any, run: Callable[..., Any]) -> None:
    fakes = Fakes(a=reply(middle=MIDDLE), b=reply(last=LAST))

    if remaining is None:
        assert run(fakes, remaining_ms=9_000)["status"] == 200
        assert json.loads(fakes.sent["f-b"])["remaining_ms"] <= 8_100
    else:
        found = run(fakes, remaining_ms=remaining)
        assert (found["status"], found["error"]["field"]) == (400, "remaining_ms")


def test_a_request_ends_with_its_deadline(run: Callable[..., Any]) -> None:
    def slow(_: Fakes) -> bytes:
        time.sleep(0.3)
        return reply(middle=MIDDLE)

    found = run(Fakes(a=slow), remaining_ms=100)

    assert found["status"] == 504
    assert (found["error"]["type"], found["error"]["slice"]) == ("DeadlineExceeded", "a")


FAILED = json.dumps({"error": {"type": "WireError", "message": "no"}}).encode()


def puts_and_fails(fakes: Fakes) -> bytes:
    """As a slice does whose second upload fails: the reply names no object."""
    fakes.objects[f"requests/{ID}/last"] = b""
    return FAILED


def test_nothing_is_left_of_a_slice_that_fails_after_its_uploads(run: Callable[..., Any]) -> None:
    """Neither what it put, nor what others have put before; another request's stays."""
    large = record(np.arange(4000, dtype=np.float32))
    fakes = Fakes(a=reply(middle=large), b=puts_and_fails)
    fakes.objects["requests/another-one/last"] = b""

    found = run(fakes)

    assert (found["status"], found["error"]["slice"]) == (502, "b")
    assert list(fakes.objects) == ["requests/another-one/last"]


def test_nothing_is_left_of_a_slice_that_ends_after_another_has_failed(
    run: Callable[..., Any],
) -> None:
    first_failed, ended = threading.Event(), threading.Event()

    def slow(fakes: Fakes) -> bytes:
        assert first_failed.wait(5)
        time.sleep(0.05)
        fakes.objects[f"requests/{ID}/middle"] = b""
        ended.set()
        return reply(middle={**MIDDLE, "s3": f"requests/{ID}/middle"})

    def failing(_: Fakes) -> bytes:
        first_failed.set()
        return FAILED

    stage = [
        {"name": name, "stage": 0, "inputs": ["x"], "outputs": [tensor]}
        for name, tensor in (("a", "last"), ("b", "middle"))
    ]
    fakes = Fakes(a=failing, b=slow)

    found = run(fakes, {**PLAN, "stages": [stage]})

    assert found["error"]["slice"] == "a"
    assert ended.is_set()
    assert fakes.objects == {}


def test_what_a_refused_request_names_is_left_alone(run: Callable[..., Any]) -> None:
    fakes = Fakes()
    fakes.objects[f"requests/{ID}/x"] = b""

    assert run(fakes, inputs={"x": {"data": "?"}})["status"] == 400
    assert len(fakes.objects) == 1


def test_an_answer_is_given_though_its_objects_cannot_be_deleted(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Keeping(Fakes):
        def delete_objects(self, **_: Any) -> dict[str, Any]:
            raise ClientError({"Error": {"Code": "SlowDown"}}, "DeleteObjects")

    large = record(np.arange(4000, dtype=np.float32))

    found = run(Keeping(a=reply(middle=large), b=reply(last=LAST)))

    assert found["status"] == 200
    assert f"request {ID} leaves objects in the bucket" in caplog.text


def test_a_slice_starts_though_others_of_an_earlier_stage_run(run: Callable[..., Any]) -> None:
    """c needs b alone, and a ends only when c has begun."""
    began = threading.Event()

    def slow(_: Fakes) -> bytes:
        assert began.wait(5)
        return reply(first=MIDDLE)

    def last_but_one(_: Fakes) -> bytes:
        began.set()
        return reply(third=MIDDLE)

    stages = [
        [
            {"name": "a", "stage": 0, "inputs": ["x"], "outputs": ["first"]},
            {"name": "b", "stage": 0, "inputs": ["x"], "outputs": ["second"]},
        ],
        [{"name": "c", "stage": 1, "inputs": ["second"], "outputs": ["third"]}],
        [{"name": "d", "stage": 2, "inputs": ["first", "third"], "outputs": ["last"]}],
    ]
    names = ("x", "first", "second", "third", "last")
    choices = {name: [["payload", 4000], ["s3", None]] for name in names}
    plan = {**PLAN, "stages": stages, "choices": choices}
    fakes = Fakes(a=slow, b=reply(second=MIDDLE), c=last_but_one, d=reply(by="d", last=LAST))

    found = run(fakes, plan, trace=True)

    assert found["status"] == 200
    assert [part["slice"] for part in found["trace"]["slices"]] == ["a", "b", "c", "d"]


def test_what_a_slower_call_puts_after_its_object_was_deleted_is_deleted_too(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slice a is called twice; its first call puts its object when the request is over."""
    hedge = importlib.import_module("slicewise.targets.lambda.runtime.hedge")
    monkeypatch.setattr(hedge.Hedge, "after_s", lambda _, name: 0.01 if name == "a" else None)
    over, ended = threading.Event(), threading.Event()
    key = f"requests/{ID}/middle"
    calls: list[int] = []

    def twice(fakes: Fakes) -> bytes:
        calls.append(len(calls))
        if calls[-1] == 0:
            assert over.wait(5)
        fakes.objects[key] = b""
        return reply(middle={**{k: v for k, v in MIDDLE.items() if k != "data"}, "s3": key})

    class Told(Fakes):
        def delete_objects(self, **options: Any) -> dict[str, Any]:
            answer = super().delete_objects(**options)
            if over.is_set():
                ended.set()
            return answer

    fakes = Told(a=twice, b=reply(last=LAST))

    found = run(fakes, {**PLAN, "hedge": 0.9}, trace=True)

    assert found["status"] == 200
    assert found["trace"]["slices"][0]["hedged"] is True
    assert fakes.objects == {}
    over.set()
    assert ended.wait(5)
    assert fakes.objects == {}
