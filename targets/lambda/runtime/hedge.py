"""Hedged calls: a slice that takes longer than most calls before it is called a second time, and the
first answer counts (Dean and Barroso, The Tail at Scale, 2013).

Both calls compute the same tensors and would put them under the same keys. A put meets the object of the
other call: with the same bytes it is no conflict, with others (another processor may round
differently) that call fails, and the other one counts. An object that was deleted meanwhile the slower
call puts there again; so objects of a slice that was called twice are deleted once more after that.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

FEWEST = 20  # calls before there is a percentile
KEPT = 200

Reply = dict[str, Any]


class Hedge:
    """Calls slices, and again after `percentile` (between 0 and 1) of the times of the latest calls.

    `most` calls of slices happen at once; each may be hedged.
    """

    def __init__(self, percentile: float, most: int) -> None:
        self._percentile = percentile
        self._times: dict[str, deque[float]] = {}
        # A slower call may still be under way when the next request begins.
        self._pool = ThreadPoolExecutor(4 * most, thread_name_prefix="slicewise-hedge")

    def after_s(self, name: str) -> float | None:
        """How long to wait for a call of this slice; None before enough of them are known."""
        times = self._times.get(name, ())
        if len(times) < FEWEST:
            return None
        ordered = sorted(times)
        return ordered[min(len(ordered) - 1, math.ceil(self._percentile * len(ordered)) - 1)]

    def call(self, name: str, invoke: Callable[[], Reply]) -> tuple[Reply, Future[Reply] | None]:
        """The first reply of one or two calls, and the call that is still under way, if any.

        Raises the first call's error when no call succeeds. Only times of calls that nothing else
        was quicker than are kept: of the others there is only known that they took longer.
        """
        started = time.monotonic()
        first = self._pool.submit(invoke)
        wait([first], timeout=self.after_s(name))
        if first.done():
            reply = first.result()
            self._keep(name, time.monotonic() - started)
            return reply, None
        calls = {first, self._pool.submit(invoke)}
        left = set(calls)
        while left:
            done, left = wait(left, return_when=FIRST_COMPLETED)
            good = [call for call in done if call.exception() is None]
            if good:
                # What it took since the first call: the percentile would otherwise sink and sink.
                self._keep(name, time.monotonic() - started)
                slower = (calls - {good[0]}).pop()
                reply = good[0].result()
                reply["trace"]["hedged"] = True
                return reply, slower
        return first.result(), None

    def _keep(self, name: str, seconds: float) -> None:
        self._times.setdefault(name, deque(maxlen=KEPT)).append(seconds)
