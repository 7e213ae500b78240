"""Nothing of a platform outlives it."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slicewise.errors import TargetError

local = importlib.import_module("slicewise.targets.lambda.local")

CGROUPS = Path("/sys/fs/cgroup")

DOOMED = """
import importlib, json, sys, time
from pathlib import Path
Function = importlib.import_module("slicewise.targets.lambda.functions").Function
local = importlib.import_module("slicewise.targets.lambda.local")
platform = local.Platform(
    [Function(name="probe", package=Path(sys.argv[1]), handler="probe.handler", memory_mb=256)],
    buckets=["bucket"], enforcement=sys.argv[2],
)
platform.start()
reply = platform.client("lambda").invoke(FunctionName="probe", Payload=b'{"do": "child"}')
platform.client("s3").list_buckets()
print(json.load(reply["Payload"]), flush=True)
sys.exit() if sys.argv[3] == "exit" else time.sleep(600)
"""


def traces(pid: int) -> list[str]:
    """Processes, cgroups and directories of platforms that a process has started."""
    found = [str(path) for path in Path(tempfile.gettempdir()).glob(f"slicewise-{pid}-*")]
    for hierarchy in CGROUPS.glob("*"):
        for root, directories, _files in os.walk(hierarchy):
            found += [f"{root}/{name}" for name in directories if f"slicewise-{pid}-" in name]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_text() + (process / "environ").read_text()
            text += str((process / "cwd").readlink())  # the S3 server's only trace
        except (OSError, UnicodeDecodeError):
            continue
        ours = f"slicewise-{pid}-" in text
        if ours and process.name != str(pid):
            found.append(process.name)
    return found


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


def wait_until(condition: Callable[[], bool]) -> bool:
    """Whether a condition becomes true within 20 seconds."""
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def children() -> set[str]:
    """This process's children, zombies included."""
    return {
        child
        for task in Path("/proc/self/task").iterdir()
        for child in (task / "children").read_text().split()
    }


@pytest.mark.parametrize("enforcement", ["auto", "process limits"])
def test_stop_leaves_nothing(make_function: Callable[..., Any], enforcement: str) -> None:
    before_children, before_traces = children(), set(traces(os.getpid()))
    before_threads = threading.active_count()
    platform = local.Platform([make_function()], buckets=["bucket"], enforcement=enforcement)
    with platform:
        client = platform.client("lambda")
        reply = client.invoke(FunctionName="probe", Payload=b'{"do": "child"}')
        child = json.load(reply["Payload"])
        during = set(traces(os.getpid())) - before_traces
        assert is_running(child)
        assert during
    client.close()

    assert set(traces(os.getpid())) == before_traces
    assert children() == before_children
    assert not is_running(child)
    assert wait_until(lambda: threading.active_count() <= before_threads)
    assert len(platform.reports) == 1
    with pytest.raises(TargetError, match="not running"):
        platform.client("lambda")


def test_stop_during_calls_ends_them(make_function: Callable[..., Any]) -> None:
    before = set(traces(os.getpid()))
    platform = local.Platform([make_function()])
    platform.start()
    client = platform.client("lambda")
    failures: list[Exception] = []

    def call() -> None:
        try:
            client.invoke(FunctionName="probe", Payload=b'{"do": "sleep", "seconds": 60}')
        except Exception as error:
            failures.append(error)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    assert wait_until(lambda: platform._dispatcher._running == 3)
    platform.stop()
    for caller in callers:
        caller.join(20)

    assert len(failures) == 3
    assert set(traces(os.getpid())) == before


def test_a_platform_can_be_started_again(make_function: Callable[..., Any]) -> None:
    platform = local.Platform([make_function()])
    for _ in range(2):
        with platform:
            platform.client("lambda").invoke(FunctionName="probe")

    assert [report.status for report in platform.reports] == ["success", "success"]


def test_a_start_that_fails_half_way_leaves_nothing(
    make_function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, before_children = set(traces(os.getpid())), children()

    def fail(_directory: Path, _more: tuple[str, ...]) -> None:
        raise TargetError("no layer")

    module = importlib.import_module("slicewise.targets.lambda.local.platform")
    monkeypatch.setattr(module, "build_layer", fail)
    with pytest.raises(TargetError, match="no layer"):
        local.Platform([make_function()], buckets=["bucket"]).start()

    assert set(traces(os.getpid())) == before
    assert children() == before_children


@pytest.mark.parametrize("enforcement", ["auto", "process limits"])
def test_killing_an_instances_process_ends_its_children(
    start: Callable[..., Any], enforcement: str
) -> None:
    lambdas = start(enforcement=enforcement)
    child = lambdas(do="child")
    lambdas(do="exit", code=1)

    assert wait_until(lambda: not is_running(child))


@pytest.mark.parametrize("enforcement", ["auto", "process limits"])
@pytest.mark.parametrize("end", ["exit", "SIGKILL", "SIGTERM"])
def test_nothing_outlives_the_platforms_process(
    make_function: Callable[..., Any], enforcement: str, end: str
) -> None:
    package = make_function().package
    with subprocess.Popen(
        [sys.executable, "-c", DOOMED, str(package), enforcement, end],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        if end != "exit":
            assert traces(process.pid)
            assert is_running(child)
            process.send_signal(getattr(signal, end))
    pid = process.pid

    assert wait_until(lambda: not traces(pid)), traces(pid)
    assert not is_running(child)


def test_a_fork_of_the_process_does_not_stop_the_platform(start: Callable[..., Any]) -> None:
    lambdas = start()
    pid = os.fork()
    if pid == 0:
        lambdas.platform.stop()
        os._exit(0)
    os.waitpid(pid, 0)

    assert lambdas(text="still here") == {"text": "still here"}
