"""A relaxation for graphs whose weights are nodes: sources join their reader, excess has a price.

A source with one reader may run in the reader's slice, or in an earlier one at the price of its net,
which frees its load. For n sources that makes 2^n times the prefixes. The relaxation keeps them with
their readers and lets a slice exceed a cap by the loads of its sources, at the least price per unit
that any of them asks: a lower bound, and the optimum whenever its solution needs no eviction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slicewise.passes.partitioning.ideals import Evictable
from slicewise.passes.partitioning.problem import Assignment, Problem, fits
from slicewise.passes.partitioning.reduce import quotient, reduce


@dataclass(frozen=True, slots=True)
class Core:
    """A problem whose sources were absorbed, and what its nodes can shed."""

    problem: Problem
    evictable: Evictable | None


def absorb_sources(problem: Problem) -> Core:
    """Contract every source with one net, one reader and loads of its own into its reader."""
    leader = list(range(problem.size))
    amounts = [[0] * problem.size for _ in problem.resources]
    price: list[int | None] = [None] * len(problem.resources)
    for node in range(problem.size):
        if not _is_source(problem, node):
            continue
        size = problem.nets[problem.made[node][0]].bytes
        leader[node] = problem.succs[node][0]
        for resource, (loads, _) in enumerate(problem.resources):
            amount = sum(loads[load] for load in problem.held[node])
            amounts[resource][node] = amount
            if amount:
                asked = size * 1024 // amount
                best = price[resource]
                price[resource] = asked if best is None else min(best, asked)
    if leader == list(range(problem.size)):
        return Core(problem, None)
    core = reduce(quotient(problem, leader))
    node_of = {op: node for node, members in enumerate(problem.ops) for op in members}
    merged = tuple(
        tuple(
            sum(row[node] for node in dict.fromkeys(node_of[op] for op in members))
            for members in core.ops
        )
        for row in amounts
    )
    return Core(core, Evictable(merged, tuple(asked or 0 for asked in price)))


def _is_source(problem: Problem, node: int) -> bool:
    made = problem.made[node]
    return (
        not problem.preds[node]
        and len(problem.succs[node]) == 1
        and bool(problem.preds[problem.succs[node][0]])
        and len(made) == 1
        and bool(problem.held[node])
        and all(problem.loads[load].users == (node,) for load in problem.held[node])
    )


def settle(problem: Problem, core: Core, slice_of: Sequence[int]) -> Assignment | None:
    """The assignment of `problem` that leaves sources with their readers, if that keeps the caps."""
    slice_of_op = {op: slice_of[v] for v, members in enumerate(core.problem.ops) for op in members}
    settled = [slice_of_op[members[0]] for members in problem.ops]
    return settled if fits(problem, settled) else None
