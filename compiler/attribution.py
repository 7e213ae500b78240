"""Attribution: which ops of the graph a kernel of ONNX Runtime computes, and their shares of its time.

It follows from names. A kernel bears the name of an ONNX node of the converted model or produces one of
its values; from there it reaches back to what other kernels produce, or to the first node of its own
type. Several ops that one kernel computes (convolution, normalisation and activation) share its time
as their estimates do. A change of layout that ONNX Runtime inserted belongs to what reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from slicewise.graph import OpGraph

if TYPE_CHECKING:
    import onnx_ir

    from slicewise.codegen.convert import Converted


def spread(
    kernels: Mapping[str, float],
    computes: Mapping[str, Collection[str]],
    estimates: Mapping[str, float],
    total: float,
) -> dict[str, float]:
    """The times of `kernels` as times of the ops that each `computes`, adding up to `total`.

    Raises `ValueError` when no time belongs to any op, or there is none.
    """
    ms = dict.fromkeys(estimates, 0.0)
    for kernel, ops in computes.items():
        weights = {op: estimates[op] for op in ops}
        whole = sum(weights.values())
        for op, weight in weights.items():
            share = weight / whole if whole else 1 / len(weights)
            ms[op] += kernels.get(kernel, 0.0) * share
    attributed = sum(ms.values())
    if not (attributed > 0 and total > 0):
        raise ValueError(f"kernels of known ops took {attributed} ms of a run of {total} ms")
    return {op: time * total / attributed for op, time in ms.items()}


def attribution(
    optimised: onnx_ir.Graph, converted: Converted, graph: OpGraph
) -> dict[str, tuple[str, ...]]:
    """Kernel name -> the ops of `graph` that it computes, for kernels that compute any.

    `optimised` is the graph that ONNX Runtime runs. An op that no kernel reaches but that does work
    was fused into the kernel of its input.
    """
    nodes = list(converted.model.graph)
    by_name = {node.name: node for node in nodes}
    by_value = {value.name: node for node in nodes for value in node.outputs if value.name}
    op_of = _ops_of_nodes(converted, graph)
    named: dict[str, onnx_ir.Node] = {}
    ends: dict[str, list[onnx_ir.Node]] = {}
    for kernel in optimised:
        name = kernel.name or ""
        ends[name] = [by_value[value.name] for value in kernel.outputs if value.name in by_value]
        # Where the output has a new name, the kernel's own tells: "<node>/<fusion>", "<value>_nchwc".
        own = by_name.get(name.partition("/")[0]) or by_value.get(name.removesuffix("_nchwc"))
        if own is not None:
            named[name] = own
    anchored = {*named.values(), *(node for each in ends.values() for node in each)}
    computed = set(named.values())
    computes = {}
    for kernel in optimised:
        name = kernel.name or ""
        starts = [*ends[name], *([named[name]] if name in named else [])]
        # A kernel without such a name only turns the layout of what another one has computed.
        done = set() if name in named else computed
        covered = _covered(kernel.op_type, starts, anchored, done)
        ops = [op_of[node] for node in covered if node in op_of]
        if name and ops:
            computes[name] = tuple(dict.fromkeys(ops))
    return _with_fused(_with_inserted(computes, optimised), graph)


def _covered(
    op_type: str,
    ends: Iterable[onnx_ir.Node],
    anchored: Collection[onnx_ir.Node],
    done: Collection[onnx_ir.Node],
) -> list[onnx_ir.Node]:
    """The nodes from `ends` back to the first of this type or of `done`, or to `anchored` ones."""
    waiting, covered = list(ends), {}
    while waiting:
        node = waiting.pop()
        covered[node] = True
        if node in done or node.op_type == op_type.removeprefix("Fused"):
            continue
        for value in node.inputs:
            source = value.producer() if value is not None else None
            if source is not None and source not in anchored and source not in covered:
                waiting.append(source)
    return list(covered)


def _with_inserted(
    computes: Mapping[str, tuple[str, ...]], optimised: onnx_ir.Graph
) -> dict[str, tuple[str, ...]]:
    """With kernels that ONNX Runtime inserted (changes of layout) as part of what reads them."""
    found = dict(computes)
    for kernel in reversed(list(optimised)):
        readers = [reader.name for value in kernel.outputs for reader in value.consumers()]
        known = [found[name] for name in readers if name in found]
        if kernel.name and kernel.name not in found and known:
            found[kernel.name] = known[0]
    return found


def _with_fused(
    computes: Mapping[str, tuple[str, ...]], graph: OpGraph
) -> dict[str, tuple[str, ...]]:
    """With the ops that no kernel computes added to the last kernel of the op that they read."""
    last = {op: kernel for kernel, ops in computes.items() for op in ops}
    found = dict(computes)
    for op in graph.ops:
        if op.name in last:
            continue
        producers = [graph.tensor[name].producer for name in op.inputs]
        kernel = next((last[producer] for producer in producers if producer in last), None)
        if kernel is None:
            continue  # computed from weights alone, when the model is loaded
        last[op.name] = kernel
        if not op.is_view:
            found[kernel] += (op.name,)
    return found


def _ops_of_nodes(converted: Converted, graph: OpGraph) -> dict[onnx_ir.Node, str]:
    """The op that each ONNX node belongs to; nodes that come from no op are missing."""
    from slicewise.codegen.convert import fx_node_name

    op_of: dict[str, str] = {}
    for node in converted.program.graph.nodes:
        sources = [node.name, *(source.name for source in node.all_input_nodes[:1])]
        if node.name in graph.op:
            op_of[node.name] = node.name
        elif node.op == "call_function" and sources[-1] in op_of:  # an item, or an alias
            op_of[node.name] = op_of[sources[-1]]
    found = {}
    for node in converted.model.graph:
        names = [fx_node_name(node), *(value.name for value in node.outputs)]
        op = next((op_of[name] for name in names if name in op_of), None)
        if op is not None:
            found[node] = op
    return found
