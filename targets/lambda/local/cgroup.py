"""How memory and CPU limits are enforced: cgroup v1, cgroup v2, or the process's own limits.

Lambda gives a function memory / 1,769 MB of a vCPU by CFS bandwidth with a 20 ms period; both
cgroup versions do the same here. Page cache counts towards a cgroup's limit but is reclaimed
before the OOM killer strikes, so the limit acts on unreclaimable memory, as in Lambda's VM.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from slicewise.errors import TargetError

Kind = Literal["cgroup v1", "cgroup v2", "process limits"]

PERIOD_US = 20_000
MIN_QUOTA_US = 1_000  # the kernel's own minimum
MB_PER_VCPU = 1769
MOST_KERNEL_BYTES = 64 * 2**20  # of page tables and stacks that an instance is charged for
INIT_VCPUS = 2.0  # Lambda does not throttle the init phase to the function's share
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Enforcement:
    """How a platform keeps functions within their memory and CPU, and why in this way."""

    kind: Kind
    memory: str
    cpu: str
    why: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.kind} ({self.why}); memory: {self.memory}; CPU: {self.cpu}"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of an instance: `held` (anonymous and shared, which the kernel cannot take back), `files`
    (pages of files, which it can), and `mark`, the most of both so far, with the kernel's own.
    """

    held: int
    files: int
    mark: int


class Confinement(Protocol):
    """The limits of one instance."""

    procs: tuple[Path, ...]
    """cgroup.procs files that the instance's process has to write itself into."""
    rlimits: Mapping[str, int]
    """Resource limits that it has to set on itself: name in the module resource -> value."""
    watchdog_bytes: int | None
    """When set, the platform itself must kill the instance above this memory."""

    def set_cpu(self, vcpus: float) -> None:
        """Allow this many vCPUs from now on."""

    def memory(self) -> Memory | None:
        """Of all its processes, now; None when the kernel does not tell."""

    def tighten(self, held: int) -> None:
        """Lower the memory limit to these bytes, which it holds: what it needs next is too much."""

    def oom_killed(self) -> bool:
        """Whether the kernel has killed a process of it for its memory."""

    def remove(self) -> None:
        """Remove what was made for it; its processes must be dead."""


class Limiter(Protocol):
    """Makes confinements of one kind."""

    enforcement: Enforcement
    directories: tuple[Path, ...]
    """What has to be removed when the platform ends."""

    def confine(self, name: str, memory_mb: int) -> Confinement:
        """Limits for a new instance; CPU is unlimited until `set_cpu`."""

    def remove(self) -> None:
        """Remove the directories; all processes must be dead."""


def cpu_share(memory_mb: int, scale: float) -> float:
    """The vCPUs of a function with this much memory."""
    return memory_mb / MB_PER_VCPU * scale


def quota_us(vcpus: float) -> int:
    """CFS quota per period, microseconds."""
    return max(MIN_QUOTA_US, round(vcpus * PERIOD_US))


def choose_limiter(wanted: Kind | Literal["auto"], name: str) -> Limiter:
    """The best limiter that works here, or the wanted one.

    Raises TargetError when the wanted one does not work, with the reason.
    """
    reasons = []
    makers: dict[str, Callable[[str], Limiter]] = {"cgroup v1": CgroupV1, "cgroup v2": CgroupV2}
    for kind, make in makers.items():
        if wanted in ("auto", kind):
            try:
                return make(name)
            except (OSError, LookupError) as error:
                reasons.append(f"{kind}: {error}")
    if wanted in makers:
        raise TargetError(f"{wanted} cannot be used here: {reasons[0]}")
    return ProcessLimits("; ".join(reasons) or "asked for")


class CgroupV1:
    """One cgroup per instance in the memory and in the cpu hierarchy."""

    def __init__(self, name: str) -> None:
        """Make the platform's own cgroups. Raises OSError or LookupError when that is refused."""
        memory, cpu = v1_parent("memory") / name, v1_parent("cpu") / name
        self.directories: tuple[Path, ...] = (memory, cpu)
        try:
            for directory in self.directories:
                directory.mkdir()
            self.confine("trial", 1024).remove()
        except OSError:
            self.remove()
            raise
        self.enforcement = Enforcement(
            kind="cgroup v1",
            memory="memory.limit_in_bytes, the kernel's OOM killer",
            cpu="CFS quota, 20 ms period",
            why=f"{memory.parent} and {cpu.parent} are writable",
        )

    def confine(self, name: str, memory_mb: int) -> Confinement:
        """Cgroups for a new instance."""
        memory, cpu = (directory / name for directory in self.directories)
        memory.mkdir()
        cpu.mkdir()
        limit = str(memory_mb * MIB)
        write(memory / "memory.limit_in_bytes", limit)
        # Without swap accounting the files are missing; then there is rarely swap either.
        with contextlib.suppress(OSError):
            write(memory / "memory.memsw.limit_in_bytes", limit)
        with contextlib.suppress(OSError):
            write(memory / "memory.swappiness", "0")
        write(cpu / "cpu.cfs_period_us", str(PERIOD_US))
        return V1Confinement(memory, cpu)

    def remove(self) -> None:
        """Remove the platform's cgroups."""
        for directory in self.directories:
            remove_cgroup(directory)


class V1Confinement:
    """The two cgroups of an instance."""

    watchdog_bytes: int | None = None

    def __init__(self, memory: Path, cpu: Path) -> None:
        self._memory, self._cpu = memory, cpu
        self.procs: tuple[Path, ...] = (memory / "cgroup.procs", cpu / "cgroup.procs")
        self.rlimits: Mapping[str, int] = {}

    def set_cpu(self, vcpus: float) -> None:
        """Set the quota."""
        write(self._cpu / "cpu.cfs_quota_us", str(quota_us(vcpus)))

    def memory(self) -> Memory | None:
        """`rss` is anonymous memory, `cache` is files and `shmem`."""
        return charged(self._memory, "memory.max_usage_in_bytes", ("rss", "shmem"), "cache")

    def tighten(self, held: int) -> None:
        """The kernel refuses a limit below what is charged, which has its own pages, too."""
        for limit in range(held, held + MOST_KERNEL_BYTES, MIB):
            with contextlib.suppress(OSError):
                write(self._memory / "memory.limit_in_bytes", str(limit))
                return

    def oom_killed(self) -> bool:
        """The counter `oom_kill` of memory.oom_control."""
        return bool(counters(self._memory / "memory.oom_control").get("oom_kill"))

    def remove(self) -> None:
        """Remove both cgroups."""
        remove_cgroup(self._memory)
        remove_cgroup(self._cpu)


class CgroupV2:
    """One cgroup per instance with the memory and cpu controllers."""

    def __init__(self, name: str) -> None:
        """Make the platform's own cgroup. Raises OSError or LookupError when that is refused."""
        directory = v2_parent() / name
        self.directories: tuple[Path, ...] = (directory,)
        try:
            directory.mkdir()
            write(directory / "cgroup.subtree_control", "+memory +cpu")
            self.confine("trial", 1024).remove()
        except OSError:
            self.remove()
            raise
        self.enforcement = Enforcement(
            kind="cgroup v2",
            memory="memory.max, the kernel's OOM killer",
            cpu="cpu.max, 20 ms period",
            why=f"{directory.parent} is writable and delegates memory and cpu",
        )

    def confine(self, name: str, memory_mb: int) -> Confinement:
        """A cgroup for a new instance."""
        directory = self.directories[0] / name
        directory.mkdir()
        write(directory / "memory.max", str(memory_mb * MIB))
        with contextlib.suppress(OSError):  # the file is missing without swap accounting
            write(directory / "memory.swap.max", "0")
        write(directory / "memory.oom.group", "1")
        return V2Confinement(directory)

    def remove(self) -> None:
        """Remove the platform's cgroup."""
        remove_cgroup(self.directories[0])


class V2Confinement:
    """The cgroup of an instance."""

    watchdog_bytes: int | None = None

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.procs: tuple[Path, ...] = (directory / "cgroup.procs",)
        self.rlimits: Mapping[str, int] = {}

    def set_cpu(self, vcpus: float) -> None:
        """Set the quota."""
        write(self._directory / "cpu.max", f"{quota_us(vcpus)} {PERIOD_US}")

    def memory(self) -> Memory | None:
        """`file` holds `shmem` too; memory.peak exists since Linux 5.19."""
        return charged(self._directory, "memory.peak", ("anon", "shmem"), "file")

    def tighten(self, held: int) -> None:
        """The kernel kills at once when more is charged."""
        write(self._directory / "memory.max", str(held))

    def oom_killed(self) -> bool:
        """The counter `oom_kill` of memory.events."""
        return bool(counters(self._directory / "memory.events").get("oom_kill"))

    def remove(self) -> None:
        """Remove the cgroup."""
        remove_cgroup(self._directory)


class ProcessLimits:
    """Without cgroups: the platform kills what uses too much memory; CPU is not limited."""

    directories: tuple[Path, ...] = ()

    def __init__(self, why: str) -> None:
        self.enforcement = Enforcement(
            kind="process limits",
            memory="the platform kills an instance above its limit, checked every 20 ms and "
            "after every phase; RLIMIT_DATA as a stop far above it",
            cpu="not limited; durations of small functions are too short",
            why=why,
        )

    def confine(self, name: str, memory_mb: int) -> Confinement:  # noqa: ARG002
        """Limits for a new instance."""
        return ProcessConfinement(memory_mb)

    def remove(self) -> None:
        """Nothing was made."""


class ProcessConfinement:
    """The limits of one process."""

    def __init__(self, memory_mb: int) -> None:
        self.procs: tuple[Path, ...] = ()
        # RLIMIT_DATA counts memory that was reserved but never touched (thread stacks, arenas), so
        # near the limit it would fail functions that fit. It only stops what outruns the watchdog.
        self.rlimits: Mapping[str, int] = {"RLIMIT_DATA": (2 * memory_mb + 1024) * MIB}
        self.watchdog_bytes: int | None = memory_mb * MIB

    def set_cpu(self, vcpus: float) -> None:
        """CPU is not limited."""

    def memory(self) -> Memory | None:
        """Not known here; the meter reads the process itself."""
        return None

    def tighten(self, held: int) -> None:
        """The watchdog's limit."""
        self.watchdog_bytes = held

    def oom_killed(self) -> bool:
        """The platform itself knows what it killed."""
        return False

    def remove(self) -> None:
        """Nothing was made."""


def v1_parent(controller: str) -> Path:
    """The directory of our own cgroup v1 of a controller, or the root of what we see of it."""
    for kind, point, options in mounts():
        if kind == "cgroup" and controller in options:
            own = point / own_cgroup(controller).lstrip("/")
            parent = own if own.is_dir() else point
            if not os.access(parent, os.W_OK):
                raise PermissionError(f"{parent} is not writable")
            return parent
    raise LookupError(f"no {controller} hierarchy is mounted")


def v2_parent() -> Path:
    """The nearest cgroup above ours that delegates memory and cpu and that we may write to."""
    for kind, point, _options in mounts():
        if kind != "cgroup2":
            continue
        own = point / own_cgroup("").lstrip("/")
        for directory in (own, *own.parents):
            control = directory / "cgroup.subtree_control"
            if not control.exists():
                continue
            delegated = set(control.read_text().split())
            if {"memory", "cpu"} <= delegated and os.access(directory, os.W_OK):
                return directory
        raise LookupError(f"no writable cgroup in {point} delegates memory and cpu")
    raise LookupError("no cgroup2 hierarchy is mounted")


def mounts() -> Iterator[tuple[str, Path, frozenset[str]]]:
    """(type, mount point, options) of all cgroup mounts."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _device, point, kind, options, *_ = line.split(" ")
        if kind.startswith("cgroup"):
            yield kind, Path(point), frozenset(options.split(","))


def own_cgroup(controller: str) -> str:
    """This process's cgroup of a v1 controller, or with "" of v2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    return "/"


def write(path: Path, text: str) -> None:
    """Write a control file. (pathlib's write_text would truncate it first, some refuse that.)"""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def charged(directory: Path, mark: str, held: tuple[str, ...], files: str) -> Memory | None:
    """What a cgroup is charged; None when it is gone or the kernel keeps no mark."""
    stat = counters(directory / "memory.stat")
    most = read(directory / mark)
    if not stat or not most:
        return None
    shared = stat.get("shmem", 0)
    return Memory(sum(stat[name] for name in held), stat[files] - shared, int(most))


def counters(path: Path) -> dict[str, int]:
    """The counters of a file with lines "name value"; empty when it is gone."""
    pairs = (line.split(" ", 1) for line in read(path).splitlines())
    return {name: int(value) for name, value in pairs}


def read(path: Path) -> str:
    """A small control file; empty when it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        return os.read(fd, 16384).decode()
    finally:
        os.close(fd)


def remove_cgroup(directory: Path) -> None:
    """Remove a cgroup and those below it; processes that have just died leave it a moment later."""
    for attempt in range(50):
        for path, _directories, _files in os.walk(directory, topdown=False):
            with contextlib.suppress(OSError):
                Path(path).rmdir()
        if not directory.exists():
            return
        time.sleep(0.002 * (attempt + 1))
