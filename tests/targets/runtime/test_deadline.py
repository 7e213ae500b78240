"""Deadlines of messages: the earlier of what remains and of a time of day."""

from __future__ import annotations

import importlib
import math
import time
from typing import Any

import pytest

deadline = importlib.import_module("slicewise.targets.lambda.runtime.deadline")


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ({"remaining_ms": 5000}, 5.0),
        ({"until_ms": 9000}, 9.0),
        ({"remaining_ms": 5000, "until_ms": 9000}, 5.0),
        ({"remaining_ms": 9000, "until_ms": -1000}, -1.0),
        ({}, math.inf),
        ({"until_ms": None}, math.inf),
    ],
)
def test_the_earlier_one_counts(
    message: dict[str, Any], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    if message.get("until_ms") is not None:
        message = {**message, "until_ms": message["until_ms"] + 1e12}

    assert deadline.deadline_of(message) == pytest.approx(100.0 + seconds)


@pytest.mark.parametrize("field", ["remaining_ms", "until_ms"])
@pytest.mark.parametrize("value", ["1", [], True, 10**400, -(10**400)])
def test_what_is_no_number_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is no number of milliseconds"):
        deadline.deadline_of({field: value})
