"""Regions: parts of a graph whose slices could run at the same time, by the nodes between two prefixes.

*Branches* begin at any prefix: each node that could run next is the source of one, and a node belongs to
the branch that all its inputs (but those in the prefix) are from. A node that needs two branches joins
them and ends the region. So branches are independent, and the prefix with all of them is a prefix.

*Runs* are between boundaries: prefixes of the graph's order at which few tensors are live, so that what
is split into shards has one way in and one way out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slicewise.passes.joint.problem import JointProblem

MOST_REGIONS = 200
MOST_BOUNDARIES = 40
_SHORTEST_MS = 1.0  # a branch below that is no reason for another slice


@dataclass(frozen=True, slots=True)
class Region:
    """Independent branches after the prefix `first`, each a set of nodes; with them it is `last`."""

    first: int
    last: int
    branches: tuple[tuple[int, ...], ...]
    saved_ms: float


def regions(problem: JointProblem, prefixes: Iterable[int]) -> list[Region]:
    """The branches at these prefixes, where at least two take long; those that save most."""
    found = {}
    for first in prefixes:
        region = _region(problem, first)
        if region is not None:
            found[first] = region
    best = sorted(found.values(), key=lambda region: (-region.saved_ms, region.first))
    return best[:MOST_REGIONS]


def _region(problem: JointProblem, first: int) -> Region | None:
    graph = problem.graph
    branch_of: dict[int, int] = {}
    last = first
    for node in range(graph.size):
        if first >> node & 1:
            continue
        before = [other for other in graph.preds[node] if not first >> other & 1]
        if not before:
            branch_of[node] = node
        else:
            branches = {branch_of.get(other, -1) for other in before}
            if len(branches) > 1 or -1 in branches:
                continue  # a join, or after one
            branch_of[node] = branches.pop()
        last |= 1 << node
    members: dict[int, list[int]] = {}
    for node, branch in branch_of.items():
        members.setdefault(branch, []).append(node)
    times = sorted(
        (sum(problem.times[n] for n in nodes) for nodes in members.values()), reverse=True
    )
    if len(times) < 2 or times[1] < _SHORTEST_MS:
        return None
    return Region(first, last, tuple(map(tuple, members.values())), sum(times) - times[0])


def grouped(problem: JointProblem, region: Region, count: int) -> tuple[tuple[int, ...], ...]:
    """The branches in `count` groups of about equal time: the longest first, each to the shortest."""
    times = [sum(problem.times[node] for node in nodes) for nodes in region.branches]
    groups: list[list[int]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for index in sorted(range(len(times)), key=lambda i: -times[i]):
        least = loads.index(min(loads))
        groups[least] += region.branches[index]
        loads[least] += times[index]
    return tuple(tuple(sorted(nodes)) for nodes in groups if nodes)


def natural(problem: JointProblem) -> list[int]:
    """The prefixes of the nodes' own order."""
    return [(1 << count) - 1 for count in range(problem.graph.size + 1)]


def boundaries(problem: JointProblem) -> list[int]:
    """Prefixes with at most one live tensor that some slice made, both ends among them; where there are
    too many, those with the fewest bytes in every stretch of compute time.
    """
    links = [link for link in problem.links if link.producer >= 0]
    found: list[tuple[int, int]] = []
    for prefix in natural(problem):
        live = [
            link.bytes
            for link in links
            if prefix >> link.producer & 1 and not all(prefix >> n & 1 for n in link.readers)
        ]
        if len(live) <= 1:
            found.append((prefix, sum(live)))
    if len(found) > MOST_BOUNDARIES:
        found = _spread(problem.times, found)
    return [prefix for prefix, _ in found]


def _spread(times: Sequence[float], found: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    total = sum(times) or 1.0
    best: dict[int, tuple[int, int]] = {}
    for prefix, size in found[1:-1]:
        done = sum(time for node, time in enumerate(times) if prefix >> node & 1)
        stretch = int(done / total * (MOST_BOUNDARIES - 3))
        if stretch not in best or size < best[stretch][1]:
            best[stretch] = (prefix, size)
    return [found[0], *sorted(best.values()), found[-1]]
