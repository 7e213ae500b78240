"""Chains without functions: what is carried, what comes back, what is deleted, what a failure says."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

chain = importlib.import_module("slicewise.targets.lambda.runtime.chain")
messages = importlib.import_module("slicewise.targets.lambda.runtime.messages")
arrays = importlib.import_module("slicewise.targets.lambda.runtime.arrays")
wire = importlib.import_module("slicewise.targets.lambda.runtime.wire")

ID = "0123abcd"
# a makes p and q; b reads p; c reads x, q and b's r. The reply is p and s.
PLAN: dict[str, Any] = {
    "id": "plan",
    "model": "M",
    "inputs": [{"name": "x", "dtype": "float32", "shape": [2]}],
    "outputs": [{"name": "first", "tensor": "p"}, {"name": "last", "tensor": "s"}],
    "dims": [],
    "rule": {"transports": ["payload", "s3"], "payload_bytes": 100_000},
    "warm_up": False,
    "input_cuts": [],
    "planned_transports": ["payload"],
    "choices": {name: [["payload", 40_000], ["s3", None]] for name in "xpqrs"},
    "stack": "f",
    "timeout_s": 60,
    "deadline_s": 180,
    "stages": [
        [{"name": "a", "stage": 0, "inputs": ["x"]}],
        [{"name": "b", "stage": 1, "inputs": ["p"]}],
        [{"name": "c", "stage": 2, "inputs": ["x", "q", "r"]}],
    ],
}
WORK: dict[str, Callable[..., dict[str, Any]]] = {
    "a": lambda x: {"p": x + 1, "q": x * 2},
    "b": lambda p: {"r": p * 3},
    "c": lambda x, q, r: {"s": x + q + r},
}


def record(array: np.ndarray) -> dict[str, Any]:
    raw = arrays.to_bytes(array, "float32")
    found: dict[str, Any] = wire.inline(wire.describe(array, raw, "float32"), raw)
    return found


def inner(name: str) -> Callable[[Any, Any], bytes]:
    """A slice's own handler, which keeps the names that it was sent."""

    def handler(event: Any, context: Any) -> bytes:
        if "warm" in event:
            return b'{"trace": {}}'
        given = {
            tensor: arrays.from_bytes(wire.decode_inline(tensor, each), each)
            for tensor, each in event["tensors"].items()
        }
        try:
            made = WORK[name](**given)
        except Exception as error:
            problem = {"type": type(error).__name__, "message": str(error)}
            return json.dumps({"error": problem}).encode()
        trace = {"compute_ms": 1.0, "cold": False}
        joined: bytes = messages.join(
            {"trace": trace}, "tensors", {tensor: record(array) for tensor, array in made.items()}
        )
        return joined

    return handler


class Functions:
    """Lambda and S3: every function of the chain in this process."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}
        self.sent: dict[str, list[str]] = {}
        self.objects: dict[str, bytes] = {}
        self.deleted: list[str] = []

    def invoke(self, FunctionName: str, Payload: bytes) -> dict[str, Any]:  # noqa: N803
        event = json.loads(Payload)
        self.sent[FunctionName] = sorted(event["tensors"])
        reply = self.handlers[FunctionName.partition(":")[0]](event, None)
        return {"Payload": io.BytesIO(reply)}

    def put_object(self, *, Key: str, Body: bytes, **_: Any) -> dict[str, str]:  # noqa: N803
        self.objects[Key] = Body
        return {"ETag": "e"}

    def delete_objects(self, *, Delete: dict[str, Any], **_: Any) -> dict[str, Any]:  # noqa: N803
        for entry in Delete["Objects"]:
            self.deleted.append(entry["Key"])
            self.objects.pop(entry["Key"], None)
        return {}


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Functions:
    import boto3

    made = Functions()
    monkeypatch.setattr(boto3, "client", lambda *_, **__: made)
    monkeypatch.setattr(chain, "functions_client", lambda *_: made)
    monkeypatch.setenv("SLICEWISE_BUCKET", "b")
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(PLAN))
    for name in WORK:
        made.handlers[f"f-{name}"] = chain.chain_handler(inner(name), name=name, manifest=manifest)
    return made


def ask(functions: Functions, **event: Any) -> Any:
    context = SimpleNamespace(aws_request_id="aws-0001")
    return messages.lift(functions.handlers["f-a"](event, context), "outputs")


def test_a_message_carries_what_later_slices_and_the_reply_need(functions: Functions) -> None:
    reply = ask(functions, inputs={"x": {"data": [1.0, 2.0]}}, request_id=ID, trace=True)

    assert functions.sent == {"f-b": ["p", "q", "x"], "f-c": ["p", "q", "r", "x"]}
    found = {
        name: arrays.from_bytes(wire.decode_inline(name, each), each).tolist()
        for name, each in reply["outputs"].items()
    }
    assert found == {"first": [2.0, 3.0], "last": [9.0, 15.0]}
    slices = reply["trace"]["slices"]
    assert [part["slice"] for part in slices] == ["a", "b", "c"]
    began = [part["began_ms"] for part in slices]
    assert began == sorted(began)
    assert functions.deleted == []


def test_the_entry_names_the_versions_of_all(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLICEWISE_VERSIONS", "b=4,c=7")
    assert ask(functions, inputs={"x": {"data": [1.0, 2.0]}})["status"] == 200
    assert set(functions.sent) == {"f-b:4", "f-c:7"}


def test_a_failure_further_on_is_named_and_everything_is_deleted(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: Any) -> dict[str, Any]:
        raise RuntimeError("no such thing")

    monkeypatch.setitem(WORK, "c", broken)
    reply = ask(functions, inputs={"x": {"data": [1.0, 2.0]}}, request_id=ID)

    assert (reply["status"], reply["request_id"]) == (502, ID)
    assert "no such thing" in reply["error"]["message"]
    assert "slice c" in reply["error"]["message"]
    assert set(functions.deleted) == {f"requests/{ID}/{name}" for name in "xpqrs"}


@pytest.mark.parametrize(
    "event",
    [None, [], {}, {"inputs": 1}, {"plan": "plan", "tensors": {}}, {"warm": "plan", "x": 1}],
)
def test_what_is_no_request_is_refused_at_the_entry(functions: Functions, event: Any) -> None:
    context = SimpleNamespace(aws_request_id="aws-0001")
    assert json.loads(functions.handlers["f-a"](event, context))["status"] == 400


def test_a_slice_without_its_tensors_says_so(functions: Functions) -> None:
    event = {"plan": "plan", "request_id": ID, "tensors": {}}
    reply = json.loads(functions.handlers["f-b"](event, None))
    assert "slice b failed" in reply["error"]["message"]
