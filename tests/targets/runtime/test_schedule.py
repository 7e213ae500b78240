"""The schedule: slices start as soon as their tensors are there, and not before."""

from __future__ import annotations

import importlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

schedule = importlib.import_module("slicewise.targets.lambda.runtime.schedule")


def part(name: str, *inputs: str) -> dict[str, Any]:
    return {"name": name, "inputs": list(inputs)}


class Request:
    """Slices that make a tensor of their own name, ended by hand."""

    def __init__(self, *parts: dict[str, Any], most: int = 8) -> None:
        self.parts, self.most = parts, most
        self.held = {"x"}
        self.started: list[str] = []
        self.alone: list[str] = []
        self.calls: dict[str, Future[None]] = {part["name"]: Future() for part in parts}
        self.changed = threading.Condition()

    def start(self, part: Any, alone: bool) -> Future[None]:
        with self.changed:
            self.started.append(part["name"])
            self.alone += [part["name"]] * alone
            self.changed.notify()
        return self.calls[part["name"]]

    def finish(self, part: Any, _: None) -> None:
        self.held.add(part["name"])

    def run(self) -> None:
        schedule.run(self.parts, self.held, self.start, self.finish, most=self.most)

    def have_started(self, count: int) -> list[str]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.started) >= count, 5)
            return list(self.started)


def running(request: Request) -> Future[None]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(request.run)
    pool.shutdown(wait=False)
    return future


def test_a_slice_waits_for_the_slices_that_it_needs_and_no_others() -> None:
    request = Request(part("a", "x"), part("slow", "x"), part("b", "a"), part("c", "b", "slow"))
    run = running(request)
    assert request.have_started(2) == ["a", "slow"]
    request.calls["a"].set_result(None)
    assert request.have_started(3) == ["a", "slow", "b"]  # slow is of b's earlier stage
    request.calls["b"].set_result(None)
    request.calls["slow"].set_result(None)
    assert request.have_started(4)[-1] == "c"
    request.calls["c"].set_result(None)
    assert run.result(5) is None
    assert request.alone == ["c"]


def test_no_more_than_so_many_run_at_once() -> None:
    request = Request(*(part(name, "x") for name in "abc"), most=2)
    run = running(request)
    assert request.have_started(2) == ["a", "b"]
    request.calls["b"].set_result(None)
    assert request.have_started(3) == ["a", "b", "c"]
    for name in "ac":
        request.calls[name].set_result(None)
    run.result(5)


def test_after_a_failure_nothing_starts_and_what_has_started_ends_first() -> None:
    request = Request(part("a", "x"), part("b", "x"), part("c", "b"))
    run = running(request)
    request.have_started(2)
    request.calls["a"].set_exception(ValueError("a failed"))
    with pytest.raises(TimeoutError):
        run.result(0.05)
    request.calls["b"].set_result(None)
    with pytest.raises(ValueError, match="a failed"):
        run.result(5)
    assert request.started == ["a", "b"]
    assert "b" in request.held


def test_an_error_of_a_start_waits_for_the_others_too() -> None:
    request = Request(part("a", "x"), part("b", "x"))

    def start(one: Any, alone: bool) -> Future[None]:
        if one["name"] == "b":
            raise OSError("no message")
        return request.start(one, alone)

    request.calls["a"].set_result(None)
    with pytest.raises(OSError, match="no message"):
        schedule.run(request.parts, request.held, start, request.finish, most=2)
    assert "a" in request.held


def test_a_slice_whose_tensor_nobody_makes_is_told() -> None:
    request = Request(part("a", "x", "nothing"))
    with pytest.raises(RuntimeError, match="no slice made nothing"):
        request.run()


def test_a_call_at_once_is_a_future() -> None:
    assert schedule.at_once(lambda: 3).result() == 3
    with pytest.raises(ZeroDivisionError):
        schedule.at_once(lambda: 1 // 0).result()


def test_a_tensor_is_given_up_when_its_last_reader_has_ended() -> None:
    parts = [part("p", "a"), part("q", "b", "c"), part("r", "a", "d"), part("s", "d", "e")]
    last_read = schedule.LastRead(parts, {"e"})
    assert [last_read.ended(parts[index]) for index in (1, 3, 0, 2)] == [
        ["b", "c"], [], [], ["a", "d"],
    ]  # fmt: skip
