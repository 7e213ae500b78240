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
store_module = importlib.import_module("slicewise.targets.lambda.runtime.store")
rule = importlib.import_module("slicewise.targets.lambda.runtime.rule")
wire = importlib.import_module("slicewise.targets.lambda.runtime.wire")

ID = "0123abcd"
RULE = rule.Rule(("payload", "s3"), 100_000)
ARRAYS: dict[str, np.ndarray] = {
    "small": np.arange(3, dtype=np.int64),
    "large": np.linspace(0, 1, 400, dtype=np.float32).reshape(4, 100),
    "half": np.linspace(0, 1, 400, dtype=np.float32),
}
CHOICES = dict.fromkeys(ARRAYS, (("payload", 100), ("s3", None)))
DTYPES = {"small": "int64", "large": "float32", "half": "bfloat16"}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        yield store_module.Store({"s3": "bucket"}, client)


def keys(store: Any) -> list[str]:
    listed = store.client.list_objects_v2(Bucket="bucket").get("Contents", [])
    return sorted(entry["Key"] for entry in listed)


def test_tensors_arrive_by_either_transport(store: Any) -> None:
    records = transport.send(ARRAYS, DTYPES, ID, CHOICES, RULE, store)
    places = store_module.objects_of(records)
    inline = {name for name, record in records.items() if "data" in record}
    back = transport.receive(records, ID, store)

    assert not records
    assert inline == {"small"}
    assert keys(store) == sorted(place.key for place in places)
    for name in ("small", "large"):
        np.testing.assert_array_equal(back[name], ARRAYS[name])
    np.testing.assert_allclose(back["half"], ARRAYS["half"], rtol=2**-8)


def test_keys_are_scoped_by_request_and_deleted_together(store: Any) -> None:
    records = transport.send(ARRAYS, DTYPES, ID, CHOICES, RULE, store)
    transport.send(ARRAYS, DTYPES, "another-one", CHOICES, RULE, store)

    store.delete(store_module.objects_of(records))
    store.delete([store_module.Object("s3", "requests/never/was")])

    assert keys(store) == ["requests/another-one/half", "requests/another-one/large"]


def test_a_key_of_another_request_is_never_read(store: Any) -> None:
    records = transport.send(ARRAYS, DTYPES, "another-one", CHOICES, RULE, store)

    with pytest.raises(wire.WireError, match="is not one of this request"):
        transport.receive({"large": records["large"]}, ID, store)


def test_a_tensor_swapped_for_another_is_noticed(store: Any) -> None:
    records = transport.send(ARRAYS, DTYPES, ID, CHOICES, RULE, store)
    store.client.put_object(Bucket="bucket", Key=records["large"]["s3"], Body=b"\0" * 1600)

    with pytest.raises(wire.WireError, match="large: the checksum differs"):
        transport.receive(records, ID, store)


def test_a_truncated_object_is_noticed(store: Any) -> None:
    records = transport.send(ARRAYS, DTYPES, ID, CHOICES, RULE, store)
    store.client.put_object(Bucket="bucket", Key=records["large"]["s3"], Body=b"\0" * 1599)

    with pytest.raises(wire.WireError, match="large: 1599 bytes arrived, 1600 were sent"):
        transport.receive(records, ID, store)


def test_an_object_is_never_overwritten(store: Any) -> None:
    transport.send(ARRAYS, DTYPES, ID, CHOICES, RULE, store)

    for other in (ARRAYS["large"] + 1, ARRAYS["large"][:3]):
        with pytest.raises(store.client.exceptions.ClientError, match="PreconditionFailed"):
            transport.send({"large": other}, DTYPES, ID, CHOICES, RULE, store)

    found = store.client.get_object(Bucket="bucket", Key=f"requests/{ID}/large")["Body"].read()
    assert found == ARRAYS["large"].tobytes()


@pytest.mark.parametrize("size", [0, 1, store_module.COMPARE_BYTES * 2 + 1])
def test_a_put_that_boto_repeats_meets_its_own_object(store: Any, size: int) -> None:
    """The first attempt succeeds and its answer is lost."""
    statuses = []

    def lost_once(response: Any, attempts: int, **_: Any) -> int | None:
        statuses.append(response[0].status_code)
        return 0 if attempts == 1 else None

    store.client.meta.events.register("needs-retry.s3.PutObject", lost_once)
    raw = np.random.default_rng(0).bytes(size)

    store.start_put(store_module.Object("s3", "key"), raw).result()

    assert statuses == [200, 412]
    assert store.client.get_object(Bucket="bucket", Key="key")["Body"].read() == raw


def test_the_last_byte_of_an_object_counts(store: Any) -> None:
    raw = np.random.default_rng(0).bytes(store_module.COMPARE_BYTES + 1)
    place = store_module.Object("s3", "key")
    store.start_put(place, raw).result()

    with pytest.raises(store.client.exceptions.ClientError, match="PreconditionFailed"):
        store.start_put(place, raw[:-1] + bytes([raw[-1] ^ 1])).result()


def test_a_missing_bucket_setting_is_named() -> None:
    place = store_module.Object("s3", "key")
    with pytest.raises(RuntimeError, match="SLICEWISE_BUCKET is not set"):
        store_module.Store({}).start_put(place, b"")


def test_more_keys_than_one_call_takes_are_deleted(store: Any) -> None:
    places = [store_module.Object("s3", f"k{index}") for index in range(1500)]
    for place in places[:3]:
        store.start_put(place, b"").result()

    store.delete(places)

    assert keys(store) == []


def test_every_upload_is_over_when_one_has_failed(store: Any) -> None:
    transport.send({"half": ARRAYS["half"] + 1}, DTYPES, ID, CHOICES, RULE, store)

    with pytest.raises(store.client.exceptions.ClientError, match="PreconditionFailed"):
        transport.send(ARRAYS, DTYPES, ID, CHOICES, RULE, store)

    assert keys(store) == [f"requests/{ID}/half", f"requests/{ID}/large"]


@pytest.mark.parametrize("extra", [0, 1, 16 * 2**20])
def test_large_objects_come_in_ranges(store: Any, extra: int) -> None:
    place = store_module.Object("s3", "large")
    raw = np.random.default_rng(0).bytes(store_module.WHOLE_BYTES + extra)
    store.start_put(place, raw).result()
    asked = []
    store.client.meta.events.register(
        "before-call.s3.GetObject", lambda params, **_: asked.append(params["headers"].get("Range"))
    )

    assert bytes(store.start_get(place, len(raw))()) == raw

    count = -(-len(raw) // store_module.RANGE_BYTES) if extra else 1
    assert len(asked) == count
    assert (None in asked) == (extra == 0)


def test_a_large_object_that_is_too_short_is_noticed(store: Any) -> None:
    array = np.zeros(store_module.WHOLE_BYTES + 100, np.uint8)
    records = transport.send({"x": array}, {"x": "uint8"}, ID, {}, rule.Rule(("s3",), 9), store)
    store.client.put_object(Bucket="bucket", Key=records["x"]["s3"], Body=b"\0" * (len(array) - 1))

    with pytest.raises(wire.WireError, match=f"{len(array) - 1} bytes arrived"):
        transport.receive(records, ID, store)


def test_two_places_for_one_tensor_are_refused(store: Any) -> None:
    records = transport.send(ARRAYS, DTYPES, ID, CHOICES, RULE, store)
    records["large"]["s3express"] = records["large"]["s3"]

    with pytest.raises(wire.WireError, match="is not one of this request"):
        transport.receive(records, ID, store)


def test_the_transport_is_chosen_by_the_bytes_that_travel(store: Any) -> None:
    """1,600 bytes are 800 as float16, and zeros are next to nothing; replies travel as they are."""
    values = dict.fromkeys(("rounded", "reply"), ARRAYS["large"]) | {"zeros": ARRAYS["large"] * 0}
    dtypes = dict.fromkeys(values, "float32")
    choices = {
        "rounded": (("payload", 800), ("s3", None)),
        "reply": (("payload", 1599), ("s3", None)),
    }
    choices["zeros"] = (("payload", 100), ("s3", None))
    packing = rule.Rule(("payload", "s3"), 100_000, "float16", "zlib")

    records = transport.send(
        values, dtypes, ID, choices, packing, store, internal={"rounded", "zeros"}
    )

    inline = {name for name, record in records.items() if "data" in record}
    assert inline == {"rounded", "zeros"}
    assert not {"wire_dtype", "compression"} & records["reply"].keys()
    assert records["rounded"]["wire_dtype"] == records["zeros"]["wire_dtype"] == "float16"
    assert records["zeros"]["compression"] == "zlib"
    back = transport.receive(records, ID, store)
    np.testing.assert_allclose(back["rounded"], values["rounded"], rtol=0, atol=2**-11)
    for name in ("zeros", "reply"):
        np.testing.assert_array_equal(back[name], values[name])


def test_objects_hold_what_travels(store: Any) -> None:
    packing = rule.Rule(("s3",), 100_000, "float16", "zlib")
    records = transport.send({"x": ARRAYS["half"]}, {"x": "float32"}, ID, {}, packing, store,
                             internal={"x"})  # fmt: skip
    raw = store.client.get_object(Bucket="bucket", Key=records["x"]["s3"])["Body"].read()

    assert len(raw) == records["x"]["bytes"] < 800
    store.client.put_object(Bucket="bucket", Key=records["x"]["s3"], Body=raw[:-1] + b"?")
    with pytest.raises(wire.WireError, match="x: the checksum differs"):
        transport.receive(records, ID, store)
