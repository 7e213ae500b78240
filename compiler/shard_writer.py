"""Shard writer: the ops of one shard of a group, written into a draft."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from slicewise.arguments import arguments_of, as_called
from slicewise.draft import Draft, Editor
from slicewise.graph import WEIGHT, Op, OpGraph
from slicewise.passes.shards.layout import Layout
from slicewise.passes.shards.parts import Part, Place, Step, is_reference, references
from slicewise.passes.shards.products import TIME
from slicewise.passes.shards.sums import sum_size
from slicewise.pieces import vocabulary_rows

_aten = torch.ops.aten
Fetch = Callable[[str, Part | None, "Writer"], fx.Node]


class Scribe:
    """Writes ops into a draft whose names end in `suffix`; `ops` are their names."""

    def __init__(self, draft: Draft, suffix: str = "") -> None:
        self.ops: list[str] = []
        self._draft = draft
        self._suffix = suffix

    def sliced(self, tensor: str, node: fx.Node, local: Part, part: Part) -> fx.Node:
        """A part of a tensor, which is the part `local` of this node."""
        name = f"{tensor}_{part.start}_to_{part.end}"
        return self.call(node, name, _aten.slice.Tensor, node, local.dim, local.start, local.end)

    def call(self, origin: fx.Node, name: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """An op of the shard that comes from the same place of the model as `origin`."""
        edit = Editor(self._draft, origin, tied=False)
        return self._named(edit(target, *args, **kwargs), name)

    def _named(self, node: fx.Node, name: str) -> fx.Node:
        node._rename(name + self._suffix)
        if node.target is not operator.getitem:
            self.ops.append(node.name)
        return node


class Writer(Scribe):
    """Writes what the layout of a shard says.

    `fetch` gives parts of tensors from outside of the group; `cuts` are ops that cut them for this shard
    and are not its own. `before` has written the shard before it.
    """

    def __init__(
        self,
        draft: Draft,
        graph: OpGraph,
        layout: Layout,
        suffix: str,
        fetch: Fetch,
        before: Writer | None,
    ) -> None:
        super().__init__(draft, suffix)
        self.cuts: list[str] = []
        self._before = before
        self._graph = graph
        self._layout = layout
        self._fetch = fetch
        self._values: dict[tuple[str, Part | None], fx.Node] = {}
        self._results: dict[tuple[str, Part | None, Step | None], fx.Node] = {}
        self._states: dict[str, list[fx.Node]] = {}

    def write(self, op: Op) -> None:
        """The parts of its results that the shard makes."""
        for tensor in op.outputs:
            if tensor in self._layout.made:
                for part in self._layout.made[tensor] or (None,):
                    step = self._layout.steps[tensor, part]
                    self._values[tensor, part] = self._written(op, tensor, part, step)

    def value(self, tensor: str, part: Part | None) -> fx.Node:
        """A part of a tensor that the shard makes or receives."""
        if (tensor, part) in self._values:
            return self._values[tensor, part]
        made = tensor in self._layout.made
        parts = self._layout.made[tensor] if made else self._layout.read[tensor]
        cover = None
        if parts is not None:
            assert part is not None
            cover = next(p for p in parts if p.start <= part.start and part.end <= p.end)
        if (tensor, cover) not in self._values:
            self._values[tensor, cover] = self._fetch(tensor, cover, self)
        if cover != part:
            assert part is not None
            begin = part.start - (cover.start if cover else 0)
            node = self._values[tensor, cover]
            local = Part(part.dim, begin, begin + part.size)
            self._values[tensor, part] = self.sliced(tensor, node, local, part)
        return self._values[tensor, part]

    def _written(self, op: Op, tensor: str, part: Part | None, step: Step | None) -> fx.Node:
        """One part of a result; ops of several results are written once for all."""
        key = (op.name, part, step)
        if key not in self._results:
            self._results[key] = self._applied(op, part, step or Step())
        node = self._results[key]
        if not op.items or (step and step.is_moved):
            return node
        item = op.items[op.outputs.index(tensor)]
        return self.call(self._draft.node[op.name], tensor, operator.getitem, node, item)

    def last_state(self, op: Op) -> list[fx.Node]:
        """What a recurrent layer's chunk ends with: the results after the first one."""
        if op.name not in self._states:
            (node,) = (found for (name, _, _), found in self._results.items() if name == op.name)
            origin = self._draft.node[op.name]
            self._states[op.name] = [
                self.call(origin, f"{op.name}_state_{item}", operator.getitem, node, item)
                for item in range(1, len(node.meta["val"]))
            ]
        return self._states[op.name]

    def _applied(self, op: Op, part: Part | None, step: Step) -> fx.Node:
        origin = self._draft.node[op.name]
        given = self._arguments(op, origin, step)
        if step.axis == TIME and part and part.start:
            assert self._before is not None, "the first chunk begins with the model's own state"
            states = self._before.last_state(op)
            given["hx"] = states if len(states) > 1 else states[0]
        if step.is_moved:
            ((name, index), _) = step.reads[0]
            moved: fx.Node = given[name] if index < 0 else given[name][index]
            return moved
        if any(step.pad):
            ((name, _), read) = step.reads[0]
            after = given[name].meta["val"].dim() - 1 - read.dim
            sizes = [0, 0] * after + list(step.pad)
            padded = (given[name], sizes, "constant", step.fill)
            given[name] = self.call(origin, f"{op.name}_padded", _aten.pad.default, *padded)
        node = self._called(op, origin, step, given)
        if step.crop and part:
            cropped = (node, part.dim, *step.crop)
            node = self.call(origin, f"{op.name}_cropped", _aten.slice.Tensor, *cropped)
        if step.scale and part:
            value = node.meta["val"]
            shape = [-1] + [1] * (value.dim() - 1 - part.dim)
            scale = torch.tensor(step.scale, dtype=value.dtype).reshape(shape)
            constant = self._draft.constant(f"{op.name}_scale{self._suffix}", scale)
            node = self.call(origin, f"{op.name}_scaled", _aten.mul.Tensor, node, constant)
        return node

    def _called(self, op: Op, origin: fx.Node, step: Step, given: dict[str, Any]) -> fx.Node:
        """The op on these arguments, or what it is called when it has others."""
        if step.axis == "vocabulary":
            rows = step.reads[0][1]
            total = sum_size(self._graph, op)
            edit = Editor(self._draft, origin, tied=False)
            before = list(self._draft.graph.nodes)
            found = vocabulary_rows(
                edit, given["weight"], given["indices"], (rows.start, rows.end), total
            )
            for node in set(self._draft.graph.nodes) - set(before):
                self._named(node, op.name)
            return found
        target: Any = origin.target
        changed = dict(step.changed)
        if changed.get("padding") is not None and target._overloadname == "padding":
            target = getattr(_aten, target._opname).default  # its padding was "same" or "valid"
        if "self" in changed and changed["self"] is None:  # a product without what it adds
            target, given = (
                _aten.matmul.default,
                dict(zip(("self", "other"), _pair(given), strict=True)),
            )
        args, kwargs = as_called(target, given)
        return self.call(origin, op.name, target, *args, **kwargs)

    def _arguments(self, op: Op, origin: fx.Node, step: Step) -> dict[str, Any]:
        """The op's arguments with its parts in the places of tensors and weights."""
        own = arguments_of(origin)
        node_of = {ref: _at(own, place) for place, ref in references(op)}
        parts = dict(step.reads)
        changed = dict(step.changed)
        given = dict(own)
        for name, data in (dict(op.arguments) | changed).items():
            items = data if isinstance(data, tuple) else (data,)
            if name not in changed and not any(map(is_reference, items)):
                continue  # as it is: what became text in the data, too
            found = []
            for index, item in enumerate(items):
                part = parts.get((name, index if isinstance(data, tuple) else -1))
                if is_reference(item):
                    moved_elsewhere = step.is_moved and part is None
                    found.append(None if moved_elsewhere else self._argument(item, part, node_of))
                else:
                    found.append(item)
            given[name] = found if isinstance(data, tuple) else found[0]
        return given

    def _argument(self, reference: str, part: Part | None, node_of: dict[str, fx.Node]) -> fx.Node:
        name = reference[1:]
        if reference[:1] != WEIGHT:
            return self.value(name, part)
        node = node_of[reference]
        if part is None:
            return node
        edit = Editor(self._draft, node, tied=False)
        return edit.part(node, part.dim, part.start, part.end, f"{name}_{part.start}_to_{part.end}")


def _at(arguments: dict[str, Any], place: Place) -> fx.Node:
    name, index = place
    found: fx.Node = arguments[name] if index < 0 else arguments[name][index]
    return found


def _pair(given: dict[str, Any]) -> tuple[fx.Node, fx.Node]:
    names = ("mat1", "mat2") if "mat1" in given else ("batch1", "batch2")
    return given[names[0]], given[names[1]]
