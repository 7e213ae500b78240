"""Sealed bytes open with their own key, name and plan, and never otherwise."""

from __future__ import annotations

import base64
import importlib
import mmap
from collections.abc import Iterator
from typing import Any

import boto3
import numpy as np
import pytest
from moto import mock_aws

arrays = importlib.import_module("slicewise.targets.lambda.runtime.arrays")
rule_module = importlib.import_module("slicewise.targets.lambda.runtime.rule")
seal_module = importlib.import_module("slicewise.targets.lambda.runtime.seal")
sealing = importlib.import_module("slicewise.targets.lambda.sealing")
store_module = importlib.import_module("slicewise.targets.lambda.runtime.store")
transport = importlib.import_module("slicewise.targets.lambda.runtime.transport")
Seal, SealError = seal_module.Seal, seal_module.SealError

KEY, OTHER = bytes(range(32)), bytes(32)
SECRET = b"weights of a model " * 20
NAME = "requests/0123abcd/x"


def test_what_was_sealed_opens_and_is_unreadable_until_then() -> None:
    sealed = Seal(KEY, "plan").close(NAME, SECRET)

    assert SECRET[:16] not in sealed
    assert len(sealed) == len(SECRET) + seal_module.OVERHEAD_BYTES
    assert Seal(KEY, "plan").open(NAME, sealed) == SECRET
    assert Seal(KEY, "plan").close(NAME, SECRET) != sealed


def test_nothing_is_sealed_and_opens() -> None:
    assert Seal(KEY, "plan").open(NAME, Seal(KEY, "plan").close(NAME, b"")) == b""


@pytest.mark.parametrize("at", [0, len(SECRET) - 1, len(SECRET), len(SECRET) + 11, -1])
def test_a_flipped_bit_is_noticed_wherever_it_is(at: int) -> None:
    sealed = bytearray(Seal(KEY, "plan").close(NAME, SECRET))
    sealed[at] ^= 1

    with pytest.raises(SealError, match=f"{NAME} cannot be decrypted: it was changed"):
        Seal(KEY, "plan").open(NAME, sealed)


@pytest.mark.parametrize(
    ("key", "plan", "name"),
    [
        (OTHER, "plan", NAME),
        (KEY, "other plan", NAME),
        (KEY, "plan", "requests/0123abcd/y"),
        (KEY, "plan", "requests/4567abcd/x"),
    ],
)
def test_a_swap_is_noticed(key: bytes, plan: str, name: str) -> None:
    sealed = Seal(KEY, "plan").close(NAME, SECRET)

    with pytest.raises(SealError, match="another request, tensor, slice or plan"):
        Seal(key, plan).open(name, sealed)


def test_a_truncated_object_is_noticed() -> None:
    sealed = Seal(KEY, "plan").close(NAME, SECRET)

    for size in (0, 27, 28, len(sealed) - 1):
        with pytest.raises(SealError):
            Seal(KEY, "plan").open(NAME, sealed[:size])


def test_what_does_not_open_is_not_left_in_memory() -> None:
    buffer = memoryview(bytearray(Seal(KEY, "plan").close(NAME, SECRET)))

    with pytest.raises(SealError):
        Seal(OTHER, "plan").open_in_place(NAME, buffer)
    assert bytes(buffer[: len(SECRET)]) == bytes(len(SECRET))


def test_more_than_cryptography_takes_is_refused() -> None:
    with (
        mmap.mmap(-1, seal_module.MOST_BYTES + 1) as untouched,
        memoryview(untouched) as view,
        pytest.raises(SealError, match="at most 2,147,483,619"),
    ):
        Seal(KEY, "plan").close(NAME, view)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "SLICEWISE_KEY is not set.*openssl rand -base64 32"),
        ("c2hvcnQ=", "SLICEWISE_KEY is not 32 bytes in base64"),
        ("not base64!", "SLICEWISE_KEY is not 32 bytes in base64"),
    ],
)
def test_a_missing_or_malformed_key_is_named(
    value: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLICEWISE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SLICEWISE_KEY", value)

    with pytest.raises(SealError, match=message):
        seal_module.made_of({"key": "env", "plan": "plan"})


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client


def test_a_key_of_kms_makes_a_data_key_that_opens_with_its_plan_only(aws: Any) -> None:
    del aws
    key_id = boto3.client("kms").create_key()["KeyMetadata"]["KeyId"]
    key, encryption = sealing._key("plan", f"kms:{key_id}")
    told = {
        "plan": "plan",
        "key": "kms",
        "key_id": encryption.key_id,
        "data_key": encryption.data_key,
    }

    assert len(key) == 32
    assert base64.b64encode(key).decode() not in str(encryption)
    assert encryption.key_id.startswith("arn:aws:kms:us-east-1:")
    sealed = Seal(key, "plan").close(NAME, SECRET)
    assert seal_module.made_of(told).open(NAME, sealed) == SECRET
    with pytest.raises(SealError, match="KMS does not decrypt its key with arn:aws:kms:"):
        seal_module.made_of({**told, "plan": "other"})


RULE = rule_module.Rule(("payload", "s3"), 6_000_000)
ID = "0123abcd"


def store(client: Any, key: bytes = KEY) -> Any:
    return store_module.Store({"s3": "bucket"}, client, Seal(key, "plan"))


def sent(client: Any, array: np.ndarray, name: str = "x") -> dict[str, Any]:
    records: dict[str, Any] = transport.send(
        {name: array}, {name: "float32"}, ID, {name: (("s3", None),)}, RULE, store(client)
    )
    return records


def test_tensors_in_s3_are_unreadable_and_arrive(aws: Any) -> None:
    x = np.arange(1000, dtype=np.float32)
    records = sent(aws, x)
    raw = aws.get_object(Bucket="bucket", Key=NAME)["Body"].read()

    assert records["x"]["bytes"] == x.nbytes == len(raw) - seal_module.OVERHEAD_BYTES
    assert x.tobytes()[:16] not in raw
    found = transport.receive(dict(records), ID, store(aws))
    np.testing.assert_array_equal(found["x"], x)
    with pytest.raises(SealError, match="cannot be decrypted"):
        transport.receive(dict(records), ID, store(aws, OTHER))


def test_a_large_tensor_is_read_in_ranges_and_opened(
    aws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(store_module, "RANGE_BYTES", 700)
    x = np.arange(1000, dtype=np.float32)
    found = transport.receive(sent(aws, x), ID, store(aws))
    np.testing.assert_array_equal(found["x"], x)


def test_the_same_tensor_is_put_again_and_another_is_refused(aws: Any) -> None:
    x = np.arange(10, dtype=np.float32)
    first, again = sent(aws, x), sent(aws, x)

    assert first == again
    with pytest.raises(store_module.StoreError, match="cannot be written"):
        sent(aws, x + 1)


def test_objects_that_were_swapped_or_changed_are_noticed(aws: Any) -> None:
    x, y = np.zeros(10, np.float32), np.ones(10, np.float32)
    sent(aws, x)
    records = sent(aws, y, "y")
    theirs = aws.get_object(Bucket="bucket", Key=NAME)["Body"].read()
    for body in (theirs, bytes([theirs[0] ^ 1]) + theirs[1:]):
        etag = aws.put_object(Bucket="bucket", Key=f"requests/{ID}/y", Body=body)["ETag"]
        with pytest.raises(SealError, match=f"requests/{ID}/y cannot be decrypted"):
            transport.receive({"y": {**records["y"], "etag": etag}}, ID, store(aws))
