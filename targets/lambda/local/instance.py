"""An instance: one process that runs the unmodified awslambdaric with one function's package."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..functions import Function
from .cgroup import Confinement, Limiter
from .environment import function_arn, instance_environment
from .faults import NO_SPACE_BYTES, Fault
from .identity import access_key_id, instance_id
from .keeper import Keeper, Process
from .memory import Meter, Sampler
from .runtime_api import RuntimeApi, RuntimeReply

MAX_LOG_READ = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One request to a function. `event` is JSON."""

    request_id: str
    event: bytes | bytearray
    trace_id: str
    client_context: str | None = None
    qualifier: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all instances of a platform have in common."""

    keeper: Keeper
    limiter: Limiter
    sampler: Sampler
    layer: Path
    work: Path
    endpoints: Mapping[str, str]
    credentials: tuple[str, str] | None
    """What instances sign with; None: each with an access key id of its own (identity.py)."""


class Instance:
    """A running instance. Only one thread at a time may use it, the memory sampler apart."""

    def __init__(
        self,
        number: int,
        function: Function,
        surroundings: Surroundings,
        fault: Fault | None = None,
    ) -> None:
        """Start the process. Raises TargetError or OSError when that fails."""
        self._fault = fault
        self.id = instance_id(function.name, number)
        self.started = time.monotonic()
        self.function = function
        self._around = surroundings
        self._scratch = surroundings.work / "tmp" / self.id
        self._scratch.mkdir(parents=True)
        self._log_path = surroundings.work / f"{self.id}.log"
        self._log_path.touch(mode=0o600)
        self._log = os.open(self._log_path, os.O_RDWR)
        self._log_read = 0
        self.killed_for_memory = False
        self.is_tight = False  # an injected fault lowered its limit: no other call may meet that
        self._ended = False
        self._exit_code: int | None = None
        self._closed = False
        self._sampling = threading.Lock()
        self._process: Process | None = None
        self.api = RuntimeApi()
        self._confinement = surroundings.limiter.confine(self.id, function.memory_mb)
        try:
            self._process = self._spawn(self._confinement)
        except BaseException:
            self.close()
            raise
        self.meter = Meter(self._process.pid, self._confinement)
        self.api.attach(self._process.pidfd)

    def _spawn(self, confinement: Confinement) -> Process:
        environment = instance_environment(
            self.function,
            instance_id=self.id,
            runtime_api=self.api.address,
            layer=self._around.layer,
            scratch=self._scratch,
            credentials=self._around.credentials or (access_key_id(self.id), "local"),
            endpoints=self._around.endpoints,
        )
        runtime, rlimits = ["-m", "awslambdaric"], dict(confinement.rlimits)
        if self._fault and self._fault.kind == "clock skew":
            runtime = [str(Path(__file__).with_name("skewed.py")), str(self._fault.seconds)]
        if self._fault and self._fault.kind == "full disk":
            rlimits["RLIMIT_FSIZE"] = NO_SPACE_BYTES
        # -S and -P: nothing on sys.path but the package, the layer and the standard library.
        return self._around.keeper.spawn(
            [sys.executable, "-S", "-P", *runtime, self.function.handler],
            env=environment,
            cwd=self.function.package,
            output=self._log_path,
            procs=confinement.procs,
            rlimits=rlimits,
        )

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid if self._process else 0

    @property
    def alive(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process is not None and not self._process.ended()

    def set_cpu(self, vcpus: float) -> None:
        """Allow this many vCPUs from now on."""
        self._confinement.set_cpu(vcpus)

    def begin(self) -> None:
        """A phase (init or invocation) begins: watch its memory."""
        self.meter.begin()
        self._around.sampler.add(self)

    def end(self) -> None:
        """A phase ends; kills an instance without cgroup that went over its limit in between."""
        self._around.sampler.remove(self)
        self.meter.sample()
        limit = self._confinement.watchdog_bytes
        if limit is not None and self.meter.peak > limit:
            self._kill_for_memory()

    def check_memory(self) -> None:
        """Take a memory sample; kill the instance when it has no cgroup and is above its limit."""
        with self._sampling:
            if self._closed:
                return
            used = self.meter.sample()
            limit = self._confinement.watchdog_bytes
            if limit is not None and used > limit:
                self._kill_for_memory()

    def _kill_for_memory(self) -> None:
        assert self._process is not None
        self.killed_for_memory = True
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._process.pidfd, signal.SIGKILL)

    def strike(self, kind: str) -> None:
        """An injected fault: no memory beyond what it holds now, or a SIGKILL."""
        with self._sampling, contextlib.suppress(OSError):
            if self._process and not self._closed:
                if kind == "out of memory":
                    self.is_tight = True
                    self._confinement.tighten(self.meter.sample())
                else:
                    signal.pidfd_send_signal(self._process.pidfd, signal.SIGKILL)

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel or the platform has killed it for its memory."""
        return self.killed_for_memory or self._confinement.oom_killed()

    def send(self, invocation: Invocation, deadline: float) -> None:
        """Hand an event to the runtime; `deadline` is in time.monotonic() seconds."""
        deadline_ms = (time.time() + deadline - time.monotonic()) * 1000
        arn = function_arn(self.function.name)
        headers = [
            ("Lambda-Runtime-Aws-Request-Id", invocation.request_id),
            ("Lambda-Runtime-Deadline-Ms", str(int(deadline_ms))),
            (
                "Lambda-Runtime-Invoked-Function-Arn",
                f"{arn}:{invocation.qualifier}" if invocation.qualifier else arn,
            ),
            ("Lambda-Runtime-Trace-Id", invocation.trace_id),
        ]
        if invocation.client_context:
            headers.append(("Lambda-Runtime-Client-Context", invocation.client_context))
        self.api.send_event(headers, invocation.event)

    def receive(self, invocation: Invocation, deadline: float) -> RuntimeReply:
        """Wait for the runtime's reply. Raises InstanceExited or DeadlinePassed."""
        return self.api.wait_for_reply(invocation.request_id, deadline)

    def read_log(self) -> bytes:
        """What it has written to stdout and stderr since the last call."""
        text = os.pread(self._log, MAX_LOG_READ, self._log_read)
        self._log_read += len(text)
        if self._log_read > MAX_LOG_READ:
            # The process appends, so an emptied file simply starts again.
            text += os.pread(self._log, MAX_LOG_READ, self._log_read)
            os.ftruncate(self._log, 0)
            self._log_read = 0
        return text

    def kill(self) -> int | None:
        """Kill the process and all it started; its exit code (negative: the signal)."""
        if self._process and not self._ended:
            status = self._around.keeper.kill(self._process)
            self._exit_code = None if status is None else os.waitstatus_to_exitcode(status)
            self._ended = True
        return self._exit_code

    def close(self) -> None:
        """Give everything back that `kill` has left."""
        with self._sampling:  # the descriptors below may soon mean something else
            self._closed = True
        self._around.sampler.remove(self)
        self.api.close()
        if self._process:
            self._process.close()
        with contextlib.suppress(OSError):
            os.close(self._log)
        self._log = -1
        self._confinement.remove()
        self._log_path.unlink(missing_ok=True)
        shutil.rmtree(self._scratch, ignore_errors=True)
