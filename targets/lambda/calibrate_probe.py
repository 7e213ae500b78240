"""What runs inside the functions of `calibrate`: the code that moves tensors in a bundle, timed.

A package holds this file and `runtime/` in one folder (see calibrate_site.py), and one function of it
plays every part: the coordinator (`call`), a slice (`work`), a slice's objects (`objects`), and a cold
start (`parts`).

CPU times are the process's own clock. A slice's is read from the end of the handler before: so it has
in it what the runtime interface client did with the reply to the last call and with this event.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .runtime.calls import Caller
from .runtime.deadline import deadline_in
from .runtime.invoking import functions_client
from .runtime.messages import join, lift_events
from .runtime.repeat import Budget
from .runtime.rule import Rule
from .runtime.slice import open_session
from .runtime.store import Store
from .runtime.transport import receive, send
from .runtime.wire import Record, describe, inline

MOST_BYTES = 6 * 2**20
SMALL_BYTES = 64  # of the tensor that goes the other way
PAYLOAD = Rule(("payload",), MOST_BYTES)
SLICE, PLAN, CALL_S = "work", "calibrate", 50.0
Handler = Callable[[Any, Any], bytes]


def probe_handler(*, started: float, directory: Path) -> Handler:
    """The handler of a probe, made in its init phase; `started` is time.perf_counter() before any
    import. The model in `directory` is loaded as a slice loads its own.
    """
    marks = [started, time.perf_counter()]
    store = Store()
    store.open()
    marks.append(time.perf_counter())
    session = open_session(directory / "model.onnx", 1769)
    marks.append(time.perf_counter())
    names = ("import_ms", "boto3_ms", "load_ms")
    functions = functions_client(CALL_S, 10)
    took = ((after - before) * 1e3 for before, after in pairwise(marks))
    parts = {
        **dict(zip(names, took, strict=True)),
        "bytes": (directory / "model.data").stat().st_size,
    }
    values = np.random.default_rng(0).integers(0, 256, MOST_BYTES, np.uint8)
    lift_events()
    parts["own_ms"] = (time.perf_counter() - started) * 1e3
    ended = time.process_time()

    def handler(event: Any, context: Any) -> bytes:  # noqa: ARG001 - Lambda's signature
        nonlocal ended
        match event["do"]:
            case "parts":
                return json.dumps({**parts, "inputs": len(session.get_inputs())}).encode()
            case "call":
                return json.dumps(_call(functions, values, event)).encode()
            case "objects":
                return json.dumps(_objects(store, values, event)).encode()
        head, records = _work(store, values, event, ended)
        ended = time.process_time()
        return join(head, "tensors", records)

    return handler


def _work(
    store: Store, values: np.ndarray, event: Any, before: float
) -> tuple[dict[str, Any], dict[str, Record]]:
    """A slice that computes nothing: its tensor in, `reply_bytes` out."""
    receive(event["tensors"], event["request_id"], store)
    results = {"y": values[: event["reply_bytes"]]}
    records = send(results, {"y": "uint8"}, event["request_id"], {}, PAYLOAD, store)
    cpu_ms = (time.process_time() - before) * 1e3
    head = {"slice": SLICE, "plan": PLAN, "request_id": event["request_id"]}
    return {**head, "trace": {"cpu_ms": cpu_ms}}, records


def _call(functions: Any, values: np.ndarray, event: Any) -> list[tuple[float, float, float]]:
    """Calls `function` once per (bytes there, bytes back): ms, own CPU and the function's CPU.

    As the coordinator does it: a tensor is encoded before, and only taken out of the reply.
    """
    found = []
    caller = Caller(functions, {SLICE: event["function"]}, PLAN)
    part = {"name": SLICE, "outputs": ["y"]}
    for there, back in event["calls"]:
        array = values[:there]
        record = inline(describe(array, array.data, "uint8"), array.data)
        request_id = event["request_id"]
        head = {"do": "work", "request_id": request_id, "reply_bytes": back}
        cpu, wall = time.process_time(), time.perf_counter()
        message = join(head, "tensors", {"x": record})
        reply = caller.call(part, message, request_id, deadline_in(CALL_S), Budget())
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found.append((wall * 1e3, cpu * 1e3, float(reply["trace"]["cpu_ms"])))
    return found


def _objects(store: Store, values: np.ndarray, event: Any) -> list[tuple[float, ...]]:
    """Puts and gets one tensor per size: ms and CPU of the put, ms and CPU of the get."""
    way = event["transport"]
    rule = Rule((way,), MOST_BYTES)
    found = []
    for number, size in enumerate(event["sizes"]):
        request_id = f"{event['request_id']}-{number}"
        array = {"y": values[:size]}
        marks = [(time.perf_counter(), time.process_time())]
        records = send(array, {"y": "uint8"}, request_id, {"y": ((way, None),)}, rule, store)
        marks.append((time.perf_counter(), time.process_time()))
        receive(records, request_id, store)
        marks.append((time.perf_counter(), time.process_time()))
        found.append(
            tuple(
                (after - before) * 1e3
                for pair in pairwise(marks)
                for before, after in zip(*pair, strict=True)
            )
        )
    return found
