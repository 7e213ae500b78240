"""Requests: what a caller may send, and that nothing else gets past the check."""

from __future__ import annotations

import base64
import importlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

request = importlib.import_module("slicewise.targets.lambda.runtime.request")
wire = importlib.import_module("slicewise.targets.lambda.runtime.wire")
BadRequest = request.BadRequest

ID = "0123abcd"
SPECS = [
    {"name": "ids", "dtype": "int64", "shape": ["batch", 3]},
    {"name": "mask", "dtype": "bool", "shape": ["batch"]},
    {"name": "scale", "dtype": "float32", "shape": []},
]
DIMS = {"batch": {"min": 1, "max": 4}}


def encoded(array: np.ndarray) -> dict[str, Any]:
    return {
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "data": base64.b64encode(array.tobytes()).decode(),
    }


GOOD: dict[str, Any] = {
    "ids": encoded(np.arange(6).reshape(2, 3)),
    "mask": {"data": [True, False]},
    "scale": {"data": 0.5},
}


def check(event: Any) -> dict[str, Any]:
    records: dict[str, Any] = request.check_request(event, SPECS, DIMS, ID)
    return records


def checked(**changes: Any) -> dict[str, np.ndarray]:
    """The arrays of the good request with some tensors replaced."""
    event = json.loads(json.dumps({"inputs": {**GOOD, **changes}}))
    return {
        name: wire.from_bytes(wire.decode_inline(name, record), record)
        for name, record in check(event).items()
    }


def test_base64_and_nested_lists_give_the_same_arrays() -> None:
    arrays = checked(mask=encoded(np.array([True, False])))

    np.testing.assert_array_equal(arrays["ids"], np.arange(6).reshape(2, 3))
    assert arrays["mask"].tolist() == checked()["mask"].tolist() == [True, False]
    assert arrays["scale"].shape == ()
    assert checked(ids={"data": [[0, 1, 2], [3, 4, 5]]})["ids"].dtype == np.int64


def test_the_records_are_complete() -> None:
    for name, record in check({"inputs": GOOD}).items():
        wire.check_record(name, record)
        wire.check_bytes(name, record, wire.decode_inline(name, record))


def test_large_whole_numbers_keep_every_digit() -> None:
    big = [[2**63 - 1, -(2**63), 2**53 + 1]]

    assert checked(ids={"data": big}, mask={"data": [True]})["ids"].tolist() == big


def test_floats_that_are_whole_become_ints() -> None:
    assert checked(ids={"data": [[1.0, 2, 3.0]] * 2})["ids"].tolist() == [[1, 2, 3]] * 2


def test_nan_and_infinity_are_floats() -> None:
    assert math.isnan(checked(scale={"data": math.nan})["scale"])
    assert math.isinf(checked(scale={"data": math.inf})["scale"])


@pytest.mark.parametrize("event", [None, [], "x", 3, True])
def test_a_request_is_an_object(event: Any) -> None:
    with pytest.raises(BadRequest, match="expected an object"):
        check(event)


@pytest.mark.parametrize(
    ("event", "field", "text"),
    [
        ({}, "inputs", "'inputs' is missing"),
        ({"inputs": [1]}, "inputs", "'inputs' is missing"),
        ({"inputs": GOOD, "input": 1}, "input", "unknown field 'input'"),
        ({"inputs": {**GOOD, "y": 1}}, "y", "unknown tensor 'y'; the model takes ids, mask"),
        ({"inputs": {"ids": GOOD["ids"]}}, "mask", "'mask' is missing"),
    ],
)
def test_fields_are_checked_by_name(event: Any, field: str, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check(event)

    assert (caught.value.field, caught.value.status) == (field, 400)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tensor", "text"),
    [
        ("ids", None, "a tensor is a JSON object"),
        ("ids", [[1, 2, 3]], "a tensor is a JSON object"),
        ("ids", {"data": [[1, 2, 3]] * 2, "type": "int64"}, "unknown field 'type'"),
        ("ids", {"data": [[1, 2, 3]] * 2, "wire_dtype": "float16"}, "unknown field 'wire_dtype'"),
        ("ids", {"data": [[1, 2, 3]] * 2, "compression": "zlib"}, "unknown field 'compression'"),
        ("ids", {}, "dtype None"),
        ("ids", {**GOOD["ids"], "dtype": "int32"}, "dtype is 'int32'"),
        ("ids", encoded(np.zeros((2, 3), np.int32)), "dtype is 'int32', the model takes int64"),
        ("ids", {"data": [[1, 2, 3]] * 2, "dtype": "int32"}, "the model takes int64"),
        ("ids", encoded(np.zeros(6, np.int64)), "has 1 dimensions, expected ['batch', 3]"),
        ("ids", encoded(np.zeros((2, 4), np.int64)), "shape is [2, 4], expected ['batch', 3]"),
        ("ids", encoded(np.zeros((5, 3), np.int64)), "batch is 5; the plan was made for 1 to 4"),
        ("ids", encoded(np.zeros((0, 3), np.int64)), "batch is 0; the plan was made for 1 to 4"),
        ("mask", {"data": [True]}, "batch is 1, but ids has 2"),
        ("ids", {"data": [[1, 2, math.nan]] * 2}, "NaN, infinity or a fraction cannot be int64"),
        ("ids", {"data": [[1, 2, math.inf]] * 2}, "NaN, infinity or a fraction cannot be int64"),
        ("ids", {"data": [[1, 2, 0.5]] * 2}, "NaN, infinity or a fraction cannot be int64"),
        ("ids", {"data": [[1, 2, 2**63]] * 2}, "outside int64's"),
        ("ids", {"data": [[1, 2, float(2**63)]] * 2}, "outside int64's"),
        ("ids", {"data": [[1, 2, 2**70]] * 2}, "something other than numbers"),
        ("ids", {"data": [[1, 2, "3"]] * 2}, "something other than numbers"),
        ("ids", {"data": [[1, 2, None]] * 2}, "something other than numbers"),
        ("ids", {"data": [[1, 2, 3], [4, 5]]}, "the nested lists are not a tensor"),
        ("ids", {"data": []}, "has 1 dimensions"),
        ("ids", {"data": [[1, 2, 3]] * 2, "shape": [3, 2]}, "shape says [3, 2], the lists make"),
        ("mask", {"data": [2, 0]}, "outside bool's 0..1"),
        ("mask", {"dtype": "bool", "shape": [2], "data": "AgA="}, "neither 0 nor 1"),
        ("scale", {"data": 1e39}, "outside float32's range"),
        ("scale", {"data": None}, "dtype None"),
        ("scale", {"data": {"x": 1}}, "dtype None"),
        ("ids", {**GOOD["ids"], "data": "%%%%" * 16}, "not valid base64"),
        ("ids", {**GOOD["ids"], "data": GOOD["ids"]["data"][:-4]}, "data is not 64 characters"),
        ("ids", {**GOOD["ids"], "bytes": 47}, "bytes is 47"),
        ("ids", {**GOOD["ids"], "sha256": "0" * 64}, "the checksum differs"),
        ("ids", {**GOOD["ids"], "dtype": []}, "dtype [] is not one of"),
        ("ids", {**GOOD["ids"], "shape": [-1, -6]}, "something other than sizes"),
        ("ids", {"dtype": "int64", "shape": [2, 3]}, "neither 'data' nor a valid 's3' key"),
        (
            "ids",
            {"dtype": "int64", "shape": [2, 3], "s3": "requests/other/ids", "sha256": "0"},
            "neither 'data' nor a valid 's3' key of this request",
        ),
    ],
)
def test_a_bad_tensor_is_refused_by_name(name: str, tensor: Any, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check({"inputs": {**GOOD, name: tensor}})

    assert (caught.value.field, caught.value.status) == (name, 400)
    assert text in str(caught.value)


def test_a_tensor_in_s3_lies_under_the_requests_own_key() -> None:
    key = f"requests/{ID}/ids"
    tensor = {"dtype": "int64", "shape": [2, 3], "s3": key, "sha256": "0" * 64}

    assert check({"inputs": {**GOOD, "ids": tensor}})["ids"]["s3"] == key


def test_no_key_rides_along_with_inline_data() -> None:
    """The coordinator deletes every key among a request's records, so none may be smuggled in."""
    for key in ("requests/another-one/ids", f"requests/{ID}/ids"):
        with pytest.raises(BadRequest, match="both 'data' and 's3'"):
            check({"inputs": {**GOOD, "ids": {**GOOD["ids"], "s3": key}}})


@pytest.mark.parametrize("given_id", ["short", "a" * 65, "../../etc/passwd", "-starts-bad", "", 7])
def test_a_request_id_is_a_plain_word(given_id: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        request.request_id_of({"request_id": given_id}, "default")

    assert caught.value.field == "request_id"


def test_the_callers_request_id_is_kept_or_made() -> None:
    assert request.request_id_of({"request_id": ID}, "default") == ID
    events: list[Any] = [{}, {"request_id": None}, [], "x", None]
    for event in events:
        assert request.request_id_of(event, "default") == "default"


def test_an_error_never_echoes_a_large_request() -> None:
    long = "A" * 10**6
    for event in (
        {long: 1},
        {"inputs": {long: 1}},
        {"inputs": {**GOOD, "ids": {**GOOD["ids"], "dtype": long}}},
        {"inputs": {**GOOD, "ids": {long: 1}}},
        {"inputs": {**GOOD, "ids": {"data": [[1, 2, 3]], "shape": [1] * 10**5}}},
        {"inputs": {**GOOD, "ids": {**GOOD["ids"], "sha256": long}}},
        {"inputs": {**GOOD, "ids": {**GOOD["ids"], "bytes": long}}},
    ):
        with pytest.raises(BadRequest) as caught:
            check(event)

        assert len(str(caught.value)) + len(caught.value.field) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(sorted(wire.ITEM_BYTES)) | JSON,
        "shape": st.lists(st.integers(-2, 5), max_size=4) | JSON,
        "bytes": st.integers(-1, 64) | JSON,
        "sha256": JSON,
        "data": st.text("ABab=/+", max_size=32) | st.lists(st.lists(st.integers())) | JSON,
        "s3": st.just(f"requests/{ID}/ids") | JSON,
    },
)
INPUTS = st.fixed_dictionaries(
    {"ids": TENSORS | JSON, "mask": TENSORS | JSON, "scale": TENSORS | JSON}
)


@given(JSON | st.fixed_dictionaries({"inputs": INPUTS | JSON}, optional={"request_id": JSON}))
def test_anything_else_is_a_bad_request_and_nothing_worse(event: Any) -> None:
    try:
        request.request_id_of(event, ID)
        records = check(event)
    except BadRequest as error:
        assert 400 <= error.status < 500
        json.dumps([error.field, str(error)])
    else:
        assert [*records] == ["ids", "mask", "scale"]


@pytest.mark.parametrize(
    ("size", "good", "bad"),
    [
        ("2*batch", 6, 5),
        ("batch + 1", 4, 3),
        ("batch//2", 1, 2),
        ("-batch + 5", 2, 3),
        ("Mod(batch, other)", 7, None),  # only the slice can tell
    ],
)
def test_a_size_that_follows_from_another_is_checked(size: str, good: int, bad: int | None) -> None:
    specs = [
        {"name": "first", "dtype": "float32", "shape": [size]},  # before the one it follows from
        {"name": "x", "dtype": "float32", "shape": ["batch"]},
    ]

    def sent(count: int) -> Any:
        inputs = {"first": {"data": [0.5] * count}, "x": {"data": [0.5] * 3}}
        return request.check_request({"inputs": inputs}, specs, DIMS, ID)

    sent(good)
    if bad is not None:
        with pytest.raises(BadRequest, match=r"first: shape is .* batch is 3") as caught:
            sent(bad)
        assert (caught.value.field, caught.value.status) == ("first", 400)


@pytest.mark.parametrize("encode", [False, True])
def test_a_request_through_the_functions_url_is_the_http_requests_body(encode: bool) -> None:
    body = json.dumps({"inputs": GOOD})
    event = {
        "version": "2.0",
        "requestContext": {"http": {"method": "POST"}},
        "body": base64.b64encode(body.encode()).decode() if encode else body,
        "isBase64Encoded": encode,
    }

    assert request.body_of(event) == {"inputs": GOOD}
    assert request.body_of({"inputs": GOOD}) == {"inputs": GOOD}


@pytest.mark.parametrize("body", [None, "", "no JSON", "ÿ"])
def test_an_http_request_without_json_is_refused(body: str | None) -> None:
    with pytest.raises(BadRequest, match="is no JSON") as refused:
        request.body_of({"requestContext": {}, "body": body})
    assert refused.value.field == "body"
