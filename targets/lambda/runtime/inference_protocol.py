"""The Open Inference Protocol v2 over HTTP, with its binary tensors: a request becomes one of ours.

https://github.com/open-inference/open-inference-protocol (specification/protocol/inference_rest.md) and,
for binary tensors, Triton's extension (server/docs/protocol/extension_binary_data.md): the JSON is
followed by the raw bytes of the tensors that say "binary_data_size", and a header has the JSON's length.

A caller's id is told back but is no request id of ours: two callers may use the same.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pybase64

from .wire import Record, WireError, decode_inline, shown

# What a request may be, to what its reply is: the coordinator's own handler or what stands before it.
Call = Callable[[dict[str, Any]], dict[str, Any]]

DATATYPES = {
    "bool": "BOOL", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "float16": "FP16", "bfloat16": "BF16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
JSON_LENGTH = "inference-header-content-length"
_DIGITS = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True)
class HttpRequest:
    """`path` without query and escapes, names of headers in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class HttpReply:
    """A whole response."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """An error reply of the protocol."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def is_ours(path: str) -> bool:
    """Whether the path belongs to the protocol."""
    return path == "/v2" or path.startswith("/v2/")


def answer(request: HttpRequest, plan: Mapping[str, Any], call: Call) -> HttpReply:
    """The reply to a request of the protocol; `plan` is the coordinator's manifest.

    `call` answers a request of ours, and its reply's outputs are inline.
    """
    try:
        return _answer(request, plan, call)
    except Refused as refused:
        return _json({"error": str(refused)}, refused.status)


def _answer(request: HttpRequest, plan: Mapping[str, Any], call: Call) -> HttpReply:
    match request.path.strip("/").split("/"):
        case ["v2"]:
            _expect("GET", request)
            extensions = ["binary_tensor_data"]
            return _json(
                {"name": "slicewise", "version": plan["slicewise"], "extensions": extensions}
            )
        case ["v2", "health", ("live" | "ready") as what]:
            _expect("GET", request)
            return _json({what: True})
        case ["v2", "models", name, *rest]:
            if name != plan["model"]:
                raise Refused(404, f"unknown model {shown(name)}; here is {plan['model']!r}")
            if rest[:1] == ["versions"]:
                if rest[1:2] != [plan["id"]]:
                    raise Refused(404, f"unknown version of {name}; here is {plan['id']!r}")
                rest = rest[2:]
            return _of_model(rest, request, plan, call)
        case _:
            raise Refused(404, f"the protocol has no path {shown(request.path)} here")


def _of_model(
    rest: list[str], request: HttpRequest, plan: Mapping[str, Any], call: Call
) -> HttpReply:
    match rest:
        case []:
            _expect("GET", request)
            return _json(_metadata(plan))
        case ["ready"]:
            _expect("GET", request)
            return _json({"name": plan["model"], "ready": True})
        case ["infer"]:
            _expect("POST", request)
            return _infer(request, plan, call)
        case _:
            raise Refused(404, f"a model has no path {shown('/'.join(rest))} here")


def _expect(method: str, request: HttpRequest) -> None:
    if request.method != method:
        raise Refused(405, f"{shown(request.method)} is not {method}")


def _metadata(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The model's tensors; -1 is a dimension that varies."""
    return {
        "name": plan["model"],
        "versions": [plan["id"]],
        "platform": "slicewise_onnxruntime",
        **{
            side: [
                {
                    "name": spec["name"],
                    "datatype": DATATYPES[spec["dtype"]],
                    "shape": [size if isinstance(size, int) else -1 for size in spec["shape"]],
                }
                for spec in plan[side]
            ]
            for side in ("inputs", "outputs")
        },
    }


def _infer(request: HttpRequest, plan: Mapping[str, Any], call: Call) -> HttpReply:
    limit = plan["rule"]["payload_bytes"]
    head, rest = _parts(request, limit)
    parameters = _parameters(head, "the request", ("binary_data_output",))
    specs = {spec["name"]: spec for spec in plan["inputs"]}
    inputs: dict[str, Any] = {}
    for tensor in _tensors(head, "inputs"):
        inputs[tensor["name"]], rest = _input(tensor, specs, rest)
    if rest:
        raise Refused(400, f"{len(rest)} bytes follow the last tensor")
    outputs = {spec["name"]: spec for spec in plan["outputs"]}
    wanted = {name: bool(parameters.get("binary_data_output")) for name in outputs}
    if "outputs" in head:
        every, wanted = wanted, {}
        for tensor in _tensors(head, "outputs"):
            name = tensor["name"]
            if name not in every:
                raise Refused(
                    400, f"unknown output {shown(name)}; the model has {', '.join(every)}"
                )
            own = _parameters(tensor, name, ("binary_data",))
            wanted[name] = bool(own.get("binary_data", every[name]))
    reply = call({"inputs": inputs})
    if reply["status"] != 200:
        raise Refused(reply["status"], reply["error"]["message"])
    described, raws = [], []
    for name, is_binary in wanted.items():
        tensor, raw = _output(name, reply["outputs"][name], is_binary)
        described.append(tensor)
        raws.append(raw)
    told = {"id": head["id"]} if "id" in head else {}
    body = {"model_name": plan["model"], "model_version": plan["id"], **told, "outputs": described}
    written = json.dumps(body).encode()
    total = len(written) + sum(len(raw) for raw in raws)
    if total * 4 // 3 > limit:  # the function URL has it in base64
        raise Refused(
            413,
            f"the outputs take {total:,} bytes, a reply over HTTP at most {limit * 3 // 4:,}; "
            "ask for fewer of them or for binary ones, or call the function with slicewise's client",
        )
    if not any(raws):
        return _json(body)
    headers = {"content-type": "application/octet-stream", JSON_LENGTH: str(len(written))}
    return HttpReply(200, b"".join([written, *raws]), headers)


def _parts(request: HttpRequest, limit: int) -> tuple[dict[str, Any], memoryview]:
    """The JSON of a request, and the bytes behind it."""
    body = _inflated(request, limit)
    length = request.headers.get(JSON_LENGTH, str(len(body)))
    if not _DIGITS.fullmatch(length) or int(length) > len(body):
        raise Refused(
            400, f"Inference-Header-Content-Length is {shown(length)} of {len(body)} bytes"
        )
    try:
        head = json.loads(body[: int(length)])
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the request is no JSON: {error}") from None
    if not isinstance(head, dict):
        raise Refused(400, f"the request is a JSON {type(head).__name__}; expected an object")
    if not isinstance(head.get("id", ""), str):
        raise Refused(400, f"id is {shown(head['id'])}; expected a string")
    unknown = head.keys() - {"id", "parameters", "inputs", "outputs"}
    if unknown:
        raise Refused(400, f"unknown field {shown(min(unknown))}")
    return head, memoryview(body)[int(length) :]


def _inflated(request: HttpRequest, limit: int) -> bytes:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding == "identity":
        return request.body
    if encoding not in ("gzip", "deflate"):
        raise Refused(415, f"Content-Encoding {shown(encoding)} is not gzip, deflate or identity")
    inflating = zlib.decompressobj(wbits=47)  # either kind, by its header
    try:
        body = inflating.decompress(request.body, limit + 1)
    except zlib.error as error:
        raise Refused(400, f"the body is not {encoding}: {error}") from None
    if len(body) > limit:
        raise Refused(413, f"the body inflates to more than {limit:,} bytes")
    if not inflating.eof:
        raise Refused(400, f"the {encoding} body ends too early")
    return body


def _tensors(head: Mapping[str, Any], side: str) -> list[dict[str, Any]]:
    tensors = head.get(side)
    names = [
        tensor["name"]
        for tensor in (tensors if isinstance(tensors, list) else ())
        if isinstance(tensor, dict) and isinstance(tensor.get("name"), str)
    ]
    if not isinstance(tensors, list) or len(names) != len(tensors):
        raise Refused(400, f"'{side}' is missing or no list of tensors with names")
    for name in names:
        if names.count(name) > 1:
            raise Refused(400, f"the tensor {shown(name)} is among the {side} twice")
    return tensors


def _parameters(owner: Mapping[str, Any], what: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Its parameters. What has no meaning here is refused, not ignored."""
    parameters = owner.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Refused(400, f"{what}: parameters is {shown(parameters)}; expected an object")
    unknown = sorted(parameters.keys() - set(known))
    if unknown:
        raise Refused(400, f"{what}: parameter {shown(unknown[0])} is not supported")
    return parameters


def _input(
    tensor: Mapping[str, Any], specs: Mapping[str, Any], rest: memoryview
) -> tuple[Record, memoryview]:
    """A tensor of a request of ours, and the bytes behind its own."""
    name = tensor["name"]
    if name not in specs:
        raise Refused(400, f"unknown input {shown(name)}; the model takes {', '.join(specs)}")
    dtype = specs[name]["dtype"]
    if tensor.get("datatype") != DATATYPES[dtype]:
        found = shown(tensor.get("datatype"))
        raise Refused(400, f"{name}: datatype is {found}, the model takes {DATATYPES[dtype]}")
    if not isinstance(tensor.get("shape"), list):
        raise Refused(400, f"{name}: shape is {shown(tensor.get('shape'))}; expected a list")
    size = _parameters(tensor, name, ("binary_data_size",)).get("binary_data_size")
    record = {"dtype": dtype, "shape": tensor["shape"]}
    if size is None:
        if not isinstance(tensor.get("data"), list):
            raise Refused(400, f"{name}: neither a list 'data' nor a 'binary_data_size' was given")
        return {**record, "data": tensor["data"]}, rest
    if type(size) is not int or not 0 <= size <= len(rest) or "data" in tensor:
        raise Refused(
            400,
            f"{name}: binary_data_size is {shown(size)}, {len(rest)} bytes are left in the body"
            + ("; and it has 'data', too" if "data" in tensor else ""),
        )
    return {**record, "data": pybase64.b64encode(rest[:size])}, rest[size:]


def _output(name: str, record: Record, is_binary: bool) -> tuple[dict[str, Any], bytes]:
    tensor = {"name": name, "datatype": DATATYPES[record["dtype"]], "shape": record["shape"]}
    try:
        raw = decode_inline(name, record)
    except WireError as error:
        raise Refused(502, str(error)) from None
    if is_binary:
        return {**tensor, "parameters": {"binary_data_size": len(raw)}}, raw
    return {**tensor, "data": _numbers(name, raw, record)}, b""


def _numbers(name: str, raw: bytes, record: Record) -> list[Any]:
    """The values in row-major order."""
    import numpy as np  # only here, as the coordinator starts faster without

    from .arrays import from_bytes

    array = from_bytes(raw, record)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Refused(400, f"{name} has NaN or infinity, which JSON lacks; ask for binary_data")
    values: list[Any] = array.ravel().tolist()
    return values


def _json(body: dict[str, Any], status: int = 200) -> HttpReply:
    return HttpReply(status, json.dumps(body).encode())
