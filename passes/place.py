"""Place: a partition becomes the plan's slices and edges, with stages, transports and memory sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slicewise.cost import CostModel
from slicewise.graph import INPUT, OUTPUT, OpGraph
from slicewise.modules import modules_of
from slicewise.passes import Partition
from slicewise.plan import Edge, Slice, TransportRule
from slicewise.target import Packed, Sent, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What was decided of a partition's functions: memory by slice, the cost model with the caller's
    memory, and the transports of tensors where they were chosen with the cut. `usd_weight` is what a
    US dollar counts, in ms. `shards` tells of slices that are shards what `Slice.shard` says.
    """

    memory_mb: Mapping[str, int]
    model: CostModel
    transports: Mapping[str, str] = field(default_factory=dict)
    usd_weight: float = 0.0
    shards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def place(
    graph: OpGraph,
    partition: Partition,
    target: Target,
    settings: Settings,
    packed: Mapping[str, Packed],
    *,
    rule: TransportRule,
) -> tuple[tuple[Slice, ...], tuple[Edge, ...]]:
    """The slices and edges of a plan.

    Every tensor that a slice needs and does not produce is an edge; all edges of one tensor have one
    transport, because the producer sends it once. Raises `InfeasibleError` when a message cannot
    hold a tensor.
    """
    producer = {name: part.name for part in partition.slices for name in part.outputs}
    edges = _edges(graph, partition, target, rule, settings)
    stage = _stages(partition, producer)
    slices = tuple(
        Slice(
            name=part.name,
            stage=stage[part.name],
            ops=part.ops,
            weight_bytes=part.weight_bytes,
            peak_memory_bytes=max(
                target.estimate_memory(graph, part, edges, rule),
                packed[part.name].memory_bytes,
            ),
            memory_mb=settings.memory_mb[part.name],
            package_bytes=packed[part.name].package_bytes,
            packaging=packed[part.name].packaging,
            inputs=part.inputs,
            outputs=part.outputs,
            onnx=f"functions/{part.name}/model.onnx",
            modules=modules_of(graph, part.ops),
            shard=settings.shards.get(part.name),
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
    settings: Settings,
) -> tuple[Edge, ...]:
    memory_mb = settings.memory_mb
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
                wanted=settings.transports.get(name) if sender != INPUT else None,
            )
            for name in names
        ]
        chosen = target.choose_transports(message, rule, settings.model, settings.usd_weight)
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
                    module=graph.op[tensor.producer].module if sender != INPUT else "",
                    prices=chosen[name].prices,
                )
                for consumer in consumers[name]
            ]
    return tuple(edges)
