"""`partition`: the cut of a graph into slices that keep the limits, with the fewest bytes crossing.

reduce -> cut along orders -> refine -> prove (all prefixes, or CP-SAT) -> check against the ground.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

from slicewise.graph import OpGraph
from slicewise.limits import Limits, Overheads
from slicewise.passes.partitioning.feasible import (
    refuse_impossible,
    too_few_slices,
    unplaceable,
)
from slicewise.passes.partitioning.ground import Ground, breaks, ground
from slicewise.passes.partitioning.problem import fewest_slices
from slicewise.passes.partitioning.recompute import (
    Layout,
    layout_cost,
    measures,
    relaxation,
)
from slicewise.passes.partitioning.search import search
from slicewise.plan import Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One slice: its ops in graph order, what it holds, and the tensors that enter and leave it.

    `memory_bytes` is all that the limit on memory counts, `package_bytes` all that the one on the
    package counts, overheads included. Inputs and outputs include the request's and the reply's.
    `recomputed` are those of `ops` that an earlier slice runs too: cheap ones, run again because that
    sends fewer bytes.
    """

    name: str
    ops: tuple[str, ...]
    weight_bytes: int
    peak_activation_bytes: int
    memory_bytes: int
    package_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    recomputed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Slices in an order in which dependencies go up, their cost, and what is proven of it."""

    slices: tuple[Part, ...]
    cross_slice_bytes: int
    certificate: Certificate


def partition(
    graph: OpGraph,
    limits: Limits,
    *,
    overheads: Overheads = Overheads(),  # noqa: B008 - frozen
    time_limit_s: float = 60.0,
    workers: int | None = None,
    seed: int = 0,
) -> Partition:
    """Cut `graph` into slices that keep `limits`, with the fewest bytes between them.

    Guarantees: every op is in one slice, an op with `is_cheap` in one or more; dependencies never go
    to an earlier slice; each slice keeps every limit that is set (distinct weights, package, memory
    with the peak of live activations and `overheads`); the certificate says "optimal" only if no
    partition into any number of slices is cheaper, else how far from optimal this one can be.
    The cost is the sum of `Tensor.bytes` over tensors and slices that receive them from another one;
    among equals fewer slices are preferred.

    Raises `InfeasibleError` when no partition keeps the limits, or none was found in the time
    given.
    """
    started = time.monotonic()
    base = ground(graph, limits, overheads)
    refuse_impossible(base)
    found = search(
        base,
        deadline=started + time_limit_s,
        workers=workers or min(8, os.cpu_count() or 1),
        seed=seed,
    )
    if found.layout is None:
        if limits.max_slices is not None:
            enough = _enough_slices(base, started + time_limit_s, seed)
            if enough is not None:
                raise too_few_slices(base, *enough)
        raise unplaceable(base, proven=found.closed)
    value, parts = describe(base, found.layout)
    bound = min(found.lower_bound, value)
    optimal = found.closed or bound >= value
    certificate = Certificate(
        status="optimal" if optimal else "bounded",
        lower_bound=value if optimal else bound,
        gap=0.0 if optimal else (value - bound) / value,
        method=found.method,
        seconds=time.monotonic() - started,
    )
    return Partition(slices=parts, cross_slice_bytes=value, certificate=certificate)


def _enough_slices(base: Ground, deadline: float, seed: int) -> tuple[int, bool] | None:
    """The fewest slices known to work, and whether fewer are proven not to; None if none do."""
    free = ground(base.graph, replace(base.limits, max_slices=None), base.overheads)
    deadline = max(deadline, time.monotonic() + 1)
    whole = search(free, deadline=deadline, workers=1, seed=seed)
    if whole.layout is None:
        return None
    most, proven = len(whole.layout), True
    first = max((base.limits.max_slices or 0) + 1, fewest_slices(relaxation(free)))
    for count in range(first, most):
        bounded = ground(base.graph, replace(base.limits, max_slices=count), base.overheads)
        found = search(bounded, deadline=deadline, workers=1, seed=seed)
        if found.layout is not None:
            return count, proven
        proven = proven and found.closed
    return most, proven


def describe(base: Ground, layout: Layout) -> tuple[int, tuple[Part, ...]]:
    """The cost of a layout, counted afresh on the graph, and its slices."""
    graph, overheads = base.graph, base.overheads
    parts, ran = [], set[int]()
    found = measures(base, layout)
    for number, (ops, measured) in enumerate(zip(layout, found, strict=True)):
        if breaks(base, measured):
            raise AssertionError(f"slice {number} breaks a limit")
        parts.append(
            Part(
                name=f"slice{number}",
                ops=tuple(graph.ops[op].name for op in sorted(ops)),
                recomputed=tuple(graph.ops[op].name for op in sorted(ops & ran)),
                weight_bytes=measured.weight_bytes,
                peak_activation_bytes=measured.peak,
                memory_bytes=overheads.memory_bytes + measured.memory,
                package_bytes=overheads.package_bytes + measured.weight_bytes,
                inputs=tuple(graph.tensors[t].name for t in measured.inputs),
                outputs=tuple(graph.tensors[t].name for t in measured.outputs),
            )
        )
        ran |= ops
    return layout_cost(base, found), tuple(parts)
