"""Messages of tensors as bytes of JSON, without parsing the tensors in them.

Parsing and writing JSON copies and scans every character of it, which for 6 MB takes longer than all
else that a message needs. So the base64 of a message's tensors is cut out before the rest is parsed,
and put in again when the next message is written.

What is cut out is the string after each key "data", found without a parser. That is safe: inside a
JSON string every quote has a backslash before it, so a quote without one begins or ends a string. The
search takes `"data" : "` whose first quote has no backslash before it, so all three quotes begin or end
strings. The first one begins one: had it ended one, `data` would lie between two strings, which is no
JSON. So the second ends the string `data`, which the colon makes a key, and the third begins its
value. That reaches to the next quote, unless this one has a backslash before it: base64 has none, so
such a message is refused.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

from .wire import Record

_KEY = b'"data"'
_TO_STRING = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*"')
_BACKSLASH = b"\\"


def lift(raw: bytes, *fields: str) -> Any:
    """The JSON value `raw`, whose records in `fields` have views of `raw` as their "data".

    Raises `ValueError` when `raw` is no JSON or its tensors are not base64.
    """
    view = memoryview(raw)
    views: list[memoryview] = []
    rest: list[bytes] = []
    done = at = 0
    while (at := raw.find(_KEY, at)) >= 0:
        opening = _TO_STRING.match(raw, at + len(_KEY))
        if opening is None or raw[at - 1 : at] == _BACKSLASH:  # empty at the very start
            at += 1
            continue
        start = opening.end()
        end = raw.find(b'"', start)
        if end < 0 or raw[end - 1 : end] == _BACKSLASH:
            raise ValueError("a tensor's data is not base64")
        rest += [raw[done : start - 1], b"%d" % len(views)]  # its number takes the string's place
        views.append(view[start:end])
        done = at = end + 1
    value = json.loads(b"".join([*rest, raw[done:]]) or b"{}")
    found = [
        record
        for records in (value.get(field) for field in fields if isinstance(value, dict))
        for record in (records.values() if isinstance(records, dict) else ())
        if isinstance(record, dict) and "data" in record
    ]
    numbers = [record["data"] for record in found]
    if not all(type(n) is int for n in numbers) or sorted(numbers) != list(range(len(views))):
        raise ValueError(f"there is data that is no tensor's of {' or '.join(fields)}")
    for record in found:
        record["data"] = views[record["data"]]
    return value


def join(message: Mapping[str, Any], field: str, records: Mapping[str, Record]) -> bytes:
    """`message` with `records` as its `field`, as JSON; their "data" are ASCII bytes or text."""
    parts: list[bytes | memoryview] = [json.dumps({**message, field: {}})[:-2].encode()]
    separator = b""
    for name, record in records.items():
        small = {key: value for key, value in record.items() if key != "data"}
        parts += [separator, json.dumps({name: small})[1:-2].encode()]
        if "data" in record:
            data = record["data"]
            parts += [b', "data": "', data.encode("ascii") if isinstance(data, str) else data, b'"']
        parts.append(b"}")
        separator = b", "
    return b"".join([*parts, b"}}"])


def lift_events() -> None:
    """From now on events of the function come lifted, where they are messages of tensors.

    awslambdaric lets functions have their own marshaller. Its own scans the text of each tensor, makes a
    copy and then another one: a fifth of the CPU that a slice needs for 1 MB.
    """
    try:
        from awslambdaric.lambda_runtime_client import LambdaRuntimeClient
        from awslambdaric.lambda_runtime_marshaller import LambdaMarshaller
    except ImportError:  # the handler is called by something else
        return

    class Lifting(LambdaMarshaller):  # type: ignore[misc]
        def unmarshal_request(self, request: Any, content_type: str = "application/json") -> Any:
            if request and isinstance(request, bytes) and content_type == "application/json":
                with contextlib.suppress(ValueError):
                    return lift(request, "inputs", "tensors")
            return super().unmarshal_request(request, content_type)

    LambdaRuntimeClient.marshaller = Lifting()
