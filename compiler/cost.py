"""The cost model: how long the steps of a request take and what they cost, as a target describes them.

A request passes a *caller* (the function that drives the slices) and its slices. Every step is a
`Step`: waiting, which no memory size changes, and CPU, of which a function has a share. All waiting
adds up, but for objects of one transport: a function fetches (or stores) them together, so that it
waits for the first byte once.

A share of a vCPU is a quota per period of the scheduler (CFS bandwidth control; on Lambda 20 ms). A
function that has waited has a whole quota left, and computes at full speed until it is used up:

    elapsed = cpu + (1 + resume) * max(0, cpu - share * period) * (1 / share - 1)

What is multiplied are the pauses. After each a function goes on with cold caches, which takes `resume`
of the pause.

All CPU of a slice's call is one such burst, and so is all that the caller does for it between two calls.

The caller is paid for as long as the request takes, a slice from the moment its event is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

P99 = 2.3263478740408408  # standard deviations from the median to the 99th percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Waiting and CPU of one step: milliseconds, and nanoseconds per byte of the tensor.

    `wait_ms` is the expected value; `sigma` is the standard deviation of its logarithm (log-normal),
    and only tells percentiles. CPU counts at one full vCPU.
    """

    wait_ms: float = 0.0
    sigma: float = 0.0
    wait_ns: float = 0.0
    cpu_ms: float = 0.0
    cpu_ns: float = 0.0

    def cpu(self, size: int) -> float:
        """CPU for `size` bytes, ms at one vCPU."""
        return self.cpu_ms + self.cpu_ns * size * 1e-6

    def transfer(self, size: int) -> float:
        """Waiting for `size` bytes beyond the first, ms."""
        return self.wait_ns * size * 1e-6

    @property
    def variance(self) -> float:
        """Of the waiting, ms squared."""
        return self.wait_ms**2 * math.expm1(self.sigma**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """One way for a tensor: out of its slice, through the caller, into every slice that reads it.

    `send` and `collect` (in the caller) happen once, `pass_on` (in the caller) and `receive` once per
    receiving slice. `max_bytes` bounds one tensor, `message_bytes` all tensors of one message, each with
    `record_bytes` more; US dollars are per tensor and per byte.
    """

    name: str
    send: Step
    collect: Step
    pass_on: Step
    receive: Step
    send_usd: float = 0.0
    send_byte_usd: float = 0.0
    receive_usd: float = 0.0
    receive_byte_usd: float = 0.0
    max_bytes: int | None = None
    message_bytes: int | None = None
    record_bytes: int = 0

    def step(self, name: str) -> Step:
        """The step of this name: send, collect, pass_on or receive."""
        found: Step = getattr(self, name)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How an environment starts whose function is packed in the way `packaging`: `begin` passes until
    its own code runs, then `fetch_ns` per byte of weights until they are there, `by_store` when the
    function itself gets them as objects.
    """

    packaging: str
    begin: Step
    fetch_ns: float = 0.0
    by_store: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Imports:
    """What functions import and make when they start, ms: `slice_ms` and `caller_ms` always, `store_ms`
    in a slice and `caller_store_ms` in the caller to reach objects. After `early_ms` of its own the
    caller can start the slices.
    """

    slice_ms: float = 0.0
    store_ms: float = 0.0
    caller_ms: float = 0.0
    caller_store_ms: float = 0.0
    early_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Speeds and prices of a target. `call` is what each call waits in vain and costs the caller in
    CPU, `handle` what it costs the slice. A first call finds no environment: `starts` (of the ways to
    pack, the usual one first), `imports`, and `load_ns` per byte of weights. Shares of a vCPU are quotas
    per `period_ms`, and pauses cost `resume_factor` of their time more. `transition` passes between two
    functions that a state machine calls, `transition_usd` is a state's.
    """

    mb_per_vcpu: int
    memory_mb_min: int
    memory_mb_max: int
    caller_memory_mb: int
    call: Step
    handle: Step
    starts: tuple[Start, ...]
    imports: Imports
    load_ns: float
    gb_s_usd: float
    request_usd: float
    transports: tuple[Transport, ...]
    period_ms: float = 0.0
    resume_factor: float = 0.0
    transition: Step = field(default_factory=lambda: Step())
    transition_usd: float = 0.0

    def share(self, memory_mb: int) -> float:
        """vCPUs that one thread gets: more memory than one full vCPU's speeds up no thread."""
        return min(1.0, memory_mb / self.mb_per_vcpu)

    def steady_share(self, memory_mb: int) -> float:
        """vCPUs that a burst gets beyond its first quota: less than its share by what pauses cost."""
        pauses = 1.0 / self.share(memory_mb) - 1.0
        return 1.0 / (1.0 + (1.0 + self.resume_factor) * pauses)

    def speed(self, memory_mb: int, parallel: float) -> float:
        """How much faster than on one vCPU a slice computes, of whose time the part `parallel` scales
        with threads (Amdahl's law); one thread per full vCPU.
        """
        threads = memory_mb // self.mb_per_vcpu
        if threads <= 1:
            return self.share(memory_mb)
        return 1.0 / (1.0 - parallel + parallel / threads)

    def elapsed(self, cpu_ms: float, memory_mb: int) -> float:
        """What a burst of one thread's CPU takes in a function of this size, ms."""
        beyond = max(0.0, cpu_ms - self.share(memory_mb) * self.period_ms)
        return cpu_ms + beyond * (1.0 / self.steady_share(memory_mb) - 1.0)

    def gb_ms_usd(self, memory_mb: int) -> float:
        """US dollars per millisecond of a function of this size."""
        return memory_mb / 1024 * self.gb_s_usd * 1e-3

    def transport(self, name: str) -> Transport:
        """The transport of this name."""
        return next(found for found in self.transports if found.name == name)

    def start(self, packaging: str | None = None) -> Start:
        """How functions start that are packed in this way, or in the usual one."""
        wanted = packaging or self.starts[0].packaging
        return next(found for found in self.starts if found.packaging == wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A tensor that a function receives or sends, by raw bytes."""

    transport: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceTime:
    """Where the time of one call of a slice goes, expected ms.

    In the caller, for one slice after the other, pass `begin_ms` and `end_ms` (tensors handed over and
    collected) and `call_ms` (CPU of the call, at one vCPU `call_cpu_ms`), and nowhere `wait_ms`.
    `variance` (ms squared) is of all `random_ms` of waiting in any step, `usd` is without what the
    caller costs.
    """

    begin_ms: float
    call_ms: float
    call_cpu_ms: float
    wait_ms: float
    end_ms: float
    random_ms: float
    receive_ms: float
    compute_ms: float
    send_ms: float
    handle_ms: float
    variance: float
    usd: float

    @property
    def caller_ms(self) -> float:
        """What passes in the caller and on the way."""
        return self.begin_ms + self.call_ms + self.wait_ms + self.end_ms

    @property
    def billed_ms(self) -> float:
        """What the slice is paid for."""
        return self.receive_ms + self.compute_ms + self.send_ms + self.handle_ms

    @property
    def total_ms(self) -> float:
        """What the request takes longer by this call."""
        return self.caller_ms + self.billed_ms


def slice_time(
    model: CostModel,
    memory_mb: int,
    compute_ms: float,
    received: Sequence[Moved],
    sent: Sequence[Moved],
    *,
    parallel: float = 0.0,
) -> SliceTime:
    """One call of a slice that computes `compute_ms` at one vCPU, of which `parallel` scales."""
    receive, send = _moving(model, received, "receive"), _moving(model, sent, "send")
    out, back = _moving(model, received, "pass_on"), _moving(model, sent, "collect")
    threaded = max(1.0, model.speed(memory_mb, parallel))
    steps = (model.handle.cpu_ms, receive.cpu_ms, compute_ms / threaded, send.cpu_ms)
    ends = [model.elapsed(cpu_ms, memory_mb) for cpu_ms in accumulate(steps, initial=0.0)]
    handle, receiving, compute, sending = (after - before for before, after in pairwise(ends))
    # In the caller: handing over and calling, and later, in the same burst as the next call, collecting.
    caller = accumulate((out.cpu_ms, model.call.cpu_ms, back.cpu_ms), initial=0.0)
    passed = [model.elapsed(cpu_ms, model.caller_memory_mb) for cpu_ms in caller]
    begin, call, end = (after - before for before, after in pairwise(passed))
    moving = (receive, send, out, back)
    billed = model.handle.wait_ms + receive.wait_ms + send.wait_ms + ends[-1]
    usd = model.request_usd + billed * model.gb_ms_usd(memory_mb)
    for moved in received:
        transport = model.transport(moved.transport)
        usd += transport.receive_usd + transport.receive_byte_usd * moved.bytes
    for moved in sent:
        transport = model.transport(moved.transport)
        usd += transport.send_usd + transport.send_byte_usd * moved.bytes
    return SliceTime(
        begin_ms=out.wait_ms + begin,
        call_ms=call,
        call_cpu_ms=model.call.cpu_ms,
        wait_ms=model.call.wait_ms,
        end_ms=back.wait_ms + end,
        random_ms=model.call.wait_ms + sum(each.first_ms for each in moving),
        receive_ms=receive.wait_ms + receiving,
        compute_ms=compute,
        send_ms=send.wait_ms + sending,
        handle_ms=model.handle.wait_ms + handle,
        variance=model.call.variance + sum(each.variance for each in moving),
        usd=usd,
    )


def entry_time(model: CostModel, received: Sequence[Moved], sent: Sequence[Moved]) -> SliceTime:
    """The call of the caller itself, without its slices: request in, reply out.

    Whoever calls it does so as it calls a slice, but from outside and at a full vCPU: that is
    `caller_ms`, which nobody is paid for.
    """
    receive, send = _moving(model, received, "receive"), _moving(model, sent, "send")
    memory_mb = model.caller_memory_mb
    # Two bursts, for the slices are between them.
    handle_ms = model.elapsed(model.handle.cpu_ms, memory_mb)
    receive_ms = model.elapsed(model.handle.cpu_ms + receive.cpu_ms, memory_mb) - handle_ms
    receive_ms += receive.wait_ms
    send_ms = send.wait_ms + model.elapsed(send.cpu_ms, memory_mb)
    handle_ms += model.handle.wait_ms
    steps = [(model.transport(moved.transport).pass_on, moved.bytes) for moved in received]
    steps += [(model.transport(moved.transport).collect, moved.bytes) for moved in sent]
    outside_ms = sum(step.transfer(size) + step.cpu(size) for step, size in steps)
    billed = receive_ms + send_ms + handle_ms
    return SliceTime(
        begin_ms=outside_ms,
        call_ms=model.call.cpu_ms,
        call_cpu_ms=model.call.cpu_ms,
        wait_ms=model.call.wait_ms,
        end_ms=0.0,
        random_ms=model.call.wait_ms + receive.first_ms + send.first_ms,
        receive_ms=receive_ms,
        compute_ms=0.0,
        send_ms=send_ms,
        handle_ms=handle_ms,
        variance=model.call.variance + receive.variance + send.variance,
        usd=model.request_usd + billed * model.gb_ms_usd(model.caller_memory_mb),
    )


def slice_cold_ms(
    model: CostModel, weight_bytes: int, *, uses_store: bool, packaging: str | None = None
) -> float:
    """What the first call of a slice takes longer, expected ms; no memory size changes it.

    What it needs for objects is imported while weights are loaded, unless they are objects too.
    """
    start, imports = model.start(packaging), model.imports
    load = (start.fetch_ns + model.load_ns) * weight_bytes * 1e-6
    if start.by_store:
        load += imports.store_ms
    elif uses_store:
        load = max(load, imports.store_ms)
    return start.begin.wait_ms + imports.slice_ms + load


def caller_cold_ms(model: CostModel, *, uses_store: bool, packaging: str | None = None) -> float:
    """What the first call of the caller takes longer, expected ms, without its slices."""
    store = model.imports.caller_store_ms if uses_store else 0.0
    return model.start(packaging).begin.wait_ms + model.imports.caller_ms + store


def warm_up_ms(model: CostModel, slowest_ms: float, *, uses_store: bool) -> float:
    """What a request takes longer whose caller starts all slices while it is still starting itself;
    the slowest of them takes `slowest_ms`.
    """
    called = model.start().begin.wait_ms + model.imports.early_ms
    return max(caller_cold_ms(model, uses_store=uses_store), called + slowest_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moving:
    """Moving tensors together: expected waiting, of that `first_ms` for first bytes and its variance,
    and CPU at one vCPU, ms.
    """

    wait_ms: float
    first_ms: float
    variance: float
    cpu_ms: float


def _moving(model: CostModel, tensors: Sequence[Moved], name: str) -> _Moving:
    """The step `name` of these tensors: first bytes are waited for once."""
    steps = [(model.transport(moved.transport).step(name), moved.bytes) for moved in tensors]
    longest = max((step for step, _ in steps), key=lambda step: step.wait_ms, default=Step())
    return _Moving(
        wait_ms=longest.wait_ms + sum(step.transfer(size) for step, size in steps),
        first_ms=longest.wait_ms,
        variance=longest.variance,
        cpu_ms=sum(step.cpu(size) for step, size in steps),
    )


def percentile(mean: float, variance: float, deviations: float) -> float:
    """A percentile of a sum of waits, in standard deviations of the logarithm from the median.

    The sum of log-normal waits is taken as log-normal of the same mean and variance (Fenton, 1960).
    """
    if mean <= 0:
        return mean
    sigma2 = math.log1p(variance / mean**2)
    return mean * math.exp(-sigma2 / 2 + deviations * math.sqrt(sigma2))
