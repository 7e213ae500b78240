"""Analyse: a captured program becomes an `OpGraph` and the signature that a request must match."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from slicewise.arguments import arguments_of, as_data
from slicewise.capture import source_line
from slicewise.errors import CaptureError
from slicewise.graph import INPUT, TENSOR, WEIGHT, Op, OpGraph, Tensor, Weight
from slicewise.opcost import (
    HALF,
    argument_nodes,
    copies_weights,
    is_cheap,
    item_bytes,
    loading_bytes,
    scratch_bytes,
    shares_memory,
)
from slicewise.signature import Signature, check_signature, last_getitem_names, signature_of
from slicewise.sizes import Sizes, expression, sizes_of

_NO_RESULT = {"aten._assert_scalar", "aten._assert_tensor_metadata", "aten.sym_constrain_range",
              "aten.sym_constrain_range_for_size", "aten._assert_async"}  # fmt: skip
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"  # torch.export's word for none
_RANDOM = ("aten.rand", "aten.bernoulli", "aten.multinomial", "aten.normal", "aten.exponential")


def analyse(
    program: ExportedProgram,
    *,
    name: str,
    aliases: Mapping[str, str],
    dim_names: Mapping[str, str],
) -> tuple[OpGraph, Signature]:
    """The `OpGraph` and `Signature` of a program.

    `aliases` maps nodes that compute nothing to the node whose value they pass on.
    Raises `CaptureError` for anything that slices could not compute: mutated state, random numbers,
    data-dependent shapes, complex tensors.
    """
    check_signature(program)
    sizes = sizes_of(program, dim_names)
    graph = _op_graph(program, name, aliases, sizes)
    if not graph.ops:
        raise CaptureError(
            "no op of the model computes an output; there is nothing to run in slices."
        )
    return graph, signature_of(program, graph, aliases, sizes)


def _op_graph(
    program: ExportedProgram, name: str, aliases: Mapping[str, str], sizes: Sizes
) -> OpGraph:
    signature = program.graph_signature
    weight_of, weights = _weights(program)
    tensors: dict[str, Tensor] = {}
    ops: dict[str, Op] = {}
    user_inputs = [n for n in signature.user_inputs if isinstance(n, str)]
    getitem_name = last_getitem_names(program.graph)

    def resolve(node: fx.Node) -> str:
        found = node.name
        while found in aliases:
            found = aliases[found]
        return getitem_name.get(found, found)

    def reference(node: fx.Node) -> str:
        name = resolve(node)
        if name in weight_of:
            return WEIGHT + weight_of[name]
        return TENSOR + name if name in tensors else name  # the graph of a branch or a loop

    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder":
            if node.name in user_inputs and isinstance(value, torch.Tensor):
                tensors[node.name] = _tensor(node, INPUT, value, sizes)
        elif node.op == "call_function" and node.name not in aliases:
            source = node.args[0] if node.target is operator.getitem else None
            if isinstance(source, fx.Node) and source.name in ops:
                tensor_name = resolve(node)
                if tensor_name not in tensors:
                    tensors[tensor_name] = _tensor(node, source.name, value, sizes, tensor_name)
                    op = ops[source.name]
                    ops[source.name] = replace(
                        op, outputs=(*op.outputs, tensor_name), items=(*op.items, node.args[1])
                    )
                continue
            kind = str(node.target).removesuffix(".default")
            base = ".".join(str(node.target).split(".")[:2])
            if base in _NO_RESULT or value is None:
                continue
            _check_op(node, kind)
            reads = [resolve(n) for n in argument_nodes(node)]
            ops[node.name] = Op(
                name=node.name,
                kind=kind,
                inputs=tuple(dict.fromkeys(r for r in reads if r in tensors)),
                outputs=(),
                weights=tuple(dict.fromkeys(weight_of[r] for r in reads if r in weight_of)),
                memory_bytes=scratch_bytes(node, kind, sizes),
                loading_bytes=loading_bytes(node, kind, sizes),
                is_view=shares_memory(node, base),
                is_cheap=is_cheap(base, value, sizes),
                copies_weights=copies_weights(node, kind),
                module=_module_path(node),
                source=source_line(node.meta.get("stack_trace"), short=True),
                arguments=tuple(
                    (key, as_data(argument, reference))
                    for key, argument in arguments_of(node).items()
                ),
            )
            if isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool, int)):
                tensors[node.name] = _tensor(node, node.name, value, sizes)
                ops[node.name] = replace(ops[node.name], outputs=(node.name,))

    outputs = []
    (output_node,) = (n for n in program.graph.nodes if n.op == "output")
    by_name = {n.name: n for n in argument_nodes(output_node)}
    for spec in signature.output_specs:
        if isinstance(spec.arg, ConstantArgument) or spec.arg.name not in by_name:
            continue
        tensor_name = resolve(by_name[spec.arg.name])
        if tensor_name not in tensors:
            raise CaptureError(
                f"the model returns its weight {weight_of.get(tensor_name, tensor_name)!r} unchanged. "
                "A slice returns what it computes: leave it out of the outputs."
            )
        outputs.append(tensor_name)
    return _without_dead_ops(
        name, ops, tensors, weights, tuple(user_inputs), tuple(dict.fromkeys(outputs))
    )


def _without_dead_ops(
    name: str,
    ops: dict[str, Op],
    tensors: dict[str, Tensor],
    weights: dict[str, Weight],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
) -> OpGraph:
    """The graph without the ops that no output depends on (shape assertions leave such ops)."""
    wanted = set(outputs)
    alive: list[Op] = []
    for op in reversed(ops.values()):
        if wanted.intersection(op.outputs):
            alive.append(op)
            wanted.update(op.inputs)
    alive.reverse()
    produced = {t for op in alive for t in op.outputs}
    used_weights = {w for op in alive for w in op.weights}
    return OpGraph(
        name=name,
        ops=tuple(alive),
        tensors=tuple(t for t in tensors.values() if t.producer == INPUT or t.name in produced),
        weights=tuple(w for w in weights.values() if w.name in used_weights),
        inputs=tuple(n for n in inputs if n in tensors),
        outputs=outputs,
    )


def _weights(program: ExportedProgram) -> tuple[dict[str, str], dict[str, Weight]]:
    """Placeholder name -> weight name, and the weights. Tied parameters become one weight."""
    weight_of: dict[str, str] = {}
    weights: dict[str, Weight] = {}
    first_name: dict[tuple[Any, ...], str] = {}
    for placeholder, target, value in weight_tensors(program):
        key = weight_identity(value)
        name = first_name.setdefault(key, target)
        weight_of[placeholder] = name
        size = value.numel() * value.element_size()
        weights.setdefault(
            name,
            Weight(
                name=name,
                bytes=size,
                # Half precision is computed in float32, from copies of the weights.
                memory_bytes=size * (2 if value.dtype in HALF else 1),
                dtype=_dtype_name(value.dtype),
                shape=tuple(value.shape),
            ),
        )
    return weight_of, weights


def weight_tensors(program: ExportedProgram) -> list[tuple[str, str, torch.Tensor]]:
    """(placeholder, qualified name, tensor) of every parameter, buffer and lifted constant."""
    found = []
    for spec in program.graph_signature.input_specs:
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            continue
        target = spec.target or spec.arg.name
        in_state = spec.kind is InputKind.PARAMETER or spec.persistent
        value = program.state_dict[target] if in_state else program.constants[target]
        found.append((spec.arg.name, target, value))
    return found


def weight_identity(value: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same memory seen the same way, as tied parameters are."""
    return (
        value.untyped_storage().data_ptr(),
        value.storage_offset(),
        tuple(value.shape),
        value.stride(),
        value.dtype,
        # An empty tensor has no memory of its own to compare.
        value.untyped_storage().data_ptr() or id(value),
    )


def _check_op(node: fx.Node, kind: str) -> None:
    where = source_line(node.meta.get("stack_trace"))
    at = f"\n  at {where}" if where else ""
    if _is_random(node, kind):
        raise CaptureError(
            f"the op {node.name} ({kind}) draws random numbers, so no compiled slice could equal the "
            f"model. Pass the random values in as an input.{at}"
        )
    values = node.meta.get("val")
    for value in values if isinstance(values, (tuple, list)) else (values,):
        if not isinstance(value, torch.Tensor):
            continue
        if value.dtype.is_complex:
            raise CaptureError(
                f"the op {node.name} ({kind}) produces {value.dtype}; ONNX has no complex tensors. "
                f"Compute with real and imaginary parts (torch.view_as_real).{at}"
            )
        for size in value.shape:
            if isinstance(size, torch.SymInt) and any(
                str(symbol).startswith("u") for symbol in expression(size).free_symbols
            ):
                raise CaptureError(
                    f"the shape of the op {node.name} ({kind}) depends on the data ({size}), so its "
                    f"bytes cannot be bounded. Use a mask of fixed shape instead.{at}"
                )


def _is_random(node: fx.Node, kind: str) -> bool:
    if "dropout" in kind:
        # A flag says whether it trains; F.dropout(x) without one does, in eval mode too.
        return any(argument is True for argument in node.args)
    if "scaled_dot_product_attention" in kind:
        names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        return bool(given.get("dropout_p"))
    return kind.startswith(_RANDOM)


def _tensor(
    node: fx.Node, producer: str, value: Any, sizes: Sizes, name: str | None = None
) -> Tensor:
    if not isinstance(value, torch.Tensor):  # a size that the graph computes with: a scalar
        dtype = {torch.SymFloat: "float32", torch.SymBool: "bool"}.get(type(value), "int64")
        size = 8 if dtype == "int64" else 4 if dtype == "float32" else 1
        return Tensor(
            name=name or node.name, producer=producer, bytes=size, max_bytes=size, dtype=dtype
        )
    item = value.element_size()
    return Tensor(
        name=name or node.name,
        producer=producer,
        bytes=sizes.elements(value, "example") * item,
        max_bytes=sizes.elements(value, "max") * item_bytes(value),
        dtype=_dtype_name(value.dtype),
        shape=sizes.shape(value),
    )


def _module_path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if entry[0] != _NO_MODULE]
    return str(paths[-1]) if paths else ""


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
