"""Measure: what a shard computes, holds, receives and sends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from slicewise.graph import INPUT, Op, OpGraph
from slicewise.passes.shards.along import Share, results_of
from slicewise.passes.shards.boxes import Box, bytes_of, fraction
from slicewise.passes.shards.layout import Backwards, Layout, Steps
from slicewise.passes.shards.parts import shape_of
from slicewise.passes.shards.sums import sum_size


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPart:
    """What one shard does.

    `work` is by op the share of its time that the shard takes, halo included, so the shares of all
    shards add up to 1 or more. `memory_bytes` are weights and the peak of live activations, as of a
    slice. `received` and `sent` are by tensor of the unsharded graph the bytes that the shard gets (its
    part with halo, or all) and makes.
    """

    work: tuple[tuple[str, float], ...]
    weight_bytes: int
    memory_bytes: int
    received: tuple[tuple[str, int], ...]
    sent: tuple[tuple[str, int], ...]


def measure(graph: OpGraph, group: Sequence[Op], one: Layout, share: Share) -> ShardPart:
    """What the shard of this layout does."""
    work = {op.name: work_of(graph, op, one, share) for op in group}
    held = [(graph.weight[name], boxes) for name, boxes in one.held.items()]
    shares = [(weight, fraction(weight.shape, boxes)) for weight, boxes in held]
    memory = sum(math.ceil(weight.memory_bytes * part) for weight, part in shares)
    return ShardPart(
        work=tuple((name, amount) for name, amount in work.items() if amount),
        weight_bytes=sum(math.ceil(weight.bytes * part) for weight, part in shares),
        memory_bytes=memory + _peak(graph, group, one, work),
        received=tuple((n, bytes_of(graph.tensor[n], boxes)) for n, boxes in one.read.items()),
        sent=tuple(
            (name, bytes_of(graph.tensor[name], (box,))) for name, box in share.results.items()
        ),
    )


def work_of(graph: OpGraph, op: Op, one: Layout | Backwards, share: Share) -> float:
    """The largest share of what the shard computes of the op's results."""
    if share.partial and share.partial[0] == op.name:
        return share.partial[1].size / sum_size(graph, op)
    found = [0.0]
    for tensor in op.outputs:
        if tensor in one.made:
            boxes = one.made[tensor]
            found.append(
                sum(_done(graph, op, tensor, box, one.steps[tensor, box]) for box in boxes)
            )
    return max(found)


def _done(graph: OpGraph, op: Op, tensor: str, box: Box, steps: Steps) -> float:
    found, shape = 1.0, graph.tensor[tensor].shape
    for part, step in zip(box, steps, strict=False):
        if step.crop is None:
            found *= part.size / int(shape[part.dim])
        else:  # it computes more than it keeps: what it reads decides
            (name, index), read = step.reads[0]
            value = dict(op.arguments)[name]
            seen = shape_of(graph, value if index < 0 else value[index])
            found *= read.size / int(seen[read.dim])
    return found


def _peak(graph: OpGraph, group: Sequence[Op], one: Layout, work: Mapping[str, float]) -> int:
    """The peak of live activations of the shard."""
    tensors = []
    for name, boxes in (*one.read.items(), *one.made.items()):
        tensor = graph.tensor[name]
        producer = INPUT if name in one.read else tensor.producer
        size = bytes_of(tensor, boxes, most=True)
        tensors.append(replace(tensor, producer=producer, bytes=size, max_bytes=size))
    names = {tensor.name for tensor in tensors}
    ops = [
        replace(
            op,
            inputs=tuple(name for name in op.inputs if name in names),
            outputs=tuple(name for name in op.outputs if name in names),
            weights=(),
            memory_bytes=math.ceil(op.memory_bytes * work[op.name]),
        )
        for op in group
        if work[op.name]
    ]
    outputs = tuple(name for name in results_of(graph, group) if name in names)
    shard = OpGraph(name=graph.name, ops=tuple(ops), tensors=tuple(tensors), outputs=outputs)
    return shard.peak_activation_bytes(op.name for op in ops)
