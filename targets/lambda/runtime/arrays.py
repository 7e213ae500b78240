"""Arrays on the wire: the raw bytes of numpy arrays, rounded and compressed if asked, and back.

float16 is exact in 11 bits from 2**-14 to 65504 and has steps of 2**-24 below, so rounding x to the
nearest changes it by at most max(2**-11 * |x|, 2**-25), and 2**-25 is 2**-11 * 2**-14. So a tensor
whose largest finite magnitude is at least 2**-14 changes by at most 2**-11 of that magnitude anywhere.
A smaller one may lose more, and what rounds above 65504 would become infinite: these travel as float32.
"""

from __future__ import annotations

import zlib

import numpy as np

from .wire import Record, WireError, check_values, content_bytes

_ZLIB_LEVEL = 1  # higher ones take several times as long and hardly shrink floats further

# The bits of float16 without the sign are ordered as the magnitudes are.
_MAGNITUDE, _SMALLEST_NORMAL, _INFINITE = 0x7FFF, 0x0400, 0x7C00


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
        expected = content_bytes(record)
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
