"""Transports: how a tensor leaves one function and arrives in the next.

`payload` puts it into the reply; `s3` puts it into an object whose key starts with the request's id.
The plan chose by the example's sizes; here the same rule decides by the actual ones.
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from typing import Any

import boto3
import numpy as np
from botocore.config import Config

from .rule import Rule, choose
from .wire import (
    ITEM_BYTES,
    Record,
    WireError,
    check_bytes,
    check_record,
    decode_inline,
    describe,
    from_bytes,
    inline,
    to_bytes,
)

BUCKET_VARIABLE = "SLICEWISE_BUCKET"


class Store:
    """The bucket of one deployment; its client is made once, at import time of the handler."""

    def __init__(self, bucket: str | None = None, client: Any = None) -> None:
        self.bucket = bucket or os.environ.get(BUCKET_VARIABLE, "")
        self._client = client

    @property
    def client(self) -> Any:
        """The S3 client, made at the first use when nobody made it before."""
        if self._client is None:
            config = Config(retries={"mode": "standard", "total_max_attempts": 3})
            self._client = boto3.client("s3", config=config)
        return self._client

    def put(self, key: str, raw: bytes) -> None:
        """Write an object that must not exist yet."""
        if not self.bucket:
            raise RuntimeError(f"a tensor must go through S3, but {BUCKET_VARIABLE} is not set")
        self.client.put_object(Bucket=self.bucket, Key=key, Body=raw, IfNoneMatch="*")

    def get(self, key: str) -> bytes:
        """Read an object."""
        data: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return data

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; deleting what is not there is no error."""
        for start in range(0, len(keys), 1000):
            objects = [{"Key": key} for key in keys[start : start + 1000]]
            self.client.delete_objects(
                Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True}
            )


def object_key(request_id: str, tensor: str) -> str:
    """Where a tensor of a request lies in the bucket; no two requests share a key."""
    return f"requests/{request_id}/{tensor}"


def send(
    arrays: Mapping[str, np.ndarray],
    dtypes: Mapping[str, str],
    request_id: str,
    rule: Rule,
    store: Store,
    inline_first: Container[str] = (),
) -> dict[str, Record]:
    """Records of the tensors; those that go by S3 are in the bucket when this returns."""
    sizes = {name: array.size * ITEM_BYTES[dtypes[name]] for name, array in arrays.items()}
    chosen = choose(sizes, rule, inline_first)
    records = {}
    for name, array in arrays.items():
        raw = to_bytes(array, dtypes[name])
        record = describe(array, raw, dtypes[name])
        if chosen[name] == "payload":
            records[name] = inline(record, raw)
        else:
            key = object_key(request_id, name)
            store.put(key, bytes(raw))
            records[name] = {**record, "s3": key}
    return records


def receive(records: Mapping[str, Any], request_id: str, store: Store) -> dict[str, np.ndarray]:
    """The arrays of checked records. Raises `WireError` naming the tensor."""
    arrays = {}
    for name, record in records.items():
        check_record(name, record)
        if "data" in record:
            raw = decode_inline(name, record)
        elif record.get("s3") == object_key(request_id, name):
            raw = store.get(record["s3"])
        else:
            raise WireError(name, f"the S3 key {record.get('s3')!r} is not one of this request")
        check_bytes(name, record, raw)
        arrays[name] = from_bytes(raw, record)
    return arrays


def keys_of(records: Mapping[str, Record]) -> list[str]:
    """The S3 keys among the records."""
    return [record["s3"] for record in records.values() if "s3" in record]
