"""Calls of slices: with a deadline, repeated where that helps, their replies checked."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .deadline import with_remaining
from .messages import lift
from .repeat import Budget, Passing, may_pass, repeated
from .store import object_key, objects_of
from .wire import check_record

THREADS = 64
CRASHED = "Runtime.ExitError"


class SliceError(RuntimeError):
    """A slice did not answer with tensors."""

    def __init__(self, slice_name: str, kind: str, message: str) -> None:
        super().__init__(message)
        self.slice = slice_name
        self.kind = kind


class Caller:
    """Calls the slices of one plan; one per environment, any thread may use it."""

    def __init__(self, functions: Any, function_of: Mapping[str, str], plan: str) -> None:
        self._functions = functions
        self._function_of = function_of
        self._plan = plan
        # A call that has outlived its request keeps its thread until the slice's own timeout.
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="slicewise-call")

    def call(
        self,
        part: Mapping[str, Any],
        message: bytes,
        request_id: str,
        deadline: float,
        budget: Budget,
    ) -> dict[str, Any]:
        """The reply of a slice to a message, its tensors checked. Raises `SliceError`, at the latest at
        the deadline, in time.monotonic() seconds.
        """
        started = time.perf_counter()
        raw, attempts = repeated(lambda: self._once(part, message, deadline), deadline, budget)
        name = part["name"]
        try:
            body = lift(raw, "tensors")
            if "error" not in body:
                self._check(body, part, request_id)
        except (ValueError, TypeError, AttributeError) as error:
            message_text = f"slice {name} answered with something other than its tensors: {error}"
            raise SliceError(name, type(error).__name__, message_text) from None
        if "error" in body:
            problem = body["error"]
            raise SliceError(name, problem["type"], f"slice {name} failed: {problem['message']}")
        reply: dict[str, Any] = body
        reply["trace"]["call_ms"] = (time.perf_counter() - started) * 1e3
        if attempts > 1:
            reply["trace"]["attempts"] = attempts
        return reply

    def _once(self, part: Mapping[str, Any], message: bytes, deadline: float) -> bytes:
        """The reply to one call. Raises `Passing` or `SliceError`."""
        from botocore.exceptions import BotoCoreError, ClientError

        name = part["name"]
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._too_late(name, "was not called")
        sent = self._pool.submit(self._send, name, with_remaining(message, left))
        try:
            failed, raw = sent.result(left)
        except TimeoutError:
            sent.cancel()
            raise self._too_late(name, "has not answered") from None
        except (ClientError, BotoCoreError) as error:
            text = f"slice {name} was not called: {error}"
            refused = SliceError(name, _kind(error), text)
            if may_pass(error):
                raise Passing(refused) from None
            raise refused from None
        if failed:
            crash = _crash(name, raw)
            if crash.kind == CRASHED:
                raise Passing(crash, once=True)
            raise crash
        return raw

    def _send(self, name: str, payload: bytes) -> tuple[bool, bytes]:
        """Whether the function failed, and its reply."""
        answer = self._functions.invoke(FunctionName=self._function_of[name], Payload=payload)
        return "FunctionError" in answer, answer["Payload"].read()

    def _check(self, body: Any, part: Mapping[str, Any], request_id: str) -> None:
        """Raises `ValueError` for a reply of another slice, plan or request, or with other tensors."""
        wanted = {"slice": part["name"], "plan": self._plan, "request_id": request_id}
        for field, value in wanted.items():
            if body.get(field) != value:
                raise ValueError(f"its {field} is {body.get(field)!r}, not {value!r}")
        records = body["tensors"] if isinstance(body.get("tensors"), dict) else {}
        if records.keys() != set(part["outputs"]) or not isinstance(body.get("trace"), dict):
            raise ValueError(f"it has {sorted(records)}, not {sorted(part['outputs'])}")
        for tensor, record in records.items():
            check_record(tensor, record)
            keys = [place.key for place in objects_of({tensor: record})]
            own = [object_key(request_id, tensor)]
            if keys != ([] if "data" in record else own) or "sha256" not in record:
                raise ValueError(
                    f"{tensor} has neither its data nor the key of an object of its own"
                )

    def _too_late(self, name: str, what: str) -> SliceError:
        text = f"the time of the request is over; slice {name} {what}. Give requests more time."
        return SliceError(name, "DeadlineExceeded", text)


def _kind(error: Exception) -> str:
    """AWS's name of an error, or botocore's."""
    told = getattr(error, "response", None) or {}  # botocore's own have None
    return str(told.get("Error", {}).get("Code") or type(error).__name__)


def _crash(name: str, raw: bytes) -> SliceError:
    """What Lambda says of a function that failed without replying."""
    try:
        told = json.loads(raw)
        kind, text = str(told["errorType"]), str(told["errorMessage"])
    except (ValueError, KeyError, TypeError):
        kind, text = "FunctionError", "no message"
    return SliceError(name, kind, f"slice {name} failed: {text}")
