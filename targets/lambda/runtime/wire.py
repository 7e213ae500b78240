"""The wire format: a tensor as a JSON record of raw bytes, checked before anything is allocated.

A record is {"dtype", "shape", "bytes", "sha256"} and either "data" (base64 of the raw little-endian
bytes) or "s3" or "s3express" (the key of an object that holds them). bfloat16, which numpy lacks,
travels as its upper 16 bits and is float32 in memory. In memory "data" may be text, ASCII bytes or a
view of such bytes.

Between slices a record may have "wire_dtype" (a float32 tensor whose bytes are float16) and
"compression" (the bytes are zlib's). "bytes" and "sha256" are always of what travels, and are checked
before it is decompressed.

float16 is exact in 11 bits from 2**-14 to 65504 and has steps of 2**-24 below, so rounding x to the
nearest changes it by at most max(2**-11 * |x|, 2**-25), and 2**-25 is 2**-11 * 2**-14. So a tensor
whose largest finite magnitude is at least 2**-14 changes by at most 2**-11 of that magnitude anywhere.
A smaller one may lose more, and what rounds above 65504 would become infinite: these travel as float32.
"""

from __future__ import annotations

import hashlib
import math
import reprlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pybase64

Record = dict[str, Any]

ITEM_BYTES = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4,
    "int64": 8, "uint64": 8, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
MAX_DIMENSIONS = 16
WIRE_DTYPES = ("float16",)  # what float32 may travel as
COMPRESSIONS = ("zlib",)
_ZLIB_LEVEL = 1  # higher ones take several times as long and hardly shrink floats further

# The bits of float16 without the sign are ordered as the magnitudes are.
_MAGNITUDE, _SMALLEST_NORMAL, _INFINITE = 0x7FFF, 0x0400, 0x7C00

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


def pack(
    array: np.ndarray, dtype: str, wire_dtype: str | None = None, compression: str | None = None
) -> tuple[bytes | memoryview, dict[str, str]]:
    """The bytes that travel for `array`, and what its record says of them beside `dtype`.

    float32 becomes `wire_dtype` where that keeps its values, and any type is compressed where that
    makes it smaller.
    """
    packed = {}
    if dtype == "float32" and wire_dtype == "float16":
        half = _to_float16(array)
        if half is not None:
            array, dtype, packed["wire_dtype"] = half, wire_dtype, wire_dtype
    raw: bytes | memoryview = to_bytes(array, dtype)
    if compression == "zlib":
        small = zlib.compress(raw, _ZLIB_LEVEL)
        if len(small) < len(raw):
            raw, packed["compression"] = small, compression
    return raw, packed


def unpack(field: str, record: Record, raw: bytes | memoryview) -> np.ndarray:
    """The array of a record whose bytes are checked. Raises `WireError`."""
    if "compression" in record:
        expected = _content_bytes(record)
        raw = _decompressed(field, raw, expected)
        record = {key: value for key, value in record.items() if key != "compression"}
        check_values(field, {**record, "bytes": expected}, raw)
    return from_bytes(raw, record)


def from_bytes(raw: bytes | memoryview, record: Record) -> np.ndarray:
    """The array of a checked record without compression; read-only, a copy only if of another type."""
    shape = record["shape"]
    if "wire_dtype" in record:
        array = np.frombuffer(raw, dtype=record["wire_dtype"])
        return array.astype(record["dtype"]).reshape(shape)
    if record["dtype"] == "bfloat16":
        bits = np.frombuffer(raw, dtype=np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    return np.frombuffer(raw, dtype=record["dtype"]).reshape(shape)


def describe(
    array: np.ndarray, raw: bytes | memoryview, dtype: str, packed: Mapping[str, str] | None = None
) -> Record:
    """A record of these bytes without their transport; `packed` is what `pack` says of them."""
    return {
        "dtype": dtype,
        **(packed or {}),
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
    """Raise `WireError` unless dtype, shape, byte length and packing are possible and agree."""
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
    wire_dtype, compression = record.get("wire_dtype"), record.get("compression")
    if "wire_dtype" in record and (wire_dtype not in WIRE_DTYPES or dtype != "float32"):
        raise WireError(field, f"{dtype} cannot travel as wire_dtype {shown(wire_dtype)}")
    if "compression" in record and compression not in COMPRESSIONS:
        raise WireError(
            field, f"compression {shown(compression)} is not one of {', '.join(COMPRESSIONS)}"
        )
    expected = _content_bytes(record)
    fits = size == expected if compression is None else type(size) is int and 0 < size < expected
    if type(size) is not int or not fits:
        below = "less than " if compression else ""
        held = f"dtype {dtype}" + (f" as {wire_dtype}" if wire_dtype else "")
        raise WireError(
            field, f"bytes is {shown(size)}; {held} and shape {shape} make {below}{expected}"
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
    if "compression" in record:
        return  # the values are checked when they are there
    if record["dtype"] == "bool" and len(raw) and np.frombuffer(raw, np.uint8).max() > 1:
        raise WireError(field, "a byte of a bool tensor is neither 0 nor 1")


def _content_bytes(record: Record) -> int:
    """Bytes of the tensor as it travels, before compression."""
    travels_as = record["wire_dtype"] if "wire_dtype" in record else record["dtype"]
    return math.prod(record["shape"]) * ITEM_BYTES[travels_as]


def _decompressed(field: str, raw: bytes | memoryview, expected: int) -> bytes:
    """The `expected` bytes that `raw` holds; no more than one byte above them is ever made."""
    inflating = zlib.decompressobj()
    try:
        content = inflating.decompress(raw, expected + 1)
    except zlib.error as error:
        raise WireError(field, f"the data cannot be decompressed: {error}") from None
    if len(content) > expected:
        raise WireError(field, f"the data decompresses to more than {expected} bytes")
    if not inflating.eof or inflating.unused_data:
        what = "goes on after its end" if inflating.eof else "ends too early"
        raise WireError(field, f"the compressed data {what}")
    return content


def _to_float16(array: np.ndarray) -> np.ndarray | None:
    """The array as float16, or None where that would not keep it: see the module's docstring."""
    with np.errstate(over="ignore", under="ignore"):
        half = array.astype(np.float16)
    bits = half.view(np.uint16) & _MAGNITUDE
    largest = bits.max(initial=0)
    if largest >= _INFINITE:  # infinite or NaN before already?
        if np.any(np.isinf(half) & np.isfinite(array)):
            return None
        largest = bits.max(initial=0, where=bits < _INFINITE)
    # What lies just below the smallest normal number may be rounded to it.
    if largest <= _SMALLEST_NORMAL and np.any(array[np.isfinite(array)]):
        return None
    return half


def _to_bfloat16_bits(array: np.ndarray) -> np.ndarray:
    """Round to nearest even, as torch does; NaN stays NaN."""
    bits = array.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)
