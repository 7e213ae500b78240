"""Draft: a copy of a program's graph while ops are replaced in it, on views of the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from slicewise.analyse import weight_identity, weight_tensors
from slicewise.passes.ways import WEIGHT_VIEWS
from slicewise.program import copied_graph, with_graph

# What tells where an op came from.
_ORIGIN = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn", "from_node", "custom")

Identity = tuple[Any, ...]


class Draft:
    """A copy of a program's graph while ops are replaced in it."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.graph = copied_graph(program)
        self.node = {node.name: node for node in self.graph.nodes}
        self.first = next(iter(self.graph.nodes))
        self.fake_mode = next(
            node.meta["val"].fake_mode
            for node in self.graph.nodes
            if hasattr(node.meta.get("val"), "fake_mode")
        )
        found = weight_tensors(program)
        self.tensors = {placeholder: tensor for placeholder, _, tensor in found}
        self.targets = {placeholder: target for placeholder, target, _ in found}
        self.specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self.added: dict[str, nn.Parameter] = {}
        self.parts: dict[Identity, fx.Node] = {}
        self.renamed: dict[str, str] = {}

    def argument(self, node: fx.Node, weight: str) -> fx.Node:
        """The argument of an op that is this weight or a view of it."""
        placeholder = next(name for name, target in self.targets.items() if target == weight)
        identity = weight_identity(self.tensors[placeholder])
        return next(
            argument
            for argument in node.all_input_nodes
            for source, _ in (self.source(argument),)
            if source is not None and weight_identity(self.tensors[source.name]) == identity
        )

    def source(self, node: fx.Node) -> tuple[fx.Node | None, list[fx.Node]]:
        """The weight that a node is, or is a view of, and the views in between."""
        views: list[fx.Node] = []
        while node.op == "call_function" and _is_view(node):
            views.insert(0, node)
            node = node.all_input_nodes[0]
        return (node if node.name in self.tensors else None), views

    def part(
        self,
        weight: fx.Node,
        dim: int,
        start: int,
        end: int,
        name: str,
        views: Sequence[fx.Node] = (),
    ) -> fx.Node:
        """The placeholder of a part of a weight, one for all weights that are the same memory.

        With `views`, it is the part as seen through them.
        """
        tensor = self.tensors[weight.name]
        key = (weight_identity(tensor), dim, start, end, *views)
        if key not in self.parts:
            value = tensor.detach().narrow(dim, start, end - start)
            for view in views:
                value = view.target(value, *view.args[1:], **view.kwargs)  # type: ignore[operator]
            name = name or f"{self.targets[weight.name]}_piece_at_{start}"
            self.parts[key] = self.constant(name, value)
        return self.parts[key]

    def constant(self, name: str, value: torch.Tensor) -> fx.Node:
        """A new weight of this name, or one like it if the name is taken."""
        while name in self.program.state_dict or name in self.added:
            name += "_"
        with self.graph.inserting_before(self.first):
            node = self.graph.placeholder("p_" + name.replace(".", "_"))
        node.meta["val"] = self.fake_mode.from_tensor(value, static_shapes=True)
        self.added[name] = nn.Parameter(value, requires_grad=False)
        self.specs[node.name] = InputSpec(
            kind=InputKind.PARAMETER, arg=TensorArgument(name=node.name), target=name
        )
        return node

    def replace(self, node: fx.Node, result: fx.Node) -> None:
        """Let all users of a node use another, and remove it with the views that only it used."""
        self.renamed[node.name] = result.name
        node.replace_all_uses_with(result)
        sources = node.all_input_nodes
        self.graph.erase_node(node)
        for source in sources:
            for view in reversed(self.source(source)[1]):
                if not view.users:
                    self.graph.erase_node(view)

    def finish(self) -> ExportedProgram:
        """The rewritten program, without the weights that have been split for all their uses."""
        identities = {name: weight_identity(tensor) for name, tensor in self.tensors.items()}
        gone = {key[0] for key in self.parts}
        gone -= {identity for name, identity in identities.items() if self.node[name].users}
        state = {**self.program.state_dict, **self.added}
        constants = dict(self.program.constants)
        for name, identity in identities.items():
            if identity in gone:
                self.graph.erase_node(self.node[name])
                state.pop(self.targets[name], None)
                constants.pop(self.targets[name], None)
        return with_graph(
            self.program,
            self.graph,
            specs=self.specs,
            renamed={name: self._final(name) for name in self.renamed},
            state=state,
            constants=constants,
        )

    def _final(self, name: str) -> str:
        while name in self.renamed:
            name = self.renamed[name]
        return name


class Editor:
    """See `slicewise.pieces.Editor`."""

    def __init__(self, draft: Draft, origin: fx.Node, *, tied: bool) -> None:
        self._draft = draft
        self._tied = tied
        self._meta = {key: origin.meta[key] for key in _ORIGIN if key in origin.meta}
        self._slices: dict[tuple[fx.Node, int, int, int], fx.Node] = {}

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """One op, with the origin's origin and the value's shape."""
        node = self._draft.graph.call_function(target, args, kwargs)
        values, named = fx.map_arg((args, kwargs), lambda argument: argument.meta["val"])
        with self._draft.fake_mode, torch.no_grad():
            node.meta = {**self._meta, "val": target(*values, **named)}
        return node

    def part(self, node: fx.Node, dim: int, start: int, end: int, name: str = "") -> fx.Node:
        """A part of a weight, seen through the same views; of any other tensor, a slice of it.

        A weight with other uses keeps its views as ops, or its parts would not stay one weight.
        """
        dim %= node.meta["val"].dim()
        weight, views = self._draft.source(node)
        if weight is not None:
            stored = _stored_dim(weight.meta["val"].dim(), views, dim)
            if not self._tied:
                return self._draft.part(weight, stored, start, end, name, views)
            found = self._draft.part(weight, stored, start, end, name)
            for view in views:
                found = self(view.target, found, *view.args[1:], **view.kwargs)
            return found
        key = (node, dim, start, end)
        if key not in self._slices:
            self._slices[key] = self(torch.ops.aten.slice.Tensor, node, dim, start, end)
        return self._slices[key]


def _is_view(node: fx.Node) -> bool:
    return ".".join(str(node.target).split(".")[:2]) in WEIGHT_VIEWS


def _stored_dim(rank: int, views: Sequence[fx.Node], dim: int) -> int:
    """The dimension of a weight that is the dimension `dim` of its last view."""
    marked = torch.empty(tuple(range(1, rank + 1)), device="meta")  # every size says its dimension
    for view in views:
        marked = view.target(marked, *view.args[1:], **view.kwargs)  # type: ignore[operator]
    return marked.shape[dim] - 1
