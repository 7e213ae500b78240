"""`decide`: a graph becomes a partition with all settings of its functions, for latency or cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

from slicewise.cost import CostModel
from slicewise.errors import InfeasibleError
from slicewise.goal import Goal
from slicewise.graph import OpGraph
from slicewise.limits import Limits, Overheads
from slicewise.passes.joint.goal import USD_PER_MILLION, Bounds, Objective, frontier, optimum
from slicewise.passes.joint.optimise import Choice, Optimiser
from slicewise.passes.joint.relayout import Slot, group_records
from slicewise.passes.partitioning.partitioner import Partition, describe
from slicewise.passes.place import Settings
from slicewise.plan import Certificate, TransportRule

# Values are predictions, not counts: what is this near to its bound is called optimal.
CLOSE = 1e-3
Decision = tuple[Partition, Settings]


def decide(
    graph: OpGraph,
    limits: Limits,
    objective: Objective,
    *,
    goal: Goal | None,
    overheads: Overheads,
    model: CostModel,
    rule: TransportRule,
    parallel: float,
    time_limit_s: float,
    most: int = 1,
) -> Decision:
    """The cut, transports and memory sizes with the least expected latency or cost within the goal.

    `graph` has the ops' times. The certificate is in ms or US dollars per million requests: over all
    plans of slices one after the other and (with `most` above 1) of groups of at most so many
    independent branches at the same time, "optimal" within 0.1 %. Raises `InfeasibleError`.
    """
    found = choices(
        graph, limits, objective, goal=goal, overheads=overheads, model=model, rule=rule,
        parallel=parallel, time_limit_s=time_limit_s, most=most, shards=False,
    )  # fmt: skip
    return decision(found, found.choices[0])


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What there is to choose from. For an objective: the best choice, and where it has groups, also the
    best one of slices one after the other.
    """

    optimiser: Optimiser
    choices: tuple[Choice, ...]
    objective: Objective | None
    seconds: float


def choices(
    graph: OpGraph,
    limits: Limits,
    objective: Objective,
    *,
    goal: Goal | None,
    overheads: Overheads,
    model: CostModel,
    rule: TransportRule,
    parallel: float,
    time_limit_s: float,
    most: int,
    shards: bool,
) -> Choices:
    """What `decide` chooses from; with `shards`, groups may also split ops between their slices.

    The search takes a group's slices to be as slow as its slowest in every respect, and begins the next
    step when all have ended: which of the two is better, `predict` tells.
    """
    started = time.monotonic()
    optimiser = Optimiser(
        graph, limits, overheads=overheads, model=model, transports=rule.transports,
        parallel=parallel, time_limit_s=time_limit_s, most=most, shards=shards,
    )  # fmt: skip
    bounds = Bounds(
        ms=goal.latency_ms if goal else None,
        usd=goal.cost_per_million_usd / USD_PER_MILLION
        if goal and goal.cost_per_million_usd
        else None,
    )
    found = [optimum(optimiser, objective, bounds)]
    if any(step.width > 1 for step in found[0].steps):
        try:
            plain = optimum(optimiser.one_by_one(), objective, bounds)
        except InfeasibleError:  # branches apart keep limits that no chain of slices does
            pass
        else:
            bound = min(found[0].lower_bound, plain.value)
            found.append(replace(plain, lower_bound=bound))
    return Choices(
        optimiser=optimiser, choices=tuple(found), objective=objective,
        seconds=time.monotonic() - started,
    )  # fmt: skip


def decision(found: Choices, choice: Choice) -> Decision:
    """A choice without shards as partition and settings."""
    return _decision(found.optimiser, choice, found.objective, found.seconds)


def frontier_choices(
    graph: OpGraph,
    limits: Limits,
    points: int,
    *,
    overheads: Overheads,
    model: CostModel,
    rule: TransportRule,
    parallel: float,
    time_limit_s: float,
    most: int = 1,
    shards: bool = False,
) -> Choices:
    """The choices of which none is both faster and cheaper than another, fastest first."""
    started = time.monotonic()
    optimiser = Optimiser(
        graph, limits, overheads=overheads, model=model, transports=rule.transports,
        parallel=parallel, time_limit_s=time_limit_s, most=most, shards=shards,
    )  # fmt: skip
    found = [
        replace(choice, value=choice.ms, lower_bound=choice.ms)
        for choice in frontier(optimiser, points)
    ]
    return Choices(
        optimiser=optimiser, choices=tuple(found), objective=None,
        seconds=time.monotonic() - started,
    )  # fmt: skip


def certificate(choice: Choice, objective: Objective | None, seconds: float) -> Certificate:
    """What is proven of a choice, in ms or US dollars per million requests."""
    unit = USD_PER_MILLION if objective == "cost" else 1.0
    value, bound = choice.value * unit, choice.lower_bound * unit
    gap = max(0.0, (value - bound) / value) if value > 0 else 0.0
    status: Literal["optimal", "bounded"] = "optimal" if gap <= CLOSE else "bounded"
    method = choice.method
    if objective is None:
        method += ", on the frontier"
    return Certificate(
        status=status, lower_bound=min(bound, value), gap=gap, method=method, seconds=seconds
    )


def _decision(
    optimiser: Optimiser, choice: Choice, objective: Objective | None, seconds: float
) -> Decision:
    crossing, parts = describe(optimiser.base, choice.layout)
    slots = [
        Slot(step, index) for step, each in enumerate(choice.steps) for index in range(each.width)
    ]
    proof = certificate(choice, objective, seconds)
    partition = Partition(slices=parts, cross_slice_bytes=crossing, certificate=proof)
    settings = Settings(
        memory_mb={part.name: mb for part, mb in zip(parts, choice.memory_mb, strict=True)},
        model=optimiser.caller(choice.caller_mb),
        transports=choice.transports,
        usd_weight=choice.usd_weight,
        shards={
            part.name: record
            for part, record in zip(
                parts, group_records(optimiser.base.graph, choice, slots), strict=True
            )
            if record is not None
        },
    )
    return partition, settings
