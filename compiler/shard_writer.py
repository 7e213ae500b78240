"""Shard writer: the ops of one shard of a group, written into a draft."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from slicewise.arguments import arguments_of, as_called
from slicewise.draft import Draft, Editor
from slicewise.graph import WEIGHT, Op, OpGraph
from slicewise.passes.shards.boxes import WHOLE, Box, cuts, is_within
from slicewise.passes.shards.layout import Layout, Steps
from slicewise.passes.shards.parts import Place, is_reference, references
from slicewise.passes.shards.products import TIME
from slicewise.passes.shards.rules import read_boxes
from slicewise.passes.shards.sums import sum_size
from slicewise.pieces import vocabulary_rows

_aten = torch.ops.aten
Fetch = Callable[[str, Box, "Writer"], fx.Node]


class Scribe:
    """Writes ops into a draft whose names end in `suffix`; `ops` are their names."""

    def __init__(self, draft: Draft, suffix: str = "") -> None:
        self.ops: list[str] = []
        self._draft = draft
        self._suffix = suffix

    def cut(self, tensor: str, node: fx.Node, outer: Box, inner: Box) -> fx.Node:
        """A box of a tensor, out of a node that has the box `outer` of it."""
        for local, part in cuts(inner, outer):
            tensor = f"{tensor}_{part.start}_to_{part.end}"
            sliced = (_aten.slice.Tensor, node, local.dim, local.start, local.end)
            node = self.call(node, tensor, *sliced)
        return node

    def joined(self, tensor: str, pieces: Mapping[Box, fx.Node]) -> fx.Node:
        """What lies in a grid of boxes, as one."""
        (first, *_), found = pieces.values(), dict(pieces)
        while len(found) > 1:
            rows: dict[Box, list[tuple[Box, fx.Node]]] = {}
            for one, node in sorted(found.items()):
                rows.setdefault(one[:-1], []).append((one, node))
            found = {
                row: cells[0][1]
                if len(cells) == 1
                else self.call(first, f"{tensor}_joined", _aten.cat.default,
                               [node for _, node in cells], cells[0][0][-1].dim)
                for row, cells in rows.items()
            }  # fmt: skip
        (whole,) = found.values()
        return whole

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
        self._values: dict[tuple[str, Box], fx.Node] = {}
        self._results: dict[tuple[str, Box, Steps], fx.Node] = {}
        self._states: dict[str, list[fx.Node]] = {}

    def write(self, op: Op) -> None:
        """The parts of its results that the shard makes."""
        for tensor in op.outputs:
            if tensor in self._layout.made:
                for box in self._layout.made[tensor]:
                    steps = self._layout.steps[tensor, box]
                    self._values[tensor, box] = self._written(op, tensor, box, steps)

    def value(self, tensor: str, box: Box) -> fx.Node:
        """A box of a tensor that the shard makes or receives."""
        if (tensor, box) not in self._values:
            made = tensor in self._layout.made
            boxes = self._layout.made[tensor] if made else self._layout.read[tensor]
            cover = next(one for one in boxes if is_within(box, one))
            if (tensor, cover) not in self._values:
                self._values[tensor, cover] = self._fetch(tensor, cover, self)
            node = self._values[tensor, cover]
            self._values[tensor, box] = self.cut(tensor, node, cover, box)
        return self._values[tensor, box]

    def _written(self, op: Op, tensor: str, box: Box, steps: Steps) -> fx.Node:
        """One box of a result; ops of several results are written once for all."""
        key = (op.name, box, steps)
        if key not in self._results:
            self._results[key] = self._applied(op, box, steps)
        node = self._results[key]
        if not op.items or any(step.is_moved for step in steps):
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

    def _applied(self, op: Op, box: Box, steps: Steps) -> fx.Node:
        origin = self._draft.node[op.name]
        given = self._arguments(op, origin, steps)
        along = list(
            zip(box, steps, strict=False)
        )  # a step by what is summed is along no dimension
        if any(step.axis == TIME and part.start for part, step in along):
            assert self._before is not None, "the first chunk begins with the model's own state"
            states = self._before.last_state(op)
            given["hx"] = states if len(states) > 1 else states[0]
        moved = next((step for step in steps if step.is_moved), None)
        if moved is not None:
            ((name, index), _) = moved.reads[0]
            found: fx.Node = given[name] if index < 0 else given[name][index]
            return found
        self._pad(op, origin, steps, given)
        node = self._called(op, origin, steps, given)
        for part, step in along:
            if step.crop:
                cropped = (node, part.dim, *step.crop)
                node = self.call(origin, f"{op.name}_cropped", _aten.slice.Tensor, *cropped)
        for part, step in along:
            if step.scale:
                value = node.meta["val"]
                shape = [-1] + [1] * (value.dim() - 1 - part.dim)
                scale = torch.tensor(step.scale, dtype=value.dtype).reshape(shape)
                constant = self._draft.constant(f"{op.name}_scale{self._suffix}", scale)
                node = self.call(origin, f"{op.name}_scaled", _aten.mul.Tensor, node, constant)
        return node

    def _pad(self, op: Op, origin: fx.Node, steps: Steps, given: dict[str, Any]) -> None:
        """Add around what the op reads what its own padding no longer does."""
        padded = [step for step in steps if any(step.pad)]
        if not padded:
            return
        ((name, _), _) = padded[0].reads[0]
        sizes = [0] * (2 * given[name].meta["val"].dim())
        for step in padded:
            dim = step.reads[0][1].dim
            sizes[2 * dim : 2 * dim + 2] = reversed(step.pad)
        while not any(sizes[:2]):
            del sizes[:2]
        sizes.reverse()  # from the last dimension on
        padding = (given[name], sizes, "constant", padded[0].fill)
        given[name] = self.call(origin, f"{op.name}_padded", _aten.pad.default, *padding)

    def _called(self, op: Op, origin: fx.Node, steps: Steps, given: dict[str, Any]) -> fx.Node:
        """The op on these arguments, or what it is called when it has others."""
        if any(step.axis == "vocabulary" for step in steps):
            rows = steps[0].reads[0][1]
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
        changed = {name: value for step in steps for name, value in step.changed}
        if changed.get("padding") is not None and target._overloadname == "padding":
            target = getattr(_aten, target._opname).default  # its padding was "same" or "valid"
        if "self" in changed and changed["self"] is None:  # a product without what it adds
            target, given = (
                _aten.matmul.default,
                dict(zip(("self", "other"), _pair(given), strict=True)),
            )
        args, kwargs = as_called(target, given)
        return self.call(origin, op.name, target, *args, **kwargs)

    def _arguments(self, op: Op, origin: fx.Node, steps: Steps) -> dict[str, Any]:
        """The op's arguments with boxes in the places of tensors and weights."""
        own = arguments_of(origin)
        node_of = {ref: _at(own, place) for place, ref in references(op)}
        boxes = read_boxes(steps) or {}
        changed = {name: value for step in steps for name, value in step.changed}
        is_moved = any(step.is_moved for step in steps)
        given = dict(own)
        for name, data in (dict(op.arguments) | changed).items():
            items = data if isinstance(data, tuple) else (data,)
            if name not in changed and not any(map(is_reference, items)):
                continue  # as it is: what became text in the data, too
            found = []
            for index, item in enumerate(items):
                place = (name, index if isinstance(data, tuple) else -1)
                if is_reference(item):
                    box = boxes.get(place, WHOLE)
                    moved_elsewhere = is_moved and place not in boxes
                    found.append(None if moved_elsewhere else self._argument(item, box, node_of))
                else:
                    found.append(item)
            given[name] = found if isinstance(data, tuple) else found[0]
        return given

    def _argument(self, reference: str, box: Box, node_of: dict[str, fx.Node]) -> fx.Node:
        name = reference[1:]
        if reference[:1] != WEIGHT:
            return self.value(name, box)
        node = node_of[reference]
        for part in box:
            name = f"{name}_{part.start}_to_{part.end}"
            edit = Editor(self._draft, node, tied=False)
            node = edit.part(node, part.dim, part.start, part.end, name)
        return node


def _at(arguments: dict[str, Any], place: Place) -> fx.Node:
    name, index = place
    found: fx.Node = arguments[name] if index < 0 else arguments[name][index]
    return found


def _pair(given: dict[str, Any]) -> tuple[fx.Node, fx.Node]:
    names = ("mat1", "mat2") if "mat1" in given else ("batch1", "batch2")
    return given[names[0]], given[names[1]]
