"""A WSGI application (PEP 3333) behind `Server`.

Werkzeug's own server closes every connection after one response, which costs each request a new
connection and a new thread; this one keeps them.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

from .server import Answer
from .wire import Connection, Head

Environ = dict[str, Any]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]
CLOSE = "slicewise.close"  # set by an application that wants the connection to end
ARRIVED = "slicewise.arrived"  # when the request's head was there, time.monotonic() seconds


def answering(app: App) -> Callable[[Connection, Head, float], Answer]:
    """What a `Server` needs to serve the application."""

    def answer(connection: Connection, head: Head, arrived: float) -> Answer:
        environ = wsgi_environ(head, connection.read_body(), arrived)
        try:
            return run(app, environ)
        except Exception:
            traceback.print_exc()
            return Answer(status=500)

    return answer


def run(app: App, environ: Environ) -> Answer:
    """The application's answer to one request."""
    status, headers = "500 no response", []

    def start_response(now: str, fields: list[tuple[str, str]], _error: Any = None) -> None:
        nonlocal status, headers
        status, headers = now, fields

    chunks = app(environ, start_response)
    try:
        body = b"".join(chunks)
    finally:
        if hasattr(chunks, "close"):
            chunks.close()
    return Answer(
        status=int(status.split(" ", 1)[0]),
        headers=tuple(headers),
        body=body,
        close=CLOSE in environ,
    )


def wsgi_environ(head: Head, body: bytearray, arrived: float) -> Environ:
    """PEP 3333's variables, werkzeug's RAW_URI, and `ARRIVED`."""
    path, _question, query = head.target.partition("?")
    environ = {
        "REQUEST_METHOD": head.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),  # bytes as text, says PEP 3333
        "QUERY_STRING": query,
        "RAW_URI": head.target,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "0",  # the Host header has the real one
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(bytes(body)),
        "wsgi.input_terminated": True,  # werkzeug then reads it in one piece
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        ARRIVED: arrived,
    }
    for name, value in head.headers.items():
        key = name.upper().replace("-", "_")
        environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
    return environ
