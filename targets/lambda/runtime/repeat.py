"""Repeating a call: only what may pass, within the request's deadline and its budget.

| what went wrong | again? |
|---|---|
| throttled (429), an error of the service (5xx) | yes |
| no connection, a connection that broke, a reply that was cut off | yes |
| the function's process was killed or ended (`Runtime.ExitError`) | once |
| no answer in time, the function's own time or memory is used up | no: it would take as long again |
| the caller's error (4xx), an error that the function replied | no: it would be the same again |

A repeated call may run what has run already, so only calls that may are repeated: a slice computes the
same from the same tensors, and its objects are written once (store.py, replies.py).

The waits between are drawn from the whole of an exponentially growing span ("full jitter"), so that
those who were throttled together do not come back together: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

RETRIES = 8  # of all calls of one request together
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 3.0
T = TypeVar("T")


class DeadlineExceeded(RuntimeError):  # noqa: N818 - the name that a caller sees
    """The time that the caller left is over."""


class Passing(Exception):  # noqa: N818 - never seen outside
    """A call failed in a way that may pass; `error` is what the caller gets when it does not.

    `once`: a second failure of this kind is not repeated.
    """

    def __init__(self, error: Exception, *, once: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.once = once


class Budget:
    """How often the calls of one request may be repeated; its threads share it."""

    def __init__(self, retries: int = RETRIES) -> None:
        self._left = retries
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether there was one left."""
        with self._lock:
            self._left -= 1
            return self._left >= 0


def repeated(call: Callable[[], T], deadline: float, budget: Budget) -> tuple[T, int]:
    """What `call` returns, and how often it was called. It raises `Passing` for what may pass.

    `deadline` is in time.monotonic() seconds. Raises the error of the last call when that is reached
    before the next one, or the budget is spent.
    """
    attempt, crashes = 1, 0
    while True:
        try:
            return call(), attempt
        except Passing as passing:
            crashes += passing.once
            wait = backoff_s(attempt)
            if crashes > 1 or time.monotonic() + wait >= deadline or not budget.take():
                raise passing.error from None
            time.sleep(wait)
            attempt += 1


def backoff_s(attempt: int) -> float:
    """How long to wait after the n-th attempt."""
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1))
    return random.uniform(0, longest)


def may_pass(error: Exception) -> bool:
    """Whether an error of boto3 is one that a repeated call may not meet."""
    from botocore.exceptions import (
        ClientError,
        ConnectionClosedError,
        ConnectionError,
        IncompleteReadError,
        ResponseStreamingError,
    )

    if isinstance(error, ClientError):
        status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status == 429 or status >= 500
    broken = (ConnectionError, ConnectionClosedError, IncompleteReadError, ResponseStreamingError)
    return isinstance(error, broken)
