"""Transports: how a tensor leaves one function and arrives in the next.

`payload` puts it into the message; `s3` and `s3express` put it into an object whose key starts with the
request's id. The plan chose by the example's sizes; here the same rule decides by the actual bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np

from .arrays import pack, unpack
from .observe import TimedStore
from .rule import Choices, Rule, choose
from .seal import SealError
from .store import Object, Store, finish, object_key, objects_of
from .wire import Record, WireError, check_bytes, check_record, decode_inline, describe, inline


def send(
    arrays: Mapping[str, np.ndarray],
    dtypes: Mapping[str, str],
    request_id: str,
    choices: Mapping[str, Choices],
    rule: Rule,
    store: Store,
    inline_first: Container[str] = (),
    internal: Container[str] = (),
    encoded: Callable[[], None] = lambda: None,
) -> dict[str, Record]:
    """Records of the tensors; those that go by an object store are there when this returns. `encoded` is
    called when all that is left is to wait for them.

    `internal`: tensors that only slices see, for which the rule's `wire_dtype` and `compression` hold.
    """
    raws, packed = {}, {}
    for name, array in arrays.items():
        packing = (rule.wire_dtype, rule.compression) if name in internal else ()
        raws[name], packed[name] = pack(array, dtypes[name], *packing)
    sizes = {name: len(raw) for name, raw in raws.items()}
    chosen = choose(sizes, choices, rule, inline_first)
    # All uploads run while the rest is encoded and the checksums are taken.
    puts = {
        name: store.start_put(Object(way, object_key(request_id, name)), raws[name])
        for name, way in chosen.items()
        if way != "payload"
    }
    records = {}
    for name, array in arrays.items():
        described = describe(array, raws[name], dtypes[name], packed[name])
        record = {"tensor": name, **described}
        if chosen[name] == "payload":
            records[name] = inline(record, raws[name])
        else:
            records[name] = {**record, chosen[name]: object_key(request_id, name)}
    encoded()
    for name, etag in finish(puts).items():
        records[name]["etag"] = etag
    return records


def receive(
    records: dict[str, Any], request_id: str, store: Store | TimedStore
) -> dict[str, np.ndarray]:
    """The arrays of the records, checked. Raises `WireError` or `SealError` naming the tensor, or
    `StoreError`.

    What arrives from a store other than it was sent is read once more. Empties `records`: each one
    goes once it is decoded, for a function's memory is small.
    """
    gets = {}
    for name, record in records.items():
        check_record(name, record)
        if "data" not in record:
            gets[name] = _start_get(name, record, request_id, store)
    arrays = {}
    # What is inline is decoded while the objects are on their way.
    for name in sorted(records, key=gets.__contains__):
        record = records.pop(name)
        stored = gets.pop(name, None)
        raw: bytes | memoryview | None
        try:
            raw = stored() if stored else decode_inline(name, record)
            check_bytes(name, record, raw)
        except (WireError, SealError):
            if stored is None:
                raise
            raw = stored = None  # a function's memory is small
        if raw is None:  # not while the error is handled, whose traceback holds what arrived
            raw = _start_get(name, record, request_id, store)()
            check_bytes(name, record, raw)
        arrays[name] = unpack(name, record, raw)
    return arrays


def _start_get(
    name: str, record: Record, request_id: str, store: Store | TimedStore
) -> Callable[[], bytes | memoryview]:
    return store.start_get(_place(name, record, request_id), record["bytes"], record.get("etag"))


def _place(name: str, record: Record, request_id: str) -> Object:
    places = objects_of({name: record})
    if [place.key for place in places] != [object_key(request_id, name)]:
        keys = ", ".join(repr(place.key) for place in places) or "None"
        raise WireError(name, f"the S3 key {keys} is not one of this request")
    return places[0]
