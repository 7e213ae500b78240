"""The warm-up: all slices of a plan start at once, on the first request of a coordinator.

Without it every stage would start cold when its turn comes, one after the other. An environment that
starts because a request waits for it calls them before it has imported what it needs itself
(early.py); one that was ready before calls those of later stages beside the first.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

_LOG = logging.getLogger(__name__)


class WarmUp:
    """One call of each of `names` by `call`, which returns what the slice's trace says of its start.

    A call that fails is no error of the request: the real call will tell. What `wait` has returned it
    does not return again.
    """

    def __init__(self, call: Callable[[str], dict[str, Any]], names: Sequence[str]) -> None:
        self._call = call
        self._names = tuple(names)
        self._calls: dict[str, Future[dict[str, Any]]] = {}

    @property
    def is_due(self) -> bool:
        """Whether `begin` will do anything."""
        return bool(self._names)

    @property
    def is_under_way(self) -> bool:
        """Whether there are calls that no `wait` has asked for."""
        return bool(self._calls)

    def begin(self) -> None:
        """Send all calls, the first time."""
        names, self._names = self._names, ()
        if names:
            pool = ThreadPoolExecutor(len(names), thread_name_prefix="slicewise-warm-up")
            self._calls = {name: pool.submit(self._call, name) for name in names}
            pool.shutdown(wait=False)  # its threads end with the calls

    def wait(self, name: str) -> dict[str, Any]:
        """What is known of the slice's start, once its call has ended: a second call before that would
        make Lambda start a second environment. `warm_up_ms` is what that took the request.
        """
        warming = self._calls.pop(name, None)
        if warming is None:
            return {}
        started = time.perf_counter()
        try:
            told = warming.result()
        except Exception as error:
            _LOG.warning("the warm-up of %s failed: %s", name, error)
            told = {}
        return {**told, "warm_up_ms": (time.perf_counter() - started) * 1e3}

    def finish(self) -> None:
        """Wait for calls that no `wait` has asked for: a frozen environment would lose their replies."""
        calls, self._calls = self._calls, {}
        wait(calls.values())


def start_slice(
    invoke: Callable[[str, bytes], bytes], function_of: Mapping[str, str], plan: str, name: str
) -> dict[str, Any]:
    """Have a slice started that is not; what its trace says of that. Raises `RuntimeError`, or what
    `invoke` raises.
    """
    body = json.loads(invoke(function_of[name], json.dumps({"warm": plan}).encode()))
    if "trace" not in body:
        raise RuntimeError(str(body)[:500])
    told: dict[str, Any] = body["trace"]
    return told
