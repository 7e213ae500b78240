"""The schedule of a request: every slice starts as soon as the tensors that it reads are there.

A stage is no barrier. A slice waits for the slices that make its tensors and for no others; at most
`most` run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
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
    # By place, of those not started.
    lacks = {place: list(part["inputs"]) for place, part in enumerate(parts)}
    running: dict[Future[Any], int] = {}
    ended: SimpleQueue[Future[Any]] = SimpleQueue()
    failed: Exception | None = None
    while True:
        if failed is None:
            ready = [place for place, names in lacks.items() if _are_there(names, held)]
            for place in ready[: most - len(running)]:
                del lacks[place]
                alone = len(ready) == 1 and not running
                try:
                    future = start(parts[place], alone)
                except Exception as error:  # others have started, and must end first
                    failed = error
                    break
                running[future] = place
                future.add_done_callback(ended.put)
        if not running:
            break
        done = [ended.get()]
        while not ended.empty():
            done.append(ended.get())
        for future in sorted(done, key=running.__getitem__):
            try:
                finish(parts[running.pop(future)], future.result())
            except Exception as error:
                failed = failed or error
    if failed is not None:
        raise failed
    if lacks:
        missing = sorted({name for names in lacks.values() for name in names if name not in held})
        raise RuntimeError(f"no slice made {', '.join(missing)}; compile the model again")


def _are_there(names: list[str], held: Collection[str]) -> bool:
    """Whether all names are held; those that are leave the list."""
    while names and names[-1] in held:
        names.pop()
    return not names


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
