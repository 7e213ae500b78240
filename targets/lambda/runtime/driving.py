"""What every orchestration does with a request: its functions, its messages, its objects, its errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .calls import SliceError
from .request import BadRequest
from .rule import Choices, Rule, choose
from .store import Object, Store, finish, object_key
from .wire import Record, decode_inline


def fit(
    held: dict[str, Record],
    names: list[str],
    request_id: str,
    choices: dict[str, Choices],
    rule: Rule,
    store: Store,
) -> None:
    """Move tensors of one message into objects where all of them together exceed the payload.

    Raises `ValueError` when that is not allowed.
    """
    sizes = {name: held[name]["bytes"] for name in names if "data" in held[name]}
    puts = {}
    for name, transport in choose(sizes, choices, rule, inline_first=sizes).items():
        if transport != "payload":
            key = object_key(request_id, name)
            raw = decode_inline(name, held[name])
            puts[name] = store.start_put(Object(transport, key), raw)
            record = {field: value for field, value in held[name].items() if field != "data"}
            held[name] = {**record, transport: key}
    for name, etag in finish(puts).items():
        held[name]["etag"] = etag


def every_object(plan: Mapping[str, Any], request_id: str, store: Store) -> set[Object]:
    """All objects that a request may have, whether a slice told of them or failed before."""
    allowed = [way for way in store.transports if way in plan["rule"]["transports"]]
    tensors = {*plan["choices"], *(spec["name"] for spec in plan["inputs"])}
    return {Object(way, object_key(request_id, name)) for way in allowed for name in tensors}


def error_reply(error: Exception, request_id: str) -> bytes:
    """The reply to a request that ended with this error."""
    if isinstance(error, BadRequest):
        return _reply(error.status, request_id, "BadRequest", str(error), field=error.field)
    if isinstance(error, SliceError):
        status = 504 if error.kind == "DeadlineExceeded" else 502
        return _reply(status, request_id, error.kind, str(error), slice=error.slice)
    return _reply(500, request_id, type(error).__name__, str(error))


def _reply(status: int, request_id: str, kind: str, message: str, **where: str) -> bytes:
    error = {"type": kind, "message": message, **where}
    return json.dumps({"status": status, "request_id": request_id, "error": error}).encode()
