"""The coordinator: the one function that a caller invokes. It checks the request, calls every slice when
its tensors are there, hands them on as they came (never decoding or parsing them), and cleans up.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from .calls import Caller
from .cuts import cut_inputs
from .deadline import deadline_in, remaining_s
from .driving import error_reply, every_object, fit
from .functions import functions_of
from .hedge import Hedge
from .invoking import functions_client
from .malloc import SERVING_BYTES, give_back
from .messages import join, lift_events
from .observe import telling
from .repeat import Budget
from .replies import Replies, key_of
from .request import check_request, remaining_s_of, request_id_of
from .rule import Rule
from .schedule import LastRead, Part, at_once, run
from .seal import read_seal
from .start import Start
from .store import Object, Store, StoreError, objects_of
from .url import answering_http
from .warmup import WarmUp, start_slice
from .wire import Record

Handler = Callable[[Any, Any], bytes]
Doubled = dict[Future[Any], set[Object]]  # calls that another one was quicker than, what they put
_LOG = logging.getLogger(__name__)


def coordinator_handler(*, manifest: Path, warm_up: WarmUp) -> Handler:
    """The Lambda handler of the coordinator. `warm_up` has what early.py has begun; `manifest` is the
    JSON that the bundle put beside it: plan id, inputs, outputs, dims, transport rule and choices, the
    slices with stage, function and tensors, the seconds that a slice and a request may take, and whether
    the first request warms all slices up. It returns JSON as bytes, as the slices do.
    """
    start = Start()
    plan = json.loads(manifest.read_text())
    function_of = functions_of(plan)
    timeout = plan["timeout_s"]

    from botocore.exceptions import BotoCoreError, ClientError

    rule = Rule(**{**plan["rule"], "transports": tuple(plan["rule"]["transports"])})
    dims = {dim["name"]: dim for dim in plan["dims"]}
    choices = plan["choices"]
    store = Store(seal=read_seal(manifest.parent))
    if plan["planned_transports"] != ["payload"]:
        store.open()
    parts = [part for stage in plan["stages"] for part in stage]
    most = plan["max_parallel"]
    hedge = Hedge(plan["hedge"], most) if plan["hedge"] is not None else None
    calls_at_once = most if hedge is None else 4 * most
    later = [part["name"] for stage in plan["stages"][1:] for part in stage]
    functions = functions_client(timeout, max(10, calls_at_once, len(parts)))
    pool = ThreadPoolExecutor(most)
    invoke = partial(_invoke_raw, functions)
    warm_later = partial(WarmUp, partial(start_slice, invoke, function_of, plan["id"]), later)
    if plan["warm_up"] and not start.is_for_a_request:
        warm_up = warm_later()
    replied = [spec["tensor"] for spec in plan["outputs"]]
    cleaner = ThreadPoolExecutor(1)
    caller = Caller(functions, function_of, plan["id"])
    replies = Replies()
    request_id, deadline, budget = "", 0.0, Budget()  # of the request at hand

    def call(part: Part, message: bytes, doubled: Doubled) -> dict[str, Any]:
        told = warm_up.wait(part["name"])
        invoke = partial(caller.call, part, message, request_id, deadline, budget)
        reply, slower = hedge.call(part["name"], invoke) if hedge is not None else (invoke(), None)
        if slower is not None:
            doubled[slower] = set(objects_of(reply["tensors"]))
            if any(objects_of({name: reply["tensors"].get(name, {})}) for name in replied):
                wait([slower])  # the caller deletes these, perhaps before the slower call puts them
        reply["trace"].update(told)
        return reply

    def clean(left: set[Object], deleting: Iterable[Future[None]] = ()) -> None:
        """Delete what the request has left. What fails is no reason to keep the answer back."""
        try:
            store.delete(left)
            for deleted in deleting:
                deleted.result()
        except (ClientError, BotoCoreError, StoreError) as error:
            _LOG.warning("request %s leaves objects in the bucket: %s", request_id, error)

    give_back(SERVING_BYTES)
    lift_events()
    start.mark("clients_ms")
    start.ready()

    def handler(event: Any, context: Any) -> bytes:
        nonlocal warm_up, request_id, deadline, budget
        has_s = remaining_s(context, plan["deadline_s"])
        deadline, budget = deadline_in(has_s), Budget()
        if warm_up.is_under_way and start.was_ahead:
            warm_up = warm_later()  # what the frozen environment was told is lost
        started_now = start.tell()
        request_id = str(context.aws_request_id)
        held: dict[str, Record] = {}
        left: set[Object] = set()  # to delete when the request has ended
        deleting: dict[Future[None], set[Object]] = {}  # while later slices compute
        doubled: Doubled = {}
        started = time.perf_counter()
        try:
            request_id = request_id_of(event, request_id)
            deadline = deadline_in(remaining_s_of(event, has_s))
            held.update(check_request(event, plan["inputs"], dims, request_id))
            left = every_object(plan, request_id, store)
            cut_inputs(held, plan["input_cuts"], store)
            same_call = key_of(request_id, held)
            if known := replies.get(same_call):
                clean(left.intersection(objects_of(held)))
                return known
            trace: dict[str, dict[str, Any]] = {}
            last_read = LastRead(parts, replied)

            def begin(part: Part, alone: bool) -> Future[Any]:
                fit(held, part["inputs"], request_id, choices, rule, store)
                wanted = {name: held[name] for name in part["inputs"]}
                head = {"request_id": request_id, "plan": plan["id"]}
                message = join(head, "tensors", wanted)
                trace[part["name"]] = {"began_ms": (time.perf_counter() - started) * 1e3}
                if alone and not warm_up.is_due:
                    return at_once(partial(call, part, message, doubled))
                future = pool.submit(call, part, message, doubled)
                warm_up.begin()
                return future

            def end(part: Part, body: dict[str, Any]) -> None:
                held.update(body["tensors"])
                head = {"slice": part["name"], "stage": part["stage"]}
                trace[part["name"]] = {**head, **trace[part["name"]], **body["trace"]}
                read = set(objects_of({name: held[name] for name in last_read.ended(part)}))
                if read and part is not parts[-1]:
                    deleting[cleaner.submit(store.delete, read)] = read

            run(parts, held, begin, end, most=most)
            fit(held, replied, request_id, choices, rule, store)
            outputs = {spec["name"]: held[spec["tensor"]] for spec in plan["outputs"]}
            answer: dict[str, Any] = {"status": 200, "request_id": request_id}
            if isinstance(event, dict) and event.get("trace"):
                total_ms = (time.perf_counter() - started) * 1e3
                slices = [trace[part["name"]] for part in parts]
                answer["trace"] = {"total_ms": total_ms, **started_now, "slices": slices}
            reply = join(answer, "outputs", outputs)
            if len(reply) > rule.payload_bytes:  # a trace of many slices, and it is only told
                reply = join({**answer, "trace": {}}, "outputs", outputs)
            left = left.intersection(objects_of(held)).difference(objects_of(outputs))
            left.difference_update(*deleting.values())
            if not objects_of(outputs):  # those belong to the one who has the first reply
                replies.keep(same_call, reply)
        except Exception as error:
            reply = error_reply(error, request_id)
        warm_up.finish()
        clean(left, deleting)
        for slower, places in doubled.items():  # at once if it has ended
            slower.add_done_callback(partial(_clean_up, clean, places))
        return reply

    return answering_http(telling(handler), plan, store)


def _clean_up(clean: Callable[[set[Object]], None], places: set[Object], _: Future[Any]) -> None:
    clean(places)


def _invoke_raw(functions: Any, function: str, payload: bytes) -> bytes:
    reply: bytes = functions.invoke(FunctionName=function, Payload=payload)["Payload"].read()
    return reply
