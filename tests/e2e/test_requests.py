"""Bad input to a served model: a clear refusal that names the field, and the next request works."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
import torch
from botocore.exceptions import ClientError
from torch import nn

import slicewise

GOOD_X = {"data": [[0.0] * 8] * 2}
GOOD_MASK = {"data": [1, 0]}
F32 = base64.b64encode(np.zeros((2, 8), np.float32).tobytes()).decode()


def post(endpoint: Any, body: bytes) -> dict[str, Any]:
    answer = endpoint.platform.client("lambda").invoke(FunctionName=endpoint.function, Payload=body)
    assert "FunctionError" not in answer
    reply: dict[str, Any] = json.loads(answer["Payload"].read())
    return reply


BAD = {
    "missing tensor": ({"inputs": {"x": GOOD_X}}, "mask", "missing"),
    "unknown tensor": (
        {"inputs": {"x": GOOD_X, "mask": GOOD_MASK, "y": GOOD_X}}, "y", "unknown"),
    "unknown field": ({"inputs": {"x": GOOD_X, "mask": GOOD_MASK}, "extra": 1}, "extra", "unknown"),
    "no inputs": ({}, "inputs", "missing"),
    "not an object": ([1, 2], "", "object"),
    "wrong dtype": (
        {"inputs": {"x": {"dtype": "float64", "shape": [2, 8], "data": F32}, "mask": GOOD_MASK}},
        "x", "float32"),
    "wrong rank": ({"inputs": {"x": {"data": [0.0] * 8}, "mask": GOOD_MASK}}, "x", "dimensions"),
    "wrong size": ({"inputs": {"x": {"data": [[0.0] * 7] * 2}, "mask": GOOD_MASK}}, "x", "shape"),
    "batch too large": (
        {"inputs": {"x": {"data": [[0.0] * 8] * 81}, "mask": {"data": [1] * 81}}}, "x", "batch is 81"),
    "batches differ": ({"inputs": {"x": GOOD_X, "mask": {"data": [1, 0, 1]}}}, "mask", "batch"),
    "infinity in ints": ({"inputs": {"x": GOOD_X, "mask": {"data": [1, "INFINITY"]}}}, "mask", "int64"),
    "fraction in ints": ({"inputs": {"x": GOOD_X, "mask": {"data": [1, 0.5]}}}, "mask", "int64"),
    "ragged lists": ({"inputs": {"x": {"data": [[0.0] * 8, [0.0]]}, "mask": GOOD_MASK}}, "x", "x"),
    "text in lists": ({"inputs": {"x": {"data": [["a"] * 8] * 2}, "mask": GOOD_MASK}}, "x", "numbers"),
    "malformed base64": (
        {"inputs": {"x": {"dtype": "float32", "shape": [2, 8], "data": "!" * len(F32)},
                    "mask": GOOD_MASK}}, "x", "base64"),
    "too few bytes": (
        {"inputs": {"x": {"dtype": "float32", "shape": [2, 8], "data": F32[:-4]}, "mask": GOOD_MASK}},
        "x", "base64"),
    "wrong checksum": (
        {"inputs": {"x": {"dtype": "float32", "shape": [2, 8], "data": F32, "sha256": "0" * 64},
                    "mask": GOOD_MASK}}, "x", "checksum"),
    "foreign S3 key": (
        {"inputs": {"x": {"dtype": "float32", "shape": [2, 8], "s3": "requests/other/x",
                          "sha256": "0" * 64}, "mask": GOOD_MASK}}, "x", "s3"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_by_name_and_the_next_one_works(wide: Any, name: str) -> None:
    request, field, words = BAD[name]

    reply = post(wide, json.dumps(request).replace('"INFINITY"', "1e999").encode())

    assert reply["status"] == 400
    assert reply["error"]["field"] == field
    assert words in reply["error"]["message"]
    assert "Traceback" not in json.dumps(reply)
    good = {"inputs": {"x": GOOD_X, "mask": GOOD_MASK}}
    assert post(wide, json.dumps(good).encode())["status"] == 200


def test_a_body_of_7_mb_is_refused_with_413(wide: Any) -> None:
    client = wide.platform.client("lambda")
    with pytest.raises(ClientError) as refusal:
        client.invoke(FunctionName=wide.function, Payload=b'"' + b"x" * 7_000_000 + b'"')
    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413
    assert wide(torch.zeros(1, 8), torch.ones(1, dtype=torch.int64))["narrow"].shape == (1, 8)


@pytest.mark.parametrize("body", [b"{not json", b'{"inputs": {"mask": {"data": [1, NaN]}}}'])
def test_a_body_that_is_not_json_is_refused_with_400(wide: Any, body: bytes) -> None:
    client = wide.platform.client("lambda")
    with pytest.raises(ClientError, match="InvalidRequestContent") as refusal:
        client.invoke(FunctionName=wide.function, Payload=body)
    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert wide(torch.zeros(1, 8), torch.ones(1, dtype=torch.int64))["narrow"].shape == (1, 8)


def test_the_callable_refuses_bad_arguments_like_a_function(wide: Any) -> None:
    x, mask = torch.zeros(2, 8), torch.ones(2, dtype=torch.int64)
    with pytest.raises(slicewise.RequestError, match="missing field 'mask'"):
        wide(x)
    with pytest.raises(slicewise.RequestError, match="unknown field 'z'"):
        wide(x, mask, z=x)
    with pytest.raises(slicewise.RequestError, match="float64") as refusal:
        wide(x.double(), mask)
    assert refusal.value.status == 400
    assert refusal.value.field == "x"


def test_numpy_in_numpy_out(wide: Any, wide_model: nn.Module) -> None:
    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)
    mask = np.array([1, 0, 1])
    found = wide(x=x, mask=mask)
    assert isinstance(found["narrow"], np.ndarray)
    with torch.no_grad():
        expected = wide_model(torch.tensor(x), torch.tensor(mask))["narrow"].numpy()
    np.testing.assert_allclose(found["narrow"], expected, atol=1e-5)
