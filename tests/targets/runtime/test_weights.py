"""Weights from S3: every byte in its place, also over connections that break, and checked."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest

weights = importlib.import_module("slicewise.targets.lambda.runtime.weights")
store = importlib.import_module("slicewise.targets.lambda.runtime.store")
DATA = os.urandom(3 * weights.RANGE_BYTES + 12_345)
SPEC = {"key": "weights/x", "bytes": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()}


class Server(ThreadingHTTPServer):
    """Answers GETs of ranges of DATA; breaks off in the middle of the first `breaks` of each."""

    breaks = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: dict[str, int] = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Any = self.server
        wanted = self.headers["Range"]
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        assert found is not None
        body = DATA[int(found[1]) : int(found[2]) + 1]
        asked = server.asked[wanted] = server.asked.get(wanted, 0) + 1
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if asked <= server.breaks:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def client(server: Server) -> Any:
    return boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{server.server_port}", region_name="us-east-1",
        aws_access_key_id="x", aws_secret_access_key="x", config=store.store_config(),
    )  # fmt: skip


@pytest.mark.parametrize("breaks", [0, weights.ATTEMPTS - 1])
def test_every_byte_arrives(server: Server, client: Any, breaks: int) -> None:
    server.breaks = breaks

    with weights.streamed(SPEC, client, "bucket") as found:
        assert found[:] == DATA

    assert found.closed
    assert set(server.asked.values()) == {breaks + 1}
    assert len(server.asked) == 4


def test_a_connection_that_breaks_every_time_is_an_error(server: Server, client: Any) -> None:
    server.breaks = 100

    with (
        pytest.raises(weights.WeightsError, match=r"s3://bucket/weights/x cannot be read"),
        weights.streamed(SPEC, client, "bucket"),
    ):
        pass


def test_other_bytes_are_refused(client: Any) -> None:
    spec = {**SPEC, "sha256": "0" * 64}

    with (
        pytest.raises(weights.WeightsError, match=f"have the SHA-256 {SPEC['sha256']}, not 0000"),
        weights.streamed(spec, client, "bucket"),
    ):
        pass
