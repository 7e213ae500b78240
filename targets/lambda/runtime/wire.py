"""The wire format: a tensor as a JSON record of raw bytes, checked before anything is allocated.

A record is {"dtype", "shape", "bytes", "sha256"} and either "data" (base64 of the raw little-endian
bytes) or "s3" or "s3express" (the key of an object that holds them, with its "etag"). "tensor" says
whose bytes they are, so that no tensor is taken for another. bfloat16, which numpy lacks, travels as
its upper 16 bits and is float32 in memory. In memory "data" may be text, ASCII bytes or a view of such
bytes.

Between slices a record may have "wire_dtype" (a float32 tensor whose bytes are float16) and
"compression" (the bytes are zlib's). "bytes" and "sha256" are always of what travels, and are checked
before it is decompressed.

No numpy here: the coordinator hands records on without looking into them, and starts a third faster
without it. arrays.py makes records of arrays and arrays of records.
"""

from __future__ import annotations

import hashlib
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pybase64

if TYPE_CHECKING:
    import numpy as np

Record = dict[str, Any]

ITEM_BYTES = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4,
    "int64": 8, "uint64": 8, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
MAX_DIMENSIONS = 16
WIRE_DTYPES = ("float16",)  # what float32 may travel as
COMPRESSIONS = ("zlib",)

_ETAG = re.compile(r'"?[\w-]{1,128}"?', re.ASCII)

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
        is_text = isinstance(data, (str, bytes, memoryview))
        found = len(data) if is_text else type(data).__name__
        raise WireError(field, f"data is not {expected} characters of base64 (found {found})")
    try:
        return pybase64.b64decode(data, validate=True)
    except ValueError as error:
        raise WireError(field, f"data is not valid base64: {error}") from None


def check_record(field: str, record: Any) -> None:
    """Raise `WireError` unless dtype, shape, byte length and packing are possible and agree, and the
    record is of this tensor if it says of which.
    """
    if not isinstance(record, dict):
        raise WireError(field, f"a tensor is a JSON object, this is {type(record).__name__}")
    if record.get("tensor", field) != field:
        raise WireError(
            field, f"this is the tensor {shown(record['tensor'])}; the two were swapped"
        )
    etag = record.get("etag")
    if "etag" in record and not (isinstance(etag, str) and _ETAG.fullmatch(etag)):
        raise WireError(field, f"etag {shown(etag)} is none that S3 gives")
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
    expected = content_bytes(record)
    fits = size == expected if compression is None else type(size) is int and 0 < size < expected
    if type(size) is not int or not fits:
        below = "less than " if compression else ""
        held = f"dtype {dtype}" + (f" as {wire_dtype}" if wire_dtype else "")
        raise WireError(
            field, f"bytes is {shown(size)}; {held} and shape {shape} make {below}{expected}"
        )


def check_planned(field: str, record: Record, dtype: str, shape: Sequence[int | str]) -> None:
    """Raise `WireError` unless a checked record has this type and the sizes that are numbers."""
    found = record["shape"]
    fits = len(found) == len(shape) and all(
        size == planned
        for size, planned in zip(found, shape, strict=True)
        if not isinstance(planned, str)
    )
    if record["dtype"] != dtype or not fits:
        raise WireError(
            field, f"{record['dtype']}{found} arrived; the plan says {dtype}{list(shape)}"
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
    if record["dtype"] == "bool" and bytes(raw).translate(None, b"\0\1"):
        raise WireError(field, "a byte of a bool tensor is neither 0 nor 1")


def content_bytes(record: Record) -> int:
    """Bytes of the tensor as it travels, before compression."""
    travels_as = record["wire_dtype"] if "wire_dtype" in record else record["dtype"]
    return math.prod(record["shape"]) * ITEM_BYTES[travels_as]
