"""Transports against a real S3 protocol: what is put is what is received, and keys stay apart."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import boto3
import numpy as np
import pytest
from moto import mock_aws

transport = importlib.import_module("slicewise.targets.lambda.runtime.transport")
rule = importlib.import_module("slicewise.targets.lambda.runtime.rule")
wire = importlib.import_module("slicewise.targets.lambda.runtime.wire")

ID = "0123abcd"
RULE = rule.Rule(("payload", "s3"), 100, 100_000)
ARRAYS: dict[str, np.ndarray] = {
    "small": np.arange(3, dtype=np.int64),
    "large": np.linspace(0, 1, 400, dtype=np.float32).reshape(4, 100),
    "half": np.linspace(0, 1, 400, dtype=np.float32),
}
DTYPES = {"small": "int64", "large": "float32", "half": "bfloat16"}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        yield transport.Store("bucket", client)


def keys(store: Any) -> list[str]:
    listed = store.client.list_objects_v2(Bucket="bucket").get("Contents", [])
    return sorted(entry["Key"] for entry in listed)


def test_tensors_arrive_by_either_transport(store: Any) -> None:
    records = transport.send(ARRAYS, DTYPES, ID, RULE, store)
    back = transport.receive(records, ID, store)

    assert {name for name, record in records.items() if "data" in record} == {"small"}
    assert keys(store) == sorted(transport.keys_of(records))
    for name in ("small", "large"):
        np.testing.assert_array_equal(back[name], ARRAYS[name])
    np.testing.assert_allclose(back["half"], ARRAYS["half"], rtol=2**-8)


def test_keys_are_scoped_by_request_and_deleted_together(store: Any) -> None:
    records = transport.send(ARRAYS, DTYPES, ID, RULE, store)
    transport.send(ARRAYS, DTYPES, "another-one", RULE, store)

    store.delete(transport.keys_of(records))
    store.delete(["requests/never/was"])

    assert keys(store) == ["requests/another-one/half", "requests/another-one/large"]


def test_a_key_of_another_request_is_never_read(store: Any) -> None:
    records = transport.send(ARRAYS, DTYPES, "another-one", RULE, store)

    with pytest.raises(wire.WireError, match="is not one of this request"):
        transport.receive({"large": records["large"]}, ID, store)


def test_a_tensor_swapped_for_another_is_noticed(store: Any) -> None:
    records = transport.send(ARRAYS, DTYPES, ID, RULE, store)
    store.client.put_object(Bucket="bucket", Key=records["large"]["s3"], Body=b"\0" * 1600)

    with pytest.raises(wire.WireError, match="large: the checksum differs"):
        transport.receive(records, ID, store)


def test_a_truncated_object_is_noticed(store: Any) -> None:
    records = transport.send(ARRAYS, DTYPES, ID, RULE, store)
    store.client.put_object(Bucket="bucket", Key=records["large"]["s3"], Body=b"\0" * 1599)

    with pytest.raises(wire.WireError, match="large: 1599 bytes arrived, 1600 were sent"):
        transport.receive(records, ID, store)


def test_an_object_is_never_overwritten(store: Any) -> None:
    transport.send(ARRAYS, DTYPES, ID, RULE, store)

    with pytest.raises(store.client.exceptions.ClientError, match="PreconditionFailed"):
        transport.send(ARRAYS, DTYPES, ID, RULE, store)


def test_a_missing_bucket_setting_is_named() -> None:
    with pytest.raises(RuntimeError, match="SLICEWISE_BUCKET is not set"):
        transport.Store("").put("key", b"")


def test_more_keys_than_one_call_takes_are_deleted(store: Any) -> None:
    for index in range(3):
        store.put(f"k{index}", b"")

    store.delete([f"k{index}" for index in range(1500)])

    assert keys(store) == []
