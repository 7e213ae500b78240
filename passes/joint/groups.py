"""Groups: slices that run at the same time, as arcs between the states of the pairs of single slices.

A group of *branches* splits a region's nodes, a group of *shards* the ops between two boundaries. What
it takes and costs depends on the states at both ends alone, like a pair's, so that one search chooses
among single slices and groups. All slices of a group have one memory size; its time is that of the
slowest one, what is paid for is the sum.

Shards get parts of tensors and return parts. The slice before them cuts and sends the parts, the slice
after them puts them together; its share of that counts here, as far as it is more than for whole
tensors. Where shards follow shards, or end the graph, a slice between does only that: a *join*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slicewise.cost import CostModel, Transport
from slicewise.passes.joint.pairs import Pairs
from slicewise.passes.joint.problem import JointProblem
from slicewise.passes.joint.regions import MOST_REGIONS, grouped, regions
from slicewise.passes.partitioning.ground import Ground
from slicewise.passes.shards import Sharding
from slicewise.timeline import slowest_extra_ms

Array = NDArray[Any]
_MOST_ARCS = 40_000
COLUMNS = ("wait", "cpu", "compute", "all_wait", "all_cpu", "all_compute", "count",
           "caller_wait", "caller_cpu", "usd", "need")  # fmt: skip
Row = dict[str, float]


@dataclass(frozen=True, slots=True)
class Group:
    """Slices that run at the same time: the nodes of each, or how the ops between are split."""

    branches: tuple[tuple[int, ...], ...] = ()
    sharding: Sharding | None = None

    @property
    def width(self) -> int:
        """How many slices."""
        return self.sharding.degree if self.sharding else len(self.branches)


@dataclass(frozen=True)
class Arcs:
    """Groups by the states before and after, like `Pairs`. `wait`, `cpu` and `compute` are those of the
    slowest slice, `all_...` the sums over all; `joins` has a row per state: the slice that only puts
    together and cuts. `into[s]` are the arcs into state s. `complete` says that no group was left out
    because there were too many.
    """

    groups: tuple[Group, ...]
    source: Array
    target: Array
    group: Array
    values: dict[str, Array]
    joins: dict[str, Array]
    into: dict[int, list[int]]
    complete: bool


@dataclass(frozen=True, slots=True)
class Flow:
    """A tensor that a slice of a group receives or sends: its bytes, and its transport."""

    bytes: int
    transport: Transport


@dataclass(frozen=True, slots=True)
class Part:
    """A slice of a group."""

    compute: float
    received: tuple[Flow, ...]
    sent: tuple[Flow, ...]
    need: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shardable:
    """The ways to split what lies between two prefixes, and the memory of each one's largest shard."""

    first: int
    last: int
    ways: tuple[tuple[Sharding, float], ...]


Needs = Callable[[Iterable[int]], float]


def build_arcs(
    base: Ground,
    problem: JointProblem,
    model: CostModel,
    pairs: Pairs,
    needs: Needs,
    most: int,
    shardable: Sequence[Shardable],
) -> Arcs:
    """All groups of at most `most` slices; `needs` measures the memory of a slice of some nodes."""
    builder = _Builder(base, problem, model, pairs)
    found = regions(problem, pairs.prefixes)
    builder.complete = len(found) < MOST_REGIONS
    for region in found:
        if region.last not in builder.column:
            continue
        widest = min(most, len(region.branches))
        for count in dict.fromkeys((widest, *(w for w in (2, 3, 4, 8) if w < widest))):
            builder.add_branches(region.first, region.last, grouped(problem, region, count), needs)
    for run in shardable:
        if run.first in builder.column and run.last in builder.column:
            for sharding, need in run.ways:
                if sharding.degree <= most:
                    builder.add_shards(run.first, run.last, sharding, need)
    return builder.arcs()


class _Builder:
    def __init__(self, base: Ground, problem: JointProblem, model: CostModel, pairs: Pairs) -> None:
        self.problem, self.model, self.pairs = problem, model, pairs
        self.names = [base.graph.tensors[link.tensor].name for link in problem.links]
        self.time_of = {op.name: op.time for op in base.graph.ops}
        self.column = {prefix: index for index, prefix in enumerate(pairs.prefixes)}
        self.states: dict[int, list[int]] = {}
        for state, prefix in enumerate(pairs.state_prefix.tolist()):
            self.states.setdefault(prefix, []).append(state)
        self.complete = True
        self.groups: list[Group] = []
        self.rows: list[tuple[int, int, int, Row]] = []

    def _ends(self, first: int, last: int) -> Iterable[tuple[int, int, Array, Array]]:
        """The states at both prefixes that agree on the transport of what is live at both."""
        ways = self.pairs.state_ways
        for source in self.states.get(self.column[first], ()):
            for target in self.states.get(self.column[last], ()):
                before, after = ways[source], ways[target]
                if bool(((before < 0) | (after < 0) | (before == after)).all()):
                    yield source, target, before, after

    def _is_full(self) -> bool:
        full = len(self.rows) > _MOST_ARCS
        self.complete = self.complete and not full
        return full

    def add_branches(
        self, first: int, last: int, branches: tuple[tuple[int, ...], ...], needs: Needs
    ) -> None:
        need = max(needs(nodes) for nodes in branches)
        if not np.isfinite(need) or len(branches) < 2 or self._is_full():
            return
        number = len(self.groups)
        self.groups.append(Group(branches=branches))
        for source, target, before, after in self._ends(first, last):
            parts = [self._branch(set(nodes), before, after, need) for nodes in branches]
            self._add(source, target, number, parts)

    def _branch(self, nodes: set[int], before: Array, after: Array, need: float) -> Part:
        received, sent = [], []
        for index, link in enumerate(self.problem.links):
            if link.producer in nodes:
                if after[index] >= 0 and not link.is_sent:
                    sent.append(Flow(link.bytes, self.model.transports[after[index]]))
            elif before[index] >= 0 and not nodes.isdisjoint(link.readers):
                received.append(Flow(link.bytes, self.model.transports[before[index]]))
        for node in nodes:
            sent += [Flow(b, self.model.transports[w]) for b, w in self.problem.leaves[node]]
        compute = sum(self.problem.times[node] for node in nodes)
        return Part(compute, tuple(received), tuple(sent), need)

    def add_shards(self, first: int, last: int, sharding: Sharding, need: float) -> None:
        if self._is_full():
            return
        link_of = {name: index for index, name in enumerate(self.names)}
        inside = {n for n in range(self.problem.graph.size) if (last & ~first) >> n & 1}
        number = len(self.groups)
        self.groups.append(Group(sharding=sharding))
        for source, target, before, after in self._ends(first, last):

            def flows(moved: Sequence[tuple[str, int]], ways: Array) -> tuple[Flow, ...]:
                found = []
                for name, size in moved:
                    index = link_of.get(name)
                    way = 0 if index is None else max(0, int(ways[index]))
                    if index is not None and self.problem.links[index].producer < 0:
                        size = self.problem.links[index].bytes  # a shard cuts these by itself
                    found.append(Flow(size, self.model.transports[way]))
                return tuple(found)

            parts = [
                Part(
                    compute=sum(self.time_of[op] * share for op, share in part.work),
                    received=flows(part.received, before),
                    sent=flows(part.sent, after),
                    need=need,
                )
                for part in sharding.parts
            ]
            extra = self._neighbours(sharding, inside, before, after)
            if extra is not None:
                self._add(source, target, number, parts, extra)

    def _neighbours(
        self, sharding: Sharding, inside: set[int], before: Array, after: Array
    ) -> Row | None:
        """What parts of tensors take more than whole ones in the slices that send and read them; None
        where they fit no message.
        """
        extra = dict.fromkeys(COLUMNS, 0.0)
        transports = self.model.transports
        for index, link in enumerate(self.problem.links):
            name = self.names[index]
            if link.producer >= 0 and before[index] >= 0:
                sizes = [size for part in sharding.parts for t, size in part.received if t == name]
                if not sizes or all(size >= link.bytes for size in sizes):
                    continue  # one tensor for all
                way = transports[before[index]]
                more = sum(sizes) - link.bytes * (after[index] < 0)
                self._more(extra, way, "send", "collect", more, len(sizes) - 1)
                if way.message_bytes is not None and sum(sizes) > way.message_bytes:
                    return None
            elif link.producer in inside and after[index] >= 0:
                sizes = [size for part in sharding.parts for t, size in part.sent if t == name]
                way = transports[after[index]]
                more = max(0, sum(sizes) - link.bytes)
                self._more(extra, way, "receive", "pass_on", more, len(sizes) - 1)
                if way.message_bytes is not None and sum(sizes) > way.message_bytes:
                    return None
        return extra

    def _more(
        self, extra: Row, way: Transport, inner: str, outer: str, size: int, count: int
    ) -> None:
        for name, cpu, wait in ((inner, "cpu", "wait"), (outer, "caller_cpu", "caller_wait")):
            step = way.step(name)
            extra[cpu] += step.cpu_ms * max(0, count) + step.cpu_ns * size * 1e-6
            extra[wait] += step.transfer(size)
        extra["usd"] += max(0, count) * (way.send_usd if inner == "send" else way.receive_usd)

    def _add(
        self, source: int, target: int, group: int, parts: Sequence[Part], extra: Row | None = None
    ) -> None:
        rows = [self._row(part) for part in parts]
        if any(row is None for row in rows):
            return
        found = [row for row in rows if row is not None]
        model, count = self.model, len(parts)
        total = {name: sum(row[name] for row in found) for name in COLUMNS}
        for name in ("wait", "cpu", "compute"):
            total[f"all_{name}"] = total[name]
            total[name] = max(row[name] for row in found)
        total["need"] = max(row["need"] for row in found)
        total["caller_wait"] += model.call.wait_ms + slowest_extra_ms(model.call, count)
        total["caller_cpu"] += count * model.call.cpu_ms
        if self.pairs.state_prefix[target] == len(self.pairs.prefixes) - 1:
            total["caller_wait"] += max(
                (f.transport.receive.wait_ms for part in parts for f in part.received), default=0.0
            )  # the caller deletes what the last slices have read
        for name, value in (extra or {}).items():
            total[name] += value
            if f"all_{name}" in total:
                total[f"all_{name}"] += value
        self.rows.append((source, target, group, total))

    def _row(self, part: Part) -> Row | None:
        """What one slice takes; None where a message does not hold its tensors."""
        row = dict.fromkeys(COLUMNS, 0.0)
        row["compute"], row["need"] = part.compute, part.need
        row["wait"], row["cpu"] = self.model.handle.wait_ms, self.model.handle.cpu_ms
        row["count"] = 1.0
        row["usd"] = self.model.request_usd
        for flows, inner, outer in ((part.received, "receive", "pass_on"),
                                    (part.sent, "send", "collect")):  # fmt: skip
            first = 0.0
            held: dict[str, int] = {}
            for flow in flows:
                way = flow.transport
                step, passing = way.step(inner), way.step(outer)
                row["cpu"] += step.cpu(flow.bytes)
                row["wait"] += step.transfer(flow.bytes)
                first = max(first, step.wait_ms)
                row["caller_cpu"] += passing.cpu(flow.bytes)
                row["caller_wait"] += passing.transfer(flow.bytes)
                is_in = inner == "receive"
                row["usd"] += way.receive_usd if is_in else way.send_usd
                row["usd"] += flow.bytes * (way.receive_byte_usd if is_in else way.send_byte_usd)
                held[way.name] = held.get(way.name, 0) + flow.bytes + way.record_bytes
                if way.message_bytes is not None and held[way.name] > way.message_bytes:
                    return None
            row["wait"] += first
        return row

    def arcs(self) -> Arcs:
        into: dict[int, list[int]] = {}
        for index, (_, target, _, _) in enumerate(self.rows):
            into.setdefault(target, []).append(index)
        return Arcs(
            groups=tuple(self.groups),
            source=np.array([row[0] for row in self.rows], dtype=np.int64),
            target=np.array([row[1] for row in self.rows], dtype=np.int64),
            group=np.array([row[2] for row in self.rows], dtype=np.int64),
            values={name: np.array([row[3][name] for row in self.rows]) for name in COLUMNS},
            joins=self._joins(),
            into=into,
            complete=self.complete,
        )

    def _joins(self) -> dict[str, Array]:
        """Per state, what a slice takes that receives all that is live and sends it on."""
        model, rows = self.model, []
        leaves = [leaf for each in self.problem.leaves for leaf in each]
        last = len(self.pairs.prefixes) - 1
        for prefix, ways in zip(
            self.pairs.state_prefix.tolist(), self.pairs.state_ways, strict=True
        ):
            moved = [
                Flow(link.bytes, model.transports[ways[index]])
                for index, link in enumerate(self.problem.links)
                if ways[index] >= 0 and link.producer >= 0
            ]
            if prefix == last:
                moved = [Flow(size, model.transports[way]) for size, way in leaves]
            row = self._row(Part(0.0, tuple(moved), tuple(moved), 0.0))
            if row is None:
                row = dict.fromkeys(COLUMNS, np.inf)
            row["caller_wait"] += model.call.wait_ms
            row["caller_cpu"] += model.call.cpu_ms
            row["all_wait"], row["all_cpu"] = row["wait"], row["cpu"]
            rows.append(row)
        return {name: np.array([row[name] for row in rows]) for name in COLUMNS}
