"""Runs of ops between two boundaries, with all ways to split them into shards that a function holds."""

from __future__ import annotations

import time
from collections.abc import Sequence

from slicewise.cost import CostModel
from slicewise.passes.joint.groups import Shardable
from slicewise.passes.joint.problem import JointProblem
from slicewise.passes.joint.regions import boundaries
from slicewise.passes.partitioning.ground import Ground
from slicewise.passes.partitioning.recompute import add_inlined, inlined_ops
from slicewise.passes.shards import Sharding, shardings
from slicewise.timeline import slowest_extra_ms

DEGREES = (2, 3, 4, 6, 8, 12, 16)


def runs_of_shards(
    base: Ground, problem: JointProblem, model: CostModel, most: int, deadline: float
) -> tuple[tuple[Shardable, ...], bool]:
    """All runs between two boundaries that may gain from shards, with their ways of at most `most`; and
    whether none was left out for lack of time.
    """
    degrees = [degree for degree in DEGREES if degree <= most]
    places = boundaries(problem)
    inlined = inlined_ops(base)
    # Beside one slice of the same ops, two shards take another call and wait for the slower of two.
    most_mb = min(base.limits.memory_mb or model.memory_mb_max, model.mb_per_vcpu)
    least_ms = (slowest_extra_ms(model.call, 2) + model.call.cpu_ms) * model.share(most_mb)
    found: list[Shardable] = []
    for index, first in enumerate(places):
        for last in places[index + 1 :]:
            if time.monotonic() > deadline:
                return tuple(found), False
            nodes = [n for n in range(problem.graph.size) if (last & ~first) >> n & 1]
            if sum(problem.times[node] for node in nodes) * (1 - 1 / most) <= least_ms:
                continue
            ops = {op for node in nodes for op in problem.graph.ops[node]}
            _add_own(base, ops, inlined)
            if _is_interrupted(base, ops):
                continue
            names = [base.graph.ops[op].name for op in sorted(ops)]
            ways = [(way, _need(base, way)) for way in shardings(base.graph, names, degrees)]
            kept = tuple((way, need) for way, need in ways if _fits(base, way, need))
            if kept:
                found.append(Shardable(first=first, last=last, ways=kept))
    return tuple(found), True


def _add_own(base: Ground, ops: set[int], inlined: Sequence[int]) -> None:
    """Add the inlined ops that no other op needs: groups may not share any."""
    add_inlined(base, ops, inlined)
    for op in reversed(inlined):
        if op in ops and any(r not in ops for t in base.makes[op] for r in base.readers[t]):
            ops.remove(op)


def _is_interrupted(base: Ground, ops: set[int]) -> bool:
    """Whether an op between the first and the last of these needs one of them and is not one."""
    return any(
        reader not in ops and reader < max(ops)
        for op in ops
        for tensor in base.makes[op]
        for reader in base.readers[tensor]
    )


def _need(base: Ground, way: Sharding) -> float:
    """Memory of the largest shard, with its buffers and the function's own."""
    factor = float(base.edge_factor)
    most = max(part.memory_bytes + factor * (_bytes(part.received) + _bytes(part.sent))
               for part in way.parts)  # fmt: skip
    return base.overheads.memory_bytes + most


def _fits(base: Ground, way: Sharding, need: float) -> bool:
    cap, edge_cap = base.weight_cap, base.overheads.max_edge_bytes
    return all(
        (cap is None or part.weight_bytes <= cap)
        and (edge_cap is None or max(_bytes(part.received), _bytes(part.sent)) <= edge_cap)
        for part in way.parts
    ) and (base.memory_cap is None or need - base.overheads.memory_bytes <= base.memory_cap)


def _bytes(moved: Sequence[tuple[str, int]]) -> int:
    return sum(size for _, size in moved)
