"""Signature: what a request holds and what the reply looks like, from a program's own specs."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from slicewise.errors import CaptureError
from slicewise.graph import OpGraph
from slicewise.plan import Dim, TensorSpec
from slicewise.sizes import Sizes
from slicewise.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a request holds and what the reply looks like."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: tuple[Dim, ...]
    input_structure: Structure
    output_structure: Structure


def check_signature(program: ExportedProgram) -> None:
    """Raise `CaptureError` for state that the forward pass changes, and for what is no tensor."""
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


def signature_of(
    program: ExportedProgram, graph: OpGraph, aliases: Mapping[str, str], sizes: Sizes
) -> Signature:
    """The signature of a program whose tensors are those of `graph`."""
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
    getitem_name = last_getitem_names(program.graph)
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


def last_getitem_names(graph: fx.Graph) -> dict[str, str]:
    """Several nodes may take the same item; the exporter names the value after the last of them."""
    last: dict[tuple[str, Any], str] = {}
    items = [
        (node.name, (node.args[0].name, node.args[1]))
        for node in graph.nodes
        if node.op == "call_function" and node.target is operator.getitem
    ]
    last.update({key: name for name, key in items})
    return {name: last[key] for name, key in items}
