"""Prefixes worth cutting at, where a graph has too many to look at all: those with few bytes live."""

from __future__ import annotations

from collections.abc import Set

from slicewise.cost import CostModel
from slicewise.passes.joint.pairs import Pairs, build_pairs
from slicewise.passes.joint.problem import JointProblem
from slicewise.passes.partitioning.ground import Ground
from slicewise.passes.partitioning.order import orders

_MOST = 400  # prefixes to keep at first; fewer when their pairs are too many


def few_prefixes(
    base: Ground,
    problem: JointProblem,
    model: CostModel,
    deadline: float,
    also: Set[int] = frozenset(),
) -> tuple[Pairs | None, int]:
    """The pairs between the prefixes of some topological orders and those of `also`, and how many
    prefixes those are.
    """
    ranked = _ranked(problem)
    most = _MOST
    while most > 2:
        chosen = sorted({*_spread(problem, ranked, most), *also})
        pairs = build_pairs(base, problem, model, chosen, deadline)
        if pairs is not None:
            return pairs, len(chosen)
        most //= 2
    return None, 0


def _ranked(problem: JointProblem) -> dict[int, int]:
    """Bytes live at every prefix of every order."""
    found: dict[int, int] = {}
    for order in orders(problem.graph):
        left = [len(link.readers) for link in problem.links]
        made: list[list[int]] = [[] for _ in range(problem.graph.size)]
        read: list[list[int]] = [[] for _ in range(problem.graph.size)]
        for index, link in enumerate(problem.links):
            if link.producer >= 0:
                made[link.producer].append(index)
            for node in link.readers:
                read[node].append(index)
        bits = live = 0
        found[0] = 0
        for node in order:
            bits |= 1 << node
            live += sum(problem.links[index].bytes for index in made[node])
            for index in read[node]:
                left[index] -= 1
                if not left[index] and problem.links[index].producer >= 0:
                    live -= problem.links[index].bytes
            found[bits] = live
    return found


def _spread(problem: JointProblem, ranked: dict[int, int], most: int) -> list[int]:
    """The ends, and in every stretch of the graph the prefixes with the fewest live bytes."""
    size = problem.graph.size
    stretches = max(1, most // 8)
    groups: dict[int, list[int]] = {}
    for bits in ranked:
        groups.setdefault(bits.bit_count() * stretches // (size + 1), []).append(bits)
    chosen = {0, (1 << size) - 1}
    for group in groups.values():
        group.sort(key=lambda bits: (ranked[bits], bits))
        chosen.update(group[: max(1, most // stretches)])
    return sorted(chosen)
