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
from slicewise.plan import InputCut

MOST_BYTES = 16_384  # of one number of each piece: 4,096 pieces of float32 take 1 ms


def is_cut_on_arrival(tensor: Tensor, dim: int, transport: Transport) -> bool:
    """Whether a part of a request's tensor along this dimension is sent alone."""
    inner = [size for size in tensor.shape[dim:] if isinstance(size, int)]
    is_known = len(inner) == len(tensor.shape) - dim
    few = is_known and tensor.max_bytes <= MOST_BYTES * math.prod(inner)
    return few and transport.message_bytes is not None


def cut_on_arrival(
    graph: OpGraph, ops: Iterable[str], transport_of: Mapping[str, Transport]
) -> tuple[OpGraph, tuple[InputCut, ...]]:
    """The graph in which those of these ops (slices of tensors along one dimension) that cut a request's
    tensors are no ops: their results come with the request. `transport_of` is by input.
    """
    cuts = [
        cut
        for name in dict.fromkeys(ops)
        if name in graph.op and (cut := _cut(graph, graph.op[name], transport_of)) is not None
    ]
    if not cuts:
        return graph, ()
    gone = {cut.tensor for cut in cuts}
    return replace(
        graph,
        ops=tuple(op for op in graph.ops if gone.isdisjoint(op.outputs)),
        tensors=tuple(
            replace(tensor, producer=INPUT) if tensor.name in gone else tensor
            for tensor in graph.tensors
        ),
        inputs=(*graph.inputs, *(cut.tensor for cut in cuts)),
    ), tuple(cuts)


def _cut(graph: OpGraph, op: Op, transport_of: Mapping[str, Transport]) -> InputCut | None:
    given = dict(op.arguments)
    source = str(given.get("self"))
    if op.kind != "aten.slice.Tensor" or source[:1] != TENSOR or op.outputs[0] in graph.outputs:
        return None
    tensor = graph.tensor[source[1:]]
    dim, start, end = given["dim"], given["start"], given["end"]
    if tensor.producer != INPUT or given.get("step", 1) != 1:
        return None
    if not is_cut_on_arrival(tensor, dim, transport_of[tensor.name]):
        return None
    return InputCut(tensor=op.outputs[0], source=tensor.name, dim=dim, start=start, end=end)
