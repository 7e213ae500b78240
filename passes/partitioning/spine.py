"""What an ideal of a wide graph cuts at least, by its weight.

An *ideal* is a set of nodes closed under predecessors. Take some nodes, the *spine*, in topological
order. An ideal has a first missing one: it holds all ancestors of the spine before that, and none of
its descendants. Between these two sets a minimum cut with a price on weight is a Lagrangian bound: with
r >= 0 per byte of weight and F = min over ideals I of cut(I) + r w(I), an ideal of weight w cuts at
least F - r w; r < 0 likewise. For every weight the best price counts, and the least of the first
missing nodes. Nodes that little depends on are no good spine, since almost everything else may be
inside without them: they are left to the minimum cut. Nothing here asks for all nodes, or for good
ones: a spine of few nodes only leaves more to each minimum cut. So large graphs have a sparse one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slicewise.passes.partitioning.problem import Problem

Array = NDArray[Any]

NEVER = 1 << 61
_MOST_TRIED = 2_000  # nodes for the spine
_MOST_BITS = 40_000_000  # those times nodes of the graph
_MOST_SPINE = 500
_MOST_FREE = 4_000_000  # those times nodes of the graph
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


@dataclass(frozen=True, slots=True)
class Links:
    """The pairs of a problem as columns: nets and their readers, nodes and what they depend on."""

    producers: Array
    read: Array
    readers: Array
    nodes: Array
    preds: Array


def links_of(problem: Problem) -> Links:
    """The links of a problem."""
    nets, succs = problem.nets, problem.succs
    return Links(
        producers=np.array([net.producer for net in nets], dtype=np.int64),
        read=np.repeat(np.arange(len(nets)), [len(net.readers) for net in nets]),
        readers=np.array([v for net in nets for v in net.readers], dtype=np.int64),
        nodes=np.array([v for after in succs for v in after], dtype=np.int64),
        preds=np.repeat(np.arange(problem.size), [len(after) for after in succs]),
    )


def flows(
    problem: Problem, links: Links, weights: Array, cap: int
) -> tuple[list[Flow], tuple[Array, Array]]:
    """The networks of all first missing nodes of a spine: every ideal is one of some network.

    With the weights of ideals from which on and up to which nets may be live, estimated.
    """
    most = min(_MOST_TRIED, 1 + _MOST_BITS // problem.size)
    tried = np.arange(0, problem.size, 1 + problem.size // most)
    below = _reached(problem.preds, tried, range(problem.size))
    above = _reached(problem.succs, tried, range(problem.size - 1, -1, -1))
    rest = np.array([weights[row].sum() for row in below])
    # Goes up along edges, like the weights at which a node may run.
    middle = np.array([weights[row].sum() for row in above]) - rest
    order = np.lexsort((tried, middle))
    order = order[rest[order] >= cap * _DEEP]
    most = min(_MOST_SPINE, 1 + _MOST_FREE // problem.size)
    order = order[:: 1 + len(order) // most]
    needed = [len(order)] * problem.size  # by the first of the spine that depends on it, or is it
    for index, node in enumerate(tried[order].tolist()):
        needed[node] = index
    for node in range(problem.size - 1, -1, -1):
        needed[node] = min((needed[node], *(needed[v] for v in problem.succs[node])))
    first, nothing = np.array(needed), np.zeros(problem.size, dtype=bool)
    found = [_flow(links, weights, first < k, below[node]) for k, node in enumerate(order)]
    found.append(_flow(links, weights, first < len(order), nothing))
    return found, _spans(links, weights, tried, below, above)


def _spans(
    links: Links, weights: Array, tried: Array, below: Array, above: Array
) -> tuple[Array, Array]:
    """For every net the weight that its producer needs, and the most there is without a reader.

    Estimated from the nodes `tried`.
    """
    part = weights.sum() / max(1, weights[tried].sum())
    needs, frees = np.zeros(len(weights)), np.zeros(len(weights))
    for node, after, before in zip(tried, below, above, strict=True):
        needs += weights[node] * part * after
        frees += weights[node] * part * before
    last = np.zeros(len(links.producers))
    np.maximum.at(last, links.read, weights.sum() - frees[links.readers])
    return needs[links.producers], last


def _reached(before: Sequence[Sequence[int]], starts: Array, order: Sequence[int]) -> Array:
    """For each of `starts` a row of the nodes that it reaches; `before` are those one step back."""
    bits = np.zeros((len(before), -(-len(starts) // 64)), dtype=np.uint64)
    index = np.arange(len(starts))
    bits[starts, index // 64] = np.uint64(1) << (index % 64).astype(np.uint64)
    for node in order:
        for other in before[node]:
            bits[node] |= bits[other]
    rows = np.unpackbits(bits.view(np.uint8), axis=1, count=len(starts), bitorder="little")
    return np.ascontiguousarray(rows.T).view(bool)


def _flow(links: Links, weights: Array, inside: Array, outside: Array) -> Flow:
    """The network of the ideals that hold `inside` and nothing of `outside`."""
    from ortools.graph.python import max_flow

    source, sink = 0, 1
    free = np.flatnonzero(~inside & ~outside)
    number = np.where(inside, source, sink)
    number[free] = 2 + np.arange(len(free))
    missing = ~inside[links.readers]
    cuttable = np.zeros(len(links.producers), dtype=bool)
    cuttable[links.read[missing]] = True
    nets = np.flatnonzero(cuttable & ~outside[links.producers])
    end = np.zeros(len(links.producers), dtype=np.int64)
    end[nets] = 2 + len(free) + np.arange(len(nets))
    missing &= end[links.read] > 0
    kept = (number[links.nodes] > 1) & (number[links.preds] > 1)
    priced = number[free]
    tails = (number[links.producers[nets]], np.full(len(free), source), priced)
    heads = (end[nets], priced, np.full(len(free), sink))
    network = max_flow.SimpleMaxFlow()
    if len(nets) + len(free):
        network.add_arcs_with_capacity(
            np.concatenate((*tails, end[links.read[missing]], number[links.nodes[kept]])),
            np.concatenate((*heads, number[links.readers[missing]], number[links.preds[kept]])),
            np.repeat((0, 1 << 52), (len(nets) + 2 * len(free), missing.sum() + kept.sum())),
        )
    low = int(weights[inside].sum())
    held = weights[free]
    high = low + int(held.sum())
    return Flow(network, nets, inside, free, held, low, high)


def least_cuts(
    flow: Flow,
    amounts: Array,
    rates: Sequence[float],
    span: tuple[int, int, int],
    most: int,
    begin: int,
) -> tuple[Array, int]:
    """What ideals cut at least in every bucket of weights of `span` (first, last, width), or `most`.

    `amounts` are the bytes of the nets, `rates` the prices, which go up, `begin` the index of the first
    to try. What a price proves of a bucket is concave in the price. So a price that is better than its
    neighbours is the best for the bucket of the least, and others are not tried; for other buckets
    they may prove more. With the index of that price; what no price bounds is negative.
    """
    first, last, width = span
    starts = np.arange(first, last) * width
    light = np.clip(starts, flow.low, flow.high) - flow.low
    heavy = np.clip(starts + width - 1, flow.low, flow.high) - flow.low
    found = np.full(last - first, -NEVER)
    decisive = np.full(last - first, begin)
    left = set(range(len(rates)))
    index: int | None = begin
    while index is not None:
        left.discard(index)
        rate = rates[index]
        flown = cheapest(flow, amounts, rate)
        if flown:
            spent = rate * heavy if rate > 0 else rate * (light - (flow.high - flow.low))
            # Prices are whole numbers, rounded down; a byte is for the rounding here.
            proven = np.floor(flown - spent).astype(np.int64) - (rate != 0)
            decisive[proven > found] = index
            np.maximum(found, proven, out=found)
        least = int(found.argmin())
        if found[least] >= most:
            break
        at = int(decisive[least])
        index = next((other for other in (at + 1, at - 1) if other in left), None)
    return found, int(decisive[found.argmin()])


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


def live_nets(links: Links, flow: Flow, amounts: Array, rate: float) -> Array:
    """Which nets are live at an ideal that is `cheapest`."""
    ideal = flow.inside.copy()
    if len(flow.nets):
        cheapest(flow, amounts, rate)
        side = np.array(flow.network.get_source_side_min_cut()) - 2
        ideal[flow.free[side[(side >= 0) & (side < len(flow.free))]]] = True
    read = np.zeros(len(amounts), dtype=bool)
    read[links.read[~ideal[links.readers]]] = True
    return np.flatnonzero(read & ideal[links.producers])
