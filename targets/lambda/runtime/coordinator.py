"""The coordinator: the one function that a caller invokes. It checks the request, calls the slices
stage by stage, hands every tensor on as it came (never decoding it), and cleans up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from .request import BadRequest, check_request, request_id_of
from .rule import Rule, choose
from .transport import Store, keys_of, object_key
from .wire import Record, decode_inline

Handler = Callable[[Any, Any], dict[str, Any]]


class SliceError(RuntimeError):
    """A slice did not answer with tensors."""

    def __init__(self, slice_name: str, kind: str, message: str) -> None:
        super().__init__(message)
        self.slice = slice_name
        self.kind = kind


def coordinator_handler(*, manifest: Path) -> Handler:
    """The Lambda handler of the coordinator; `manifest` is the JSON that the bundle put beside it:
    plan id, inputs, outputs, dims, transport rule, and the slices with stage, function and tensors.
    """
    plan = json.loads(manifest.read_text())
    rule = Rule(**{**plan["rule"], "transports": tuple(plan["rule"]["transports"])})
    dims = {dim["name"]: dim for dim in plan["dims"]}
    store = Store()
    timeout = plan["timeout_s"]
    function_of = plan["functions"]
    functions = boto3.client(
        "lambda",
        config=Config(
            # A second attempt would run the slice twice.
            retries={"mode": "standard", "total_max_attempts": 1},
            read_timeout=timeout + 5,
            connect_timeout=5,
            tcp_keepalive=True,
        ),
    )
    width = max(len(stage) for stage in plan["stages"])
    pool = ThreadPoolExecutor(width) if width > 1 else None

    def call(part: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
        return _invoke(functions, function_of[part["name"]], part, message)

    def handler(event: Any, context: Any) -> dict[str, Any]:
        request_id = str(context.aws_request_id)
        held: dict[str, Record] = {}
        kept: set[str] = set()
        started = time.perf_counter()
        try:
            request_id = request_id_of(event, request_id)
            held.update(check_request(event, plan["inputs"], dims, request_id))
            trace = []
            for stage in plan["stages"]:
                messages = []
                for part in stage:
                    _fit(held, part["inputs"], request_id, rule, store)
                    tensors = {name: held[name] for name in part["inputs"]}
                    messages.append(
                        {"request_id": request_id, "plan": plan["id"], "tensors": tensors}
                    )
                run = pool.map if pool is not None and len(stage) > 1 else map
                for part, reply in zip(stage, run(call, stage, messages), strict=True):
                    held.update(reply["tensors"])
                    trace.append({"slice": part["name"], "stage": part["stage"], **reply["trace"]})
            _fit(held, [spec["tensor"] for spec in plan["outputs"]], request_id, rule, store)
            outputs = {spec["name"]: held[spec["tensor"]] for spec in plan["outputs"]}
            reply = {"status": 200, "request_id": request_id, "outputs": outputs}
            if isinstance(event, dict) and event.get("trace"):
                reply["trace"] = {
                    "total_ms": (time.perf_counter() - started) * 1e3,
                    "slices": trace,
                }
            kept.update(keys_of(outputs))
        except BadRequest as error:
            reply = _error(error.status, request_id, "BadRequest", str(error), field=error.field)
        except SliceError as error:
            reply = _error(502, request_id, error.kind, str(error), slice=error.slice)
        except Exception as error:
            reply = _error(500, request_id, type(error).__name__, str(error))
        leftovers = [key for key in keys_of(held) if key not in kept]
        if leftovers:
            store.delete(leftovers)
        return reply

    return handler


def _invoke(
    functions: Any, function: str, part: dict[str, Any], message: dict[str, Any]
) -> dict[str, Any]:
    """Call a slice and return its reply. Raises `SliceError`."""
    name = part["name"]
    started = time.perf_counter()
    try:
        answer = functions.invoke(FunctionName=function, Payload=json.dumps(message).encode())
        body = json.loads(answer["Payload"].read() or b"{}")
    except (ClientError, BotoCoreError) as error:
        message_text = f"slice {name} was not called: {error}"
        raise SliceError(name, type(error).__name__, message_text) from None
    if "FunctionError" in answer:
        kind = body.get("errorType", "FunctionError")
        text = body.get("errorMessage", "no message")
        raise SliceError(name, kind, f"slice {name} failed: {text}")
    if "error" in body:
        problem = body["error"]
        raise SliceError(name, problem["type"], f"slice {name} failed: {problem['message']}")
    reply: dict[str, Any] = body
    reply["trace"]["call_ms"] = (time.perf_counter() - started) * 1e3
    return reply


def _fit(
    held: dict[str, Record], names: list[str], request_id: str, rule: Rule, store: Store
) -> None:
    """Move tensors of one message to S3 where all of them together exceed the payload."""
    if "s3" not in rule.transports:
        return
    sizes = {name: held[name]["bytes"] for name in names if "data" in held[name]}
    for name, transport in choose(sizes, rule, inline_first=sizes).items():
        if transport == "s3":
            key = object_key(request_id, name)
            store.put(key, decode_inline(name, held[name]))
            record = {field: value for field, value in held[name].items() if field != "data"}
            held[name] = {**record, "s3": key}


def _error(status: int, request_id: str, kind: str, message: str, **where: str) -> dict[str, Any]:
    return {
        "status": status,
        "request_id": request_id,
        "error": {"type": kind, "message": message, **where},
    }
