"""Transports against a real S3 protocol: what is put is what is received, and keys stay apart."""

from __future__ import annotations

import importlib
import io
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


def unpinned(records: Any) -> Any:
    """Without ETags, as a caller may send them: then the checksum alone tells."""
    return {
        name: {key: value for key, value in record.items() if key != "etag"}
        for name, record in records.items()
    }


@pytest.mark.parametrize("size", [1600, store_module.WHOLE_BYTES + 4])
def test_an_object_that_was_replaced_is_never_read(store: Any, size: int) -> None:
    """Not even when it holds the same bytes in the range that is read."""
    array = np.zeros(size // 4, np.float32)
    records = transport.send({"large": array}, DTYPES, ID, {}, rule.Rule(("s3",), 100_000), store)
    store.client.put_object(Bucket="bucket", Key=records["large"]["s3"], Body=b"\0" * size + b"!")

    with pytest.raises(store_module.StoreError, match=r"large cannot be read.*was replaced"):
        transport.receive(records, ID, store)


def test_an_object_that_is_not_there_is_named(store: Any) -> None:
    records = transport.send(ARRAYS, DTYPES, ID, CHOICES, RULE, store)
    store.delete(store_module.objects_of(records))

    with pytest.raises(
        store_module.StoreError, match=rf"requests/{ID}/.* cannot be read.*NoSuchKey"
    ):
        transport.receive(records, ID, store)


def test_records_of_two_tensors_that_were_swapped_are_noticed(store: Any) -> None:
    """Same type, same size, right checksums."""
    arrays = {"one": np.zeros(3, np.float32), "two": np.ones(3, np.float32)}
    dtypes = dict.fromkeys(arrays, "float32")
    records = transport.send(arrays, dtypes, ID, {}, rule.Rule(("payload",), 100_000), store)

    with pytest.raises(wire.WireError, match="one: this is the tensor 'two'; the two were swapped"):
        transport.receive({"one": records["two"], "two": records["one"]}, ID, store)


@pytest.mark.parametrize("times", [1, 2])
def test_what_arrives_wrong_is_read_once_more(store: Any, times: int) -> None:
    """A bit that flips on the way from S3 fails the request only if it does so twice."""
    records = transport.send(ARRAYS, DTYPES, ID, CHOICES, RULE, store)
    flipped: list[int] = []

    def flip(parsed: Any, **_: Any) -> None:
        if len(flipped) < times:
            body = bytearray(parsed["Body"].read())
            body[7] ^= 1
            parsed["Body"] = io.BytesIO(bytes(body))
            flipped.append(1)

    store.client.meta.events.register("after-call.s3.GetObject", flip)
    only = {"large": records["large"]}
    if times == 1:
        np.testing.assert_array_equal(transport.receive(only, ID, store)["large"], ARRAYS["large"])
    else:
        with pytest.raises(wire.WireError, match="large: the checksum differs"):
            transport.receive(only, ID, store)


@pytest.mark.parametrize("broken", [1, store_module.READS])
def test_a_body_that_breaks_off_is_read_again(store: Any, broken: int) -> None:
    from botocore.exceptions import IncompleteReadError

    records = transport.send(ARRAYS, DTYPES, ID, CHOICES, RULE, store)
    asked = []

    class Body:
        def read(self) -> bytes:
            raise IncompleteReadError(actual_bytes=7, expected_bytes=1600)

    def breaks(parsed: Any, **_: Any) -> None:
        asked.append(1)
        if len(asked) <= broken:
            parsed["Body"] = Body()

    store.client.meta.events.register("after-call.s3.GetObject", breaks)
    only = {"large": records["large"]}
    if broken < store_module.READS:
        assert transport.receive(only, ID, store)["large"].shape == (4, 100)
    else:
        with pytest.raises(store_module.StoreError, match="7 read"):
            transport.receive(only, ID, store)
    assert len(asked) == 2


def test_an_object_that_s3_would_not_delete_is_told(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 answers 200 and lists what it has refused."""
    errors = [{"Key": "k", "Code": "AccessDenied", "Message": "no"}]
    monkeypatch.setattr(store.client, "delete_objects", lambda **_: {"Errors": errors})

    with pytest.raises(store_module.StoreError, match="k cannot be deleted: AccessDenied: no"):
        store.delete([store_module.Object("s3", "k")])


def test_a_tensor_swapped_for_another_is_noticed(store: Any) -> None:
    records = unpinned(transport.send(ARRAYS, DTYPES, ID, CHOICES, RULE, store))
    store.client.put_object(Bucket="bucket", Key=records["large"]["s3"], Body=b"\0" * 1600)

    with pytest.raises(wire.WireError, match="large: the checksum differs"):
        transport.receive(records, ID, store)


def test_a_truncated_object_is_noticed(store: Any) -> None:
    records = unpinned(transport.send(ARRAYS, DTYPES, ID, CHOICES, RULE, store))
    store.client.put_object(Bucket="bucket", Key=records["large"]["s3"], Body=b"\0" * 1599)

    with pytest.raises(wire.WireError, match="large: 1599 bytes arrived, 1600 were sent"):
        transport.receive(records, ID, store)


def test_an_object_is_never_overwritten(store: Any) -> None:
    transport.send(ARRAYS, DTYPES, ID, CHOICES, RULE, store)

    for other in (ARRAYS["large"] + 1, ARRAYS["large"][:3]):
        with pytest.raises(store_module.StoreError, match="PreconditionFailed"):
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


def test_a_put_whose_conflict_cannot_be_read_names_the_conflict(store: Any) -> None:
    """The other object is deleted between the conflict and the look at it."""
    place = store_module.Object("s3", "key")
    store.start_put(place, b"first").result()

    def meanwhile(**_: Any) -> None:
        store.client.delete_object(Bucket="bucket", Key="key")

    store.client.meta.events.register("before-call.s3.GetObject", meanwhile)
    with pytest.raises(store_module.StoreError, match=r"key cannot be written: .*Precondition"):
        store.start_put(place, b"first").result()


def test_the_last_byte_of_an_object_counts(store: Any) -> None:
    raw = np.random.default_rng(0).bytes(store_module.COMPARE_BYTES + 1)
    place = store_module.Object("s3", "key")
    store.start_put(place, raw).result()

    with pytest.raises(store_module.StoreError, match="PreconditionFailed"):
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

    with pytest.raises(store_module.StoreError, match="PreconditionFailed"):
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
    sent = transport.send({"x": array}, {"x": "uint8"}, ID, {}, rule.Rule(("s3",), 9), store)
    records = unpinned(sent)
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
    records = unpinned(records)
    raw = store.client.get_object(Bucket="bucket", Key=records["x"]["s3"])["Body"].read()

    assert len(raw) == records["x"]["bytes"] < 800
    store.client.put_object(Bucket="bucket", Key=records["x"]["s3"], Body=raw[:-1] + b"?")
    with pytest.raises(wire.WireError, match="x: the checksum differs"):
        transport.receive(records, ID, store)
