"""The emulated network of S3: a WSGI application around S3's own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs

from .identity import caller_of
from .network import Traffic
from .permissions import EXPRESS_SUFFIX
from .wsgi import ARRIVED, App, Environ

COUNTS_PATH = "/_network"  # the names of buckets have no underscore


def delayed(app: App, traffic: Traffic) -> App:
    """S3 whose responses come when they would over the emulated network, or as soon as they can."""

    def answer(environ: Environ, start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == COUNTS_PATH:
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(traffic.counts).encode()]
        kind = kind_of(environ)
        wait = traffic.draw_s(kind)
        caller = caller_of(environ.get("HTTP_AUTHORIZATION"))
        due = environ[ARRIVED]
        if caller:
            size = int(environ.get("CONTENT_LENGTH") or 0)
            due = traffic.transfer(caller.instance, "out", size, due)
        body = b"".join(app(environ, start_response))
        if caller:
            due = traffic.transfer(caller.instance, "in", len(body), due)
        traffic.finish(kind, due + wait)
        return [body]

    return answer


def kind_of(environ: Environ) -> str:
    """Which wait a request has: what writes an object or a part of one waits as a put, all else
    (reading, deleting, listing, CreateSession) as a get.
    """
    bucket = environ["PATH_INFO"].lstrip("/").partition("/")[0]
    store = "s3express" if bucket.endswith(EXPRESS_SUFFIX) else "s3"
    method = environ["REQUEST_METHOD"]
    query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
    writes = method == "PUT" or (method == "POST" and "delete" not in query)
    return f"{store} {'put' if writes else 'get'}"
