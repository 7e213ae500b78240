"""Place: a partition becomes the plan's slices and edges, with stages, transports and memory sizes."""

from __future__ import annotations

from collections.abc import Mapping

from slicewise.graph import INPUT, OUTPUT, OpGraph
from slicewise.limits import Limits
from slicewise.passes import Partition
from slicewise.plan import Edge, Slice, TransportRule
from slicewise.target import Sent, Target


def place(
    graph: OpGraph,
    partition: Partition,
    target: Target,
    *,
    user_limits: Limits | None,
    limits: Limits,
    rule: TransportRule,
) -> tuple[tuple[Slice, ...], tuple[Edge, ...]]:
    """The slices and edges of a plan.

    Every tensor that a slice needs and does not produce is an edge; all edges of one tensor have one
    transport, because the producer sends it once. Raises `InfeasibleError` when a message cannot
    hold a tensor.
    """
    producer = {name: part.name for part in partition.slices for name in part.outputs}
    memory_mb = {
        part.name: target.memory_mb(user_limits, limits, part.memory_bytes)
        for part in partition.slices
    }
    edges = _edges(graph, partition, target, rule, memory_mb)
    stage = _stages(partition, producer)
    slices = tuple(
        Slice(
            name=part.name,
            stage=stage[part.name],
            ops=part.ops,
            weight_bytes=part.weight_bytes,
            peak_memory_bytes=target.estimate_memory(graph, part, rule),
            memory_mb=memory_mb[part.name],
            package_bytes=part.package_bytes,
            inputs=part.inputs,
            outputs=part.outputs,
            onnx=f"functions/{part.name}/model.onnx",
        )
        for part in partition.slices
    )
    return slices, edges


def _stages(partition: Partition, producer: Mapping[str, str]) -> dict[str, int]:
    """The longest path of slices before each one; slices come in a topological order."""
    stage: dict[str, int] = {}
    for part in partition.slices:
        before = {producer[name] for name in part.inputs if name in producer} - {part.name}
        stage[part.name] = 1 + max((stage[name] for name in before), default=-1)
    return stage


def _edges(
    graph: OpGraph,
    partition: Partition,
    target: Target,
    rule: TransportRule,
    memory_mb: Mapping[str, int],
) -> tuple[Edge, ...]:
    consumers: dict[str, list[str]] = {}
    for part in partition.slices:
        for name in part.inputs:
            consumers.setdefault(name, []).append(part.name)
    for name in graph.outputs:
        consumers.setdefault(name, []).append(OUTPUT)

    messages = {INPUT: [name for name in graph.inputs if name in consumers]}
    messages |= {part.name: list(part.outputs) for part in partition.slices}
    edges = []
    for sender, names in messages.items():
        message = [
            Sent(
                tensor=name,
                bytes=graph.tensor[name].bytes,
                sender_mb=memory_mb.get(sender),
                reader_mbs=tuple(memory_mb[c] for c in consumers[name] if c != OUTPUT),
                is_callers=sender == INPUT or consumers[name] == [OUTPUT],
            )
            for name in names
        ]
        chosen = target.choose_transports(message, rule)
        for name in names:
            tensor = graph.tensor[name]
            edges += [
                Edge(
                    tensor=name,
                    dtype=tensor.dtype,
                    shape=tensor.shape,
                    bytes=tensor.bytes,
                    producer=sender,
                    consumer=consumer,
                    transport=chosen[name].transport,
                    reason=chosen[name].reason,
                    choices=chosen[name].choices,
                )
                for consumer in consumers[name]
            ]
    return tuple(edges)
