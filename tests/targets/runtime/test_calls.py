"""Calls of slices: what is repeated, until when, and which replies are believed."""

from __future__ import annotations

import importlib
import io
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    IncompleteReadError,
    ReadTimeoutError,
)

calls = importlib.import_module("slicewise.targets.lambda.runtime.calls")
deadline = importlib.import_module("slicewise.targets.lambda.runtime.deadline")
repeat = importlib.import_module("slicewise.targets.lambda.runtime.repeat")

ID = "0123abcd"
PART = {"name": "a", "inputs": ["x"], "outputs": ["y"]}
RECORD = {"dtype": "uint8", "shape": [0], "bytes": 0, "sha256": "", "data": ""}
REPLY = {
    "slice": "a",
    "plan": "plan",
    "request_id": ID,
    "trace": {},
    "tensors": {"y": {"tensor": "y", **RECORD}},
}


def client_error(status: int, code: str) -> ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: ClientError = ClientError(answer, "Invoke")
    return error


class Functions:
    """Answers calls in turn: an exception, a crash's type, or a reply. The last answer stays."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.sent: list[Any] = []

    def invoke(self, FunctionName: str, Payload: bytes) -> Any:  # noqa: N803
        self.sent.append(json.loads(Payload))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer()
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, str):
            crash = json.dumps({"errorType": answer, "errorMessage": "so it was"}).encode()
            return {"FunctionError": "Unhandled", "Payload": io.BytesIO(crash)}
        return {"Payload": io.BytesIO(json.dumps(answer).encode())}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(repeat, "FIRST_WAIT_S", 1e-3)

    def call(functions: Functions, seconds: float = 30.0, budget: Any = None) -> Any:
        caller = calls.Caller(functions, {"a": "f-a"}, "plan")
        end = time.monotonic() + seconds
        return caller.call(PART, b'{"plan": "plan"}', ID, end, budget or repeat.Budget())

    return call


PASSING = [
    client_error(429, "TooManyRequestsException"),
    client_error(500, "ServiceException"),
    client_error(503, "ServiceUnavailable"),
    EndpointConnectionError(endpoint_url="http://x"),
    ConnectionClosedError(endpoint_url="http://x"),
    IncompleteReadError(actual_bytes=1, expected_bytes=2),
    "Runtime.ExitError",
]


@pytest.mark.parametrize("answer", PASSING, ids=str)
def test_what_may_pass_is_called_again(answer: Any, call: Callable[..., Any]) -> None:
    functions = Functions(answer, REPLY)

    assert call(functions)["trace"]["attempts"] == 2
    assert len(functions.sent) == 2


LASTING = [
    client_error(400, "InvalidRequestContentException"),
    client_error(403, "AccessDeniedException"),
    client_error(404, "ResourceNotFoundException"),
    client_error(413, "RequestTooLargeException"),
    ReadTimeoutError(endpoint_url="http://x"),
    "Runtime.OutOfMemory",
    "Sandbox.Timedout",
    {"error": {"type": "WireError", "message": "no"}},
    {"tensors": 3},
]


@pytest.mark.parametrize("answer", LASTING, ids=str)
def test_what_would_fail_again_or_may_still_run_is_called_once(
    answer: Any, call: Callable[..., Any]
) -> None:
    functions = Functions(answer, REPLY)

    with pytest.raises(calls.SliceError):
        call(functions)
    assert len(functions.sent) == 1


def test_a_function_that_crashes_twice_is_not_called_a_third_time(call: Callable[..., Any]) -> None:
    functions = Functions("Runtime.ExitError")

    with pytest.raises(calls.SliceError, match="slice a failed: so it was") as error:
        call(functions)
    assert error.value.kind == "Runtime.ExitError"
    assert len(functions.sent) == 2


def test_all_calls_of_a_request_share_its_budget(call: Callable[..., Any]) -> None:
    functions = Functions(client_error(429, "TooManyRequestsException"))
    budget = repeat.Budget(5)

    for _ in range(2):
        with pytest.raises(calls.SliceError, match="TooManyRequests") as error:
            call(functions, budget=budget)
    assert error.value.kind == "TooManyRequestsException"
    assert len(functions.sent) == 6 + 1


def test_no_wait_goes_beyond_the_deadline(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeat, "backoff_s", lambda _: 60.0)
    functions = Functions(client_error(429, "TooManyRequestsException"))

    with pytest.raises(calls.SliceError, match="TooManyRequests"):
        call(functions, seconds=5)
    assert len(functions.sent) == 1


def test_a_slow_slice_is_neither_awaited_after_the_deadline_nor_called_again(
    call: Callable[..., Any],
) -> None:
    release = threading.Event()
    functions = Functions(lambda: REPLY if release.wait(30) else None)

    with pytest.raises(calls.SliceError, match="a has not answered") as error:
        call(functions, seconds=0.05)
    release.set()
    assert error.value.kind == "DeadlineExceeded"
    assert len(functions.sent) == 1


def test_nothing_is_called_after_the_deadline(call: Callable[..., Any]) -> None:
    functions = Functions(REPLY)

    with pytest.raises(calls.SliceError, match="a was not called"):
        call(functions, seconds=-1)
    assert functions.sent == []


def test_the_remaining_time_goes_along_and_shrinks(call: Callable[..., Any]) -> None:
    def late() -> ClientError:
        time.sleep(0.02)
        return client_error(500, "ServiceException")

    functions = Functions(late, REPLY)
    call(functions, seconds=10)

    first, second = (message["remaining_ms"] for message in functions.sent)
    assert 0 < second <= first - 20 < 10_000
    assert functions.sent[0]["plan"] == "plan"


WRONG = {
    "of another slice": {"slice": "b"},
    "of another plan": {"plan": "older"},
    "of another request": {"request_id": "another-one"},
    "without its tensor": {"tensors": {}},
    "with another tensor": {"tensors": {"z": {"tensor": "z", **RECORD}}},
    "with a swapped tensor": {"tensors": {"y": {"tensor": "z", **RECORD}}},
    "with an object of another request": {
        "tensors": {"y": {**RECORD, "s3": "requests/another-one/y"}}
    },
    "with data and an object": {"tensors": {"y": {**RECORD, "s3": f"requests/{ID}/y"}}},
    "of impossible size": {"tensors": {"y": {**RECORD, "bytes": 5}}},
    "without a trace": {"trace": None},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_reply_that_is_not_to_this_call_is_refused(change: Any, call: Callable[..., Any]) -> None:
    with pytest.raises(calls.SliceError, match="slice a answered with something other than its"):
        call(Functions({**REPLY, **change}))


@pytest.mark.parametrize(
    ("told_ms", "seconds"), [(5_000, 5.0), (-1, 60.0), (10**9, 60.0), (0, 60.0)]
)
def test_a_wrong_clock_does_not_shorten_a_request(told_ms: int, seconds: float) -> None:
    class Context:
        def get_remaining_time_in_millis(self) -> int:
            return told_ms

    assert deadline.remaining_s(Context(), 60.0) == seconds


def test_waits_grow_up_to_a_limit() -> None:
    longest = [max(repeat.backoff_s(attempt) for _ in range(200)) for attempt in (1, 3, 20)]

    assert longest[0] <= 0.1 < longest[1] <= 0.4 < longest[2] <= repeat.LONGEST_WAIT_S
