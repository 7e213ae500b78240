"""Objects: tensors in the buckets of one deployment, put and got several at a time.

boto3 with an S3 client takes longer to import and make than all else that a small slice does before its
first request: so it is imported when a client is made, and only where one is needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from .wire import Record

if TYPE_CHECKING:
    from botocore.config import Config

# Of each transport that is an object store: the variable with its bucket's name.
BUCKET_VARIABLES = {"s3": "SLICEWISE_BUCKET", "s3express": "SLICEWISE_EXPRESS_BUCKET"}
THREADS = 8
WHOLE_BYTES = 16 * 2**20  # larger objects are got in ranges: one connection has 85 to 90 MB/s
RANGE_BYTES = 8 * 2**20
COMPARE_BYTES = 2**20


class Object(NamedTuple):
    """Where a tensor lies: the transport that names the bucket, and the key in it."""

    transport: str
    key: str


def object_key(request_id: str, tensor: str) -> str:
    """Where a tensor of a request lies in the bucket; no two requests share a key."""
    return f"requests/{request_id}/{tensor}"


def objects_of(records: Mapping[str, Record]) -> list[Object]:
    """The objects among the records."""
    return [
        Object(transport, record[transport])
        for record in records.values()
        for transport in BUCKET_VARIABLES
        if transport in record
    ]


def store_config() -> Config:
    """Settings of an S3 client for tensors, whose records have checksums of their own."""
    from botocore.config import Config

    return Config(
        retries={"mode": "standard", "total_max_attempts": 3},
        max_pool_connections=2 * THREADS,
        tcp_keepalive=True,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # As it is over https in any case: TLS protects the body.
        s3={"payload_signing_enabled": False},
    )


class Store:
    """The buckets of one deployment, by transport."""

    def __init__(self, buckets: Mapping[str, str] | None = None, client: Any = None) -> None:
        if buckets is None:
            buckets = {
                transport: os.environ[variable]
                for transport, variable in BUCKET_VARIABLES.items()
                if os.environ.get(variable)
            }
        self._buckets = buckets
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="slicewise-store")
        if client is not None:
            self.client = client

    @cached_property
    def client(self) -> Any:
        """The S3 client; threads may share it."""
        import boto3

        return boto3.client("s3", config=store_config())

    @property
    def transports(self) -> tuple[str, ...]:
        """The transports whose buckets are known."""
        return tuple(self._buckets)

    def open(self) -> None:
        """Make the client now: that takes long, and a function's init phase is not throttled."""
        _ = self.client

    def start_opening(self) -> Future[None]:
        """`open` on a thread: ONNX Runtime loads a model without holding the interpreter."""
        return self._pool.submit(self.open)

    def start_put(self, place: Object, raw: bytes | memoryview) -> Future[None]:
        """Begin to write an object that must not exist yet, or hold the same bytes.

        `raw` may not change until it is there.
        """
        bucket = self.bucket(place.transport)
        self.open()  # before the threads: boto3 makes one client at a time
        return self._pool.submit(self._put, bucket, place.key, raw)

    def start_get(self, place: Object, size: int) -> Callable[[], bytes | memoryview]:
        """Begin to read an object of `size` bytes; the result waits for it and returns it."""
        bucket = self.bucket(place.transport)
        self.open()
        if size <= WHOLE_BYTES:
            return self._pool.submit(self._get, bucket, place.key).result
        buffer = memoryview(bytearray(size))
        parts = [
            self._pool.submit(
                self._get_into, bucket, place.key, start, buffer[start : start + RANGE_BYTES]
            )
            for start in range(0, size, RANGE_BYTES)
        ]
        return partial(_filled, buffer, parts)

    def delete(self, places: Iterable[Object]) -> None:
        """Delete objects; deleting what is not there is no error."""
        keys: dict[str, list[str]] = {}
        for transport, key in places:
            keys.setdefault(transport, []).append(key)
        for transport, of_bucket in keys.items():
            for start in range(0, len(of_bucket), 1000):
                objects = [{"Key": key} for key in of_bucket[start : start + 1000]]
                self.client.delete_objects(
                    Bucket=self.bucket(transport), Delete={"Objects": objects, "Quiet": True}
                )

    def _put(self, bucket: str, key: str, raw: bytes | memoryview) -> None:
        from botocore.exceptions import ClientError

        try:
            # boto3 takes bytes only.
            self.client.put_object(Bucket=bucket, Key=key, Body=bytes(raw), IfNoneMatch="*")
        except ClientError as error:
            # When the answer to a put is lost, boto repeats it and meets the object of the first one.
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status != 412 or not self._holds(bucket, key, memoryview(raw)):
                raise

    def _holds(self, bucket: str, key: str, raw: memoryview) -> bool:
        """Whether the object's bytes are these. It is read, in pieces: an ETag is a checksum neither in
        directory buckets nor under a KMS key.
        """
        found = self.client.get_object(Bucket=bucket, Key=key)
        with closing(found["Body"]) as body:
            return found["ContentLength"] == len(raw) and all(
                body.read(COMPARE_BYTES) == raw[start : start + COMPARE_BYTES]
                for start in range(0, len(raw), COMPARE_BYTES)
            )

    def _get(self, bucket: str, key: str, **options: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=bucket, Key=key, **options)["Body"].read()
        return data

    def _get_into(self, bucket: str, key: str, start: int, part: memoryview) -> int:
        data = self._get(bucket, key, Range=f"bytes={start}-{start + len(part) - 1}")
        part[: len(data)] = data
        return len(data)

    def bucket(self, transport: str) -> str:
        """The name of its bucket. Raises `RuntimeError`."""
        if transport not in self._buckets:
            raise RuntimeError(
                f"a bucket for {transport} is needed, but {BUCKET_VARIABLES[transport]} is not set"
            )
        return self._buckets[transport]


def finish(puts: Iterable[Future[None]]) -> None:
    """Wait for all puts, then raise the error of one that failed."""
    puts = list(puts)
    wait(puts)
    for put in puts:
        put.result()


def _filled(buffer: memoryview, parts: Iterable[Future[int]]) -> memoryview:
    return buffer[: sum(part.result() for part in parts)]
