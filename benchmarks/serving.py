"""Plans with a wanted number of slices, served on the local platform and timed: what benchmarks share.

A model is captured, converted and measured once (`prepared`), cut as often as wanted (`cut_into`), and
each plan is served and called one request at a time (`measured`).
"""

from __future__ import annotations

import contextlib
import importlib
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from slicewise import InfeasibleError, Limits, Plan
from slicewise.cost import CostModel, Step
from slicewise.pipeline import Work, cut, plan_of, prepare, write
from slicewise.predict import predict
from slicewise.progress import steps

function_names = importlib.import_module("slicewise.targets.lambda.bundle").function_names
WARMING = 3  # requests before the clock runs
# Container images: unsliced, BERT-base is too large for a zip package.
PROFILE = "schema = 1\n[limits]\npackage_mb_max = 10240\n"


@dataclass(frozen=True, kw_only=True)
class Served:
    """What requests to a warm plan took: the caller's ms each, US dollars per million of them, the
    peak MB and the median duration of every slice (and of "coordinator"), and the functions' traces;
    and the last answer.
    """

    request_ms: tuple[float, ...]
    usd_per_million: float
    peak_mb: Mapping[str, float]
    traces: tuple[Mapping[str, Any], ...]
    billed_ms: Mapping[str, float]
    answer: Any

    @property
    def median_ms(self) -> float:
        return statistics.median(self.request_ms)


def prepared(model: nn.Module, inputs: Any, most_slices: int = 1) -> Work:
    """All that is known before the cut, with measured op times; what is too large for one of
    `most_slices` about equal slices is in pieces.
    """
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    limits = Limits(weight_bytes=total * 5 // (4 * most_slices)) if most_slices > 1 else None
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as profile:
        profile.write(PROFILE)
        profile.flush()
        return prepare(
            model.eval().requires_grad_(False), inputs, steps(False), target="lambda",
            limits=limits, dynamic_shapes=None, transports=None, profile=profile.name,
            measure_times=True, time_limit_s=10,
        )  # fmt: skip


def cut_into(work: Work, count: int, memory_mb: int | None = None) -> Plan:
    """A plan of the fewest crossing bytes in exactly `count` slices, by a limit of weights per slice.

    The functions have `memory_mb`, or one full vCPU each. Raises `InfeasibleError`.
    """
    total = work.graph.weight_bytes
    low, high = total // (count + 1), 2 * total
    limit = total * 23 // (20 * count)
    while high - low > max(1, total // 2000):
        limits = replace(work.limits, weight_bytes=limit, max_slices=count)
        tried = replace(work, limits=limits)
        try:
            found, settings = cut(tried, "bytes", None, work.target.overheads(work.rule))
        except InfeasibleError:
            low = limit
        else:
            if len(found.slices) == count:
                if memory_mb is not None:
                    sizes = dict.fromkeys(settings.memory_mb, memory_mb)
                    settings = replace(settings, memory_mb=sizes)
                return plan_of(tried, "bytes", found, settings)
            high = limit
        limit = (low + high) // 2
    raise InfeasibleError(f"no limit of weights gives {count} slices")


def measured(
    work: Work,
    plan: Plan,
    inputs: Any,
    *,
    requests: int,
    network: str | None,
    seed: int = 0,
    cpu_scale: float = 1.0,
) -> Served:
    """Warm requests to a plan, one at a time."""
    (found,) = measured_in_turn(
        [(work, plan)], inputs, requests=requests, network=network, seed=seed, cpu_scale=cpu_scale
    )
    return found


def measured_in_turn(
    plans: Sequence[tuple[Work, Plan]],
    inputs: Any,
    *,
    requests: int,
    network: str | None,
    seed: int = 0,
    cpu_scale: float = 1.0,
    burst: int = 1,
) -> list[Served]:
    """The same for several plans, whose requests take turns: what else this machine does, or the host
    of this virtual machine, then hits all of them alike. A turn has `burst` requests; where it has more
    than one, one before them does not count, for the functions have been idle while others ran.
    """
    with contextlib.ExitStack() as stack:
        options = {"network": network, "network_seed": seed, "cpu_scale": cpu_scale}
        running = [_Running(stack, work, plan, inputs, options) for work, plan in plans]
        for each in running:
            each.begin()
        for _ in range(-(-requests // burst)):
            for each in running:
                if burst > 1:
                    each.skip()
                for _ in range(burst):
                    each.request()
        return [each.served() for each in running]


class _Running:
    """A plan that is served, and what its requests took."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        work: Work,
        plan: Plan,
        inputs: Any,
        options: dict[str, Any],
    ) -> None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="slicewise-"))
        bundle = write(work, plan, steps(False)).save(Path(folder) / "bundle")
        self.work, self.plan = work, plan
        self.endpoint = stack.enter_context(bundle.serve(**options))
        self.call = _caller(self.endpoint, inputs)
        self.took: list[float] = []
        self.skipped = 0
        self.traces: list[Mapping[str, Any]] = []

    def begin(self) -> None:
        for _ in range(WARMING):
            self.call()
        warm_ups = len(self.plan.slices) if self.plan.warm_up else 0
        expected = WARMING * (len(self.plan.slices) + 1) + warm_ups
        self.before = len(_reports(self.endpoint, expected))

    def skip(self) -> None:
        self.call()
        self.skipped += 1

    def request(self) -> None:
        started = time.perf_counter()
        self.answer = self.call()
        self.took.append((time.perf_counter() - started) * 1e3)
        self.traces.append(self.endpoint.last_trace)

    def served(self) -> Served:
        plan, requests = self.plan, len(self.took) + self.skipped
        reports = _reports(self.endpoint, self.before + requests * (len(plan.slices) + 1))
        names = {function: name for name, function in function_names(plan).items()}
        warm = reports[self.before :]
        model = self.work.target.cost_model(self.work.limits)
        usd = sum(r.billed_ms * model.gb_ms_usd(r.memory_mb) + model.request_usd for r in warm)
        billed: dict[str, list[float]] = {name: [] for name in names.values()}
        for report in warm:
            billed[names[report.function]].append(report.duration_ms)
        return Served(
            request_ms=tuple(self.took),
            usd_per_million=(usd / requests + store_usd(plan, model)) * 1e6,
            peak_mb={
                name: max(r.max_memory_mb for r in reports if r.function == function)
                for function, name in names.items()
            },
            traces=tuple(self.traces),
            billed_ms={name: statistics.median(values) for name, values in billed.items()},
            answer=self.answer,
        )


def _caller(endpoint: Any, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return lambda: endpoint(**inputs)
    return lambda: endpoint(*inputs)


def _reports(endpoint: Any, count: int) -> Sequence[Any]:
    """The reports once there are so many: the last one may come a moment after the reply."""
    deadline = time.monotonic() + 5
    while len(endpoint.reports) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    if len(endpoint.reports) != count:
        raise RuntimeError(f"{len(endpoint.reports)} invocations were reported, not {count}")
    return endpoint.reports


def store_usd(plan: Plan, model: CostModel) -> float:
    """US dollars of a request's objects: one PUT per tensor of a slice, one GET per reader."""
    slices = {part.name for part in plan.slices}
    usd = 0.0
    for edge in {e.tensor: e for e in plan.edges if e.producer in slices}.values():
        way = model.transport(edge.transport)
        usd += way.send_usd + way.send_byte_usd * edge.bytes
    for edge in plan.edges:
        if edge.consumer in slices:
            way = model.transport(edge.transport)
            usd += way.receive_usd + way.receive_byte_usd * edge.bytes
    return usd


def without_network(work: Work, plan: Plan) -> Plan:
    """The plan with the prediction for this machine's loopback, where nothing waits."""
    model = work.target.cost_model(work.limits)
    quiet = replace(
        model,
        call=_unwaiting(model.call),
        transports=tuple(
            replace(way, **{name: _unwaiting(way.step(name))
                            for name in ("send", "collect", "pass_on", "receive")})
            for way in model.transports
        ),
    )  # fmt: skip
    prediction = predict(
        plan.slices, plan.edges, quiet, work.times.ms, parallel=work.times.parallel,
        source=plan.prediction.source,
    )  # fmt: skip
    return replace(plan, prediction=prediction)


def _unwaiting(step: Step) -> Step:
    return replace(step, wait_ms=0.0, sigma=0.0, wait_ns=0.0)
