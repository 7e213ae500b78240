"""The orchestration "chain": every slice calls the next one and waits for the result.

The slices stand in one order, in which each comes after those that it reads from. A message carries all
tensors that the next slice or a later one needs, and those of the reply: so a slice with several
predecessors has what all of them made. The result comes back through the waiting callers as references,
or inline where it fits. The first slice is what callers invoke: it checks the request as a coordinator
does, and deletes the request's objects.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .calls import Caller, SliceError
from .cuts import cut_inputs
from .deadline import deadline_of, remaining_s
from .driving import error_reply, every_object, fit
from .functions import functions_of
from .invoking import functions_client
from .messages import join, lift
from .observe import telling
from .repeat import Budget
from .request import check_request, remaining_s_of, request_id_of
from .rule import Rule
from .seal import read_seal
from .store import Object, Store, StoreError, objects_of
from .url import answering_http
from .wire import Record

Handler = Callable[[Any, Any], bytes]
_LOG = logging.getLogger(__name__)
Call = Callable[[dict[str, Any], dict[str, Record], float], "Answer"]  # and the deadline
Answer = dict[str, Any]  # "tensors", "slices" (traces), "stored" (tensors that are objects)
TRACE_BYTES = 2048  # of one slice, at most about


def chain_handler(inner: Handler, *, name: str, manifest: Path) -> Handler:
    """The handler of slice `name`, whose own work `inner` does; `manifest` is the coordinator's of such
    a plan (see coordinator.py).
    """
    plan = json.loads(manifest.read_text())
    parts = [part for stage in plan["stages"] for part in stage]
    at = next(index for index, part in enumerate(parts) if part["name"] == name)
    store = Store(seal=read_seal(manifest.parent))
    if plan["planned_transports"] != ["payload"]:
        store.open()
    following = parts[at + 1 :]
    call = _calling(plan, following, store) if following else _replying(plan, store)
    work = partial(_work, inner, parts[at], call)
    if at == 0:
        entry = partial(_entry, work, plan, store)
        return answering_http(telling(_unless_warm(inner, entry)), plan, store)

    def handler(event: Any, context: Any) -> bytes:
        if not isinstance(event, dict) or not isinstance(event.get("tensors"), dict):
            return inner(event, context)  # which warms up or says what is wrong
        try:
            answer = work(event, context)
        except Exception as error:
            problem = {
                "slice": error.slice if isinstance(error, SliceError) else name,
                "request_id": str(event.get("request_id", "")),
                "type": error.kind if isinstance(error, SliceError) else type(error).__name__,
                "message": str(error),
            }
            return json.dumps({"error": problem}).encode()
        return _joined(answer, name, event)

    return handler


def _unless_warm(inner: Handler, handler: Handler) -> Handler:
    def answer(event: Any, context: Any) -> bytes:
        is_warm_up = isinstance(event, dict) and event.keys() == {"warm"}
        return inner(event, context) if is_warm_up else handler(event, context)

    return answer


def _work(
    inner: Handler,
    part: Mapping[str, Any],
    call: Call,
    event: dict[str, Any],
    context: Any,
) -> Answer:
    """This slice's own work, then that of all that follow. Raises `SliceError`."""
    started = time.perf_counter()
    deadline = deadline_of(event)
    held: dict[str, Record] = event.pop("tensors")
    head = {field: value for field, value in event.items() if field != "slices"}
    own = {name: held[name] for name in part["inputs"] if name in held}
    body = lift(inner({**head, "tensors": own}, context), "tensors")
    if "error" in body:
        problem = body["error"]
        message = f"slice {part['name']} failed: {problem['message']}"
        raise SliceError(part["name"], problem["type"], message)
    made: dict[str, Record] = body["tensors"]
    called = time.perf_counter()
    answer = call(head, {**held, **made}, deadline)
    back = time.perf_counter()
    own_ms = (back - started - (back - called)) * 1e3
    trace = {"slice": part["name"], "stage": part["stage"], "call_ms": own_ms, **body["trace"]}
    stored = [*answer["stored"], *objects_of(made)]
    return {**answer, "slices": [trace, *answer["slices"]], "stored": stored}


def _rule(plan: dict[str, Any]) -> Rule:
    """The plan's, with room for the traces of all slices in every message."""
    rule = plan["rule"]
    traces = TRACE_BYTES * sum(len(stage) for stage in plan["stages"])
    room = max(rule["payload_bytes"] - traces, rule["payload_bytes"] // 2)
    return Rule(transports=tuple(rule["transports"]), payload_bytes=room)


def _replying(plan: dict[str, Any], store: Store) -> Call:
    """What the last slice does instead of calling: the tensors of the reply, so that they fit one."""
    rule, names = _rule(plan), [spec["tensor"] for spec in plan["outputs"]]

    def reply(head: dict[str, Any], held: dict[str, Record], _: float) -> Answer:
        before = set(objects_of(held))
        fit(held, names, head["request_id"], plan["choices"], rule, store)
        stored = list(set(objects_of(held)) - before)
        return {"tensors": {name: held[name] for name in names}, "slices": [], "stored": stored}

    return reply


def _calling(plan: dict[str, Any], following: list[dict[str, Any]], store: Store) -> Call:
    """What calls the next slice with what it and later ones need."""
    replied = [spec["tensor"] for spec in plan["outputs"]]
    part = {"name": following[0]["name"], "outputs": replied}  # what comes back is the last one's
    function_of = functions_of(plan)
    functions = functions_client(plan["timeout_s"] * len(following), 1)
    caller = Caller(functions, function_of, plan["id"])
    rule = _rule(plan)
    needed = {name for part in following for name in part["inputs"]}
    needed.update(replied)

    def call(head: dict[str, Any], held: dict[str, Record], deadline: float) -> Answer:
        names = [name for name in held if name in needed]
        before = set(objects_of(held))
        fit(held, names, head["request_id"], plan["choices"], rule, store)
        stored = set(objects_of(held)) - before
        # The entry names the functions, of one version all of them, as only it is told the versions.
        function_of.update(head.get("functions", {}))
        deadline = min(deadline, time.monotonic() + plan["timeout_s"] * len(following))
        head = {field: value for field, value in head.items() if field != "remaining_ms"}
        message = join({**head, "functions": function_of}, "tensors", {n: held[n] for n in names})
        started = time.perf_counter()
        answer = caller.call(part, message, head["request_id"], deadline, Budget())
        waited_ms = (time.perf_counter() - started) * 1e3
        # Each slice is told how long its call took without those behind it.
        own, *behind = answer["slices"]
        own["call_ms"] = waited_ms - sum(each["call_ms"] for each in behind)
        places = [Object(*place) for place in answer["stored"]]
        return {**answer, "slices": [own, *behind], "stored": [*places, *stored]}

    return call


def _joined(answer: Answer, name: str, event: dict[str, Any]) -> bytes:
    """A slice's reply to the one before it."""
    told = {"slice": name, "plan": event.get("plan"), "request_id": event.get("request_id")}
    stored = [list(place) for place in answer["stored"]]
    head = {**told, "trace": {}, "slices": answer["slices"], "stored": stored}
    return join(head, "tensors", answer["tensors"])


def _entry(
    work: Callable[[dict[str, Any], Any], Answer],
    plan: dict[str, Any],
    store: Store,
    event: Any,
    context: Any,
) -> bytes:
    """A caller's request: the reply has the form of the coordinator's."""
    started = time.perf_counter()
    request_id = str(context.aws_request_id)
    dims = {dim["name"]: dim for dim in plan["dims"]}
    left: set[Object] = set()
    try:
        request_id = request_id_of(event, request_id)
        has_s = remaining_s_of(event, remaining_s(context, plan["deadline_s"]))
        held = check_request(event, plan["inputs"], dims, request_id)
        left = every_object(plan, request_id, store)
        given = objects_of(held)
        cut_inputs(held, plan["input_cuts"], store)
        head = {"request_id": request_id, "plan": plan["id"], "functions": functions_of(plan)}
        head["remaining_ms"] = has_s * 1e3
        done = work({**head, "tensors": held}, context)
        outputs = {spec["name"]: done["tensors"][spec["tensor"]] for spec in plan["outputs"]}
        answer: dict[str, Any] = {"status": 200, "request_id": request_id}
        if event.get("trace"):
            total_ms = (time.perf_counter() - started) * 1e3
            cold = bool(done["slices"][0].get("cold"))
            slices = with_begins(done["slices"])
            answer["trace"] = {"total_ms": total_ms, "cold": cold, "slices": slices}
        reply = join(answer, "outputs", outputs)
        if len(reply) > plan["rule"]["payload_bytes"]:
            reply = join({**answer, "trace": {}}, "outputs", outputs)
        left = {*given, *done["stored"]}.difference(objects_of(outputs))
    except Exception as error:
        reply = error_reply(error, request_id)
    try:
        store.delete(left)
    except StoreError as error:  # no reason to keep the caller's answer back
        _LOG.warning("request %s leaves objects in the bucket: %s", request_id, error)
    return reply


def with_begins(slices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Traces of slices that ran one after the other, with the time when each was called."""
    at, found = 0.0, []
    for trace in slices:
        found.append({**trace, "began_ms": at})
        at += trace["call_ms"]
    return found
