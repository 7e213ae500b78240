"""The wire format: a tensor as a JSON record of raw bytes, checked before anything is allocated.

A record is {"dtype", "shape", "bytes", "sha256"} and either "data" (base64 of the raw little-endian
bytes) or "s3" or "s3express" (the key of an object that holds them). bfloat16, which numpy lacks,
travels as its upper 16 bits and is float32 in memory. In memory "data" may be text, ASCII bytes or a
view of such bytes.
"""

from __future__ import annotations

import hashlib
import math
import reprlib
from typing import Any

import numpy as np
import pybase64

Record = dict[str, Any]

ITEM_BYTES = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4,
    "int64": 8, "uint64": 8, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
MAX_DIMENSIONS = 16

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 80
_REPR.maxlist = MAX_DIMENSIONS


class WireError(ValueError):
    """A tensor record is malformed or does not hold what it says. `field` names the tensor."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


def shown(value: Any) -> str:
    """What a caller sent, short enough for an error message."""
    return _REPR.repr(value)


def to_bytes(array: np.ndarray, dtype: str) -> memoryview:
    """The raw bytes that travel for `array`, whose type on the wire is `dtype`; copied only if they
    do not lie in one piece.
    """
    if dtype == "bfloat16":
        array = _to_bfloat16_bits(np.asarray(array, dtype=np.float32))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def from_bytes(raw: bytes | memoryview, record: Record) -> np.ndarray:
    """The array of a checked record; read-only, without a copy (except bfloat16)."""
    shape = record["shape"]
    if record["dtype"] == "bfloat16":
        bits = np.frombuffer(raw, dtype=np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    return np.frombuffer(raw, dtype=record["dtype"]).reshape(shape)


def describe(array: np.ndarray, raw: bytes | memoryview, dtype: str) -> Record:
    """A record of these bytes without their transport."""
    return {
        "dtype": dtype,
        "shape": list(array.shape),
        "bytes": len(raw),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }


def inline(record: Record, raw: bytes | memoryview) -> Record:
    """The record with its bytes in it."""
    return {**record, "data": pybase64.b64encode(raw)}


def decode_inline(field: str, record: Record) -> bytes:
    """The raw bytes of an inline record. Raises `WireError`."""
    data = record["data"]
    expected = (record["bytes"] + 2) // 3 * 4
    if not isinstance(data, (str, bytes, memoryview)) or len(data) != expected:
        found = len(data) if isinstance(data, (str, bytes)) else type(data).__name__
        raise WireError(field, f"data is not {expected} characters of base64 (found {found})")
    try:
        return pybase64.b64decode(data, validate=True)
    except ValueError as error:
        raise WireError(field, f"data is not valid base64: {error}") from None


def check_record(field: str, record: Any) -> None:
    """Raise `WireError` unless dtype, shape and byte length are possible and agree."""
    if not isinstance(record, dict):
        raise WireError(field, f"a tensor is a JSON object, this is {type(record).__name__}")
    dtype, shape, size = (record.get(key) for key in ("dtype", "shape", "bytes"))
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise WireError(field, f"dtype {shown(dtype)} is not one of {', '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise WireError(
            field, f"shape {shown(shape)} is not a list of at most {MAX_DIMENSIONS} sizes"
        )
    if not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise WireError(field, f"shape {shown(shape)} holds something other than sizes")
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if type(size) is not int or size != expected:
        raise WireError(
            field, f"bytes is {shown(size)}; dtype {dtype} and shape {shape} make {expected}"
        )


def check_bytes(field: str, record: Record, raw: bytes | memoryview) -> None:
    """Raise `WireError` unless `raw` is what the record describes."""
    check_values(field, record, raw)
    found = hashlib.sha256(raw).hexdigest()
    if record.get("sha256") != found:
        sent = shown(record.get("sha256"))
        raise WireError(field, f"the checksum differs (sent {sent}, arrived {found})")


def check_values(field: str, record: Record, raw: bytes | memoryview) -> None:
    """`check_bytes` without the checksum."""
    if len(raw) != record["bytes"]:
        raise WireError(field, f"{len(raw)} bytes arrived, {record['bytes']} were sent")
    if record["dtype"] == "bool" and len(raw) and np.frombuffer(raw, np.uint8).max() > 1:
        raise WireError(field, "a byte of a bool tensor is neither 0 nor 1")


def _to_bfloat16_bits(array: np.ndarray) -> np.ndarray:
    """Round to nearest even, as torch does; NaN stays NaN."""
    bits = array.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)
