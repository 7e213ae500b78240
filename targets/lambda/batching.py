"""Micro-batching: concurrent requests become one request of the model, along its batch dimension.

That is right for models that treat the rows of a batch one by one, and only their owner knows: so it is
off unless asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from slicewise.errors import RequestError, SliceFailure, TargetError
from slicewise.plan import Dim, Plan

if TYPE_CHECKING:
    from .client import Client

Arrays = dict[str, np.ndarray]


def check_batching(plan: Plan, wait_ms: float, http: int | None) -> Dim:
    """The dimension to batch along. Raises `TargetError` when there is none, or nobody to wait for."""
    if http is None:
        raise TargetError(
            "batch_wait_ms is for requests over HTTP; give http a port, or 0 for any."
        )
    if not 0 <= wait_ms <= 10_000:
        raise TargetError(f"batch_wait_ms={wait_ms}: a request waits 0 to 10,000 ms for others.")
    firsts = {spec.shape[0] if spec.shape else 1 for spec in (*plan.inputs, *plan.outputs)}
    if len(firsts) == 1:
        for dim in plan.dims:
            if dim.name in firsts:
                return dim
    found = ", ".join(sorted(str(first) for first in firsts))
    raise TargetError(
        f"batch_wait_ms needs one dynamic dimension that comes first in all inputs and outputs; here "
        f"{found} come first. Compile with dynamic_shapes that make dimension 0 of every input one Dim."
    )


@dataclass
class _Group:
    """Requests that will be computed together."""

    parts: list[tuple[Arrays, Future[Arrays]]] = field(default_factory=list)
    rows: int = 0
    full: threading.Event = field(default_factory=threading.Event)


class Batcher:
    """Any number of threads `call`; their arrays go to `run` together, at most `most` rows.

    The first request of a group waits `wait_s` for others, less when the group is full, and runs it.
    """

    def __init__(self, run: Callable[[Arrays], Arrays], most: int, wait_s: float) -> None:
        self._run = run
        self._most = most
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._open: dict[Any, _Group] = {}

    def call(self, arrays: Arrays) -> Arrays:
        """The rows of the outputs that belong to these inputs. Raises what `run` raises."""
        kind = tuple((name, array.shape[1:]) for name, array in sorted(arrays.items()))
        rows = next(iter(arrays.values())).shape[0]
        mine: Future[Arrays] = Future()
        with self._lock:
            group = self._open.get(kind)
            leads = group is None or group.rows + rows > self._most
            if group is None or leads:
                if group is not None:
                    group.full.set()
                group = self._open[kind] = _Group()
            group.parts.append((arrays, mine))
            group.rows += rows
            if group.rows >= self._most:
                group.full.set()
        if leads:
            group.full.wait(self._wait_s)
            with self._lock:  # nobody joins from here on
                if self._open.get(kind) is group:
                    del self._open[kind]
            self._answer(group)
        return mine.result()

    def _answer(self, group: _Group) -> None:
        together = {
            name: np.concatenate([arrays[name] for arrays, _ in group.parts])
            for name in group.parts[0][0]
        }
        try:
            outputs = self._run(together)
        except BaseException as error:
            for _, waiting in group.parts:
                waiting.set_exception(error)
            return
        start = 0
        for arrays, waiting in group.parts:
            end = start + next(iter(arrays.values())).shape[0]
            waiting.set_result({name: array[start:end] for name, array in outputs.items()})
            start = end


def batching_call(
    client: Client, manifest: Mapping[str, Any], wait_s: float
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What answers a request of the wire format together with others that come at the same time.

    Each is checked alone before: a bad one spoils no other's answer.
    """
    from .runtime.arrays import from_bytes, to_bytes
    from .runtime.request import BadRequest, check_request
    from .runtime.wire import decode_inline, describe, inline

    most = check_batching(client.plan, 0, 0).max
    dims = {dim["name"]: dim for dim in manifest["dims"]}
    dtypes = {spec["name"]: spec["dtype"] for spec in manifest["outputs"]}
    batcher = Batcher(client.run, most, wait_s)

    def call(event: dict[str, Any]) -> dict[str, Any]:
        try:
            records = check_request(event, manifest["inputs"], dims, "")
            arrays = {
                name: from_bytes(decode_inline(name, record), record)
                for name, record in records.items()
            }
            outputs = batcher.call(arrays)
        except BadRequest as error:
            return {"status": error.status, "error": {"message": str(error)}}
        except (RequestError, SliceFailure) as error:
            status = error.status if isinstance(error, RequestError) else 502
            return {"status": status, "error": {"message": str(error)}}
        replied = {}
        for name, array in outputs.items():
            raw = to_bytes(array, dtypes[name])
            replied[name] = inline(describe(array, raw, dtypes[name]), raw)
        return {"status": 200, "outputs": replied}

    return call
