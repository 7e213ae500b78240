"""A function's URL on loopback: every HTTP request becomes an event in payload format 2.0, as on AWS.

https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html. Nobody signs requests here.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from slicewise.errors import TargetError

from .server import Answer, Server
from .wire import Connection, Head

# What answers an event that is such a request; the answer is a function's.
Invoke = Callable[[dict[str, Any]], bytes]
MAX_REQUEST_BYTES = 6 * 1024 * 1024
_TEXT = re.compile(r"text/.*|application/(json|javascript|xml|x-www-form-urlencoded)")


class Unanswered(Exception):  # noqa: N818 - an answer, not a fault
    """The function has not answered: the status that the URL gives instead, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class FunctionUrl:
    """Listens on a loopback port (0: a free one) until `stop`. `invoke` may raise `Unanswered`.

    Raises `TargetError` when the port is taken.
    """

    def __init__(self, invoke: Invoke, port: int = 0) -> None:
        self._invoke = invoke
        try:
            listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        except OSError as error:
            raise TargetError(
                f"port {port} cannot be used ({error.strerror}); choose another one, or 0 for any."
            ) from error
        host, port = listener.getsockname()[:2]
        self.url = f"http://{host}:{port}"
        self._server = Server(listener, self._answer)

    def stop(self) -> None:
        """Close the port and all connections."""
        self._server.stop()

    def _answer(self, connection: Connection, head: Head, arrived: float) -> Answer:  # noqa: ARG002
        try:
            if head.content_length > MAX_REQUEST_BYTES:
                raise Unanswered(413, f"a request has at most {MAX_REQUEST_BYTES:,} bytes")
            event = http_event(head, bytes(connection.read_body()))
            return http_answer(self._invoke(event))
        except Unanswered as reason:
            body = json.dumps({"error": str(reason)}).encode()
            return Answer(
                status=reason.status, headers=(("content-type", "application/json"),), body=body
            )


def http_event(head: Head, body: bytes) -> dict[str, Any]:
    """The event of a request. Bodies that do not say that they are text travel as base64."""
    path, _, query = head.target.partition("?")
    content_type = head.headers.get("content-type", "").partition(";")[0].strip()
    is_text = _TEXT.fullmatch(content_type) and "content-encoding" not in head.headers
    now = time.time()
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": unquote(path),
        "rawQueryString": query,
        "headers": dict(head.headers),
        "requestContext": {
            "domainName": "127.0.0.1",
            "http": {
                "method": head.method,
                "path": unquote(path),
                "protocol": "HTTP/1.1",
                "sourceIp": "127.0.0.1",
                "userAgent": head.headers.get("user-agent", ""),
            },
            "requestId": str(uuid.uuid4()),
            "routeKey": "$default",
            "stage": "$default",
            "timeEpoch": int(now * 1000),
        },
        "body": body.decode(errors="replace") if is_text else base64.b64encode(body).decode(),
        "isBase64Encoded": not is_text,
    }


def http_answer(payload: bytes) -> Answer:
    """The response that a function's payload means: without a status code it is the body itself."""
    try:
        reply = json.loads(payload)
    except ValueError:
        raise Unanswered(502, "the function's response is no JSON") from None
    if not isinstance(reply, dict) or "statusCode" not in reply:
        return Answer(status=200, headers=(("content-type", "application/json"),), body=payload)
    text = reply.get("body", "")
    body = base64.b64decode(text) if reply.get("isBase64Encoded") else text.encode()
    headers = tuple((name, str(value)) for name, value in reply.get("headers", {}).items())
    return Answer(status=int(reply["statusCode"]), headers=headers, body=body)
