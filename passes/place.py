"""Place: a partition becomes the plan's slices and edges, with stages, transports and memory sizes."""

from __future__ import annotations

from collections.abc import Mapping

from slicewise.graph import INPUT, OUTPUT, OpGraph
from slicewise.limits import Limits
from slicewise.passes import Partition
from slicewise.plan import Edge, Slice, TransportRule
from slicewise.target import Target


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
    edges = _edges(graph, partition, target, rule)
    stage = _stages(partition, producer)
    slices = tuple(
        Slice(
            name=part.name,
            stage=stage[part.name],
            ops=part.ops,
            weight_bytes=part.weight_bytes,
            peak_memory_bytes=target.estimate_memory(graph, part, rule),
            memory_mb=target.memory_mb(user_limits, limits, part.memory_bytes),
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
        sizes = {name: graph.tensor[name].bytes for name in names}
        callers = frozenset(
            name for name in names if sender == INPUT or consumers[name] == [OUTPUT]
        )
        chosen = target.choose_transports(sizes, rule, callers)
        for name in names:
            tensor = graph.tensor[name]
            transport, reason = chosen[name]
            edges += [
                Edge(
                    tensor=name,
                    dtype=tensor.dtype,
                    shape=tensor.shape,
                    bytes=tensor.bytes,
                    producer=sender,
                    consumer=consumer,
                    transport=transport,
                    reason=reason,
                )
                for consumer in consumers[name]
            ]
    return tuple(edges)
