"""A relaxation for graphs in which many heavy nodes wait for one reader: weights that are nodes,
cross-attention's keys and values, which are all ready as soon as the encoder is done.

Moving such a node up to its first reader never costs bytes (the *push* of `reduce`), but its load may
not fit there; n of them make 2^n times the prefixes. The relaxation moves them all and lets a slice
exceed a cap by the loads that moved. A partition that keeps the caps turns into such a one: every move
saves at least saved - added bytes, so the excess has the least such price per unit among all moves.
Also, what the moves into one slice add are nets that it now receives, each once however many nodes
read it: the excess has the least price saved per unit, less all such nets once. That makes a lower
bound, and the optimum whenever its solution keeps the caps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slicewise.passes.partitioning.ideals import Evictable
from slicewise.passes.partitioning.problem import Assignment, Problem, fits
from slicewise.passes.partitioning.reduce import Shrinking, quotient, reduce

_MANY = 6  # readers of a net from which on these are taken to be ready all at once


@dataclass(frozen=True, slots=True)
class Core:
    """A problem in which waiting nodes were moved, and what its nodes can shed."""

    problem: Problem
    evictable: Evictable | None


def absorb_waiting(problem: Problem) -> Core:
    """Contract nodes with loads of their own that wait for their first reader into it."""
    work = Shrinking(problem)
    amounts = [[0] * problem.size for _ in problem.resources]
    prices: list[list[int]] = [[] for _ in problem.resources]
    full_prices: list[list[int]] = [[] for _ in problem.resources]
    entering: set[int] = set()
    absorbed = False
    for node in range(problem.size):
        reader = work.first_succ(node) if _may_wait(problem, node) else None
        if reader is None:
            continue
        saved, added = work.push(node, reader)
        if saved < added:
            continue
        entering |= work.read[node] - work.read[reader]
        for resource, (loads, _) in enumerate(problem.resources):
            amounts[resource][node] = sum(loads[load] for load in problem.held[node])
            moved = sum(loads[load] for load in work.held[node])  # with what it absorbed before
            if moved:
                prices[resource].append((saved - added) * 1024 // moved)
                full_prices[resource].append(saved * 1024 // moved)
        work.merge(reader, node)
        absorbed = True
    if not absorbed:
        return Core(problem, None)
    core = reduce(quotient(problem, [work.find(node) for node in range(problem.size)]))
    node_of = {op: node for node, members in enumerate(problem.ops) for op in members}
    merged = tuple(
        tuple(
            sum(row[node] for node in dict.fromkeys(node_of[op] for op in members))
            for members in core.ops
        )
        for row in amounts
    )
    evictable = Evictable(
        amounts=merged,
        price=tuple(min(asked, default=0) for asked in prices),
        full_price=tuple(min(asked, default=0) for asked in full_prices),
        allowance=sum(problem.nets[net].bytes for net in entering),
    )
    return Core(core, evictable)


def _may_wait(problem: Problem, node: int) -> bool:
    """Whether the node is one of many that are ready at once, with loads that only it uses."""
    ready = not problem.preds[node] or any(
        len(problem.nets[net].readers) >= _MANY for net in problem.read[node]
    )
    return (
        ready
        and bool(problem.held[node])
        and all(problem.loads[load].users == (node,) for load in problem.held[node])
    )


def settle(problem: Problem, core: Core, slice_of: Sequence[int]) -> Assignment | None:
    """The assignment of `problem` that leaves moved nodes where they are, if that keeps the caps."""
    slice_of_op = {op: slice_of[v] for v, members in enumerate(core.problem.ops) for op in members}
    settled = [slice_of_op[members[0]] for members in problem.ops]
    return settled if fits(problem, settled) else None
