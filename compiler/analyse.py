"""Analyse: a captured program becomes an `OpGraph` and the signature that a request must match."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from slicewise.capture import source_line
from slicewise.errors import CaptureError
from slicewise.graph import INPUT, Op, OpGraph, Tensor, Weight
from slicewise.plan import Dim, TensorSpec
from slicewise.structure import Structure

# Ops whose ONNX form shares its input's memory in ONNX Runtime.
_VIEWS = {
    "aten.view", "aten.reshape", "aten._unsafe_view", "aten.unsqueeze", "aten.squeeze",
    "aten.flatten", "aten.clone", "aten.alias", "aten.detach", "aten.contiguous",
}  # fmt: skip
# Ops that only move, widen or make numbers: a slice may run them again instead of receiving them.
_MOVES = _VIEWS | {
    "aten.expand", "aten.transpose", "aten.permute", "aten.t", "aten.slice", "aten.select",
    "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unbind", "aten.index", "aten.gather",
    "aten.repeat", "aten.tile", "aten._to_copy", "aten.to", "prims.convert_element_type",
    "aten.arange", "aten.full", "aten.full_like", "aten.zeros", "aten.zeros_like", "aten.ones",
    "aten.ones_like", "aten.new_ones", "aten.new_zeros", "aten.new_full", "aten.scalar_tensor",
    "aten.empty", "aten.sym_size", "aten.sym_numel", "aten.tril", "aten.triu",
}  # fmt: skip
# Element by element: cheap to run again when small, as masks and position ids are.
_ELEMENTWISE = {
    "aten.add", "aten.sub", "aten.rsub", "aten.mul", "aten.div", "aten.neg", "aten.abs", "aten.eq",
    "aten.ne", "aten.lt", "aten.le", "aten.gt", "aten.ge", "aten.bitwise_and", "aten.bitwise_or",
    "aten.bitwise_not", "aten.logical_and", "aten.logical_or", "aten.logical_not", "aten.where",
    "aten.masked_fill", "aten.clamp", "aten.clamp_min", "aten.clamp_max", "aten.minimum",
    "aten.maximum", "aten.log", "aten.exp", "aten.cos", "aten.sin", "aten.floor", "aten.remainder",
}  # fmt: skip
_SMALL_BYTES = 1 << 20
_NO_RESULT = {"aten._assert_scalar", "aten._assert_tensor_metadata", "aten.sym_constrain_range",
              "aten.sym_constrain_range_for_size", "aten._assert_async"}  # fmt: skip
_HALF = (torch.float16, torch.bfloat16)
_RANDOM = ("aten.rand", "aten.bernoulli", "aten.multinomial", "aten.normal", "aten.exponential")


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a request holds and what the reply looks like."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: tuple[Dim, ...]
    input_structure: Structure
    output_structure: Structure


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The dynamic dimensions of a program: evaluates symbolic sizes, and prints them by name."""

    dims: Mapping[sympy.Symbol, Dim]

    def shape(self, value: torch.Tensor) -> tuple[int | str, ...]:
        """The shape with symbolic sizes as expressions over the dimensions' names."""
        names = {symbol: sympy.Symbol(dim.name) for symbol, dim in self.dims.items()}
        return tuple(
            str(_expr(size).subs(names)) if isinstance(size, torch.SymInt) else int(size)
            for size in value.shape
        )

    def elements(self, value: torch.Tensor, bound: str) -> int:
        """Number of elements with every dimension at its "example" or "max"."""
        at = {symbol: getattr(dim, bound) for symbol, dim in self.dims.items()}
        return math.prod(
            int(_expr(size).subs(at)) if isinstance(size, torch.SymInt) else int(size)
            for size in value.shape
        )


def _expr(size: torch.SymInt) -> sympy.Expr:
    return size.node.expr


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
    _check_signature(program)
    sizes = _sizes(program, dim_names)
    graph = _op_graph(program, name, aliases, sizes)
    if not graph.ops:
        raise CaptureError(
            "no op of the model computes an output; there is nothing to run in slices."
        )
    return graph, _signature(program, graph, aliases, sizes)


def _check_signature(program: ExportedProgram) -> None:
    signature = program.graph_signature
    mutated = [
        spec
        for spec in signature.output_specs
        if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)
    ]
    if mutated:
        raise CaptureError(
            f"the forward pass changes {mutated[0].target!r} in place; a slice keeps no state between "
            "requests. Return the new value as an output, or stop updating it in eval mode."
        )
    for spec in signature.input_specs:
        if spec.kind in (InputKind.TOKEN, InputKind.CUSTOM_OBJ):
            raise CaptureError(
                f"the model holds {spec.target or spec.arg.name!r}, a {spec.kind.name.lower()}; only "
                "tensors can be sent to a slice. Replace it by plain tensors."
            )


def _sizes(program: ExportedProgram, dim_names: Mapping[str, str]) -> Sizes:
    """Bounds of every symbol; a dimension without an upper bound is bounded by the example."""
    dims: dict[sympy.Symbol, Dim] = {}
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        for size in value.shape:
            if not isinstance(size, torch.SymInt):
                continue
            for symbol in _expr(size).free_symbols:
                if symbol in dims:
                    continue
                hint = int(size.node.shape_env.backed_var_to_val[symbol])
                bounds = program.range_constraints.get(symbol)
                # torch has infinities of its own, so ask for numbers rather than against infinity.
                low, top = (bounds.lower, bounds.upper) if bounds else (None, None)
                lower = int(low) if isinstance(low, sympy.Integer) else 1
                upper = int(top) if isinstance(top, sympy.Integer) and top < 2**31 else hint
                dims[symbol] = Dim(
                    name=dim_names.get(str(symbol), str(symbol)),
                    min=min(max(lower, 0), hint),
                    max=max(upper, hint),
                    example=hint,
                )
    return Sizes(dims=dims)


def _op_graph(
    program: ExportedProgram, name: str, aliases: Mapping[str, str], sizes: Sizes
) -> OpGraph:
    signature = program.graph_signature
    weight_of, weights = _weights(program)
    tensors: dict[str, Tensor] = {}
    ops: dict[str, Op] = {}
    user_inputs = [n for n in signature.user_inputs if isinstance(n, str)]
    getitem_name = _last_getitem_names(program.graph)

    def resolve(node: fx.Node) -> str:
        found = node.name
        while found in aliases:
            found = aliases[found]
        return getitem_name.get(found, found)

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
                    ops[source.name] = _with_output(op, tensor_name)
                continue
            kind = str(node.target).removesuffix(".default")
            base = ".".join(str(node.target).split(".")[:2])
            if base in _NO_RESULT or value is None:
                continue
            _check_op(node, kind)
            reads = [resolve(n) for n in _argument_nodes(node)]
            ops[node.name] = Op(
                name=node.name,
                kind=kind,
                inputs=tuple(dict.fromkeys(r for r in reads if r in tensors)),
                outputs=(),
                weights=tuple(dict.fromkeys(weight_of[r] for r in reads if r in weight_of)),
                memory_bytes=_scratch_bytes(node, kind, sizes),
                is_view=base in _VIEWS,
                is_cheap=_is_cheap(base, value, sizes),
                module=_module_path(node),
                source=source_line(node.meta.get("stack_trace")),
            )
            if isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool, int)):
                tensors[node.name] = _tensor(node, node.name, value, sizes)
                ops[node.name] = _with_output(ops[node.name], node.name)

    outputs = []
    (output_node,) = (n for n in program.graph.nodes if n.op == "output")
    by_name = {n.name: n for n in _argument_nodes(output_node)}
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


def _with_output(op: Op, tensor: str) -> Op:
    return replace(op, outputs=(*op.outputs, tensor))


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
                memory_bytes=size * (2 if value.dtype in _HALF else 1),
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


def _last_getitem_names(graph: fx.Graph) -> dict[str, str]:
    """Several nodes may take the same item; the exporter names the value after the last of them."""
    last: dict[tuple[str, Any], str] = {}
    items = [
        (node.name, (node.args[0].name, node.args[1]))
        for node in graph.nodes
        if node.op == "call_function" and node.target is operator.getitem
    ]
    last.update({key: name for name, key in items})
    return {name: last[key] for name, key in items}


def _argument_nodes(node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), lambda n: found.append(n))
    return found


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
                str(symbol).startswith("u") for symbol in _expr(size).free_symbols
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
        max_bytes=sizes.elements(value, "max") * _item_bytes(value),
        dtype=_dtype_name(value.dtype),
        shape=sizes.shape(value),
    )


def _is_cheap(base: str, value: Any, sizes: Sizes) -> bool:
    """Whether running the op again costs next to nothing, compared with a message."""
    if not isinstance(value, torch.Tensor):
        return base in _MOVES or not isinstance(value, (tuple, list))
    small = sizes.elements(value, "max") * value.element_size() <= _SMALL_BYTES
    return base in _MOVES or (base in _ELEMENTWISE and small)


def _scratch_bytes(node: fx.Node, kind: str, sizes: Sizes) -> int:
    """Memory that ONNX Runtime needs for an op beyond its inputs and outputs, at the largest sizes.

    Measured per op (onnxruntime 1.31): attention is computed in steps that each write all scores
    (mask as numbers, product, sum, softmax, and which of them are NaN) beside scaled and transposed
    copies of query and key; convolutions run on a copy of the image in blocks of channels; a
    recurrent layer works on a copy with time first.
    """
    if "scaled_dot_product_attention" in kind:
        query, key = (n.meta["val"] for n in _argument_nodes(node)[:2])  # may be the same
        rows = sizes.elements(query[..., 0], "max")  # batch x heads x queries
        keys = sizes.elements(key[..., 0], "max") // max(1, sizes.elements(key[..., 0, 0], "max"))
        masked = len(node.args) > 3 and node.args[3] is not None
        scores = rows * keys * (4.25 if masked else 3.25)
        copies = sizes.elements(query, "max") + 2 * sizes.elements(key, "max")
        return int((scores + copies) * _item_bytes(query))
    if kind.startswith(("aten.conv", "aten._convolution")):
        image, result = node.all_input_nodes[0].meta["val"], node.meta["val"]
        larger = max(sizes.elements(image, "max"), sizes.elements(result, "max"))
        return larger * _item_bytes(image)
    if kind.startswith(("aten.lstm", "aten.gru")):
        sequence, result = node.all_input_nodes[0].meta["val"], node.meta["val"][0]
        both = sizes.elements(sequence, "max") + sizes.elements(result, "max")
        return both * _item_bytes(sequence)
    return 0


def _item_bytes(value: torch.Tensor) -> int:
    """Bytes per element in a running function; half precision is computed in float32."""
    return 4 if value.dtype in _HALF else value.element_size()


def _module_path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return str(paths[-1]) if paths else ""


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _signature(
    program: ExportedProgram, graph: OpGraph, aliases: Mapping[str, str], sizes: Sizes
) -> Signature:
    signature = program.graph_signature
    in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
    input_leaves: list[Structure] = []
    for spec in signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            if isinstance(spec.arg, ConstantArgument):
                input_leaves.append({"constant": spec.arg.value})
            elif spec.arg.name in graph.tensor:
                input_leaves.append({"tensor": spec.arg.name})
            else:
                raise CaptureError(
                    f"the input {spec.arg.name!r} is a {type(spec.arg).__name__}, not a tensor. Fix it "
                    "to a constant when compiling, or pass it as a 0-d tensor."
                )
    args_spec, kwargs_spec = in_spec.children()
    keys = _parameter_names(program, args_spec, input_leaves) + list(kwargs_spec.context)
    leaf_iterator = iter(input_leaves)
    input_structure: Structure = {
        "kind": "dict",
        "keys": keys,
        "children": [
            _structure(child, leaf_iterator)
            for child in (*args_spec.children(), *kwargs_spec.children())
        ],
    }

    specs = [s for s in signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    getitem_name = _last_getitem_names(program.graph)
    placeholders = [
        {"constant": s.arg.value} if isinstance(s.arg, ConstantArgument) else {"tensor": s.arg.name}
        for s in specs
    ]
    output_structure = _structure(out_spec, iter(placeholders))
    outputs: list[TensorSpec] = []
    names: set[str] = set()
    for path, leaf in _paths(output_structure, ""):
        if "tensor" not in leaf:
            continue
        tensor_name: str = leaf["tensor"]
        while tensor_name in aliases:
            tensor_name = aliases[tensor_name]
        tensor = graph.tensor[getitem_name.get(tensor_name, tensor_name)]
        leaf["tensor"] = path or "output"
        while leaf["tensor"] in names:  # {"a.b": x, "a": {"b": y}}
            leaf["tensor"] += "_"
        names.add(leaf["tensor"])
        outputs.append(
            TensorSpec(
                name=leaf["tensor"], tensor=tensor.name, dtype=tensor.dtype, shape=tensor.shape
            )
        )
    inputs = tuple(
        TensorSpec(name=name, tensor=name, dtype=tensor.dtype, shape=tensor.shape)
        for name in graph.inputs
        for tensor in (graph.tensor[name],)
    )
    return Signature(
        inputs=inputs,
        outputs=tuple(outputs),
        dims=tuple(sizes.dims.values()),
        input_structure=input_structure,
        output_structure=output_structure,
    )


def _parameter_names(
    program: ExportedProgram, args_spec: Any, input_leaves: list[Structure]
) -> list[str]:
    call = program.module_call_graph[0].signature
    names = getattr(call, "forward_arg_names", None)
    count = len(args_spec.children())
    if names and len(names) >= count:
        return list(names[:count])
    found, position = [], 0
    for index, child in enumerate(args_spec.children()):
        leaf = input_leaves[position] if child.num_leaves == 1 else {}
        found.append(leaf.get("tensor", f"arg{index}"))
        position += child.num_leaves
    return found


def _structure(spec: Any, leaf: Any) -> Structure:
    """A torch pytree spec as a `Structure`, taking leaves from the iterator `leaf`."""
    if spec.is_leaf():
        return dict(next(leaf))
    children = [_structure(child, leaf) for child in spec.children()]
    kind, context = spec.type, spec.context
    if kind is tuple or kind is list:
        return {"kind": kind.__name__, "children": children}
    if kind is defaultdict:
        context = context[1]
    elif kind.__module__ == "torch.return_types":
        context = list(kind.__match_args__)
    elif isinstance(context, list) and context and isinstance(context[0], list):
        context = context[0]  # how dataclasses registered with torch.export keep their field names
    if hasattr(context, "_fields"):  # a named tuple's context is its type
        kind, context = context, list(context._fields)
    named = isinstance(context, list) and len(context) == len(children)
    keys = list(context) if named else list(range(len(children)))
    keys = [key if isinstance(key, (str, int)) else str(key) for key in keys]
    if issubclass(kind, dict) and kind.__module__ in ("builtins", "collections"):
        return {"kind": "dict", "keys": keys, "children": children}
    return {
        "kind": "object",
        "type": f"{kind.__module__}.{kind.__qualname__}",
        "keys": keys,
        "children": children,
    }


def _paths(structure: Structure, path: str) -> list[tuple[str, Structure]]:
    if "kind" not in structure:
        return [(path, structure)]
    children = structure["children"]
    keys = structure.get("keys", range(len(children)))
    found = []
    for key, child in zip(keys, children, strict=True):
        step = str(key) if path or not isinstance(key, int) else f"output_{key}"
        found += _paths(child, f"{path}.{step}" if path else step)
    return found
