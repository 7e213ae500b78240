"""Faults: what goes wrong on AWS now and then, injected into the local platform.

A fault is armed and strikes the next things of its kind: calls (invoke_api.py), instances
(dispatcher.py), S3 operations (`faulty`, in the S3 server's process). Nothing here is in the way unless
a platform was made with `faults=True`.

This also runs in the S3 server's process: standard library and siblings only.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from .identity import caller_of
from .wsgi import CLOSE, App, Environ

FAULTS_PATH = "/_faults"  # the names of buckets have no underscore
SKEW_ALLOWED_S = 900.0  # AWS refuses signatures that are older or newer
NO_SPACE_BYTES = 4096  # what a file may have when the disk is full: its log goes on for a while

CALL_KINDS = ("throttle", "service error", "lost call", "lost reply", "cut reply", "duplicate")
INSTANCE_KINDS = (
    "kill in init", "kill in fetch", "kill in compute", "kill in send", "out of memory", "timeout",
    "full disk", "clock skew",
)  # fmt: skip
S3_KINDS = (
    "s3 500", "s3 503", "s3 slow", "s3 lost answer", "s3 lost write", "s3 corrupt read",
    "s3 cut read", "s3 missing object",
)  # fmt: skip
KINDS = (*CALL_KINDS, *INSTANCE_KINDS, *S3_KINDS)
_OPERATION = {"s3 lost write": "PUT", "s3 lost answer": "PUT", "s3 corrupt read": "GET",
              "s3 cut read": "GET", "s3 missing object": "GET", "kill in fetch": "GET",
              "kill in send": "PUT"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong. `function` is where (None: anywhere), `times` how often.

    `seconds` are the length of what is slow, the delay of what strikes a running instance, or the
    difference of its clock. `pid` is of the process that an S3 operation kills.
    """

    kind: str
    function: str | None = None
    times: int = 1
    seconds: float = 0.0
    pid: int = 0


class Faults:
    """The faults that are armed; any thread may call it. `s3_url` is where those of S3 go."""

    def __init__(self, s3_url: str = "") -> None:
        self._s3_url = s3_url
        self._lock = threading.Lock()
        self._armed: list[Fault] = []
        self._struck: list[Fault] = []

    def arm(self, *faults: Fault) -> None:
        """Let these strike. Raises `ValueError` for an unknown kind."""
        for fault in faults:
            if fault.kind not in KINDS:
                raise ValueError(f"no fault is called {fault.kind!r}; known: {', '.join(KINDS)}")
            if fault.kind in S3_KINDS and self._s3_url:
                self._post(fault)
            else:
                with self._lock:
                    self._armed.append(fault)

    def arm_kill(self, fault: Fault, pid: int) -> None:
        """Let S3 kill the process at its next operation of this kind."""
        self._post(replace(fault, pid=pid))

    def take(self, kinds: Sequence[str], function: str | None) -> Fault | None:
        """The next armed fault of these kinds that is to strike this function; it counts as struck."""
        with self._lock:
            for index, fault in enumerate(self._armed):
                if fault.kind in kinds and fault.function in (None, function):
                    left = fault.times - 1
                    self._armed[index : index + 1] = [replace(fault, times=left)] if left else []
                    self._struck.append(fault)
                    return fault
        return None

    def clear(self) -> int:
        """Disarm all; how many have struck since the last time."""
        with self._lock:
            count = len(self._struck)
            self._armed, self._struck = [], []
        if self._s3_url:
            with urllib.request.urlopen(self._request("DELETE", b"")) as reply:
                count += json.load(reply)
        return count

    def _post(self, fault: Fault) -> None:
        request = self._request("POST", json.dumps(asdict(fault)).encode())
        urllib.request.urlopen(request).close()

    def _request(self, method: str, data: bytes) -> urllib.request.Request:
        return urllib.request.Request(self._s3_url + FAULTS_PATH, data, method=method)


def random_faults(
    seed: int, functions: Sequence[str], kinds: Sequence[str] = KINDS
) -> Iterator[Fault]:
    """Faults without end: every kind in turn, the rest by chance; equal seeds give equal ones."""
    chance = random.Random(seed)
    while True:
        for kind in chance.sample(kinds, len(kinds)):
            seconds = chance.uniform(0.0, 0.05)
            if kind == "clock skew":
                seconds = chance.choice([-86_400.0, -120.0, 120.0, 86_400.0])
            elif kind == "s3 slow":
                seconds = chance.uniform(0.1, 2.0)
            yield Fault(
                kind=kind,
                function=chance.choice(functions),
                times=chance.choice([1, 1, 2, 12]),
                seconds=seconds,
            )


def is_skewed(amz_date: str | None) -> bool:
    """Whether AWS would refuse a request that was signed at this time ("20300101T000000Z")."""
    if not amz_date:
        return False
    signed = datetime.strptime(amz_date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return abs(signed.timestamp() - time.time()) > SKEW_ALLOWED_S


def faulty(app: App) -> App:
    """S3 with faults: POST arms one (JSON), DELETE disarms all and tells how many have struck."""
    faults = Faults()
    armed_pids: list[Fault] = []

    def control(environ: Environ) -> bytes:
        if environ["REQUEST_METHOD"] == "DELETE":
            armed_pids.clear()
            return json.dumps(faults.clear()).encode()
        faults.arm(Fault(**json.loads(environ["wsgi.input"].read())))
        return b"null"

    def answer(environ: Environ, start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == FAULTS_PATH:
            start_response("200 OK", [("Content-Type", "application/json")])
            return [control(environ)]
        if is_skewed(environ.get("HTTP_X_AMZ_DATE")):
            return _error(start_response, 403, "RequestTimeTooSkewed")
        caller = caller_of(environ.get("HTTP_AUTHORIZATION"))
        method = environ["REQUEST_METHOD"]
        kinds = [
            kind
            for kind in (*S3_KINDS, "kill in fetch", "kill in send")
            if _OPERATION.get(kind, method) == method
        ]
        fault = faults.take(kinds, caller.function if caller else None)
        if fault is None:
            return app(environ, start_response)
        return _strike(fault, app, environ, start_response)

    return answer


def _strike(fault: Fault, app: App, environ: Environ, start_response: Any) -> Iterable[bytes]:
    match fault.kind:
        case "s3 500":
            return _error(start_response, 500, "InternalError")
        case "s3 503":
            return _error(start_response, 503, "SlowDown")
        case "s3 missing object":
            return _error(start_response, 404, "NoSuchKey")
        case "s3 slow":
            time.sleep(fault.seconds)
            return app(environ, start_response)
        case "s3 lost answer":
            b"".join(app(environ, lambda *_: None))
            return _error(start_response, 500, "InternalError")
        case "s3 lost write":
            start_response("200 OK", [("ETag", f'"{0:032x}"'), ("Content-Length", "0")])
            return [b""]
        case "kill in fetch" | "kill in send":
            os.kill(fault.pid, signal.SIGKILL)
            return _error(start_response, 500, "InternalError")
    body = bytearray(b"".join(app(environ, start_response)))
    if fault.kind == "s3 corrupt read" and body:
        body[len(body) // 2] ^= 1
    if fault.kind == "s3 cut read":
        environ[CLOSE] = True
        del body[len(body) // 2 :]
    return [bytes(body)]


def _error(start_response: Any, status: int, code: str) -> list[bytes]:
    body = f"<Error><Code>{code}</Code><Message>a fault was injected</Message></Error>".encode()
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    start_response(f"{status} {code}", headers)
    return [body]
