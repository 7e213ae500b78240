"""Deadlines: how much time a call has, told as what remains.

A time of day would be wrong by as much as two clocks differ. What remains is wrong only by the way of
the message, and every function counts down by its own monotonic clock. Only a state machine, which
cannot count down, passes a time of day on (`UNTIL`).
"""

from __future__ import annotations

import math
import time
from typing import Any

from .repeat import DeadlineExceeded

REMAINING = "remaining_ms"
MOST_MS = 1e15  # Python's whole numbers may be larger than any float
UNTIL = "until_ms"  # since 1970, null for no deadline
MARGIN_S = 1.0  # for clean-up and the reply, of a request that has used up its time


def remaining_s(context: Any, most_s: float) -> float:
    """Seconds that Lambda leaves this invocation, at most `most_s`, the function's whole timeout.

    Lambda tells when it ends as a time of day; where this environment's clock is wrong and makes
    nonsense of that, it is the whole timeout.
    """
    told = getattr(context, "get_remaining_time_in_millis", lambda: 0)() / 1e3
    return told if 0 < told <= most_s else most_s


def deadline_in(seconds: float) -> float:
    """The deadline of a request that has so much time, less what its end takes; time.monotonic()."""
    return time.monotonic() + seconds - min(MARGIN_S, seconds / 10)


def with_remaining(message: bytes, seconds: float) -> bytes:
    """A message, which is a JSON object with fields, that also tells how much time is left."""
    told = b'{"%s": %d, ' % (REMAINING.encode(), max(1, seconds * 1e3))
    return b"".join((told, memoryview(message)[1:]))


def deadline_of(message: dict[str, Any]) -> float:
    """The deadline of a message, infinite if it tells none. Raises `ValueError`."""
    until = message.get(UNTIL)
    told = {
        REMAINING: message.get(REMAINING, math.inf),
        UNTIL: math.inf if until is None else until,
    }
    for field, value in told.items():
        if type(value) not in (int, float) or (abs(value) > MOST_MS and value != math.inf):
            raise ValueError(f"{field} is no number of milliseconds")
    left_ms: float = min(told[REMAINING], told[UNTIL] - time.time() * 1e3)
    return time.monotonic() + left_ms / 1e3


def check_deadline(deadline: float, what: str) -> None:
    """Raise `DeadlineExceeded` after the deadline: nobody waits any more."""
    late_s = time.monotonic() - deadline
    if late_s > 0:
        raise DeadlineExceeded(
            f"{what} came {late_s:.1f} s after the request's deadline; give requests more time"
        )
