"""Equal parallel branches: prefixes that differ only in which of them is done are one prefix.

A *branch* is a chain that hangs together with nothing else in its segment. Two are *twins* if swapping
them changes no weight, no dependency and no net. Any prefix can swap twins until the first one has at
least as many nodes done as the second, so only such prefixes need a look: as if every node depended on
the same node of the twin before. 16 branches of 2 nodes have 153 prefixes so, and 43 million else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slicewise.passes.partitioning.problem import Problem


def twins(problem: Problem, weights: Sequence[int], start: int, stop: int) -> dict[int, int]:
    """For nodes of start..stop-1 in a branch with a twin before it: the same node of that twin."""
    branch_of = _components(problem, start, stop)
    branches: dict[int, list[int]] = {}
    for node in range(start, stop):
        branches.setdefault(branch_of[node], []).append(node)
    last: dict[tuple[Any, ...], list[int]] = {}
    found: dict[int, int] = {}
    for nodes in branches.values():
        if not _is_chain(problem, nodes, start):
            continue
        signature = _signature(problem, weights, nodes, branch_of)
        before = last.get(signature)
        if before is not None:
            if any(a > b for a, b in zip(before, nodes, strict=True)):
                continue
            found.update(zip(nodes, before, strict=True))
        last[signature] = nodes
    return found


def _components(problem: Problem, start: int, stop: int) -> dict[int, int]:
    """For every node of start..stop-1 the first one that it hangs together with."""
    parent = {node: node for node in range(start, stop)}

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for node in range(start, stop):
        for other in problem.preds[node]:
            if other >= start:
                a, b = find(node), find(other)
                parent[max(a, b)] = min(a, b)
    return {node: find(node) for node in range(start, stop)}


def _is_chain(problem: Problem, nodes: Sequence[int], start: int) -> bool:
    return all(
        [other for other in problem.preds[node] if other >= start and other != before] == []
        and (before < 0 or before in problem.preds[node])
        for before, node in zip((-1, *nodes), nodes, strict=False)
    )


def _signature(
    problem: Problem, weights: Sequence[int], nodes: Sequence[int], branch_of: dict[int, int]
) -> tuple[Any, ...]:
    """What two branches share if swapping them changes nothing."""
    place = {node: -1 - index for index, node in enumerate(nodes)}  # others keep their number

    def names(others: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted(place.get(other, other) for other in others))

    rows, nets = [], set[int]()
    for node in nodes:
        rows.append((int(weights[node]), names(problem.preds[node]), names(problem.succs[node])))
        nets.update((*problem.read[node], *problem.made[node]))
    private, shared = [], []
    for number in nets:
        net = problem.nets[number]
        touched = (net.producer, *net.readers)
        if any(other in branch_of and other not in place for other in touched):
            # With other branches: the same net must be read by the same places.
            if net.producer in place:
                return (nodes[0],)
            shared.append((number, names([node for node in net.readers if node in place])))
        else:
            private.append((net.bytes, place.get(net.producer, net.producer), names(net.readers)))
    return tuple(rows), tuple(sorted(private)), tuple(sorted(shared))
