"""Hedged calls: a second call when the first takes too long, and the first answer counts."""

from __future__ import annotations

import importlib
import threading
from typing import Any

import pytest

hedge_module = importlib.import_module("slicewise.targets.lambda.runtime.hedge")


def reply(number: int) -> dict[str, Any]:
    return {"number": number, "trace": {}, "tensors": {}}


def known(percentile: float = 0.95) -> Any:
    """A hedge that knows how long calls of `a` take: nothing."""
    hedge = hedge_module.Hedge(percentile, 2)
    for number in range(hedge_module.FEWEST):
        assert hedge.call("a", lambda number=number: reply(number)) == (reply(number), None)
    return hedge


class Calls:
    """The first call answers when it is let, the second at once."""

    def __init__(self, first: Exception | None = None, second: Exception | None = None) -> None:
        self.errors = (first, second)
        self.let = threading.Event()
        self.count = 0

    def __call__(self) -> dict[str, Any]:
        number = self.count
        self.count += 1
        if number == 0:
            assert self.let.wait(5)
        error = self.errors[number]
        if error is not None:
            self.let.set()
            raise error
        return reply(number)


def test_nothing_is_hedged_before_times_are_known() -> None:
    hedge = hedge_module.Hedge(0.5, 1)
    assert hedge.after_s("a") is None
    assert known().after_s("b") is None


def test_the_percentile_is_of_the_latest_calls() -> None:
    hedge = hedge_module.Hedge(0.9, 1)
    for seconds in range(hedge_module.KEPT + 100):
        hedge._keep("a", float(seconds))
    assert hedge.after_s("a") == 100 + 0.9 * hedge_module.KEPT - 1


def test_the_first_answer_counts_and_the_other_call_is_told() -> None:
    calls = Calls()
    found, slower = known().call("a", calls)
    assert (found["number"], found["trace"]) == (1, {"hedged": True})
    assert not slower.done()
    calls.let.set()
    assert slower.result(5)["number"] == 0


def test_one_of_two_calls_may_fail() -> None:
    """The second one met an object of the first one, with other bytes."""
    calls = Calls(second=ValueError("the key exists"))
    found, _ = known().call("a", calls)
    assert found["number"] == 0


def test_two_calls_that_fail_are_one_error() -> None:
    calls = Calls(ValueError("first"), ValueError("second"))
    hedge = known()
    threading.Timer(0.05, calls.let.set).start()
    with pytest.raises(ValueError, match="first"):
        hedge.call("a", calls)
