"""Estimated compute times, from shapes alone: for models that are not run, and to share fused kernels.

An op takes what its arithmetic or what its memory traffic takes, whichever is longer (the roofline
model: Williams, Waterman, Patterson, CACM 2009). Arithmetic is counted by torch's own
`FlopCounterMode`, by running the op on meta tensors of the example's sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sympy
    import torch
    from torch import fx
    from torch.export import ExportedProgram

    from slicewise.graph import Op, OpGraph

# One thread of an AMD EPYC 7003 (2.45 GHz, AVX2) with onnxruntime 1.31, float32: see
# benchmarks/optimes.py --rates. AWS tells no speed of its vCPUs; theirs are of the same kind.
FLOPS_PER_MS = 90e6  # matrix products of 512 and convolutions of 64 channels and more
BYTES_PER_MS = 20e6  # an elementwise op on tensors larger than the caches
OP_MS = 0.002  # what ONNX Runtime takes to call a kernel that has nothing to do

# They read as much as they write of their first argument, however large it is.
_GATHERS = (
    "aten.embedding",
    "aten.index",
    "aten.gather",
    "aten.slice",
    "aten.select",
    "aten.narrow",
)
_RECURRENT = ("aten.lstm", "aten.gru", "aten.rnn")


def estimated(program: ExportedProgram, graph: OpGraph) -> dict[str, float]:
    """Milliseconds of every op at one full vCPU and the example's sizes; 0 for views alone."""
    from slicewise.sizes import sizes_of

    at = {symbol: dim.example for symbol, dim in sizes_of(program, {}).dims.items()}
    nodes = {node.name: node for node in program.graph.nodes}
    found = {}
    for op in graph.ops:
        arithmetic = flops(nodes[op.name], at) / FLOPS_PER_MS
        traffic = moved_bytes(graph, op) / BYTES_PER_MS
        found[op.name] = 0.0 if op.is_view else OP_MS + max(arithmetic, traffic)
    return found


def moved_bytes(graph: OpGraph, op: Op) -> int:
    """Bytes that an op reads and writes: inputs, outputs and weights."""
    written = sum(graph.tensor[name].bytes for name in op.outputs)
    read = [graph.tensor[name].bytes for name in op.inputs]
    read += [graph.weight[name].bytes for name in op.weights]
    if op.kind.startswith(_GATHERS):
        return written + sum(min(size, written) for size in read)
    return written + sum(read)


def flops(node: fx.Node, at: Mapping[sympy.Symbol, int]) -> int:
    """Floating-point operations of the matrix products in an op; an addition counts as one, and so
    does a multiplication. `at` has the sizes of dynamic dimensions.
    """
    import torch
    from torch import fx
    from torch.utils.flop_counter import FlopCounterMode

    def value_of(argument: fx.Node) -> Any:
        return _meta(argument.meta.get("val"), at)

    arguments = fx.map_arg(node.args, value_of)
    if str(node.target).startswith(_RECURRENT):
        return _recurrent(arguments)
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            node.target(*arguments, **fx.map_arg(node.kwargs, value_of))  # type: ignore[operator]
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return 0  # an op that has no form on meta tensors: its bytes decide
    return int(counter.get_total_flops())


def _recurrent(arguments: Any) -> int:
    """Every weight matrix meets every row of the sequence; torch would count step by step."""
    import torch

    sequence = arguments[0]
    weights = [t for part in arguments[1:] if isinstance(part, (list, tuple)) for t in part]
    matrices = [t for t in weights if isinstance(t, torch.Tensor) and t.dim() == 2]
    rows = math.prod(sequence.shape[:-1])
    return int(2 * rows * sum(matrix.numel() for matrix in matrices))


def _meta(value: Any, at: Mapping[sympy.Symbol, int]) -> Any:
    """`value` as it is for the example, without its numbers."""
    import torch

    if isinstance(value, torch.Tensor):
        shape = [_size(size, at) for size in value.shape]
        return torch.empty(shape, dtype=value.dtype, device="meta")
    if isinstance(value, (tuple, list)):
        return type(value)(_meta(part, at) for part in value)
    return _size(value, at) if isinstance(value, torch.SymInt) else value


def _size(size: int | torch.SymInt, at: Mapping[sympy.Symbol, int]) -> int:
    from slicewise.sizes import expression

    return size if isinstance(size, int) else int(expression(size).subs(at))
