"""A runtime whose clock is wrong: argv[1] are the seconds by which, argv[2] is the handler.

Run as a script in an instance's process. Monotonic clocks stay right, as they do on AWS.
"""

from __future__ import annotations

import datetime
import runpy
import sys
import time
from typing import Any


def skew(seconds: float) -> None:
    """Let `time.time` and `datetime.now` be wrong for everything that is imported from now on."""
    right, actual = time.time, datetime.datetime

    class Skewed(actual):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)

    time.time = lambda: right() + seconds
    datetime.datetime = Skewed  # type: ignore[misc]


if __name__ == "__main__":
    skew(float(sys.argv[1]))
    sys.argv = ["awslambdaric", sys.argv[2]]
    runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)
