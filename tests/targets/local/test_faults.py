"""Injected faults: each strikes what it says, as often as it says, and nothing else."""

from __future__ import annotations

import importlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ConnectionClosedError, HTTPClientError, IncompleteReadError

faults_module = importlib.import_module("slicewise.targets.lambda.local.faults")
local = importlib.import_module("slicewise.targets.lambda.local")
Fault = faults_module.Fault

SOURCE = """
import datetime, os, tempfile, time

def handler(event, context):
    if "sleep" in event:
        time.sleep(event["sleep"])
    if "allocate" in event:
        bytearray(event["allocate"])
    if event.get("do") == "clock":
        now = datetime.datetime.now(datetime.timezone.utc).timestamp()
        return [time.time(), now, context.get_remaining_time_in_millis()]
    if event.get("do") == "write":
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x" * event["bytes"])
    if event.get("do") == "s3":
        import boto3
        from botocore.config import Config
        client = boto3.client("s3", config=Config(retries={"total_max_attempts": 1}))
        try:
            if "put" in event:
                client.put_object(Bucket="bucket", Key=event["put"], Body=b"1234")
            else:
                return client.get_object(Bucket="bucket", Key=event["get"])["Body"].read().decode()
        except Exception as error:
            return str(error)
    return os.getpid()
"""


@pytest.fixture(scope="module")
def platform(make_function: Callable[..., Any]) -> Iterator[Any]:
    functions = [make_function("probe", SOURCE, memory_mb=512), make_function("other")]
    with local.Platform(functions, buckets=["bucket"], cpu_scale=8.0, faults=True) as platform:
        yield platform


@pytest.fixture
def call(platform: Any) -> Iterator[Callable[..., Any]]:
    client = platform.client("lambda")

    def call(function: str = "probe", **event: Any) -> Any:
        answer = client.invoke(FunctionName=function, Payload=json.dumps(event))
        return json.loads(answer["Payload"].read())

    platform.faults.clear()
    yield call
    platform.faults.clear()


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("throttle", "TooManyRequests"),
        ("service error", "ServiceException"),
        ("lost call", ConnectionClosedError),
        ("lost reply", ConnectionClosedError),
        ("cut reply", (IncompleteReadError, HTTPClientError)),
    ],
)
def test_a_call_fails_and_the_next_does_not(
    kind: str, error: Any, platform: Any, call: Callable[..., Any]
) -> None:
    ran = len(platform.reports)
    platform.faults.arm(Fault(kind=kind, function="probe", times=2))

    assert call("other") == {}
    for _ in range(2):
        if isinstance(error, str):
            with pytest.raises(Exception, match=error):
                call()
        else:
            with pytest.raises(error):
                call()
    assert isinstance(call(), int)
    assert platform.faults.clear() == 2
    reached = 2 if "reply" in kind else 0
    assert len(platform.reports) - ran == 2 + reached


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("kill in init", "Runtime.ExitError"),
        ("kill in compute", "Runtime.ExitError"),
        ("timeout", "Sandbox.Timedout"),
    ],
)
def test_an_instance_ends_as_lambda_would_say(
    kind: str, error: str, platform: Any, call: Callable[..., Any]
) -> None:
    platform.faults.arm(Fault(kind=kind, seconds=0.01))

    assert call(sleep=1)["errorType"] == error
    assert isinstance(call(), int)


def test_no_instance_gets_memory_beyond_what_it_holds(
    platform: Any, call: Callable[..., Any]
) -> None:
    assert isinstance(call(allocate=50_000_000), int)  # so much would fit
    platform.faults.arm(Fault(kind="out of memory", times=2))

    assert isinstance(call(sleep=0.2), int)  # it holds what it needs
    assert call(sleep=0.2, allocate=50_000_000)["errorType"] == "Runtime.OutOfMemory"
    assert isinstance(call(allocate=50_000_000), int)


def test_an_instance_that_a_lower_limit_spared_gets_no_other_call(
    platform: Any, call: Callable[..., Any]
) -> None:
    platform.faults.arm(Fault(kind="out of memory", times=1))

    assert isinstance(call(sleep=0.2), int)
    assert isinstance(call(allocate=50_000_000), int)


@pytest.mark.parametrize(("kind", "event"), [("fetch", {"get": "k"}), ("send", {"put": "k"})])
def test_an_instance_is_killed_at_its_s3_operation(
    kind: str, event: Any, platform: Any, call: Callable[..., Any]
) -> None:
    platform.faults.arm(Fault(kind=f"kill in {kind}"))

    assert call(do="s3", **event)["errorType"] == "Runtime.ExitError"
    assert isinstance(call(), int)


@pytest.mark.parametrize(
    ("kind", "event", "told"),
    [
        ("s3 500", {"put": "x"}, "InternalError"),
        ("s3 503", {"get": "here"}, "SlowDown"),
        ("s3 lost answer", {"put": "x"}, "InternalError"),
        ("s3 corrupt read", {"get": "here"}, "checksum"),
        ("s3 cut read", {"get": "here"}, "IncompleteRead"),
        ("s3 missing object", {"get": "here"}, "NoSuchKey"),
    ],
)
def test_an_s3_operation_fails_once(
    kind: str, event: Any, told: str, platform: Any, call: Callable[..., Any]
) -> None:
    call(do="s3", put="here")
    platform.faults.arm(Fault(kind=kind, function="probe"))

    assert told in call(do="s3", **event)
    assert call(do="s3", get="here") == "1234"


def test_a_lost_write_is_not_there(platform: Any, call: Callable[..., Any]) -> None:
    platform.faults.arm(Fault(kind="s3 lost write"))

    assert isinstance(call(do="s3", put="lost"), int)
    assert "NoSuchKey" in call(do="s3", get="lost")


def test_a_duplicate_runs_twice(platform: Any, call: Callable[..., Any]) -> None:
    before = len(platform.reports)
    platform.faults.arm(Fault(kind="duplicate"))
    call()

    until = time.monotonic() + 30
    while len(platform.reports) < before + 2 and time.monotonic() < until:
        time.sleep(0.01)
    first, second = platform.reports[before:]
    assert first.request_id == second.request_id


def test_a_full_disk_takes_no_file(platform: Any, call: Callable[..., Any]) -> None:
    platform.faults.arm(Fault(kind="full disk"))

    assert call(do="write", bytes=100_000)["errorType"] == "OSError"
    assert isinstance(call(do="write", bytes=100_000), int)


def test_a_skewed_clock_is_wrong_everywhere_and_refused(
    platform: Any, call: Callable[..., Any]
) -> None:
    platform.faults.arm(Fault(kind="clock skew", seconds=3600))
    clock, date, remaining = call(do="clock")

    for told in (clock, date):
        assert 3500 < told - time.time() < 3700
    assert remaining == 0
    platform.faults.arm(Fault(kind="clock skew", seconds=-3600))
    assert "RequestTimeTooSkewed" in call(do="s3", get="here")


def test_random_faults_are_the_same_again_and_of_every_kind() -> None:
    first, again, other = (
        list(itertools.islice(faults_module.random_faults(seed, ["a", "b"]), 200))
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert {fault.kind for fault in first} == set(faults_module.KINDS)
    with pytest.raises(ValueError, match="no fault is called 'rain'"):
        faults_module.Faults().arm(Fault(kind="rain"))
