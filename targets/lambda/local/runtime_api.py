"""The Lambda Runtime API, as one instance sees it.

Each instance has its own port, so the platform knows who asks. There is no server thread: whoever
runs an invocation speaks for the platform on that instance's connection, which makes "one request
at a time" true by construction and saves two thread switches a call. The runtime's `GET .../next`
is answered when the next event comes; until then it simply waits in the connection.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .wire import Connection, Disconnected, Head, WireError

PREFIX = "/2018-06-01/runtime/"
MAX_RESPONSE_BYTES = 6 * 1024 * 1024 + 100
JSON = ("Content-Type", "application/json")
# How long a runtime that was sent an event may take to take the bytes in.
SEND_SECONDS = 60.0


class InstanceExited(Exception):  # noqa: N818 - events, not faults
    """The instance's process has ended."""


class DeadlinePassed(Exception):  # noqa: N818
    """The instance did not get there in time."""


class _NewConnection(Exception):  # noqa: N818
    """The runtime has opened another connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeReply:
    """What the runtime said: a response, an error of the handler, or an error of the init phase."""

    kind: Literal["response", "error", "too large"]
    body: bytes | bytearray
    error_type: str | None = None


class RuntimeApi:
    """The platform's end of the Runtime API for one instance."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=8)
        host, port = self._listener.getsockname()
        self.address = f"{host}:{port}"
        self._connection: Connection | None = None
        self._pidfd = -1
        self._deadline = 0.0
        self._waiting_for_event = False

    def attach(self, pidfd: int) -> None:
        """Tell which process is at the other end."""
        self._pidfd = pidfd

    def wait_until_ready(self, deadline: float) -> RuntimeReply | None:
        """Wait until the runtime asks for an event; its init error when it reports one instead.

        `deadline` is in time.monotonic() seconds. Raises InstanceExited or DeadlinePassed.
        """
        self._deadline = deadline
        while not self._waiting_for_event:
            head, connection = self._next_request()
            path = head.target.removeprefix(PREFIX)
            if head.method == "GET" and path == "invocation/next":
                self._waiting_for_event = True
            elif head.method == "POST" and path == "init/error":
                return take_error(head, connection)
            else:
                refuse(connection, head)
        return None

    def send_event(self, headers: Iterable[tuple[str, str]], event: bytes | bytearray) -> None:
        """Answer the waiting `next` with an event. Raises InstanceExited."""
        assert self._connection is not None
        self._waiting_for_event = False
        self._connection.sock.settimeout(SEND_SECONDS)
        try:
            # Without a Content-Type awslambdaric crashes.
            self._connection.respond(200, (JSON, *headers), event)
        except OSError:
            raise InstanceExited from None

    def wait_for_reply(self, request_id: str, deadline: float) -> RuntimeReply:
        """Wait for the response or the error to the event that was sent.

        Raises InstanceExited or DeadlinePassed.
        """
        self._deadline = deadline
        while True:
            head, connection = self._next_request()
            path = head.target.removeprefix(PREFIX)
            if head.method == "POST" and path == f"invocation/{request_id}/response":
                if head.content_length > MAX_RESPONSE_BYTES:
                    return self._refuse_response(connection, head.content_length)
                body = connection.read_body()
                accept(connection)
                return RuntimeReply(kind="response", body=body)
            if head.method == "POST" and path == f"invocation/{request_id}/error":
                return take_error(head, connection)
            refuse(connection, head)

    def close(self) -> None:
        """Close the connection and the port."""
        if self._connection:
            self._connection.close()
        self._listener.close()

    def _refuse_response(self, connection: Connection, size: int) -> RuntimeReply:
        connection.discard_body()
        reason = (
            f"Response payload size ({size} bytes) exceeded maximum allowed payload size "
            f"({MAX_RESPONSE_BYTES} bytes)."
        )
        answer(connection, 413, {"errorMessage": reason, "errorType": "RequestEntityTooLarge"})
        error_type = "Function.ResponseSizeTooLarge"
        body = json.dumps({"errorMessage": reason, "errorType": error_type}).encode()
        return RuntimeReply(kind="too large", body=body, error_type=error_type)

    def _next_request(self) -> tuple[Head, Connection]:
        """The next request on any connection; requests that are not HTTP end theirs."""
        while True:
            try:
                if self._connection is None:
                    self._wait_for_input()
                else:
                    head = self._connection.read_head()
                    if head is not None:
                        return head, self._connection
                    self._drop_connection()
            except _NewConnection:
                self._drop_connection()
                sock, _address = self._listener.accept()
                self._connection = Connection(sock, self._wait_for_input)
            except (Disconnected, WireError, OSError):
                self._drop_connection()

    def _drop_connection(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None

    def _wait_for_input(self) -> None:
        """Return when the connection has bytes; raise when anything else happens first."""
        remaining = self._deadline - time.monotonic()
        poll = select.poll()
        if self._connection:
            poll.register(self._connection.sock, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(max(0.0, remaining) * 1000)}
        # In this order: what a process said before it ended still counts.
        if self._connection and self._connection.sock.fileno() in ready:
            return
        if self._listener.fileno() in ready:
            raise _NewConnection
        if self._pidfd in ready:
            raise InstanceExited
        raise DeadlinePassed


def take_error(head: Head, connection: Connection) -> RuntimeReply:
    """Take in an error message; its type is in a header or, from awslambdaric, in the body."""
    body = connection.read_body()
    accept(connection)
    error_type = head.headers.get("lambda-runtime-function-error-type")
    if not error_type:
        with contextlib.suppress(ValueError, AttributeError):
            error_type = json.loads(body).get("errorType")
    return RuntimeReply(kind="error", body=body, error_type=str(error_type or "Runtime.Unknown"))


def accept(connection: Connection) -> None:
    """Tell the runtime that its message has arrived. (If it is gone by now, that shows later.)"""
    answer(connection, 202, {"status": "OK"})


def refuse(connection: Connection, head: Head) -> None:
    """Answer a request that does not belong here."""
    connection.discard_body()
    if head.target.startswith(PREFIX):
        message = f"{head.method} {head.target} is not allowed in the runtime's present state"
        answer(connection, 403, {"errorMessage": message, "errorType": "InvalidStateTransition"})
    else:
        answer(connection, 404, {"errorMessage": "no such path", "errorType": "NotFound"})


def answer(connection: Connection, status: int, content: dict[str, str]) -> None:
    """Send a JSON answer."""
    try:
        connection.respond(status, (JSON,), json.dumps(content).encode())
    except OSError:
        return  # the next read on this connection finds out what happened
