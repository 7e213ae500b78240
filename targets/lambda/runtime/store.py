"""Objects: tensors in the buckets of one deployment, put and got several at a time.

boto3 with an S3 client takes longer to import and make than all else that a small slice does before its
first request: so it is imported when a client is made, and only where one is needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from .seal import OVERHEAD_BYTES, Seal, SealError
from .wire import Record

if TYPE_CHECKING:
    from botocore.config import Config
    from botocore.exceptions import ClientError

# Of each transport that is an object store: the variable with its bucket's name.
BUCKET_VARIABLES = {"s3": "SLICEWISE_BUCKET", "s3express": "SLICEWISE_EXPRESS_BUCKET"}
THREADS = 8
WHOLE_BYTES = 16 * 2**20  # larger objects are got in ranges: one connection has 85 to 90 MB/s
RANGE_BYTES = 8 * 2**20
COMPARE_BYTES = 2**20
READS = 2  # of an object whose body breaks off
CONNECT_S = 5
READ_S = 20  # without a byte; S3 answers in tenths of a second


class StoreError(RuntimeError):
    """An object could not be written, read or deleted; the message names it and S3's reason."""


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
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        max_pool_connections=2 * THREADS,
        tcp_keepalive=True,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # As it is over https in any case: TLS protects the body.
        s3={"payload_signing_enabled": False},
    )


class Store:
    """The buckets of one deployment, by transport. With a seal, objects are encrypted."""

    def __init__(
        self,
        buckets: Mapping[str, str] | None = None,
        client: Any = None,
        seal: Seal | None = None,
    ) -> None:
        self.seal = seal
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

    def start_put(self, place: Object, raw: bytes | memoryview) -> Future[str]:
        """Begin to write an object that must not exist yet, or hold the same bytes; its ETag.

        `raw` may not change until it is there.
        """
        bucket = self.bucket(place.transport)
        self.open()  # before the threads: boto3 makes one client at a time
        return self._pool.submit(self._put, bucket, place.key, raw)

    def start_get(
        self, place: Object, size: int, etag: str | None = None
    ) -> Callable[[], bytes | memoryview]:
        """Begin to read an object of `size` bytes; the result waits for it and returns it, or raises
        `StoreError` or `SealError`. With an ETag it is read only if it is still the object that had this
        one.
        """
        get = self._start_get(place, size + (OVERHEAD_BYTES if self.seal else 0), etag)
        if self.seal is None:
            return get
        seal, key = self.seal, place.key
        return lambda: seal.open(key, get())

    def _start_get(
        self, place: Object, size: int, etag: str | None
    ) -> Callable[[], bytes | memoryview]:
        bucket = self.bucket(place.transport)
        self.open()
        pinned = {"IfMatch": etag} if etag else {}
        if size <= WHOLE_BYTES:
            return self._pool.submit(self._get, bucket, place.key, **pinned).result
        buffer = memoryview(bytearray(size))
        parts = [
            self._pool.submit(
                self._get_into,
                bucket,
                place.key,
                start,
                buffer[start : start + RANGE_BYTES],
                pinned,
            )
            for start in range(0, size, RANGE_BYTES)
        ]
        return partial(_filled, buffer, parts)

    def delete(self, places: Iterable[Object]) -> None:
        """Delete objects; deleting what is not there is no error. Raises `StoreError` for those that
        S3 would not delete.
        """
        keys: dict[str, list[str]] = {}
        for transport, key in places:
            keys.setdefault(transport, []).append(key)
        for transport, of_bucket in keys.items():
            for start in range(0, len(of_bucket), 1000):
                objects = [{"Key": key} for key in of_bucket[start : start + 1000]]
                answer = self.client.delete_objects(
                    Bucket=self.bucket(transport), Delete={"Objects": objects, "Quiet": True}
                )
                for error in answer.get("Errors", ()):  # S3 answers 200 to these, too
                    raise StoreError(
                        f"{error.get('Key')} cannot be deleted: {error.get('Code')}: "
                        f"{error.get('Message')}"
                    )

    def _put(self, bucket: str, key: str, raw: bytes | memoryview) -> str:
        from botocore.exceptions import BotoCoreError, ClientError

        # boto3 takes bytes only.
        body = bytes(raw) if self.seal is None else self.seal.close(key, raw)
        try:
            answer = self.client.put_object(Bucket=bucket, Key=key, Body=body, IfNoneMatch="*")
            return str(answer["ETag"])
        except ClientError as error:
            # When the answer to a put is lost, boto repeats it and meets the object of the first one.
            etag = None
            if _status(error) == 412:
                with suppress(ClientError, BotoCoreError):  # then the conflict is what is told
                    etag = self._etag_if_same(bucket, key, memoryview(raw))
            if etag is None:
                raise StoreError(f"{key} cannot be written: {error}") from error
            return etag
        except BotoCoreError as error:
            raise StoreError(f"{key} cannot be written: {error}") from error

    def _etag_if_same(self, bucket: str, key: str, raw: memoryview) -> str | None:
        """The ETag of the object if its bytes are these. It is read, in pieces: an ETag is a checksum
        neither in directory buckets nor under a KMS key.
        """
        found = self.client.get_object(Bucket=bucket, Key=key)
        if self.seal is not None:  # equal tensors have other bytes each time
            try:
                same = self.seal.open(key, found["Body"].read()) == raw
            except SealError:
                same = False
            return str(found["ETag"]) if same else None
        with closing(found["Body"]) as body:
            same = found["ContentLength"] == len(raw) and all(
                body.read(COMPARE_BYTES) == raw[start : start + COMPARE_BYTES]
                for start in range(0, len(raw), COMPARE_BYTES)
            )
        return str(found["ETag"]) if same else None

    def _get(self, bucket: str, key: str, **options: str) -> bytes:
        """The object or a range of it. boto repeats a request, but not the reading of its body."""
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            HTTPClientError,
            IncompleteReadError,
        )

        for attempt in range(1, READS + 1):
            try:
                answer = self.client.get_object(Bucket=bucket, Key=key, **options)
                data: bytes = answer["Body"].read()
                return data
            except ClientError as error:
                replaced = "; it was replaced after it had been written"
                why = replaced if _status(error) == 412 else ""
                raise StoreError(f"{key} cannot be read: {error}{why}") from error
            except BotoCoreError as error:
                broken = isinstance(error, (HTTPClientError, IncompleteReadError))
                if not broken or attempt == READS:
                    raise StoreError(f"{key} cannot be read: {error}") from error
        raise AssertionError("unreachable")

    def _get_into(
        self, bucket: str, key: str, start: int, part: memoryview, pinned: Mapping[str, str]
    ) -> int:
        data = self._get(bucket, key, Range=f"bytes={start}-{start + len(part) - 1}", **pinned)
        part[: len(data)] = data
        return len(data)

    def bucket(self, transport: str) -> str:
        """The name of its bucket. Raises `RuntimeError`."""
        if transport not in self._buckets:
            raise RuntimeError(
                f"a bucket for {transport} is needed, but {BUCKET_VARIABLES[transport]} is not set"
            )
        return self._buckets[transport]


def finish(puts: Mapping[str, Future[str]]) -> dict[str, str]:
    """Wait for all puts; the ETags by tensor, or the error of one that failed."""
    wait(puts.values())
    return {name: put.result() for name, put in puts.items()}


def _status(error: ClientError) -> int | None:
    status: int | None = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def _filled(buffer: memoryview, parts: Iterable[Future[int]]) -> memoryview:
    return buffer[: sum(part.result() for part in parts)]
