"""Input cuts: what shards read of a request's tensors is cut out where the request arrives.

So a shard is sent its part instead of all. It takes an inline tensor: a function that fetches an object
does so by itself. And the part lies in few pieces: they are copied one by one, by a function that has
no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from slicewise.cost import Transport
from slicewise.graph import INPUT, TENSOR, Op, OpGraph, Tensor
from slicewise.passes.shards.boxes import Box, box
from slicewise.passes.shards.parts import Part
from slicewise.plan import InputCut

MOST_BYTES = 16_384  # of one number of each piece: 4,096 pieces of float32 take 1 ms


def is_cut_on_arrival(tensor: Tensor, box: Box, transport: Transport) -> bool:
    """Whether a box of a request's tensor is sent alone."""
    if not box:
        return False
    inner = [size for size in tensor.shape[box[-1].dim :] if isinstance(size, int)]
    is_known = len(inner) == len(tensor.shape) - box[-1].dim
    few = is_known and tensor.max_bytes <= MOST_BYTES * math.prod(inner)
    return few and transport.message_bytes is not None


def cut_on_arrival(
    graph: OpGraph, ops: Iterable[str], transport_of: Mapping[str, Transport]
) -> tuple[OpGraph, tuple[InputCut, ...]]:
    """The graph in which those of these ops (slices of tensors along one dimension) that cut a request's
    tensors are no ops: their results come with the request. An op may cut the result of one before it.
    `transport_of` is by input.
    """
    boxes: dict[str, tuple[str, Box]] = {}  # what ops cut: of which input
    for name in dict.fromkeys(ops):
        if name in graph.op and (cut := _cut(graph, graph.op[name], boxes)) is not None:
            boxes[graph.op[name].outputs[0]] = cut
    cutters = {graph.tensor[name].producer for name in boxes}
    cuts = [
        InputCut(tensor=name, source=source, ranges=tuple((p.dim, p.start, p.end) for p in found))
        for name, (source, found) in boxes.items()
        if is_cut_on_arrival(graph.tensor[source], found, transport_of[source])
        and not cutters.issuperset(graph.consumers[name])
    ]
    if not cuts:
        return graph, ()
    sent = {cut.tensor for cut in cuts}
    gone = set(sent)
    while True:  # and what is only read by those
        left = [op for op in graph.ops if gone.isdisjoint(op.outputs)]
        read = {name for op in left for name in op.inputs}
        unread = {name for name in boxes if name not in read} - gone
        if not unread:
            break
        gone |= unread
    return replace(
        graph,
        ops=tuple(left),
        tensors=tuple(
            replace(tensor, producer=INPUT) if tensor.name in sent else tensor
            for tensor in graph.tensors
            if tensor.name in sent or tensor.name not in gone
        ),
        inputs=(*graph.inputs, *(cut.tensor for cut in cuts)),
    ), tuple(cuts)


def _cut(graph: OpGraph, op: Op, boxes: Mapping[str, tuple[str, Box]]) -> tuple[str, Box] | None:
    """The input, and the box of it, that the op's result is."""
    given = dict(op.arguments)
    source = str(given.get("self"))
    if op.kind != "aten.slice.Tensor" or source[:1] != TENSOR or op.outputs[0] in graph.outputs:
        return None
    name, before = boxes.get(source[1:], (source[1:], ()))
    found = box((*before, Part(given["dim"], given["start"], given["end"])))
    if graph.tensor[name].producer != INPUT or given.get("step", 1) != 1 or found is None:
        return None
    return name, found
