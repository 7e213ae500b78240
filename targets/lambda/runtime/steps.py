"""The orchestration "stepfunctions": a state machine calls the slices; tensors go by reference only.

Some states of it are this function's, which no slice could do: "begin" checks a request as a coordinator
does, "end" makes the reply; "failed" is entered after what any function raises. Both ways out delete the
request's objects.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .chain import with_begins
from .cuts import cut_inputs
from .deadline import UNTIL
from .driving import every_object, fit
from .observe import told
from .request import BadRequest, check_request, remaining_s_of, request_id_of
from .rule import Rule
from .seal import read_seal
from .store import Store, objects_of

Handler = Callable[[Any, Any], bytes]


class Failed(Exception):  # noqa: N818 - an answer, not a fault
    """Makes Lambda report an error; each kind of it has a class of its own name."""


def raising(handler: Handler) -> Handler:
    """A slice's handler that raises what it would otherwise reply: a problem as JSON."""

    def answer(event: Any, context: Any) -> bytes:
        reply = handler(event, context)
        if reply.startswith(b'{"error"'):
            problem = json.loads(reply)["error"]
            raise _failure(problem)
        return reply

    return answer


def steps_handler(*, manifest: Path) -> Callable[[Any, Any], Any]:
    """The handler of the states "begin", "end" and "failed"; `manifest` is a coordinator's."""
    plan = json.loads(manifest.read_text())
    rule = Rule(**{**plan["rule"], "transports": tuple(plan["rule"]["transports"])})
    dims = {dim["name"]: dim for dim in plan["dims"]}
    store = Store(seal=read_seal(manifest.parent))
    store.open()
    parts = [part for stage in plan["stages"] for part in stage]
    known = {*(spec["name"] for spec in plan["inputs"]), *(c["tensor"] for c in plan["input_cuts"])}
    read = known.intersection(name for part in parts for name in part["inputs"])

    def begin(event: dict[str, Any], context: Any) -> dict[str, Any]:
        given: Any = event.get("input")
        request_id = str(context.aws_request_id)
        try:
            request_id = request_id_of(given, request_id)
            has_s = remaining_s_of(given, math.inf)
            held = check_request(given, plan["inputs"], dims, request_id)
        except BadRequest as error:
            what = {"type": "BadRequest", "message": str(error), "field": error.field}
            raise _failure({"status": error.status, "request_id": request_id, **what}) from None
        cut_inputs(held, plan["input_cuts"], store)
        held = {name: held[name] for name in read}
        fit(held, list(held), request_id, plan["choices"], rule, store)
        until = {UNTIL: None if math.isinf(has_s) else (time.time() + has_s) * 1e3}
        began = {"at": time.time(), "trace": bool(given.get("trace"))}
        return {"request_id": request_id, "tensors": held, **until, **began}

    def end(event: dict[str, Any], context: Any) -> dict[str, Any]:  # noqa: ARG001
        begun, slices = event["begin"], event["slices"]
        held = {name: record for part in event["tensors"] for name, record in part.items()}
        outputs = {spec["name"]: held[spec["tensor"]] for spec in plan["outputs"]}
        request_id = begun["request_id"]
        store.delete(every_object(plan, request_id, store).difference(objects_of(outputs)))
        total = {"total_ms": (time.time() - begun["at"]) * 1e3}
        told("coordinator", request_id, 200, total)
        reply: dict[str, Any] = {"status": 200, "request_id": request_id}
        if begun["trace"]:
            reply["trace"] = {**total, "cold": False, "slices": _traces(plan, slices)}
        return {**reply, "outputs": outputs}

    def failed(event: dict[str, Any], context: Any) -> dict[str, Any]:  # noqa: ARG001
        data = event["data"]
        problem = _told(data.get("error", data))
        status = problem.pop("status", 504 if problem["type"] == "DeadlineExceeded" else 502)
        request_id = problem.pop("request_id", "")
        if "begin" in data:
            request_id = data["begin"]["request_id"]
            store.delete(every_object(plan, request_id, store))
        cause = {"status": status, "request_id": request_id, "error": problem}
        told("coordinator", request_id, status, {}, error=str(problem["message"]))
        return {"error": problem["type"], "cause": json.dumps(cause)}

    steps = {"begin": begin, "end": end, "failed": failed}

    def handler(event: Any, context: Any) -> bytes:
        step = steps.get(str(event.get("step"))) if isinstance(event, dict) else None
        if step is None:
            raise _failure({"type": "ValueError", "message": "only the state machine calls this"})
        return json.dumps(step(event, context)).encode()

    return handler


def _failure(problem: dict[str, Any]) -> Failed:
    kind = type(str(problem["type"]), (Failed,), {"__module__": "builtins"})
    failure: Failed = kind(json.dumps(problem))
    return failure


def _told(error: dict[str, Any]) -> dict[str, Any]:
    """The problem of a state that failed; a function's is in Lambda's JSON, and ours JSON itself."""
    text = str(error.get("Cause", ""))[:100_000]
    try:
        text = str(json.loads(text)["errorMessage"])
        problem = json.loads(text)
        if isinstance(problem, dict) and {"type", "message"} <= problem.keys():
            return problem
    except (ValueError, TypeError, KeyError):
        pass
    return {"type": error["Error"], "message": text[:500] or "the state machine gave no cause"}


def _traces(plan: dict[str, Any], slices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per slice; the calls are the state machine's, so that a call is what its slice tells of it."""
    parts = [part for stage in plan["stages"] for part in stage]
    found = []
    for part, trace in zip(parts, slices, strict=True):
        took = trace["receive_ms"] + trace["compute_ms"] + trace["send_ms"]
        head = {"slice": part["name"], "stage": part["stage"], "call_ms": took}
        found.append({**head, **trace})
    return with_begins(found)
