"""How much memory an instance has needed at most.

What counts is what the OOM killer cannot take back: anonymous memory and shared memory, not the
page cache of mapped files (a slice's weights file, libraries). The kernel keeps no high-water mark
of that, so the highest of these is taken, none of which is above the truth by more than the lag of
the kernel's counters (64 pages per CPU):

- At the end of each phase (init, each invocation) the process's high-water mark of resident memory
  minus its resident file pages, `VmHWM - RssFile`; the mark is reset when a phase begins. This sees
  the shortest spike. File pages that were mapped after the spike make it too low by their size. A
  file that was unmapped after the spike would make it too high; that happens when a model is
  loaded, so in the init phase the highest sample of `RssFile` is subtracted.
- While the instance is busy, samples every 20 ms (4 ms in the init phase, where loading a convolution
  peaks shortly between file pages) of its cgroup, which holds all its processes.
  (Without a cgroup: of its main process only.)

Checked by searching the smallest cgroup limit that functions survive (a numpy spike of 300 MB, an
onnxruntime model of 128 MB of weights and large activations, a child process of 200 MB): it was 1.4
to 1.5 MiB above this number, which is the page tables and kernel stacks that the limit counts too.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import Protocol

from .cgroup import MIB, Confinement

SAMPLE_SECONDS = 0.02
INIT_SAMPLE_SECONDS = 0.004
# With very many busy instances sampling must not take the platform's CPU.
SECONDS_PER_SAMPLED = 0.002
LINGER_SECONDS = 1.0


class Meter:
    """The memory of one instance, in bytes."""

    def __init__(self, pid: int, confinement: Confinement) -> None:
        self._status = f"/proc/{pid}/status"
        self._clear = f"/proc/{pid}/clear_refs"
        self._confinement = confinement
        self._file_peak = 0
        self._watch_files = False
        self.peak = 0

    @property
    def peak_mb(self) -> float:
        """The highest memory so far, MiB."""
        return self.peak / MIB

    def begin(self, *, init: bool = False) -> None:
        """A phase begins: reset the process's high-water mark."""
        self._file_peak = 0
        self._watch_files = init
        with contextlib.suppress(OSError):
            fd = os.open(self._clear, os.O_WRONLY)
            try:
                os.write(fd, b"5")
            finally:
                os.close(fd)

    def sample(self) -> int:
        """Memory now."""
        now = self._confinement.memory_bytes()
        if now is None or self._watch_files:
            status = self._read()
            self._file_peak = max(self._file_peak, status.get("RssFile", 0))
            if now is None:
                now = status.get("RssAnon", 0) + status.get("RssShmem", 0)
        self.peak = max(self.peak, now)
        return now

    def end(self) -> int:
        """A phase ends: the highest memory so far. After the process's death only samples count."""
        status = self._read()
        if status:
            files = max(self._file_peak, status["RssFile"])
            now = status["RssAnon"] + status["RssShmem"]
            self.peak = max(self.peak, status["VmHWM"] - files, now)
        return self.peak

    def _read(self) -> dict[str, int]:
        """The memory lines of the process's status, bytes; empty when it is gone."""
        try:
            fd = os.open(self._status, os.O_RDONLY)
            try:
                text = os.read(fd, 8192)
            finally:
                os.close(fd)
        except OSError:
            return {}
        values = {}
        for line in text.splitlines():
            if line.startswith((b"VmHWM", b"Rss")):
                name, value, _unit = line.split()
                values[name[:-1].decode()] = int(value) * 1024
        return values if len(values) == 4 else {}


class Sampled(Protocol):
    """What the sampler looks at."""

    def check_memory(self) -> None:
        """Take a sample; kill the instance when it has no cgroup and is above its limit."""


class Sampler:
    """A thread that samples busy instances. It sleeps when there are none."""

    def __init__(self) -> None:
        self._busy: dict[Sampled, float] = {}  # and how often
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="slicewise-memory", daemon=True)
        self._thread.start()

    def add(self, instance: Sampled, *, init: bool = False) -> None:
        """Sample this instance from now on."""
        with self._lock:
            self._busy[instance] = INIT_SAMPLE_SECONDS if init else SAMPLE_SECONDS
        if not self._wake.is_set():
            self._wake.set()

    def remove(self, instance: Sampled) -> None:
        """Leave this instance alone from now on."""
        with self._lock:
            self._busy.pop(instance, None)

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._wake.set()
        self._thread.join(5)

    def _run(self) -> None:
        last_busy = time.monotonic()
        while not self._stopping:
            with self._lock:
                interval = min(self._busy.values(), default=SAMPLE_SECONDS)
            time.sleep(max(interval, SECONDS_PER_SAMPLED * len(self._busy)))
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
