"""The joint problem: nodes with compute times, and *links*: tensors with the ways that they may travel.

A node is a set of ops that one slice runs together. Contraction: a node with one predecessor, no
weights but that one's, and outputs no larger than what it alone is sent, stays with its predecessor.
Any plan that separates them turns into one that does not: the predecessor's slice sends the outputs
instead, its readers receive less or the same, and no weight moves. At equal speed of both slices this
costs no time; where their memory sizes differ, or one has some of its first quota left (see
`slicewise.cost`), the node's own compute (of ops without weights) may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slicewise.cost import CostModel, Transport
from slicewise.errors import InfeasibleError
from slicewise.passes.partitioning.ground import Ground
from slicewise.passes.partitioning.problem import Problem
from slicewise.passes.partitioning.recompute import relaxation, sources_of
from slicewise.passes.partitioning.reduce import quotient

CALLER_MB = (192, 256, 384, 512, 1024, 1769)  # sizes of the caller that are tried
_SMALL = 64  # tensors of this part of a message always find room in it


@dataclass(frozen=True, slots=True)
class Link:
    """A tensor that a slice may receive: `producer` is a node, or -1 for the request's tensors.

    `bytes` are those of the example. `ways` index the transports that it may take, one for
    the request's tensors. `is_sent` says that it leaves its slice in any case, in the reply.
    """

    tensor: int
    bytes: int
    producer: int
    readers: tuple[int, ...]
    ways: tuple[int, ...]
    is_sent: bool = False


@dataclass(frozen=True)
class JointProblem:
    """Nodes in topological order with `times` (ms at one vCPU) and links; `graph` has their loads and
    caps. `leaves[v]` are (bytes, way) of every tensor of the reply that node v makes.
    """

    graph: Problem
    times: tuple[float, ...]
    links: tuple[Link, ...]
    leaves: tuple[tuple[tuple[int, int], ...], ...]


def joint_problem(
    base: Ground, model: CostModel, allowed: Sequence[str], *, free: Sequence[int] = ()
) -> JointProblem:
    """The problem of a graph; cheap ops run where they are needed (see `recompute`).

    What the ops `free` make crosses for nothing: a lower bound for plans that run them again.
    """
    graph = relaxation(base)
    sources = sources_of(base)
    node_of = {op: node for node, (op,) in enumerate(graph.ops)}
    readers: dict[int, dict[int, None]] = {}
    for op, node in node_of.items():
        for tensor in base.reads[op]:
            for source in sources[tensor]:
                readers.setdefault(source, {})[node] = None
    leader = _leaders(base, graph, node_of, readers)
    coarse = quotient(graph, leader)
    group_of = {op: node for node, ops in enumerate(coarse.ops) for op in ops}
    links = []
    for tensor, nodes in readers.items():
        maker = base.producer[tensor]
        if maker in free:
            continue
        producer = group_of[maker] if maker >= 0 else -1
        groups = sorted({group_of[graph.ops[node][0]] for node in nodes} - {producer})
        if groups:
            ways = _ways(model, allowed, base.cost[tensor])
            first = ways[:1] if producer < 0 or base.leaves[tensor] else ways
            links.append(
                Link(
                    tensor, base.cost[tensor], producer, tuple(groups), first,
                    producer >= 0 and base.leaves[tensor],
                )
            )  # fmt: skip
    return JointProblem(
        graph=coarse,
        times=tuple(sum(base.graph.ops[op].time for op in ops) for ops in coarse.ops),
        links=tuple(links),
        leaves=tuple(
            tuple(
                (base.cost[t], _way_out(model, allowed, base, t))
                for op in ops
                for t in base.makes[op]
                if base.leaves[t]
            )
            for ops in coarse.ops
        ),
    )


def _ways(model: CostModel, allowed: Sequence[str], size: int) -> tuple[int, ...]:
    """The transports that may carry so many bytes and that no other one beats, by number."""
    found = [
        index
        for index, transport in enumerate(model.transports)
        if transport.name in allowed
        and (transport.max_bytes is None or size <= transport.max_bytes)
    ]
    return tuple(
        index
        for index in found
        if not any(
            _beats(model, model.transports[other], model.transports[index], size)
            and (other < index or not _beats(model, *_pair(model, index, other), size))
            for other in found
            if other != index
        )
    )


def _way_out(model: CostModel, allowed: Sequence[str], base: Ground, tensor: int) -> int:
    """How a tensor of the reply travels: in it if it fits."""
    ways = _ways(model, allowed, base.cost[tensor])
    if not ways:
        name, size = base.graph.tensors[tensor].name, base.cost[tensor]
        raise InfeasibleError(
            f"the output {name} ({size:,} bytes) fits no message, and no other transport is allowed. "
            "Allow the transport 's3'.",
            limit_name="payload_bytes",
            needed=size,
        )
    return ways[0]


def _pair(model: CostModel, one: int, other: int) -> tuple[Transport, Transport]:
    return model.transports[one], model.transports[other]


def _beats(model: CostModel, one: Transport, other: Transport, size: int) -> bool:
    """Whether the other transport is worse for a tensor whatever else crosses with it.

    First bytes may be waited for together, so the other's count nothing and this one's count. A
    millisecond in a slice costs no less than one in the caller, whose share may be small.
    """
    if one.message_bytes is not None and size > one.message_bytes // _SMALL:
        return False  # there may be no room for it
    slow = model.steady_share(min(CALLER_MB))

    def beats(in_slice: str, in_caller: str) -> bool:
        mine, theirs = one.step(in_slice), other.step(in_slice)
        passing, passing_there = one.step(in_caller), other.step(in_caller)
        waiting = mine.wait_ms if mine.wait_ms > theirs.wait_ms else 0.0
        mine_ms = waiting + mine.transfer(size) + passing.transfer(size) + passing.cpu(size) / slow
        spare = theirs.cpu(size) - mine.cpu(size)
        theirs_ms = theirs.transfer(size) + passing_there.transfer(size) + passing_there.cpu(size)
        return spare >= 0 and mine_ms <= theirs_ms + spare

    return (
        beats("send", "collect")
        and beats("receive", "pass_on")
        and one.send_usd + one.send_byte_usd * size <= other.send_usd + other.send_byte_usd * size
        and one.receive_usd + one.receive_byte_usd * size
        <= other.receive_usd + other.receive_byte_usd * size
    )


def _leaders(
    base: Ground, graph: Problem, node_of: dict[int, int], readers: dict[int, dict[int, None]]
) -> list[int]:
    """For every node the one that it stays with."""
    leader = list(range(graph.size))
    held = [set(loads) for loads in graph.held]
    read: list[list[int]] = [[] for _ in leader]
    made: list[list[int]] = [[] for _ in leader]
    for tensor, nodes in readers.items():
        for node in nodes:
            read[node].append(tensor)
        if base.producer[tensor] >= 0:
            made[node_of[base.producer[tensor]]].append(tensor)
    for node in range(graph.size):
        before = {leader[other] for other in graph.preds[node]}
        if len(before) != 1:
            continue
        (kept,) = before
        if not set(graph.held[node]) <= held[kept]:
            continue
        from_request = [t for t in read[node] if base.producer[t] < 0]
        if any(len(readers[t]) > 1 and kept not in {leader[n] for n in readers[t]}
               for t in from_request):  # fmt: skip
            continue
        saved = [base.cost[t] for t in read[node] if base.producer[t] >= 0
                 and {leader[n] for n in readers[t]} - {kept} == {node}
                 and not base.leaves[t]]  # fmt: skip
        added = [base.cost[t] for t in made[node]]
        saved.sort(reverse=True)
        added.sort(reverse=True)
        if len(added) <= len(saved) and all(a <= s for a, s in zip(added, saved, strict=False)):
            leader[node] = kept
    return leader
