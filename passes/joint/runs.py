"""Runs of ops between two boundaries, with all ways to split them into shards that may gain."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from slicewise.cost import CostModel
from slicewise.passes.joint.problem import JointProblem
from slicewise.passes.joint.regions import boundaries
from slicewise.passes.partitioning.ground import Ground
from slicewise.passes.partitioning.recompute import add_inlined, inlined_ops
from slicewise.passes.shards import Sharding, Swept, sharding, sweep
from slicewise.timeline import slowest_extra_ms

DEGREES = (2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """The ops between two prefixes split in one way; equal only to itself."""

    first: int
    last: int
    way: Swept
    ops: tuple[str, ...]


def runs_of_shards(
    base: Ground, problem: JointProblem, model: CostModel, most: int, deadline: float
) -> tuple[tuple[Run, ...], bool]:
    """All runs between two boundaries that may gain from being split into at most `most` shards, and
    whether none was left out for lack of time.
    """
    degrees = [degree for degree in DEGREES if degree <= most]
    places = boundaries(problem)
    inlined = inlined_ops(base)
    # Beside one slice of the same ops, shards take more calls and wait for the slowest of them.
    most_mb = min(base.limits.memory_mb or model.memory_mb_max, model.mb_per_vcpu)
    least_ms = {
        degree: (slowest_extra_ms(model.call, degree) + (degree - 1) * model.call.cpu_ms)
        * model.share(most_mb)
        for degree in degrees
    }
    found: list[Run] = []
    for number, last in enumerate(places[1:], 1):
        if time.monotonic() > deadline:
            return tuple(found), False
        order, starts = _order(base, problem, inlined, places[: number + 1])
        ops = [base.graph.ops[op] for op in order]
        for way in sweep(base.graph, ops, list(starts), degrees):
            if way.is_by_time or way.once_ms - max(way.work_ms) > least_ms[way.degree]:
                names = tuple(base.graph.ops[op].name for op in sorted(order[way.start :]))
                found.append(Run(first=starts[way.start], last=last, way=way, ops=names))
    return tuple(found), True


def pipelines(runs: Sequence[Run], most: int) -> list[tuple[Run, ...]]:
    """Runs by time, one after the other, into as many chunks each: for both ends, every number of stages
    and of chunks, the stages whose slowest one takes least.
    """
    found: list[tuple[Run, ...]] = []
    for chunks in dict.fromkeys(run.way.degree for run in runs):
        after: dict[int, list[Run]] = {}
        for run in runs:
            if run.way.degree == chunks:
                after.setdefault(run.first, []).append(run)
        for first in after:
            paths: dict[int, tuple[Run, ...]] = {first: ()}
            for _ in range(most):
                longer: dict[int, tuple[Run, ...]] = {}
                for last, path in paths.items():
                    for run in after.get(last, ()):
                        tried = (*path, run)
                        if run.last not in longer or _slowest(tried) < _slowest(longer[run.last]):
                            longer[run.last] = tried
                paths = longer
                found += [path for path in paths.values() if len(path) > 1]
    return found


def _slowest(path: Sequence[Run]) -> tuple[float, float]:
    works = [max(run.way.work_ms) for run in path]
    return max(works), sum(works)


def _order(
    base: Ground, problem: JointProblem, inlined: Sequence[int], places: Sequence[int]
) -> tuple[list[int], dict[int, int]]:
    """The ops before the last place, from the first on that none after it needs but for what is live
    there, and where the ops after each other place begin.

    Inlined ops that no other op needs stand before their first reader: groups may not share any.
    """
    last = places[-1]
    nodes = [n for n in range(problem.graph.size) if last >> n & 1]
    inside = {op for node in nodes for op in problem.graph.ops[node]}
    add_own(base, inside, inlined)
    end = max(inside, default=-1)
    left = set(inlined) & inside
    order: list[int] = []
    begins: dict[int, int] = {}
    begin_of = {place: sum(1 for n in nodes if place >> n & 1) for place in places[:-1]}
    place_at = {count: place for place, count in begin_of.items()}
    for count, node in enumerate(nodes):
        if count in place_at:
            begins[len(order)] = place_at[count]
        for op in problem.graph.ops[node]:
            _before(base, op, left, order)
            order.append(op)
    for index in range(len(order) - 1, -1, -1):
        readers = (r for tensor in base.makes[order[index]] for r in base.readers[tensor])
        if any(reader not in inside and reader < end for reader in readers):
            begins = {start: place for start, place in begins.items() if start > index}
            break
    return order, begins


def _before(base: Ground, op: int, left: set[int], order: list[int]) -> None:
    """Put the inlined ops that an op needs, and that are left, into the order."""
    for tensor in base.reads[op]:
        maker = base.producer[tensor]
        if maker in left:
            left.remove(maker)
            _before(base, maker, left, order)
            order.append(maker)


def add_own(base: Ground, ops: set[int], inlined: Sequence[int]) -> None:
    """Add the inlined ops that no other op needs: groups may not share any."""
    add_inlined(base, ops, inlined)
    for op in reversed(inlined):
        if op in ops and any(r not in ops for t in base.makes[op] for r in base.readers[t]):
            ops.remove(op)


def applied(base: Ground, run: Run) -> tuple[Sharding, float]:
    """The run in shards, and what the largest of them takes of memory with its buffers and the
    function's own; infinite where it is not allowed.
    """
    found = sharding(base.graph, run.ops, run.way.along, run.way.degree)
    assert found is not None, "what was swept cannot be split"
    factor = float(base.edge_factor)
    own = max(part.memory_bytes + factor * (_bytes(part.received) + _bytes(part.sent))
              for part in found.parts)  # fmt: skip
    cap, edge_cap = base.weight_cap, base.overheads.max_edge_bytes
    fits = all(
        (cap is None or part.weight_bytes <= cap)
        and (edge_cap is None or max(_bytes(part.received), _bytes(part.sent)) <= edge_cap)
        for part in found.parts
    ) and (base.memory_cap is None or own <= base.memory_cap)
    return found, base.overheads.memory_bytes + own if fits else float("inf")


def _bytes(moved: Sequence[tuple[str, int]]) -> int:
    return sum(size for _, size in moved)
