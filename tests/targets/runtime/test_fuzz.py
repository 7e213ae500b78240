"""Bad input at the entry point and at the slices: every reply is JSON that says what was wrong.

20,000 cases with `-m slow`, some hundred otherwise. The coordinator, the slices, ONNX Runtime and S3
(moto's) are the real ones, in this process; only Lambda between them is a function call.
"""

from __future__ import annotations

import copy
import importlib
import io
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto import mock_aws
from onnx import TensorProto, helper

arrays = importlib.import_module("slicewise.targets.lambda.runtime.arrays")
coordinator = importlib.import_module("slicewise.targets.lambda.runtime.coordinator")
rule_module = importlib.import_module("slicewise.targets.lambda.runtime.rule")
slice_module = importlib.import_module("slicewise.targets.lambda.runtime.slice")
warmup = importlib.import_module("slicewise.targets.lambda.runtime.warmup")
wire = importlib.import_module("slicewise.targets.lambda.runtime.wire")

ID = "0123abcd"
WAYS = ("payload", "s3")
CHOICES = (("payload", 4_000), ("s3", None))
RULE: Any = {"transports": list(WAYS), "payload_bytes": 20_000}
# Python's own ways of failing: whoever sees one of these sees a mistake of ours.
OURS = {
    "KeyError", "TypeError", "AttributeError", "IndexError", "RecursionError", "MemoryError",
    "AssertionError", "UnicodeEncodeError", "OverflowError", "NameError", "_ArrayMemoryError",
}  # fmt: skip
MOST_MB = 300  # what all cases together may add to this process


def write_slice(directory: Path, name: str, given: str, made: str) -> Any:
    """made = given + given, n rows of two."""
    graph = helper.make_graph(
        [helper.make_node("Add", [given, given], [made])],
        name,
        [helper.make_tensor_value_info(given, TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info(made, TensorProto.FLOAT, ["n", 2])],
    )
    directory.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, directory / "model.onnx")
    return slice_module.slice_handler(
        name=name,
        plan="plan",
        directory=directory,
        inputs=[slice_module.Edge(given, "float32", ("n", 2), "?", "payload", CHOICES)],
        outputs=[slice_module.Edge(made, "float32", ("n", 2), "@output", "payload", CHOICES)],
        rule=rule_module.Rule(WAYS, RULE["payload_bytes"]),
    )


MANIFEST = {
    "id": "plan",
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 2]}],
    "outputs": [{"name": "y", "tensor": "y"}],
    "dims": [{"name": "n", "min": 1, "max": 1000}],
    "rule": RULE,
    "warm_up": False,
    "planned_transports": list(WAYS),
    "choices": {name: [list(each) for each in CHOICES] for name in ("x", "middle", "y")},
    "stack": "f",
    "timeout_s": 60,
    "deadline_s": 120,
    "max_parallel": 1,
    "hedge": None,
    "input_cuts": [],
    "stages": [
        [{"name": "a", "stage": 0, "inputs": ["x"], "outputs": ["middle"]}],
        [{"name": "b", "stage": 1, "inputs": ["middle"], "outputs": ["y"]}],
    ],
}


@pytest.fixture(scope="module")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Callable[..., bytes]]]:
    """The entry point and its two slices."""
    directory = tmp_path_factory.mktemp("fuzz")
    (directory / "manifest.json").write_text(json.dumps(MANIFEST))
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name, value in {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
            "SLICEWISE_BUCKET": "bucket",
        }.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        found = {
            "f-a": write_slice(directory / "a", "a", "x", "middle"),
            "f-b": write_slice(directory / "b", "b", "middle", "y"),
        }

        class Lambda:
            def invoke(self, FunctionName: str, Payload: bytes) -> Any:  # noqa: N803
                reply = found[FunctionName](json.loads(Payload), None)
                return {"Payload": io.BytesIO(reply)}

        patch.setattr(coordinator, "functions_client", lambda *_: Lambda())
        found["entry"] = coordinator.coordinator_handler(
            manifest=directory / "manifest.json", warm_up=warmup.WarmUp(lambda _: {}, ())
        )
        yield found


def record(tensor: str) -> dict[str, Any]:
    raw = arrays.to_bytes(np.arange(6, dtype=np.float32).reshape(3, 2), "float32")
    described = wire.describe(np.zeros((3, 2), np.float32), raw, "float32")
    return {"tensor": tensor, **described, "data": wire.inline({}, raw)["data"].decode()}


REQUEST = {"request_id": ID, "trace": True, "remaining_ms": 5000, "inputs": {"x": record("x")}}
MESSAGES = {
    name: {
        "request_id": ID,
        "plan": "plan",
        "remaining_ms": 5000,
        "tensors": {given: record(given)},
    }
    for name, given in (("f-a", "x"), ("f-b", "middle"))
}
ODD: Any = st.sampled_from(
    [
        None, True, -1, 0, 1, 2**31, 2**63, 2**64, -(2**70), 1e308, 0.5, "", "x", "float32", "bool",
        "bfloat16", "payload", f"requests/{ID}/x", "requests/../x", "zlib", "float16", "\0", "\ud800",
        "A" * 5000, "AAAA", [], {}, [[]], [1, [2]], [2**39, 2**39], [[1, 2]], [["a" * 999, "b"]], "plan",
        10**400, {"http": {"method": "POST"}}, "data", '"', "\\",
    ]
)  # fmt: skip
JSON = st.recursive(
    ODD | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(ODD.map(str) | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        "request_id", "trace", "remaining_ms", "inputs", "tensors", "plan", "warm", "x", "middle", "y",
        "tensor", "dtype", "shape", "bytes", "sha256", "data", "s3", "s3express", "etag", "wire_dtype",
        "compression", "requestContext", "body", "isBase64Encoded",
        "until_ms",
    ]
)  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, valid: Any) -> Any:
    """A valid event in which some things are others, or missing, or new."""
    event = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 4))):
        at: Any = event
        while draw(st.booleans()):
            inner = [value for value in at.values() if isinstance(value, dict)]
            if not inner:
                break
            at = draw(st.sampled_from(inner))
        field = draw(FIELDS | st.sampled_from(sorted(at)) if at else FIELDS)
        if draw(st.integers(0, 3)):
            at[field] = copy.deepcopy(draw(JSON))  # the next change may be one of this
        else:
            at.pop(field, None)
    return event


def sent(event: Any) -> Any:
    """What arrives of it: half of a surrogate pair is no UTF-8, but JSON has it."""
    return json.loads(json.dumps(event))


def check_entry(handlers: Any, event: Any) -> None:
    context = SimpleNamespace(aws_request_id="aws-0001")
    reply = handlers["entry"](sent(event), context)

    found = json.loads(reply)
    if "statusCode" in found:
        found = json.loads(found["body"])
    assert len(reply) < RULE["payload_bytes"] * 2
    assert "Traceback" not in reply.decode()
    if found["status"] == 200:
        assert found["outputs"].keys() == {"y"}
    else:
        assert found["error"]["type"] not in OURS, (event, found)
        assert found["error"]["message"]
        assert 400 <= found["status"] < 500 or "slice" in found["error"], (event, found)


def check_slice(handlers: Any, name: str, event: Any) -> None:
    reply = handlers[name](sent(event), None)

    found = json.loads(reply)
    assert "Traceback" not in reply.decode()
    if "error" in found:
        assert found["error"]["type"] not in OURS, (event, found)
        assert found["error"]["message"]
    else:
        assert "trace" in found


def fuzz(handlers: Any, examples: int) -> None:
    """So many events, half of them to the entry point."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def cases(count: int) -> Any:
        return settings(
            max_examples=count,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        )

    @cases(examples // 2)
    @given(JSON | changed(REQUEST) | changed({"requestContext": {"http": {}}, "body": "{}"}))
    def entry(event: Any) -> None:
        check_entry(handlers, event)

    @cases(examples // 2)
    @given(
        st.sampled_from(sorted(MESSAGES)).flatmap(
            lambda n: st.tuples(st.just(n), JSON | changed(MESSAGES[n]))
        )
    )
    def slices(case: Any) -> None:
        check_slice(handlers, *case)

    entry()
    slices()
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < MOST_MB


def test_the_events_that_are_changed_are_answered(handlers: Any) -> None:
    """Otherwise the fuzzing would never get beyond the first check."""
    reply = json.loads(handlers["entry"](REQUEST, SimpleNamespace(aws_request_id="aws-0001")))
    assert reply["status"] == 200
    for name, message in MESSAGES.items():
        assert "tensors" in json.loads(handlers[name](sent(message), None))


def test_bad_input_is_answered(handlers: Any) -> None:
    fuzz(handlers, 600)


@pytest.mark.slow
def test_very_much_bad_input_is_answered(handlers: Any) -> None:
    fuzz(handlers, 20_000)
