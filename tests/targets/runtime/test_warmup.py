"""The warm-up: every slice of a later stage once, at the same time, and no real call beside it."""

from __future__ import annotations

import importlib
import threading
from typing import Any

import pytest

warmup = importlib.import_module("slicewise.targets.lambda.runtime.warmup")
start = importlib.import_module("slicewise.targets.lambda.runtime.start")


def test_all_calls_are_under_way_at_once() -> None:
    names = ["a", "b", "c"]
    together = threading.Barrier(len(names), timeout=10)

    def call(name: str) -> dict[str, Any]:
        together.wait()
        return {"cold": True, "init_ms": 1.0}

    warm_up = warmup.WarmUp(call, names)
    warm_up.begin()

    for name in names:
        assert warm_up.wait(name).keys() == {"cold", "init_ms", "warm_up_ms"}


def test_it_happens_once_and_is_told_once() -> None:
    called: list[str] = []

    def call(name: str) -> dict[str, Any]:
        called.append(name)
        return {"cold": True}

    warm_up = warmup.WarmUp(call, ["a"])
    assert warm_up.wait("a") == {}
    assert warm_up.is_due
    for told in (True, None):
        warm_up.begin()
        assert warm_up.wait("a").get("cold") == told
    assert called == ["a"]
    assert not warm_up.is_due


def test_who_waits_goes_on_when_the_call_has_ended() -> None:
    ended = threading.Event()
    warm_up = warmup.WarmUp(lambda _: {"cold": ended.wait(10)}, ["a"])
    warm_up.begin()
    threading.Timer(0.05, ended.set).start()

    assert warm_up.wait("a")["cold"] is True


def test_a_call_that_fails_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    def call(name: str) -> dict[str, Any]:
        raise RuntimeError("no environment to be had")

    warm_up = warmup.WarmUp(call, ["a"])
    warm_up.begin()

    assert warm_up.wait("a").keys() == {"warm_up_ms"}
    assert "the warm-up of a failed: no environment to be had" in caplog.text


def test_no_call_runs_on_when_it_is_finished() -> None:
    release, ended = threading.Event(), threading.Event()

    def call(name: str) -> dict[str, Any]:
        release.wait(10)
        ended.set()
        raise RuntimeError

    warm_up = warmup.WarmUp(call, ["a"])
    warm_up.begin()
    threading.Timer(0.05, release.set).start()
    warm_up.finish()

    assert ended.is_set()


def test_a_start_is_told_once_with_its_parts() -> None:
    began = start.Start()
    began.mark("load_ms")
    began.ready()

    told = began.tell()
    assert told.pop("cold") is True
    assert list(told) == ["init_ms", "spawn_ms", "import_ms", "load_ms"]
    assert all(ms >= 0 for ms in told.values())
    assert began.tell() == {"cold": False}


@pytest.mark.parametrize(
    ("kind", "told"), [("provisioned-concurrency", {"cold": False}), ("snap-start", {"cold": True})]
)
def test_what_was_not_made_for_the_request_took_it_no_time(
    kind: str, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", kind)
    began = start.Start()
    began.ready()

    assert began.tell() == told


def test_a_process_knows_its_age() -> None:
    first = start.process_age_ms()
    assert 0 < first <= start.process_age_ms()
