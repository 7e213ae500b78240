"""Bodies of the Open Inference Protocol that no client of it would send: each refusal says why."""

from __future__ import annotations

import base64
import importlib
import json
import zlib
from typing import Any

import numpy as np
import pytest

protocol = importlib.import_module("slicewise.targets.lambda.runtime.inference_protocol")
url = importlib.import_module("slicewise.targets.lambda.runtime.url")

PLAN = {
    "id": "p1",
    "model": "M",
    "slicewise": "0",
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 2]}],
    "outputs": [{"name": "y", "tensor": "last", "dtype": "float32", "shape": ["batch", 2]}],
    "rule": {"payload_bytes": 2000},
}
RAW = np.array([[1, 2]], np.float32).tobytes()
X = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
BINARY = {**X, "parameters": {"binary_data_size": 8}}


def ask(head: Any, raw: bytes = b"", y: np.ndarray | None = None, **headers: str) -> Any:
    """Status, JSON and bytes of the reply of a model that answers `y`, or its input."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    fields = {"inference-header-content-length": str(len(text)), **headers}

    def call(event: dict[str, Any]) -> dict[str, Any]:
        record = event["inputs"]["x"]
        array = np.frombuffer(base64.b64decode(record["data"]), np.float32) if y is None else y
        data = base64.b64encode(array.tobytes())
        out = {"dtype": "float32", "shape": list(array.shape), "bytes": array.nbytes, "data": data}
        return {"status": 200, "outputs": {"y": out}}

    request = protocol.HttpRequest("POST", "/v2/models/M/infer", fields, text + raw)
    reply = protocol.answer(request, PLAN, call)
    size = int(reply.headers.get("inference-header-content-length", len(reply.body)))
    return reply.status, json.loads(reply.body[:size]), reply.body[size:]


BAD: dict[str, tuple[Any, bytes, str]] = {
    "no JSON": (b"{", b"", "no JSON"),
    "a list": ([], b"", "expected an object"),
    "deep": (b"[" * 100_000, b"", "no JSON"),
    "no inputs": ({}, b"", "'inputs' is missing"),
    "inputs are an object": ({"inputs": {"x": X}}, b"", "no list of tensors"),
    "no name": ({"inputs": [{"shape": []}]}, b"", "no list of tensors"),
    "twice": ({"inputs": [BINARY, BINARY]}, RAW * 2, "twice"),
    "another tensor": ({"inputs": [{**X, "name": "z"}]}, b"", "unknown input 'z'"),
    "another type": ({"inputs": [{**BINARY, "datatype": "FP64"}]}, RAW, "the model takes FP32"),
    "no shape": ({"inputs": [{**BINARY, "shape": 3}]}, RAW, "expected a list"),
    "no data": ({"inputs": [X]}, b"", "neither"),
    "text as data": ({"inputs": [{**X, "data": "AAAA"}]}, b"", "neither"),
    "data twice": ({"inputs": [{**BINARY, "data": [1, 2]}]}, RAW, "'data', too"),
    "too few bytes": ({"inputs": [BINARY]}, RAW[:-1], "7 bytes are left"),
    "too many bytes": ({"inputs": [BINARY]}, RAW + b"1", "1 bytes follow"),
    "negative size": (
        {"inputs": [{**X, "parameters": {"binary_data_size": -1}}]}, RAW, "binary_data_size is -1"),
    "size is true": (
        {"inputs": [{**X, "parameters": {"binary_data_size": True}}]}, RAW, "is True"),
    "parameters": ({"inputs": [{**X, "parameters": [1]}]}, RAW, "expected an object"),
    "shared memory": (
        {"inputs": [{**X, "parameters": {"shared_memory_region": "r"}}]}, b"", "not supported"),
    "an unknown field": ({"inputs": [BINARY], "trace": 1}, RAW, "unknown field 'trace'"),
    "an id that is no text": ({"inputs": [BINARY], "id": 1}, RAW, "expected a string"),
    "another output": ({"inputs": [BINARY], "outputs": [{"name": "z"}]}, RAW, "unknown output"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_refused_with_400_and_a_reason(name: str) -> None:
    head, raw, words = BAD[name]

    status, body, _ = ask(head, raw)

    assert (status, words in body["error"]) == (400, True), body


@pytest.mark.parametrize("length", ["-1", "abc", "9" * 30, "100000", "1e3", ""])
def test_a_length_of_the_json_that_cannot_be_is_refused(length: str) -> None:
    fields = {"inference-header-content-length": length}
    status, body, _ = ask({"inputs": [BINARY]}, RAW, None, **fields)
    assert status == 400
    assert "Inference-Header-Content-Length" in body["error"]


def test_the_json_and_the_bytes_of_a_reply() -> None:
    plain = ask({"inputs": [BINARY]}, RAW)
    binary = ask({"inputs": [BINARY], "parameters": {"binary_data_output": True}, "id": "7"}, RAW)

    assert plain[1]["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}
    ]
    assert (plain[2], binary[2]) == (b"", RAW)
    assert binary[1]["id"] == "7"
    assert binary[1]["outputs"][0]["parameters"] == {"binary_data_size": 8}


def test_what_json_cannot_say_is_refused() -> None:
    status, body, _ = ask({"inputs": [BINARY]}, RAW, np.array([np.nan], np.float32))
    assert status == 400
    assert "binary_data" in body["error"]


def test_a_reply_that_is_too_long_is_refused_with_its_size() -> None:
    wanted = {"inputs": [BINARY], "parameters": {"binary_data_output": True}}
    status, body, _ = ask(wanted, RAW, np.zeros(400, np.float32))
    assert status == 413
    assert "at most 1,500" in body["error"]


def test_a_small_body_that_inflates_without_end_is_refused() -> None:
    bomb = zlib.compress(bytes(10_000_000))
    request = protocol.HttpRequest(
        "POST", "/v2/models/M/infer", {"content-encoding": "deflate"}, bomb
    )
    reply = protocol.answer(request, PLAN, lambda _: {})
    assert reply.status == 413
    for body, encoding in ((b"x", "gzip"), (bomb[:50], "deflate")):
        request = protocol.HttpRequest(
            "POST", "/v2/models/M/infer", {"content-encoding": encoding}, body
        )
        assert protocol.answer(request, PLAN, lambda _: {}).status in (400, 413)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200),
        ("GET", "/v2/", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/models/M/versions/p1", 200),
        ("GET", "/v2/models/M/versions/p2", 404),
        ("GET", "/v2/models/M/versions", 404),
        ("GET", "/v2/models/M/config", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/other", 404),
        ("POST", "/v2", 405),
        ("GET", "/v2/models/M/infer", 405),
    ],
)
def test_paths_and_methods(method: str, path: str, status: int) -> None:
    request = protocol.HttpRequest(method, path, {}, b"")
    assert protocol.answer(request, PLAN, lambda _: {}).status == status


@pytest.mark.parametrize(
    "event",
    [
        {"requestContext": {"http": {}}, "headers": None},
        {"requestContext": {"http": {}}, "body": 7, "isBase64Encoded": True},
        {"requestContext": {"http": {}}, "body": "é", "isBase64Encoded": True},
        {"requestContext": {"http": {}}, "rawPath": 5},
    ],
)
def test_an_event_that_only_looks_like_http_is_refused(event: Any) -> None:
    handler = url.answering_http(lambda *_: b"", PLAN, None)
    assert json.loads(handler(event, None))["statusCode"] in (400, 405)
