"""The schedule of a request: every slice starts as soon as the tensors that it reads are there.

A stage is no barrier. A slice waits for the slices that make its tensors and for no others; at most
`most` run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

Part = Mapping[str, Any]  # of a slice: "name" and "inputs", the names of the tensors that it reads


def run(
    parts: Sequence[Part],
    held: Collection[str],
    start: Callable[[Part, bool], Future[Any]],
    finish: Callable[[Part, Any], None],
    *,
    most: int,
) -> None:
    """Start all slices in an order in which none waits for longer than for its tensors.

    `held` has the tensors that are there; `finish` gets every slice with its result and adds what it
    made. `start` also gets whether no other slice runs or could, so that no thread is needed.

    When one fails, no other starts; its error is raised when those that have started have ended.
    Raises `RuntimeError` when slices are left that wait for tensors nobody makes.
    """
    waiting = list(parts)
    running: dict[Future[Any], Part] = {}
    failed: Exception | None = None
    while True:
        if failed is None:
            ready = [part for part in waiting if all(name in held for name in part["inputs"])]
            for part in ready[: most - len(running)]:
                waiting.remove(part)
                alone = len(ready) == 1 and not running
                try:
                    running[start(part, alone)] = part
                except Exception as error:  # others have started, and must end first
                    failed = error
                    break
        if not running:
            break
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in sorted(done, key=lambda each: parts.index(running[each])):
            part = running.pop(future)
            try:
                finish(part, future.result())
            except Exception as error:
                failed = failed or error
    if failed is not None:
        raise failed
    if waiting:
        missing = sorted({name for part in waiting for name in part["inputs"] if name not in held})
        raise RuntimeError(f"no slice made {', '.join(missing)}; compile the model again")


def at_once(call: Callable[[], Any]) -> Future[Any]:
    """The call's result or error as a future, without a thread."""
    future: Future[Any] = Future()
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)
    return future


class LastRead:
    """Tells which tensors nobody reads any more, as slices end; `kept` are never among them."""

    def __init__(self, parts: Iterable[Part], kept: Collection[str]) -> None:
        self._left: dict[str, int] = {}
        for part in parts:
            for name in set(part["inputs"]) - set(kept):
                self._left[name] = self._left.get(name, 0) + 1

    def ended(self, part: Part) -> list[str]:
        """The tensors that this slice was the last one to read."""
        found = []
        for name in dict.fromkeys(part["inputs"]):
            if name in self._left:
                self._left[name] -= 1
                if not self._left[name]:
                    found.append(name)
        return found
