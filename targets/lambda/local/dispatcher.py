"""Conducts invocations: finds or starts an instance, runs the request, reports."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slicewise.errors import TargetError

from ..functions import Function
from .cgroup import INIT_VCPUS, cpu_share
from .environment import VERSION
from .faults import INSTANCE_KINDS, Fault, Faults
from .instance import Instance, Invocation, Surroundings
from .network import OFF
from .reports import Journal, Report, Status
from .runtime_api import DeadlinePassed, InstanceExited, RuntimeReply

LAST_INVOCATIONS_SECONDS = 5.0
FROM_THE_START = ("kill in init", "full disk", "clock skew")  # faults of a new instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an invocation ended: the payload for the caller, and what the log and report say.

    `error_type` is None exactly when the function succeeded. `seconds` passed from the moment when
    there was an instance, or when one had to be started, until the reply was there.
    """

    payload: bytes | bytearray
    error_type: str | None = None
    status: Status = "success"
    log: bytes = b""
    instance_lives: bool = True
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Init:
    """How an init phase went; without `ms` there was none, or it does not count as one."""

    ms: float | None = None
    log: bytes = b""
    failure: Outcome | None = None
    timed_out: bool = False


class Throttled(Exception):  # noqa: N818 - Lambda's word
    """The concurrency limit is reached."""


class Dispatcher:
    """Runs invocations; any number of threads may call it."""

    def __init__(
        self,
        functions: Sequence[Function],
        surroundings: Surroundings,
        journal: Journal,
        *,
        cpu_scale: float,
        concurrency_limit: int,
        init_timeout_s: float,
        network: str = OFF,
        faults: Faults | None = None,
    ) -> None:
        self.functions = {function.name: function for function in functions}
        self._around = surroundings
        self._journal = journal
        self._cpu_scale = cpu_scale
        self._concurrency_limit = concurrency_limit
        self._init_timeout_s = init_timeout_s
        self._network = network
        self._faults = faults
        self._lock = threading.Lock()
        self._idle: dict[str, list[Instance]] = {name: [] for name in self.functions}
        self._running = 0
        self._started = 0
        self._stopping = False

    def invoke(self, function: Function, invocation: Invocation) -> Outcome:
        """Run one request on an instance of its own.

        Raises Throttled above the concurrency limit and TargetError when the platform itself
        fails; whatever the function does wrong is in the outcome.
        """
        with self._lock:
            if self._running >= self._concurrency_limit:
                raise Throttled
            self._running += 1
        try:
            return self._invoke(function, invocation)
        finally:
            with self._lock:
                self._running -= 1

    def warm(self, function: Function, count: int = 1) -> None:
        """Start idle instances until there are `count`. Raises TargetError when init fails."""
        while len(self._idle[function.name]) < count:
            instance = self._start(function)
            init = self._initialise(instance, "")
            self._journal.add_log(function.name, init.log)
            if init.ms is None or init.failure:
                self._discard(instance)
                why = init.failure.payload if init.failure else b"its init phase takes too long"
                raise TargetError(f"function {function.name!r} does not start: {why.decode()}")
            self._give_back(instance)

    def discard_idle(self) -> None:
        """End all idle instances, so that the next invocations start cold."""
        for instance in self._take_all_idle():
            self._discard(instance)

    def stop(self) -> None:
        """Start no more instances. (The keeper ends those that run.)"""
        with self._lock:
            self._stopping = True

    def close(self) -> None:
        """Wait for the last invocations and free the idle instances, which the keeper has ended."""
        deadline = time.monotonic() + LAST_INVOCATIONS_SECONDS
        while self._running and time.monotonic() < deadline:
            time.sleep(0.002)
        for instance in self._take_all_idle():
            instance.close()

    def _take_all_idle(self) -> list[Instance]:
        with self._lock:
            idle = [instance for each in self._idle.values() for instance in each]
            for each in self._idle.values():
                each.clear()
        return idle

    def _invoke(self, function: Function, invocation: Invocation) -> Outcome:
        fault = self._faults.take(INSTANCE_KINDS, function.name) if self._faults else None
        is_new = fault is not None and fault.kind in FROM_THE_START
        instance = None if is_new else self._take_idle(function)
        found = time.monotonic()
        init = Init()
        try:
            if instance is None:
                instance = self._start(function, fault)
                if fault and fault.kind == "kill in init":
                    strike_later(instance, fault)
                init = self._initialise(instance, invocation.request_id)
            began = time.monotonic()
            deadline = began + function.timeout_s
            if fault:
                deadline = self._strike(fault, instance, deadline)
            outcome = init.failure
            if init.timed_out:
                # Lambda then repeats the init within the invocation, at the function's CPU share.
                self._discard(instance)
                instance = None
                instance = self._start(function)
                outcome = self._initialise_within(instance, invocation, deadline)
            if outcome is None:
                outcome = self._run(instance, invocation, deadline)
            ended = time.monotonic()
        except BaseException:
            if instance:
                self._discard(instance)
            raise
        outcome = replace(outcome, seconds=ended - found)
        if is_new:
            outcome = replace(outcome, instance_lives=False)
        return self._finish(instance, invocation, outcome, init, (ended - began) * 1000)

    def _strike(self, fault: Fault, instance: Instance, deadline: float) -> float:
        """Prepare an injected fault of the invoke phase; the deadline that then holds."""
        if fault.kind in ("kill in fetch", "kill in send"):
            assert self._faults is not None
            self._faults.arm_kill(fault, instance.pid)
        elif fault.kind in ("kill in compute", "out of memory"):
            strike_later(instance, fault)
        elif fault.kind == "timeout":
            return time.monotonic() + min(fault.seconds, 1e-3)
        return deadline

    def _run(self, instance: Instance, invocation: Invocation, deadline: float) -> Outcome:
        """The invoke phase."""
        instance.begin()
        try:
            instance.send(invocation, deadline)
            reply = instance.receive(invocation, deadline)
        except InstanceExited:
            return self._crashed(instance, invocation.request_id)
        except DeadlinePassed:
            return timed_out(instance, invocation.request_id)
        finally:
            instance.end()
        if instance.killed_for_memory:
            # Without a cgroup: the spike was over before the watchdog saw it.
            return self._crashed(instance, invocation.request_id)
        if reply.kind == "response":
            return Outcome(payload=reply.body)
        # awslambdaric ends itself when its response is refused; there is no need to wait for that.
        return failed(reply, instance_lives=reply.kind != "too large")

    def _initialise(self, instance: Instance, request_id: str) -> Init:
        """The init phase, at more CPU than the function's share."""
        share = cpu_share(instance.function.memory_mb, self._cpu_scale)
        instance.set_cpu(max(INIT_VCPUS * self._cpu_scale, share))
        try:
            failure = self._await_ready(
                instance, request_id, instance.started + self._init_timeout_s
            )
        except DeadlinePassed:
            line = (
                f"INIT_REPORT Init Duration: {self._init_timeout_s * 1000:.2f} ms\t"
                "Phase: init\tStatus: timeout\n"
            )
            return Init(log=instance.read_log() + line.encode(), timed_out=True)
        instance.set_cpu(share)
        ms = (time.monotonic() - instance.started) * 1000
        return Init(ms=ms, log=instance.read_log(), failure=failure)

    def _initialise_within(
        self, instance: Instance, invocation: Invocation, deadline: float
    ) -> Outcome | None:
        """An init phase that counts as part of the invocation."""
        instance.set_cpu(cpu_share(instance.function.memory_mb, self._cpu_scale))
        try:
            return self._await_ready(instance, invocation.request_id, deadline)
        except DeadlinePassed:
            return timed_out(instance, invocation.request_id)

    def _await_ready(self, instance: Instance, request_id: str, deadline: float) -> Outcome | None:
        instance.begin()
        try:
            error = instance.api.wait_until_ready(deadline)
        except InstanceExited:
            return self._crashed(instance, request_id)
        finally:
            instance.end()
        return failed(error, instance_lives=False) if error else None

    def _crashed(self, instance: Instance, request_id: str) -> Outcome:
        """The process has ended by itself or was killed, not by us for its time."""
        out_of_memory = instance.out_of_memory
        code = instance.kill()
        error_type = "Runtime.OutOfMemory" if out_of_memory else "Runtime.ExitError"
        message = f"RequestId: {request_id} Error: {exit_text(code)}"
        return Outcome(
            payload=json.dumps({"errorType": error_type, "errorMessage": message}).encode(),
            error_type=error_type,
            status="error",
            log=f"{message}\n{error_type}\n".encode(),
            instance_lives=False,
        )

    def _finish(
        self,
        instance: Instance,
        invocation: Invocation,
        outcome: Outcome,
        init: Init,
        duration_ms: float,
    ) -> Outcome:
        """Write log and report, put the instance back or away; the outcome with its log."""
        function = instance.function
        if outcome.status == "timeout":
            duration_ms = function.timeout_s * 1000.0
        peak_mb = instance.meter.peak_mb
        if outcome.error_type == "Runtime.OutOfMemory":
            peak_mb = float(function.memory_mb)
        report = Report(
            function=function.name,
            request_id=invocation.request_id,
            instance=instance.id,
            duration_ms=duration_ms,
            billed_ms=math.ceil(duration_ms + (init.ms or 0.0)),
            memory_mb=function.memory_mb,
            max_memory_mb=peak_mb,
            init_ms=init.ms,
            status=outcome.status,
            error_type=outcome.error_type,
            network=self._network,
        )
        log = b"".join(
            (
                init.log,
                f"START RequestId: {invocation.request_id} Version: {VERSION}\n".encode(),
                instance.read_log(),
                outcome.log,
                f"END RequestId: {invocation.request_id}\n{report}\n".encode(),
            )
        )
        self._journal.add_report(report)
        self._journal.add_log(function.name, log)
        if outcome.instance_lives:
            self._give_back(instance)
        else:
            self._discard(instance)
        return replace(outcome, log=log)

    def _take_idle(self, function: Function) -> Instance | None:
        """The instance that was used last, if any is alive."""
        while True:
            with self._lock:
                idle = self._idle[function.name]
                if not idle:
                    return None
                instance = idle.pop()
            with contextlib.suppress(InstanceExited, DeadlinePassed):
                instance.api.wait_until_ready(time.monotonic() + function.timeout_s)
                if instance.alive and not instance.is_tight:
                    return instance
            self._journal.add_log(function.name, instance.read_log())
            self._discard(instance)

    def _start(self, function: Function, fault: Fault | None = None) -> Instance:
        with self._lock:
            if self._stopping:
                raise TargetError("the platform is stopping")
            self._started += 1
            number = self._started
        return Instance(number, function, self._around, fault)

    def _give_back(self, instance: Instance) -> None:
        with self._lock:
            if not self._stopping:
                self._idle[instance.function.name].append(instance)
                return
        self._discard(instance)

    def _discard(self, instance: Instance) -> None:
        # When the platform stops, the keeper is gone; it has killed everything then.
        with contextlib.suppress(TargetError):
            instance.kill()
        instance.close()


def strike_later(instance: Instance, fault: Fault) -> None:
    """Strike the instance when the fault's delay is over, whatever it does then."""
    timer = threading.Timer(fault.seconds, instance.strike, (fault.kind,))
    timer.daemon = True
    timer.start()


def failed(reply: RuntimeReply, *, instance_lives: bool = True) -> Outcome:
    """The runtime reported an error of the handler or of the init phase."""
    return Outcome(
        payload=reply.body,
        error_type=reply.error_type,
        status="error",
        instance_lives=instance_lives,
    )


def timed_out(instance: Instance, request_id: str) -> Outcome:
    """The function has used up its time."""
    text = f"Task timed out after {instance.function.timeout_s:.2f} seconds"
    error_type = "Sandbox.Timedout"
    error = {"errorType": error_type, "errorMessage": f"RequestId: {request_id} Error: {text}"}
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    return Outcome(
        payload=json.dumps(error).encode(),
        error_type=error_type,
        status="timeout",
        log=f"{now} {request_id} {text}\n\n".encode(),
        instance_lives=False,
    )


def exit_text(code: int | None) -> str:
    """How Lambda says that a runtime has ended; `code` is negative for a signal."""
    if code is None or code < 0:
        name = signal.strsignal(-code) if code else None
        return f"Runtime exited with error: signal: {(name or 'killed').lower()}"
    if code == 0:
        return "Runtime exited without providing a reason"
    return f"Runtime exited with error: exit status {code}"
