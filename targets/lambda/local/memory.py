"""How much memory an instance has needed at most.

What counts is what the OOM killer cannot take back: anonymous and shared memory and the kernel's own
(page tables, stacks), not the page cache of mapped files (a slice's weights, libraries). The kernel
keeps the highest total of a cgroup. File pages are rarely among it, because whoever reads a file first
is charged for it, and that is the platform; the most that were seen are subtracted. The mark runs up to
64 pages per CPU ahead of what was touched.

Where the kernel keeps no such mark (no cgroup of our own, or version 2 before Linux 5.19), the mark is
that of the process's resident memory, in which pages of files do count, so a spike between two samples
of those can be missed in part.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Protocol

from .cgroup import MIB, Confinement, Memory, read, write

SAMPLE_SECONDS, MOST_SAMPLE_SECONDS = 0.02, 0.2
# With very many busy instances sampling must not take the platform's CPU.
SECONDS_PER_SAMPLED = 0.02  # a sample takes 0.1 ms
LINGER_SECONDS = 1.0


class Meter:
    """The memory of one instance, in bytes."""

    def __init__(self, pid: int, confinement: Confinement) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._clear = f"/proc/{pid}/clear_refs"
        self._confinement = confinement
        self._files = 0
        self._has_mark = confinement.memory() is not None
        self.peak = 0

    @property
    def peak_mb(self) -> float:
        """The highest memory so far, MiB."""
        return self.peak / MIB

    def begin(self) -> None:
        """A phase begins: reset the process's own mark. (That of a cgroup stays.)"""
        if not self._has_mark:
            self._files = 0
            with contextlib.suppress(OSError):
                write(Path(self._clear), "5")

    def sample(self) -> int:
        """Memory now. After the end of what was measured, the last sample counts."""
        now = self._confinement.memory() or resident(self._status)
        if now is None:
            return 0
        self._files = max(self._files, now.files)
        self.peak = max(self.peak, now.held, now.mark - self._files)
        return now.held


def resident(status: Path) -> Memory | None:
    """Of one process, by /proc/PID/status; None when it is gone."""
    lines = (line.split() for line in read(status).splitlines())
    sizes = {line[0]: int(line[1]) * 1024 for line in lines if line[0][:3] in ("VmH", "Rss")}
    if not sizes:
        return None
    return Memory(sizes["RssAnon:"] + sizes["RssShmem:"], sizes["RssFile:"], sizes["VmHWM:"])


class Sampled(Protocol):
    """What the sampler looks at."""

    def check_memory(self) -> None:
        """Take a sample; kill the instance when it has no cgroup and is above its limit."""


class Sampler:
    """A thread that samples busy instances. It sleeps when there are none."""

    def __init__(self) -> None:
        self._busy: set[Sampled] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="slicewise-memory", daemon=True)
        self._thread.start()

    def add(self, instance: Sampled) -> None:
        """Sample this instance from now on."""
        with self._lock:
            self._busy.add(instance)
        if not self._wake.is_set():
            self._wake.set()

    def remove(self, instance: Sampled) -> None:
        """Leave this instance alone from now on."""
        with self._lock:
            self._busy.discard(instance)

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._wake.set()
        self._thread.join(5)

    def _run(self) -> None:
        last_busy = time.monotonic()
        while not self._stopping:
            seconds = SECONDS_PER_SAMPLED * len(self._busy)
            time.sleep(min(max(SAMPLE_SECONDS, seconds), MOST_SAMPLE_SECONDS))
            with self._lock:
                busy = tuple(self._busy)
            for instance in busy:
                instance.check_memory()
            if busy:
                last_busy = time.monotonic()
            elif time.monotonic() - last_busy > LINGER_SECONDS:
                # Ticking on for a second keeps the thread from being woken by every short call.
                self._wake.clear()
                if not self._busy and not self._stopping:
                    self._wake.wait()
