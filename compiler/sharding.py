"""Sharding: groups of ops become shards, as `slicewise.passes.shards` chose, in a program in core ops.

The result is a new program on views of the same weights, to be converted once more. Every shard has
ops of its own, which read only parts; between two groups that are both split, every shard sends the
others just what they need of its results.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import fx
from torch.export import ExportedProgram

from slicewise.analyse import analyse
from slicewise.draft import Draft
from slicewise.graph import OpGraph
from slicewise.passes.shards.boxes import WHOLE, Box, pieces
from slicewise.passes.shards.sharding import Sharding, layouts
from slicewise.shard_writer import Scribe, Writer

_aten = torch.ops.aten
_PASSED_ON = (_aten.alias.default, _aten.detach.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOps:
    """The new ops of one shard: of the sharding `sharding` of those chosen, its shard `shard`.

    `ops` are what the shard itself does, with what joins the parts that it receives and cuts those that
    it sends; `cuts` cut its inputs out of tensors that are not sharded, and belong to the slices that
    make these; `combines` put the results of all shards together for ops that are not sharded.
    """

    sharding: int
    shard: int
    ops: tuple[str, ...]
    cuts: tuple[str, ...]
    combines: tuple[str, ...]


def apply_shardings(
    program: ExportedProgram,
    chosen: Sequence[Sharding],
    *,
    aliases: Mapping[str, str] | None = None,
) -> tuple[ExportedProgram, tuple[ShardOps, ...]]:
    """A program that computes the same in shards, and which of its ops belong to which shard.

    `program` is in core ops, as it was when the shardings of its graph were made; `aliases` are those
    that the graph was made with (default: nodes that only pass a tensor on and are in no group). Groups
    must not overlap.
    """
    if not chosen:
        return program, ()
    if aliases is None:
        aliases = _aliases(program, chosen)
    graph, _ = analyse(program, name="sharded", aliases=aliases, dim_names={})
    work = _Work(Draft(program), graph)
    work.drop(aliases)
    order = sorted(range(len(chosen)), key=lambda index: work.place[chosen[index].ops[-1]])
    for index in order:
        work.shard(index, chosen[index])
    return work.finish()


@dataclass(slots=True, kw_only=True)
class _Made:
    """A tensor that shards return: a box from each, or a summand from each (boxes that are `WHOLE`).

    `anchor` is the node behind the shards, `whole` what puts the boxes together, once somebody asks.
    """

    sharding: int
    anchor: fx.Node
    boxes: list[Box] = field(default_factory=list)
    nodes: list[fx.Node] = field(default_factory=list)
    writers: list[Writer] = field(default_factory=list)
    whole: fx.Node | None = None


class _Work:
    """What has been written of the shards."""

    def __init__(self, draft: Draft, graph: OpGraph) -> None:
        self.draft = draft
        self.graph = graph
        draft.graph.eliminate_dead_code()
        self.place = {node.name: index for index, node in enumerate(draft.graph.nodes)}
        self.made: dict[str, _Made] = {}
        self.doomed: list[fx.Node] = []
        self.writers: list[tuple[int, int, Writer]] = []
        self.combines: dict[int, list[str]] = {}
        self.cut: dict[tuple[str, Box], tuple[fx.Node, list[str]]] = {}

    def drop(self, aliases: Mapping[str, str]) -> None:
        """Let everything read what the aliases pass on."""
        for name, source in aliases.items():
            node, value = self.draft.node[name], self.draft.node[source]
            if node.meta["val"].shape == value.meta["val"].shape:
                self.draft.replace(node, value)
                self.draft.node[name] = value

    def shard(self, index: int, sharding: Sharding) -> None:
        """Write the shards of one group, behind its last op."""
        draft, graph = self.draft, self.graph
        nodes = [draft.node[name] for name in sharding.ops]
        nodes += [user for node in nodes for user in node.users if user.target is operator.getitem]
        anchor = max(nodes, key=lambda node: self.place[node.name]).next
        self.doomed += nodes
        self.combines[index] = []
        with draft.graph.inserting_before(anchor):
            writer = None
            for shard, (share, layout) in enumerate(layouts(graph, sharding)):
                suffix = f"_shard_{shard}_of_{sharding.degree}"
                writer = Writer(draft, graph, layout, suffix, self.fetch, writer)
                self.writers.append((index, shard, writer))
                for name in sharding.ops:
                    writer.write(graph.op[name])
                for name, box in share.results.items():
                    made = self.made.setdefault(name, _Made(sharding=index, anchor=anchor))
                    made.boxes.append(box)
                    made.nodes.append(writer.value(name, box))
                    made.writers.append(writer)

    def fetch(self, name: str, box: Box, writer: Writer) -> fx.Node:
        """A box of a tensor from outside of the group, for one of its shards."""
        made = self.made.get(name)
        if made is None or not all(made.boxes):
            node = self.whole(name) if made else self.draft.node[name]
            return node if box == WHOLE else self.cut_out(name, node, box, writer)
        found = {
            piece: made.writers[maker].cut(name, made.nodes[maker], made.boxes[maker], piece)
            for maker, piece in pieces(made.boxes, (box,))
        }
        return writer.joined(name, found)

    def cut_out(self, name: str, node: fx.Node, box: Box, writer: Writer) -> fx.Node:
        """A box of a tensor that is not sharded; the slice that makes it cuts it, once for all."""
        if (name, box) not in self.cut:
            cutter = Scribe(self.draft)
            self.cut[name, box] = cutter.cut(name, node, WHOLE, box), cutter.ops
        found, ops = self.cut[name, box]
        writer.cuts += ops
        return found

    def whole(self, name: str) -> fx.Node:
        """All of a tensor that shards returned, put together behind them."""
        made = self.made[name]
        if made.whole is None:
            writer = Scribe(self.draft)
            with self.draft.graph.inserting_before(made.anchor):
                if all(made.boxes):
                    made.whole = writer.joined(name, dict(zip(made.boxes, made.nodes, strict=True)))
                else:
                    made.whole = reduce(
                        lambda one, other: writer.call(
                            made.nodes[0], f"{name}_sum", _aten.add.Tensor, one, other
                        ),
                        made.nodes,
                    )
            self.combines[made.sharding] += writer.ops
        return made.whole

    def finish(self) -> tuple[ExportedProgram, tuple[ShardOps, ...]]:
        """Combine what ops outside of the groups read, and erase the ops of the groups."""
        doomed = set(self.doomed)
        for name in self.made:
            node = self.draft.node[name]
            if any(user not in doomed for user in node.users):
                self.draft.renamed[node.name] = self.whole(name).name
                node.replace_all_uses_with(self.whole(name))
        for node in sorted(doomed, key=lambda node: self.place[node.name], reverse=True):
            self.draft.graph.erase_node(node)
        told = tuple(
            ShardOps(
                sharding=index,
                shard=shard,
                ops=tuple(writer.ops),
                cuts=tuple(dict.fromkeys(writer.cuts)),
                combines=tuple(self.combines[index]),
            )
            for index, shard, writer in sorted(self.writers, key=lambda one: one[:2])
        )
        return self.draft.finish(), told


def _aliases(program: ExportedProgram, chosen: Sequence[Sharding]) -> dict[str, str]:
    kept = {name for sharding in chosen for name in sharding.ops}
    return {
        node.name: node.all_input_nodes[0].name
        for node in program.graph.nodes
        if node.target in _PASSED_ON and node.name not in kept
    }
