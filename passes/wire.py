"""Wire: the bytes of tensors as they travel between slices."""

from __future__ import annotations

from dataclasses import replace

from slicewise.graph import INPUT, OpGraph
from slicewise.plan import TransportRule


def on_wire(graph: OpGraph, rule: TransportRule) -> OpGraph:
    """The graph whose tensors have the `bytes` that cross between slices; all else is as it was.

    With a `wire_dtype`, float32 takes half; tensors of the request and the reply travel as they are.
    `max_bytes` does not change: in memory tensors stay float32, and messages must hold one that
    travels as float32 because float16 does not hold its values. Compression is not counted: what it
    saves depends on the values.
    """
    if rule.wire_dtype is None:
        return graph
    callers = {*graph.outputs, *(t.name for t in graph.tensors if t.producer == INPUT)}
    return replace(
        graph,
        tensors=tuple(
            replace(tensor, bytes=tensor.bytes // 2)
            if tensor.dtype == "float32" and tensor.name not in callers
            else tensor
            for tensor in graph.tensors
        ),
    )
