"""Weights in memory: streamed from S3 when a function starts, where its package does not hold them, and
decrypted where they are sealed (seal.py).

Such a package has weights.json: {"file", "key", "bytes", "sha256"}, where "file" is what the model calls
them. They lie in the deployment's bucket and are never written to a file: ONNX Runtime copies what it
needs out of the memory that they were streamed into, which is then given back.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .store import Store

WEIGHTS_FILE = "weights.json"
THREADS = 8
RANGE_BYTES = 8 * 2**20
PIECE_BYTES = 256 * 1024  # of a range at once: what the HTTP library holds besides
ATTEMPTS = 3  # for each range; a connection may break while its body is read


class WeightsError(RuntimeError):
    """The weights are not there, may not be read, or are others than those of the model."""


def read_spec(directory: Path) -> dict[str, Any] | None:
    """What to stream for the package in this directory; None when its weights are in it."""
    file = directory / WEIGHTS_FILE
    return json.loads(file.read_text()) if file.exists() else None


@contextmanager
def in_memory(
    name: str, directory: Path, spec: Mapping[str, Any] | None, store: Store
) -> Iterator[tuple[Path | bytes, dict[str, mmap.mmap]]]:
    """The model of the slice of this name, and the contents of the files that it names, until the end of
    the `with`. Raises `WeightsError` or `SealError`.
    """
    seal, model, data = store.seal, directory / "model.onnx", directory / "model.data"
    with ExitStack() as held:
        weights = {}
        if spec is not None:
            buffer = held.enter_context(streamed(spec, store.client, store.bucket("s3")))
            weights[str(spec["file"])] = buffer
        elif data.exists() and data.stat().st_size:
            weights[data.name] = held.enter_context(closing(_read(data)))
        if seal is None:
            yield model, weights
            return
        for file, buffer in weights.items():
            with memoryview(buffer) as view:
                size = seal.open_in_place(sealed_name(name, file), view)
            buffer.resize(size)
        yield bytes(seal.open(sealed_name(name, model.name), model.read_bytes())), weights


def sealed_name(slice_name: str, file: str) -> str:
    """What a slice's file is called where it is sealed."""
    return f"functions/{slice_name}/{file}"


def _read(file: Path) -> mmap.mmap:
    """The file in anonymous memory, which can be changed and is given back at once."""
    buffer = mmap.mmap(-1, file.stat().st_size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with file.open("rb") as source, memoryview(buffer) as view:
        source.readinto(view)
    return buffer


@contextmanager
def streamed(spec: Mapping[str, Any], client: Any, bucket: str) -> Iterator[mmap.mmap]:
    """The weights in memory, checked against their SHA-256, until the end of the `with`.

    Raises `WeightsError`.
    """
    buffer = mmap.mmap(-1, spec["bytes"], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        _fill(buffer, spec, client, bucket)
        yield buffer
    finally:
        buffer.close()


def _fill(buffer: mmap.mmap, spec: Mapping[str, Any], client: Any, bucket: str) -> None:
    # Not at the top: a slice whose package holds its weights may start without boto3.
    from botocore.exceptions import BotoCoreError, ClientError

    place = f"s3://{bucket}/{spec['key']}"
    digest = hashlib.sha256()
    starts = range(0, spec["bytes"], RANGE_BYTES)
    with (
        memoryview(buffer) as view,
        ThreadPoolExecutor(THREADS, thread_name_prefix="slicewise-weights") as pool,
    ):

        def get(start: int) -> None:
            with view[start : start + RANGE_BYTES] as part:
                _get_range(client, bucket, spec["key"], start, part)

        parts = [pool.submit(get, start) for start in starts]
        try:
            for start, part in zip(starts, parts, strict=True):
                part.result()
                with view[start : start + RANGE_BYTES] as done:
                    digest.update(done)  # while the next ones are on their way
        except (ClientError, BotoCoreError, EOFError) as error:
            for part in parts:
                part.cancel()
            raise WeightsError(
                f"the weights at {place} cannot be read: {error}. They are put there when the bundle is "
                "deployed, and the function's role must allow s3:GetObject on them; S3 answers 403 for "
                "both."
            ) from error
    if digest.hexdigest() != spec["sha256"]:
        raise WeightsError(
            f"the weights at {place} have the SHA-256 {digest.hexdigest()}, not {spec['sha256']}; "
            "deploy the bundle again."
        )


def _get_range(client: Any, bucket: str, key: str, start: int, into: memoryview) -> None:
    """One range, straight into its place."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    wanted = f"bytes={start}-{start + len(into) - 1}"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            answer = client.get_object(Bucket=bucket, Key=key, Range=wanted)
            filled = 0
            with closing(answer["Body"]) as body:
                while filled < len(into):
                    with into[filled : filled + PIECE_BYTES] as piece:
                        count = body.readinto(piece)
                    if not count:
                        raise EOFError(f"{wanted} ended after {filled} bytes")
                    filled += count
            return
        except (HTTPClientError, IncompleteReadError, EOFError):
            if attempt == ATTEMPTS:
                raise
