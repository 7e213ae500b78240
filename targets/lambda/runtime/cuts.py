"""Cuts: the parts of a request's tensors that shards read, cut out where the request arrives.

So each shard is sent its own rows or tile, not all of them. No numpy here, see wire.py.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .store import Store, objects_of
from .wire import ITEM_BYTES, Record, check_bytes, decode_inline, inline


def cut_inputs(held: dict[str, Record], cuts: Sequence[Mapping[str, Any]], store: Store) -> None:
    """Add the parts that the plan names to a request's checked records. A tensor that came as an object
    is read. Raises `WireError` or `StoreError`.
    """
    raws: dict[str, bytes | memoryview] = {}
    for cut in cuts:
        source = cut["source"]
        record = held[source]
        if source not in raws:
            raws[source] = _raw(source, record, store)
        held[cut["tensor"]] = _part(cut, record, raws[source])


def _raw(name: str, record: Record, store: Store) -> bytes | memoryview:
    if "data" in record:
        return decode_inline(name, record)  # and its checksum has been looked at
    (place,) = objects_of({name: record})
    raw = store.start_get(place, record["bytes"], record.get("etag"))()
    check_bytes(name, record, raw)
    return raw


def _part(cut: Mapping[str, Any], record: Record, raw: bytes | memoryview) -> Record:
    """What lies in all ranges (dimension, first index, the one after the last), with its bytes."""
    shape = list(record["shape"])
    for dim, first, last in cut["ranges"]:
        index_bytes = math.prod(shape[dim + 1 :]) * ITEM_BYTES[record["dtype"]]
        begin, end, step = first * index_bytes, last * index_bytes, shape[dim] * index_bytes
        view = memoryview(raw)
        raw = b"".join(
            [view[at + begin : at + end] for at in range(0, len(view), step)] if step else []
        )
        shape[dim] = last - first
    described = {
        "tensor": cut["tensor"],
        "dtype": record["dtype"],
        "shape": shape,
        "bytes": len(raw),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
    return inline(described, raw)
