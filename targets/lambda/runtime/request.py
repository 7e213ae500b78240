"""The request of a caller: checked against the plan before any slice is called."""

from __future__ import annotations

import ast
import hashlib
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .deadline import MOST_MS
from .store import BUCKET_VARIABLES, object_key, objects_of
from .wire import (
    ITEM_BYTES,
    MAX_DIMENSIONS,
    Record,
    WireError,
    check_bytes,
    check_record,
    check_values,
    decode_inline,
    describe,
    inline,
    shown,
)

REQUEST_FIELDS = ("inputs", "request_id", "trace", "remaining_ms")
TENSOR_FIELDS = ("tensor", "dtype", "shape", "bytes", "sha256", "data", "etag", *BUCKET_VARIABLES)
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{7,63}")
_WHOLE = re.compile(r"u?int\d+|bool")


class BadRequest(ValueError):  # noqa: N818 - the name that a caller sees
    """The caller's mistake: an HTTP-like 4xx `status` and the offending `field`."""

    def __init__(self, field: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.field = field[:80]  # it may be the caller's own text
        self.status = status


def check_request(
    event: Any,
    specs: Sequence[Mapping[str, Any]],
    dims: Mapping[str, Mapping[str, Any]],
    request_id: str,
) -> dict[str, Record]:
    """Complete records of all inputs of the plan. Raises `BadRequest`.

    A tensor is {"dtype", "shape", "data"} with base64 (the byte length and the checksum are checked
    when given), or {"data"} with nested lists of numbers, whose dtype then is the plan's; a flat list
    may have a "shape".
    """
    if not isinstance(event, dict):
        raise BadRequest("", f"the request is a JSON {type(event).__name__}; expected an object")
    for field in event:
        if field not in REQUEST_FIELDS:
            raise BadRequest(
                field, f"unknown field {shown(field)}; a request has {', '.join(REQUEST_FIELDS)}"
            )
    given = event.get("inputs")
    if not isinstance(given, dict):
        raise BadRequest("inputs", "'inputs' is missing; expected an object of tensors by name")
    names = [spec["name"] for spec in specs]
    for field in given:
        if field not in names:
            raise BadRequest(
                field, f"unknown tensor {shown(field)}; the model takes {', '.join(names)}"
            )
    sizes: dict[str, tuple[int, str]] = {}
    records = {}
    for spec in specs:
        name = spec["name"]
        if name not in given:
            raise BadRequest(name, f"the tensor {name!r} is missing")
        try:
            records[name] = _complete(name, given[name], spec, request_id)
        except WireError as error:
            raise BadRequest(name, str(error)) from None
        _check_shape(name, records[name], spec, dims, sizes)
    for spec in specs:
        _check_derived(spec, records[spec["name"]]["shape"], sizes)
    return records


def request_id_of(event: Any, default: str) -> str:
    """The caller's request id when it is a usable one, else `default`. Raises `BadRequest`."""
    given = event.get("request_id") if isinstance(event, dict) else None
    if given is None:
        return default
    if not isinstance(given, str) or not _REQUEST_ID.fullmatch(given):
        raise BadRequest("request_id", "request_id must be 8 to 64 letters, digits or hyphens")
    return given


def remaining_s_of(event: Any, most_s: float) -> float:
    """The time that the caller leaves to the request, at most `most_s`. Raises `BadRequest`."""
    given = event.get("remaining_ms") if isinstance(event, dict) else None
    if given is None:
        return most_s
    if type(given) not in (int, float) or not 0 < given <= MOST_MS:
        raise BadRequest("remaining_ms", "remaining_ms must be a number of milliseconds above 0")
    return min(float(given) / 1e3, most_s)


def _complete(name: str, tensor: Any, spec: Mapping[str, Any], request_id: str) -> Record:
    if not isinstance(tensor, dict):
        raise WireError(name, f"a tensor is a JSON object, this is {type(tensor).__name__}")
    for field in tensor:
        if field not in TENSOR_FIELDS:
            raise WireError(
                name, f"unknown field {shown(field)}; known: {', '.join(TENSOR_FIELDS)}"
            )
    if isinstance(tensor.get("data"), (list, int, float, bool)):
        return _from_numbers(name, tensor, spec)
    record = {"tensor": name, **tensor}
    shape, dtype = record.get("shape"), record.get("dtype")
    item = ITEM_BYTES.get(dtype) if isinstance(dtype, str) else None
    sizes = shape if isinstance(shape, list) else [None]
    if "bytes" not in record and item and all(type(n) is int and n >= 0 for n in sizes):
        record["bytes"] = math.prod(sizes) * item
    check_record(name, record)
    _check_dtype(name, record["dtype"], spec)
    places = objects_of({name: record})
    if "data" in record:
        if places:  # all objects among a request's records are deleted at its end
            raise WireError(name, f"both 'data' and {places[0].transport!r} were given")
        raw = decode_inline(name, record)
        if "sha256" in record:
            check_bytes(name, record, raw)
        else:
            check_values(name, record, raw)
            record["sha256"] = hashlib.sha256(raw).hexdigest()
    elif [p.key for p in places] != [object_key(request_id, name)] or "sha256" not in record:
        raise WireError(name, "neither 'data' nor a valid 's3' key of this request was given")
    return record


def _from_numbers(name: str, tensor: dict[str, Any], spec: Mapping[str, Any]) -> Record:
    import numpy as np  # only here, as the coordinator starts faster without

    from .arrays import to_bytes

    dtype = tensor.get("dtype", spec["dtype"])
    _check_dtype(name, dtype, spec)
    try:
        _check_leaves(name, tensor["data"])
        values = np.array(tensor["data"])
    except (ValueError, OverflowError) as error:
        raise WireError(name, f"the nested lists are not a tensor: {error}") from None
    if values.size == 0:
        values = values.astype(np.float64)
    if values.dtype.kind not in "biuf":
        raise WireError(name, "the nested lists hold something other than numbers")
    kind = np.dtype("float32" if dtype == "bfloat16" else dtype)
    if _WHOLE.fullmatch(dtype):
        if values.dtype.kind == "f" and not (
            np.isfinite(values).all() and np.array_equal(values, np.floor(values))
        ):
            raise WireError(name, f"NaN, infinity or a fraction cannot be {dtype}")
        low, high = (0, 1) if dtype == "bool" else (np.iinfo(kind).min, np.iinfo(kind).max)
        # Compared as Python's own: as floats, 2**63 would not exceed the largest int64.
        if values.size and not (low <= int(values.min()) and int(values.max()) <= high):
            raise WireError(name, f"a number lies outside {dtype}'s {low}..{high}")
    with np.errstate(over="ignore"):
        array = values.astype(kind)
    if kind.kind == "f" and not np.array_equal(np.isfinite(array), np.isfinite(values)):
        raise WireError(name, f"a number lies outside {dtype}'s range")
    if array.ndim == 1 and _is_shape_of(array.size, tensor.get("shape")):
        array = array.reshape(tensor["shape"])  # a flat list is in row-major order
    if "shape" in tensor and tensor["shape"] != list(array.shape):
        raise WireError(
            name, f"shape says {shown(tensor['shape'])}, the lists make {list(array.shape)}"
        )
    raw = to_bytes(array, dtype)
    return inline({"tensor": name, **describe(array, raw, dtype)}, raw)


def _check_leaves(name: str, data: Any) -> None:
    """Nothing but numbers: numpy would make every element as large as the longest text."""
    import numpy as np

    kinds = set(map(type, np.array(data, dtype=object).ravel().tolist()))
    if list in kinds:
        raise WireError(name, "the nested lists are not a tensor: their lengths or depths differ")
    if not kinds <= {int, float, bool}:
        raise WireError(name, "the nested lists hold something other than numbers")


def _is_shape_of(size: int, shape: Any) -> bool:
    """Whether so many values may have this shape."""
    return (
        isinstance(shape, list)
        and len(shape) <= MAX_DIMENSIONS
        and all(type(n) is int and n >= 0 for n in shape)
        and math.prod(shape) == size
    )


def _check_dtype(name: str, dtype: Any, spec: Mapping[str, Any]) -> None:
    if dtype != spec["dtype"]:
        raise WireError(name, f"dtype is {shown(dtype)}, the model takes {spec['dtype']}")


def _check_shape(
    name: str,
    record: Record,
    spec: Mapping[str, Any],
    dims: Mapping[str, Mapping[str, Any]],
    sizes: dict[str, tuple[int, str]],
) -> None:
    """Fixed sizes must match, dynamic ones lie in their range and agree between the inputs."""
    shape, expected = record["shape"], spec["shape"]
    if len(shape) != len(expected):
        raise BadRequest(
            name, f"{name}: shape {shape} has {len(shape)} dimensions, expected {list(expected)}"
        )
    for found, size in zip(shape, expected, strict=True):
        if isinstance(size, int):
            if found != size:
                raise BadRequest(name, f"{name}: shape is {shape}, expected {list(expected)}")
        elif size in dims:
            low, high = dims[size]["min"], dims[size]["max"]
            if not low <= found <= high:
                raise BadRequest(
                    name,
                    f"{name}: {size} is {found}; the plan was made for {low} to {high}. Compile with "
                    f"dynamic_shapes that allow it, e.g. Dim({size!r}, max={found})",
                )
            first, where = sizes.setdefault(size, (found, name))
            if first != found:
                raise BadRequest(name, f"{name}: {size} is {found}, but {where} has {first}")


def _check_derived(
    spec: Mapping[str, Any], shape: Sequence[int], sizes: Mapping[str, tuple[int, str]]
) -> None:
    """Sizes such as "2*batch" follow from the dimensions that the inputs have."""
    name = spec["name"]
    for found, size in zip(shape, spec["shape"], strict=True):
        if isinstance(size, int) or size in sizes:
            continue
        wanted = _value(ast.parse(size, mode="eval").body, sizes)
        if wanted not in (None, found):
            known = ", ".join(f"{dim} is {value}" for dim, (value, _) in sizes.items())
            raise BadRequest(
                name, f"{name}: shape is {shape}, expected {list(spec['shape'])}; {known}: {wanted}"
            )


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _value(node: ast.expr, sizes: Mapping[str, tuple[int, str]]) -> int | None:
    """The plan's expression in whole numbers; None for what only the slice can tell."""
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name) if name in sizes:
            return sizes[name][0]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _value(operand, sizes)
            return None if inner is None else -inner
        case ast.BinOp(left=left, op=kind, right=right) if type(kind) in _OPERATORS:
            first, second = _value(left, sizes), _value(right, sizes)
            if first is None or second is None:
                return None
            if second == 0 and isinstance(kind, (ast.FloorDiv, ast.Mod)):
                return None
            return _OPERATORS[type(kind)](first, second)
        case _:
            return None
