"""Requests over the coordinator's function URL: HTTP in Lambda's own form (payload format 2.0)."""

from __future__ import annotations

import base64
import json
from typing import Any

from .request import BadRequest


def is_http(event: Any) -> bool:
    """Whether the event is an HTTP request to the function's URL; no request of ours looks so."""
    context = event.get("requestContext") if isinstance(event, dict) else None
    return isinstance(context, dict) and isinstance(context.get("http"), dict)


def body_of(event: dict[str, Any]) -> Any:
    """The JSON value that an HTTP request carries. Raises `BadRequest`."""
    method = event["requestContext"]["http"].get("method")
    if method != "POST":
        raise BadRequest("", f"{method} is not POST; a request is its body, as JSON", status=405)
    body = event.get("body") or ""
    try:
        return json.loads(base64.b64decode(body) if event.get("isBase64Encoded") else body)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRequest("", f"the body is no JSON: {error}") from None


def as_http(reply: bytes, status: int) -> bytes:
    """The reply in the form that gives the HTTP response its status.

    Lambda takes JSON without a "statusCode" as the body of a response of status 200, so a reply of
    tensors stays as it is, without another copy of it in quotes.
    """
    if status == 200:
        return reply
    headers = {"content-type": "application/json"}
    answer = {"statusCode": status, "headers": headers, "body": reply.decode()}
    return json.dumps(answer).encode()
