"""Memory and CPU limits."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slicewise.errors import TargetError

cgroup = importlib.import_module("slicewise.targets.lambda.local.cgroup")

INIT_CPU = """
import time
def handler(event, context):
    return quota()
def quota():
    for line in open("/proc/self/cgroup"):
        number, controllers, path = line.strip().split(":", 2)
        if "cpu" in controllers.split(","):
            return int(open("/sys/fs/cgroup/cpu" + path + "/cpu.cfs_quota_us").read())
AT_INIT = quota()
def at_init(event, context):
    return AT_INIT
"""


def skip_without_cpu_limit(lambdas: Any) -> None:
    if lambdas.platform.enforcement.kind == "process limits":
        pytest.skip("process limits do not limit CPU")


def test_the_platform_says_how_it_enforces_limits(lambdas: Any) -> None:
    enforcement = lambdas.platform.enforcement

    assert enforcement.kind in ("cgroup v1", "cgroup v2", "process limits")
    assert enforcement.kind in str(enforcement)
    assert enforcement.why
    assert enforcement.why in str(enforcement)


def test_too_much_memory_kills_the_instance_and_the_next_call_works(lambdas: Any) -> None:
    error, response = lambdas.reply(do="allocate", mb=400, seconds=5)
    report = lambdas.platform.reports[-1]

    assert response["FunctionError"] == "Unhandled"
    assert error["errorType"] == "Runtime.OutOfMemory"
    assert error["errorMessage"].endswith("Error: Runtime exited with error: signal: killed")
    assert "Max Memory Used: 256 MB\tInit" in str(report) or "Used: 256 MB\tStatus" in str(report)
    assert lambdas(text="next") == {"text": "next"}


def test_a_short_spike_above_the_limit_is_not_overlooked(lambdas: Any) -> None:
    error = lambdas(do="allocate", mb=270)

    assert error["errorType"] == "Runtime.OutOfMemory"


def test_a_function_may_use_its_memory(lambdas: Any) -> None:
    lambdas.platform.discard_idle()

    assert lambdas(do="allocate", mb=200) == 200 << 20
    assert 200 < lambdas.platform.reports[-1].max_memory_mb < 225


def test_the_memory_peak_stays_with_the_instance(lambdas: Any) -> None:
    lambdas.platform.discard_idle()
    lambdas(do="allocate", mb=100)
    lambdas()

    assert 100 < lambdas.platform.reports[-1].max_memory_mb < 125


def test_mapped_files_do_not_count_as_memory(
    start: Callable[..., Any], make_function: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "weights").write_bytes(b"x" * (150 << 20))
    source = f"""
import mmap
file = open({str(tmp_path / "weights")!r}, "rb")
weights = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
def handler(event, context):
    return sum(weights[i] for i in range(0, len(weights), 4096))
"""
    lambdas = start(make_function("maps", source, memory_mb=128), cpu_scale=8.0)

    assert lambdas("maps") == 150 * 256 * ord("x")
    assert lambdas.platform.reports[-1].max_memory_mb < 40


def test_a_spike_between_pages_of_files_is_measured(
    start: Callable[..., Any], make_function: Callable[..., Any], tmp_path: Path
) -> None:
    """As when a model is loaded: 90 MB for a moment, and then a file is mapped."""
    (tmp_path / "weights").write_bytes(b"x" * (60 << 20))
    source = f"""
import mmap
b"x" * (90 << 20)
file = open({str(tmp_path / "weights")!r}, "rb")
weights = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sum(weights[i] for i in range(0, len(weights), 4096))
def handler(event, context):
    return "loaded"
"""
    lambdas = start(make_function("spikes", source, memory_mb=256), cpu_scale=8.0)
    if lambdas.platform.enforcement.kind != "cgroup v1":
        pytest.skip("the kernel may keep no mark of this")

    assert lambdas("spikes") == "loaded"
    assert 95 < lambdas.platform.reports[-1].max_memory_mb < 99


def test_cpu_follows_memory(lambdas: Any, start: Callable[..., Any], make_function: Any) -> None:
    skip_without_cpu_limit(lambdas)
    small = start(make_function(memory_mb=442))  # a quarter of a vCPU

    share = small(do="burn", cpu_seconds=0.3)
    assert share < 0.4


def test_init_may_use_more_cpu_than_the_share(
    lambdas: Any, start: Callable[..., Any], make_function: Callable[..., Any]
) -> None:
    if lambdas.platform.enforcement.kind != "cgroup v1":
        pytest.skip("reads the quota from cgroup v1")
    init = make_function("init", INIT_CPU, handler="probe.at_init", memory_mb=442)
    call = make_function("call", INIT_CPU, handler="probe.handler", memory_mb=442)
    probes = start(init, call, cpu_scale=2.0)

    assert probes("init") == 2 * 2 * 20_000
    assert probes("call") == round(442 / 1769 * 2 * 20_000)


@pytest.mark.parametrize(
    ("memory_mb", "scale", "quota"), [(1769, 1.0, 20_000), (10_240, 1.0, 115_772), (128, 0.1, 1000)]
)
def test_the_quota_is_the_share_of_a_20_ms_period(memory_mb: int, scale: float, quota: int) -> None:
    assert cgroup.quota_us(cgroup.cpu_share(memory_mb, scale)) == quota


def test_an_enforcement_that_does_not_work_here_is_an_error(start: Callable[..., Any]) -> None:
    works = set()
    for kind in ("cgroup v1", "cgroup v2"):
        try:
            works.add(start(enforcement=kind).platform.enforcement.kind)
        except TargetError as error:
            assert f"{kind} cannot be used here: " in str(error)
    assert len(works) <= 1  # the controllers belong to one version


def test_cgroup_v2_files_are_written_as_the_kernel_documents_them(tmp_path: Path) -> None:
    """Not a kernel's v2 hierarchy, which this machine may lack: ordinary files in its place."""
    directory = tmp_path / "instance"
    directory.mkdir()
    for name in ("memory.max", "cpu.max"):
        (directory / name).touch()
    (directory / "memory.stat").write_text("anon 4096\nfile 999\nshmem 100\n")
    (directory / "memory.peak").write_text("9000\n")
    (directory / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    confinement = cgroup.V2Confinement(directory)
    confinement.set_cpu(0.25)

    assert (directory / "cpu.max").read_text() == "5000 20000"
    assert confinement.memory() == cgroup.Memory(held=4196, files=899, mark=9000)
    assert confinement.oom_killed()
    assert confinement.procs == (directory / "cgroup.procs",)
    (directory / "memory.peak").unlink()
    assert confinement.memory() is None, "an older kernel: the process is asked"
