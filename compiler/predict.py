"""Predict: latency and cost of a plan's requests, by a target's cost model and the ops' times."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from slicewise.cost import (
    P99,
    CostModel,
    Moved,
    SliceTime,
    caller_cold_ms,
    entry_time,
    percentile,
    slice_cold_ms,
    slice_time,
    warm_up_ms,
)
from slicewise.driven import chain, state_machine
from slicewise.graph import INPUT, OUTPUT
from slicewise.plan import Edge, Prediction, Slice, SlicePrediction
from slicewise.timeline import simulated_ms

PER_MILLION = 1e6


def predict(
    slices: Sequence[Slice],
    edges: Sequence[Edge],
    model: CostModel,
    times: Mapping[str, float],
    *,
    parallel: float,
    source: str,
    warm_up: bool = True,
    most: int | None = None,
    orchestration: str = "coordinator",
) -> Prediction:
    """Expected times and cost at the example's sizes; `times` are ms per op at one vCPU.

    Slices begin when those that they need have ended, at most `most` at once (None: all that can).
    With `warm_up` all start together while the caller does, so that the slowest start of all counts,
    else that of every stage. `orchestration` is the plan's, see driven.py.
    """
    found = {
        part.name: slice_time(
            model,
            part.memory_mb,
            sum(times[op] for op in part.ops),
            [Moved(transport=e.transport, bytes=e.bytes) for e in edges if e.consumer == part.name],
            _sent(edges, part.name),
            parallel=parallel,
        )
        for part in slices
    }
    received = {e.tensor: e for e in edges if e.producer == INPUT}
    replied = {e.tensor: e for e in edges if e.consumer == OUTPUT}
    entry = entry_time(
        model,
        [Moved(transport=e.transport, bytes=e.bytes) for e in received.values()],
        [Moved(transport=e.transport, bytes=e.bytes) for e in replied.values()],
    )
    deleting = _deleting(slices, edges, model)
    slices_ms, slices_variance = _together(slices, edges, model, found, most)
    ms = entry.total_ms + deleting + slices_ms
    variance = entry.variance + slices_variance
    caller_ms = entry.billed_ms + deleting + slices_ms
    usd = model.request_usd + caller_ms * model.gb_ms_usd(model.caller_memory_mb)
    usd += sum(time.usd for time in found.values())
    driven = None
    if orchestration == "chain":
        driven = chain(slices, edges, model, found, entry, deleting)
    elif orchestration == "stepfunctions":
        driven = state_machine(slices, model, found, entry, deleting)
    if driven is not None:
        ms, variance, usd = driven.ms, driven.variance, driven.usd
    starts = {
        part.name: slice_cold_ms(
            model,
            part.weight_bytes,
            uses_store=_uses_store(edges, part.name),
            packaging=part.packaging,
        )
        for part in slices
    }
    uses_store = any(e.transport != "payload" for e in edges)
    if orchestration == "chain":
        cold = ms + sum(starts.values()) + (len(slices) - 1) * model.imports.caller_ms
    elif warm_up:
        cold = ms + warm_up_ms(model, max(starts.values()), uses_store=uses_store)
    else:
        cold = ms + caller_cold_ms(model, uses_store=uses_store) + _one_by_one(slices, starts)
    return Prediction(
        latency_ms=ms,
        latency_p50_ms=percentile(ms, variance, 0.0),
        latency_p99_ms=percentile(ms, variance, P99),
        cold_latency_ms=cold,
        cost_per_million_usd=usd * PER_MILLION,
        source=source,
        slices=tuple(
            SlicePrediction(
                name=name,
                call_ms=time.caller_ms,
                receive_ms=time.receive_ms,
                compute_ms=time.compute_ms,
                send_ms=time.send_ms,
                billed_ms=driven.billed_ms[name] if driven else time.billed_ms,
                cost_per_million_usd=(driven.slice_usd[name] if driven else time.usd) * PER_MILLION,
                cold_ms=starts[name],
            )
            for name, time in found.items()
        ),
    )


def _deleting(slices: Sequence[Slice], edges: Sequence[Edge], model: CostModel) -> float:
    """What the caller waits to delete the objects that the last stage has read; those of earlier
    stages are deleted while later slices compute. A deletion waits like the first byte of a read.
    """
    last = max(part.stage for part in slices)
    names = {part.name for part in slices if part.stage == last}
    return max(
        (model.transport(e.transport).receive.wait_ms for e in edges if e.consumer in names),
        default=0.0,
    )


def _sent(edges: Sequence[Edge], name: str) -> list[Moved]:
    """Every tensor once, whoever reads it."""
    by_tensor = {e.tensor: e for e in edges if e.producer == name}
    return [Moved(transport=e.transport, bytes=e.bytes) for e in by_tensor.values()]


def _together(
    slices: Sequence[Slice],
    edges: Sequence[Edge],
    model: CostModel,
    found: Mapping[str, SliceTime],
    most: int | None,
) -> tuple[float, float]:
    """Expected ms of all slices and its variance: a sum when they run one after the other."""
    if most == 1 or len({part.stage for part in slices}) == len(slices):
        return sum(t.total_ms for t in found.values()), sum(t.variance for t in found.values())
    maker = {edge.tensor: edge.producer for edge in edges if edge.producer != INPUT}
    drawn = simulated_ms(
        list(found),
        {part.name: [maker[t] for t in part.inputs if t in maker] for part in slices},
        found,
        share=model.steady_share(model.caller_memory_mb),
        most=most or len(slices),
    )
    return statistics.fmean(drawn), statistics.pvariance(drawn)


def _uses_store(edges: Sequence[Edge], name: str) -> bool:
    """Whether the slice gets or puts objects at the example's sizes."""
    return any(e.transport != "payload" and name in (e.producer, e.consumer) for e in edges)


def _one_by_one(slices: Sequence[Slice], starts: Mapping[str, float]) -> float:
    """What slices add that start when their stage's turn comes: per stage the slowest start."""
    slowest: dict[int, float] = {}
    for part in slices:
        slowest[part.stage] = max(slowest.get(part.stage, 0.0), starts[part.name])
    return sum(slowest.values())
