"""Requests over the coordinator's function URL: HTTP in Lambda's own form (payload format 2.0).

Below /v2 it speaks the Open Inference Protocol; a POST to any other path has a request of ours.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

import pybase64

from . import inference_protocol
from .inference_protocol import HttpReply, HttpRequest
from .messages import lift
from .store import Store, objects_of
from .wire import Record, check_bytes

Handler = Callable[[Any, Any], bytes]


def is_http(event: Any) -> bool:
    """Whether the event is an HTTP request to the function's URL; no request of ours looks so."""
    context = event.get("requestContext") if isinstance(event, dict) else None
    return isinstance(context, dict) and isinstance(context.get("http"), dict)


def answering_http(handler: Handler, plan: Mapping[str, Any], store: Store) -> Handler:
    """The handler, which then also answers HTTP requests; `plan` is the coordinator's manifest."""

    def answer(event: Any, context: Any) -> bytes:
        if not is_http(event):
            return handler(event, context)
        try:
            request = http_request(event)
        except (ValueError, TypeError, AttributeError) as error:
            return _refusal(400, f"this is no HTTP request: {error}")
        if inference_protocol.is_ours(request.path):

            def call(inner: dict[str, Any]) -> dict[str, Any]:
                return _with_objects(lift(handler(inner, context), "outputs"), store)

            return as_event(inference_protocol.answer(request, plan, call))
        if request.method != "POST":
            return _refusal(405, f"{request.method} is not POST; a request is its body, as JSON")
        try:
            inner = json.loads(request.body)
        except (ValueError, RecursionError) as error:
            return _refusal(400, f"the body is no JSON: {error}")
        return _as_http(handler(inner, context))

    return answer


def http_request(event: Mapping[str, Any]) -> HttpRequest:
    """The request in an event."""
    http = event["requestContext"]["http"]
    body = event.get("body") or ""
    raw = base64.b64decode(body) if event.get("isBase64Encoded") else body.encode()
    path = unquote(event.get("rawPath") or http.get("path") or "/")
    headers = {name.lower(): value for name, value in event.get("headers", {}).items()}
    return HttpRequest(str(http.get("method")), path, headers, raw)


def as_event(reply: HttpReply) -> bytes:
    """What makes Lambda send this response."""
    head: dict[str, Any] = {"statusCode": reply.status, "headers": reply.headers}
    if reply.headers["content-type"] == "application/json":
        return json.dumps({**head, "body": reply.body.decode()}).encode()
    head["isBase64Encoded"] = True
    text = json.dumps(head)[:-1].encode()
    return b"".join([text, b', "body": "', pybase64.b64encode(reply.body), b'"}'])


def _as_http(reply: bytes) -> bytes:
    """The reply in the form that gives the HTTP response its status.

    Lambda takes JSON without a "statusCode" as the body of a response of status 200, so a reply of
    tensors stays as it is, without another copy of it.
    """
    if reply.startswith(b'{"status": 200,'):
        return reply
    return as_event(HttpReply(json.loads(reply)["status"], reply))


def _refusal(status: int, message: str) -> bytes:
    error = {"type": "BadRequest", "message": message, "field": ""}
    body = {"status": status, "request_id": None, "error": error}
    return as_event(HttpReply(status, json.dumps(body).encode()))


def _with_objects(reply: dict[str, Any], store: Store) -> dict[str, Any]:
    """The reply with the bytes of its objects in it, which are deleted: HTTP has no way to them."""
    outputs: dict[str, Record] = reply.get("outputs", {})
    places = objects_of(outputs)
    if not places:
        return reply
    try:
        for name, record in outputs.items():
            for place in objects_of({name: record}):
                raw = store.start_get(place, record["bytes"])()
                check_bytes(name, record, raw)
                record["data"] = pybase64.b64encode(raw)
    finally:
        store.delete(places)
    return reply
