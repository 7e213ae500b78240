"""What an ideal of a wide graph cuts at least, by its weight.

An *ideal* is a set of nodes closed under predecessors. Take some nodes, the *spine*, in topological
order. An ideal has a first missing one: it holds all ancestors of the spine before that, and none of
its descendants. Between these two sets a minimum cut with a price on weight is a Lagrangian bound: with
r >= 0 per byte of weight and F = min over ideals I of cut(I) + r w(I), an ideal of weight w cuts at
least F - r w; r < 0 likewise. For every weight the best price counts, and the least of the first
missing nodes. Nodes that little depends on are no good spine, since almost everything else may be
inside without them: they are left to the minimum cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slicewise.passes.partitioning.problem import Problem

Array = NDArray[Any]

MOST_NODES = 2_000  # their ancestors and descendants are a square matrix
NEVER = 1 << 61
_MOST_SPINE = 500
_DEEP = 0.25  # of a cap must depend on a node of the spine


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow network whose minimum cuts are the ideals that hold `inside` and perhaps `free` nodes.

    The first arcs are those of `nets`, then come two per free node: to be missing and to be inside.
    `low` and `high` are the weights of the smallest and the largest of these ideals.
    """

    network: Any
    nets: Array
    inside: Array
    free: Array
    weights: Array
    low: int
    high: int


def flows(problem: Problem, weights: Array, cap: int) -> list[Flow]:
    """The networks of all first missing nodes of a spine: every ideal is one of some network."""
    below = np.eye(problem.size, dtype=bool)
    for node in range(problem.size - 1, -1, -1):
        for other in problem.succs[node]:
            below[node] |= below[other]
    rest = below @ weights  # weight of a node and all that depends on it
    middle = weights @ below - rest  # goes up along edges, like the weights at which a node may run
    order = sorted(range(problem.size), key=lambda node: (int(middle[node]), node))
    spine = [node for node in order if rest[node] >= cap * _DEEP]
    spine = spine[:: 1 + len(spine) // _MOST_SPINE]
    inside = np.zeros(problem.size, dtype=bool)
    found = []
    for node in spine:
        found.append(_flow(problem, weights, inside, below[node]))
        inside = inside | below[:, node]
    found.append(_flow(problem, weights, inside, np.zeros(problem.size, dtype=bool)))
    return found


def _flow(problem: Problem, weights: Array, inside: Array, outside: Array) -> Flow:
    """The network of the ideals that hold `inside` and nothing of `outside`."""
    from ortools.graph.python import max_flow

    source, sink = 0, 1
    free = np.flatnonzero(~inside & ~outside)
    number = {node: index for index, node in enumerate(free.tolist(), start=2)}
    nets = [
        index
        for index, net in enumerate(problem.nets)
        if not outside[net.producer] and not all(inside[v] for v in net.readers)
    ]
    endless = 1 << 52
    arcs = [
        (number.get(problem.nets[net].producer, source), end, 0)
        for end, net in enumerate(nets, start=2 + len(number))
    ]
    arcs += [(source, index, 0) for index in number.values()]
    arcs += [(index, sink, 0) for index in number.values()]
    for end, net in enumerate(nets, start=2 + len(number)):
        readers = {number.get(v, sink) for v in problem.nets[net].readers if not inside[v]}
        arcs += [(end, reader, endless) for reader in sorted(readers)]
    for node, index in number.items():
        arcs += [(index, number[v], endless) for v in problem.preds[node] if v in number]
    network = max_flow.SimpleMaxFlow()
    if arcs:
        network.add_arcs_with_capacity(*np.array(arcs).T)
    low = int(weights[inside].sum())
    held = weights[free]
    high = low + int(held.sum())
    return Flow(network, np.array(nets, dtype=np.int64), inside, free, held, low, high)


def least_cuts(
    flow: Flow, amounts: Array, rates: Sequence[float], span: tuple[int, int, int], most: int
) -> tuple[Array, float]:
    """What ideals cut at least in every bucket of weights of `span` (first, last, width), or `most`.

    `amounts` are the bytes of the nets, `rates` the prices to try. With the price that decides the
    bucket of the least; what no price bounds is negative.
    """
    first, last, width = span
    starts = np.arange(first, last) * width
    light = np.clip(starts, flow.low, flow.high) - flow.low
    heavy = np.clip(starts + width - 1, flow.low, flow.high) - flow.low
    found = np.full(last - first, -NEVER)
    decisive = np.zeros(last - first)
    for rate in rates:
        flown = cheapest(flow, amounts, rate)
        if flown == 0:
            continue
        spent = rate * heavy if rate > 0 else rate * (light - (flow.high - flow.low))
        # Prices are whole numbers, rounded down; a byte is for the rounding here.
        proven = np.floor(flown - spent).astype(np.int64) - (rate != 0)
        decisive[proven > found] = rate
        np.maximum(found, proven, out=found)
        if found.min() >= most:
            break
    return found, float(decisive[found.argmin()])


def cheapest(flow: Flow, amounts: Array, rate: float) -> int:
    """The least that is live and paid: for what is inside, or for what is missing if below 0."""
    nets, free = len(flow.nets), len(flow.free)
    if nets == 0:
        return 0
    prices = np.floor(abs(rate) * flow.weights).astype(np.int64)
    none = np.zeros(free, dtype=np.int64)
    missing, inside = (none, prices) if rate > 0 else (prices, none)
    flow.network.set_arcs_capacity(
        np.arange(nets + 2 * free), np.concatenate((amounts[flow.nets], missing, inside))
    )
    flow.network.solve(0, 1)
    return int(flow.network.optimal_flow())


def live_nets(problem: Problem, flow: Flow, amounts: Array, rate: float) -> Array:
    """Which nets are live at an ideal that is `cheapest`."""
    ideal = flow.inside.copy()
    if len(flow.nets):
        cheapest(flow, amounts, rate)
        side = np.array(flow.network.get_source_side_min_cut()) - 2
        ideal[flow.free[side[(side >= 0) & (side < len(flow.free))]]] = True
    inside = ideal.tolist()
    return np.array(
        [inside[net.producer] and not all(inside[v] for v in net.readers) for net in problem.nets]
    )
