"""The handler of a slice: what it refuses before it allocates, and what a repeated call gets."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

arrays = importlib.import_module("slicewise.targets.lambda.runtime.arrays")
messages = importlib.import_module("slicewise.targets.lambda.runtime.messages")
rule = importlib.import_module("slicewise.targets.lambda.runtime.rule")
slice_module = importlib.import_module("slicewise.targets.lambda.runtime.slice")
wire = importlib.import_module("slicewise.targets.lambda.runtime.wire")

ID = "0123abcd"
PAYLOAD = (("payload", None),)


def write_model(directory: Path) -> None:
    """y = x + x, n rows of two."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "twice",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, directory / "model.onnx")


@pytest.fixture
def handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
    write_model(tmp_path)
    edge = slice_module.Edge
    return slice_module.slice_handler(
        name="a",
        plan="plan",
        directory=tmp_path,
        inputs=[edge("x", "float32", ("n", 2), "@input", "payload", PAYLOAD)],
        outputs=[edge("y", "float32", ("n", 2), "@output", "payload", PAYLOAD)],
        rule=rule.Rule(("payload",), 100_000),
    )


@pytest.fixture
def call(handler: Any) -> Callable[..., Any]:
    def call(record: Any, **fields: Any) -> Any:
        event = {"request_id": ID, "plan": "plan", "tensors": {"x": record}, **fields}
        return json.loads(handler(json.loads(json.dumps(event)), None))

    return call


def record(array: np.ndarray, **changes: Any) -> Any:
    raw = arrays.to_bytes(array, str(array.dtype))
    found = wire.inline(wire.describe(array, raw, str(array.dtype)), raw)
    return {**found, "data": found["data"].decode(), **changes}


X = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_a_reply_says_whose_it_is(call: Callable[..., Any]) -> None:
    found = call(record(X))

    assert (found["slice"], found["plan"], found["request_id"]) == ("a", "plan", ID)
    assert found["tensors"]["y"]["tensor"] == "y"


HUGE = {"shape": [2**39, 2], "bytes": 2**42, "s3": f"requests/{ID}/x"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (record(X.astype(np.int32)), r"x: int32\[3, 2\] arrived; the plan says float32\['n', 2\]"),
        (record(X.reshape(2, 3)), r"x: float32\[2, 3\] arrived"),
        (record(X.reshape(6)), r"x: float32\[6\] arrived"),
        (record(X, tensor="z"), "x: this is the tensor 'z'; the two were swapped"),
        (record(X, etag="a\r\nb"), "x: etag .* is none that S3 gives"),
        (record(X, **HUGE), "x: 4398046511104 bytes are more than the function's 128 MB"),
        ("?", "x: a tensor is a JSON object"),
    ],
)
def test_what_the_plan_does_not_have_is_refused(
    changed: Any, words: str, call: Callable[..., Any]
) -> None:
    problem = call(changed)["error"]

    assert problem["type"] == "WireError"
    assert re.search(words, problem["message"])


def test_a_repeated_call_is_not_computed_again(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same id with another tensor is a call of its own."""
    ran = []
    run = slice_module.run_session

    def counted(*arguments: Any) -> Any:
        ran.append(1)
        return run(*arguments)

    monkeypatch.setattr(slice_module, "run_session", counted)
    first = call(record(X))

    assert call(record(X)) == first
    assert len(ran) == 1
    assert call(record(X + 1))["tensors"] != first["tensors"]
    assert call(record(X), request_id="another-one")["request_id"] == "another-one"
    assert len(ran) == 3


@pytest.mark.parametrize("remaining", [0, -1])
def test_nothing_is_computed_that_nobody_waits_for(
    remaining: int, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_module, "run_session", None)

    problem = call(record(X), remaining_ms=remaining)["error"]

    assert problem["type"] == "DeadlineExceeded"
    assert "after the request's deadline" in problem["message"]
    assert call(record(X), remaining_ms="1")["error"]["type"] == "ValueError"
