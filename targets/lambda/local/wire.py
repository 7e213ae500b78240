"""HTTP/1.1 on a socket, server side: just what the Invoke API and the Runtime API need.

`http.server` is not used because it writes headers and body apart (with Nagle's algorithm that
costs 40-90 ms a call) and parses headers as e-mail (0.1 ms a request). Here every response is one
write on a TCP_NODELAY socket, and `100 Continue` goes out at once when a client waits for it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

# The Runtime API's X-Ray header alone may take 1 MiB.
MAX_HEAD_BYTES = 2 * 1024 * 1024
READ_BYTES = 65536
REASONS = {status.value: status.phrase for status in HTTPStatus}


class WireError(Exception):
    """The peer does not speak HTTP/1.1 as expected; the connection must be closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Disconnected(Exception):  # noqa: N818 - an event, not a fault
    """The peer closed the connection in the middle of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The head of a request; header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    content_length: int
    keep_alive: bool


class Connection:
    """One server-side connection. `before_read` is called before each read that may block."""

    def __init__(
        self, sock: socket.socket, before_read: Callable[[], object] | None = None
    ) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._before_read = before_read
        self._buffer = bytearray()
        self._unread = 0

    def read_head(self) -> Head | None:
        """The next request's head, or None when the peer has closed the connection.

        What was left of the previous request's body is skipped.
        """
        self.discard_body()
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise WireError(431, f"the request's headers exceed {MAX_HEAD_BYTES} bytes")
            chunk = self._read()
            if not chunk:
                if self._buffer.strip():
                    raise Disconnected
                return None
            self._buffer += chunk
        head = parse_head(bytes(self._buffer[:end]))
        del self._buffer[: end + 4]
        self._unread = head.content_length
        if head.content_length and head.headers.get("expect", "").lower() == "100-continue":
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return head

    def read_body(self) -> bytearray:
        """The body of the request whose head was read last."""
        body = bytearray(self._unread)
        have = min(len(self._buffer), self._unread)
        body[:have] = self._buffer[:have]
        del self._buffer[:have]
        with memoryview(body) as view:
            while have < len(body):
                if self._before_read:
                    self._before_read()
                count = self.sock.recv_into(view[have:])
                if not count:
                    raise Disconnected
                have += count
        self._unread = 0
        return body

    def discard_body(self) -> None:
        """Skip the body without holding it in memory.

        Clients send all of a request before they read the response, so a refusal has to take the
        rest in or the client sees a broken connection instead of the error.
        """
        have = min(len(self._buffer), self._unread)
        del self._buffer[:have]
        self._unread -= have
        while self._unread:
            chunk = self._read(min(READ_BYTES, self._unread))
            if not chunk:
                raise Disconnected
            self._unread -= len(chunk)

    def respond(
        self, status: int, headers: Sequence[tuple[str, str]], body: bytes | bytearray = b""
    ) -> None:
        """Send a whole response in one write."""
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, '')}"]
        lines += [f"{name}: {value}" for name, value in headers]
        # The answer to a HEAD request brings the length of the body that it does not have.
        has_length = any(name.lower() == "content-length" for name, _ in headers)
        if status != 204 and not has_length:
            lines.append(f"Content-Length: {len(body)}")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        send_all(self.sock, head, body)

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def _read(self, count: int = READ_BYTES) -> bytes:
        if self._before_read:
            self._before_read()
        return self.sock.recv(count)


def send_all(sock: socket.socket, head: bytes, body: bytes | bytearray) -> None:
    """Send head and body as one stream, without copying the body."""
    sent = sock.sendmsg([head, body])
    if sent < len(head):
        sock.sendall(head[sent:])
        sent = len(head)
    with memoryview(body) as view:
        if sent - len(head) < len(body):
            sock.sendall(view[sent - len(head) :])


def parse_head(data: bytes) -> Head:
    """Parse a request line and headers."""
    request_line, *lines = data.decode("latin-1").lstrip("\r\n").split("\r\n")
    try:
        method, target, version = request_line.split(" ")
    except ValueError:
        raise WireError(400, "malformed request line") from None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise WireError(400, "malformed header line")
        headers[name.strip().lower()] = value.strip()
    if "transfer-encoding" in headers:
        raise WireError(411, "send a Content-Length; chunked requests are not supported")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise WireError(400, "malformed Content-Length")
    connection = headers.get("connection", "").lower()
    keep_alive = connection != "close" if version == "HTTP/1.1" else connection == "keep-alive"
    return Head(
        method=method,
        target=target,
        headers=headers,
        content_length=int(length),
        keep_alive=keep_alive,
    )
