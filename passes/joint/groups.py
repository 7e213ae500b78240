"""Groups: slices that run at the same time, as arcs between the states of the pairs of single slices.

A group of *branches* splits a region's nodes, a group of *shards* the ops between two boundaries. What
it takes and costs depends on the states at both ends alone, like a pair's, so that one search chooses
among single slices and groups. All slices of a group have one memory size; its time is that of the
slowest one, what is paid for is the sum.

Shards get parts of tensors and return parts. The slice before them cuts and sends the parts, the slice
after them puts them together; its share of that counts here, as far as it is more than for whole
tensors. Between shards and shards there need be no slice: each sends every other one the piece that it
needs, so a state is also told by the *parts* in which its tensor lies. Where shards end the graph, or
the summands that they return are to be split again, a slice between does only that: a *join*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slicewise.cost import CostModel
from slicewise.passes.joint.pairs import Pairs
from slicewise.passes.joint.problem import JointProblem
from slicewise.passes.joint.regions import MOST_REGIONS, grouped, regions
from slicewise.passes.joint.runs import Run, pipelines
from slicewise.passes.joint.traffic import JOINED, WHOLE, Flow, Traffic
from slicewise.passes.partitioning.ground import Ground
from slicewise.timeline import slowest_extra_ms

Array = NDArray[Any]
_MOST_ARCS = 1_000_000
COLUMNS = ("wait", "cpu", "compute", "all_wait", "all_cpu", "all_compute", "count",
           "caller_wait", "caller_cpu", "usd", "need", "length")  # fmt: skip
Needs = Callable[[Iterable[int]], float]


@dataclass(frozen=True, slots=True)
class Group:
    """Slices that run at the same time: the nodes of each, or how the ops between are split. Several
    runs, split alike by time, are a pipeline.
    """

    branches: tuple[tuple[int, ...], ...] = ()
    runs: tuple[Run, ...] = ()

    @property
    def width(self) -> int:
        """How many slices."""
        return sum(run.way.degree for run in self.runs) or len(self.branches)


@dataclass(frozen=True)
class Arcs:
    """Groups by the states before and after, like `Pairs`, sorted by the one after and the parts there.

    `wait`, `cpu` and `compute` are those of the slowest slice, `all_...` the sums over all; `length`
    says how many of such slices run one after the other, with the caller's work for each; `joins` has a
    row per state: the slice that only puts together and cuts. `have` and `make` are the parts in which
    the states lie before and after, below `kinds`; arcs `begin[s * kinds + k]` to the next one go into
    parts k of state s. `complete` says that no group was left out because there were too many.
    """

    groups: tuple[Group, ...]
    source: Array
    target: Array
    have: Array
    make: Array
    group: Array
    width: Array
    values: dict[str, Array]
    joins: dict[str, Array]
    kinds: int
    begin: Array
    complete: bool


def build_arcs(
    base: Ground,
    problem: JointProblem,
    model: CostModel,
    pairs: Pairs,
    needs: Needs,
    most: int,
    runs: Sequence[Run],
) -> Arcs:
    """All groups of at most `most` slices; `needs` measures the memory of a slice of some nodes. What
    shards need is a lower bound, to be measured when they are chosen.
    """
    builder = _Builder(base, problem, model, pairs)
    found = regions(problem, pairs.prefixes)
    builder.complete = len(found) < MOST_REGIONS
    for region in found:
        if region.last not in builder.column:
            continue
        widest = min(most, len(region.branches))
        for count in dict.fromkeys((widest, *(w for w in (2, 3, 4, 8) if w < widest))):
            builder.add_branches(region.first, region.last, grouped(problem, region, count), needs)
    known = [run for run in runs if run.first in builder.column and run.last in builder.column]
    ways: list[tuple[Run, ...]] = [(run,) for run in known if not run.way.is_by_time]
    ways += pipelines([run for run in known if run.way.is_by_time], most)
    for way in sorted(ways, key=lambda way: way[-1].last.bit_count()):
        if len(way) == 1:
            builder.add_shards(way[0])
        else:
            builder.add_pipeline(way)
    return builder.arcs()


@dataclass(slots=True)
class _Rows:
    """Arcs of groups of one width: indices of what each combines."""

    ends: list[tuple[int, int, int, int]]  # source, target, parts before and after
    group: list[int]
    received: list[int]
    sent: list[int]


class _Builder:
    def __init__(self, base: Ground, problem: JointProblem, model: CostModel, pairs: Pairs) -> None:
        self.base, self.problem, self.model, self.pairs = base, problem, model, pairs
        self.traffic = Traffic(base, problem, model)
        self.column = {prefix: index for index, prefix in enumerate(pairs.prefixes)}
        self.states: dict[int, list[int]] = {}
        for state, prefix in enumerate(pairs.state_prefix.tolist()):
            self.states.setdefault(prefix, []).append(state)
        self.complete = True
        self.groups: list[Group] = []
        self.computes: list[Array] = []  # by group, ms of each slice
        self.needs: list[float] = []
        self.rows: dict[int, _Rows] = {}
        self.single: list[tuple[tuple[int, int, int, int], int, dict[str, float]]] = []
        self.count = 0

    def _ends(self, first: int, last: int) -> Iterable[tuple[int, int, Array, Array]]:
        """The states at both prefixes that agree on the transport of what is live at both."""
        ways = self.pairs.state_ways
        for source in self.states.get(self.column[first], ()):
            for target in self.states.get(self.column[last], ()):
                before, after = ways[source], ways[target]
                if bool(((before < 0) | (after < 0) | (before == after)).all()):
                    yield source, target, before, after

    def _new_group(self, group: Group, computes: Sequence[float], need: float) -> int:
        self.groups.append(group)
        self.computes.append(np.array(computes))
        self.needs.append(need)
        return len(self.groups) - 1

    def add_branches(
        self, first: int, last: int, branches: tuple[tuple[int, ...], ...], needs: Needs
    ) -> None:
        need = max(needs(nodes) for nodes in branches)
        if not np.isfinite(need) or len(branches) < 2:
            return
        times = [sum(self.problem.times[node] for node in nodes) for nodes in branches]
        number = self._new_group(Group(branches=branches), times, need)
        for source, target, before, after in self._ends(first, last):
            flows = [self._branch(set(nodes), before, after) for nodes in branches]
            received = self.traffic.of([into for into, _ in flows], "receive")
            sent = self.traffic.of([out for _, out in flows], "send")
            self._add((source, target, WHOLE, WHOLE), number, received, sent)

    def _branch(
        self, nodes: set[int], before: Array, after: Array
    ) -> tuple[list[Flow], list[Flow]]:
        received, sent = [], []
        for index, link in enumerate(self.problem.links):
            if link.producer in nodes:
                if after[index] >= 0 and not link.is_sent:
                    sent.append(Flow(link.bytes, self.model.transports[after[index]]))
            elif before[index] >= 0 and not nodes.isdisjoint(link.readers):
                received.append(Flow(link.bytes, self.model.transports[before[index]]))
        for node in nodes:
            sent += [Flow(b, self.model.transports[w]) for b, w in self.problem.leaves[node]]
        return received, sent

    def add_shards(self, run: Run) -> None:
        overhead = self.base.overheads.memory_bytes + max(run.way.held_bytes)
        number = self._new_group(Group(runs=(run,)), run.way.work_ms, overhead)
        first, last = self.column[run.first], self.column[run.last]
        kind = self.traffic.parts_of(last, run.way)
        for source, target, before, after in self._ends(run.first, run.last):
            plain, joined = self.traffic.sent(run.way, last, target, after)
            for have in self.traffic.kinds(first):
                received = self.traffic.received(run.way, first, source, have, before, after)
                self._add((source, target, have, JOINED), number, received, joined)
                if kind != WHOLE:
                    self._add((source, target, have, kind), number, received, plain)

    def add_pipeline(self, runs: tuple[Run, ...]) -> None:
        """Stages after each other, and chunks of time: a chunk is in one stage while the next one is in
        the stage before, so that of all calls stages + chunks - 1 follow each other.
        """
        traffic, model, chunks = self.traffic, self.model, runs[0].way.degree
        overhead = self.base.overheads.memory_bytes
        need = overhead + max(max(run.way.held_bytes) for run in runs)
        works = [ms for run in runs for ms in run.way.work_ms]
        number = self._new_group(Group(runs=runs), works, need)
        places = [self.column[run.first] for run in runs] + [self.column[runs[-1].last]]
        inner = [self.states[place][0] for place in places[1:-1]]
        length = float(len(runs) + chunks - 1)
        for source, target, before, after in self._ends(runs[0].first, runs[-1].last):
            states = [source, *inner, target]
            ways = [before, *(self.pairs.state_ways[state] for state in inner), after]
            into: list[int | None] = []
            out: list[int | None] = []
            for index, run in enumerate(runs):
                have = WHOLE if index == 0 else traffic.parts_of(places[index], runs[index - 1].way)
                if index and have == WHOLE:
                    return  # what is between two stages is more than one tensor
                into.append(traffic.received(run.way, places[index], states[index], have,
                                             ways[index], ways[index + 1]))  # fmt: skip
                plain, joined = traffic.sent(run.way, places[index + 1], states[index + 1],
                                             ways[index + 1])  # fmt: skip
                out.append(joined if index == len(runs) - 1 else plain)
            numbers = [n for n in (*into, *out) if n is not None]
            if len(numbers) < len(into) + len(out):
                continue
            received = np.concatenate([traffic.slices(chunks, n) for n in numbers[: len(runs)]])
            sent = np.concatenate([traffic.slices(chunks, n) for n in numbers[len(runs) :]])
            moved = received + sent
            extra = traffic.extra(chunks, numbers[0]) + traffic.extra(chunks, numbers[-1])
            wait, cpu = moved[:, 0] + model.handle.wait_ms, moved[:, 1] + model.handle.cpu_ms
            waits = model.call.wait_ms + slowest_extra_ms(model.call, 2)  # for two slices before
            row = {
                "wait": wait.max(), "cpu": cpu.max(), "compute": max(works),
                "all_wait": wait.sum(), "all_cpu": cpu.sum(), "all_compute": sum(works),
                "count": float(len(works)), "length": length,
                "caller_wait": waits + moved[:, 2].max() + extra[[0, 2]].sum() / length,
                "caller_cpu": moved[:, 3].max() + model.call.cpu_ms + extra[3] / length,
                "usd": moved[:, 4].sum() + extra[4] + len(works) * model.request_usd, "need": need,
            }  # fmt: skip
            self.single.append(((source, target, WHOLE, JOINED), number, row))

    def _add(
        self, ends: tuple[int, int, int, int], group: int, received: int | None, sent: int | None
    ) -> None:
        if received is None or sent is None:
            return
        if self.count >= _MOST_ARCS:
            self.complete = False
            return
        self.count += 1
        rows = self.rows.setdefault(self.groups[group].width, _Rows([], [], [], []))
        rows.ends.append(ends)
        rows.group.append(group)
        rows.received.append(received)
        rows.sent.append(sent)

    def arcs(self) -> Arcs:
        ends, groups, values = [], [], []
        for width, rows in self.rows.items():
            ends += rows.ends
            groups += rows.group
            values.append(self._values(width, rows))
        if self.single:
            ends += [each[0] for each in self.single]
            groups += [each[1] for each in self.single]
            rows_of = [each[2] for each in self.single]
            values.append({name: np.array([row[name] for row in rows_of]) for name in COLUMNS})
        joined = {
            name: np.concatenate([each[name] for each in values]) if values else np.zeros(0)
            for name in COLUMNS
        }
        table = np.array(ends, dtype=np.int64).reshape(-1, 4)
        group = np.array(groups, dtype=np.int64)
        order = np.lexsort((table[:, 3], table[:, 1]))
        source, target, have, make = (np.ascontiguousarray(c) for c in table[order].T)
        kinds = self.traffic.most_kinds
        places = np.arange(len(self.pairs.state_prefix) * kinds + 1)
        begin = np.searchsorted(target * kinds + make, places)
        widths = np.array([each.width for each in self.groups], dtype=np.int64)
        return Arcs(
            groups=tuple(self.groups),
            source=source,
            target=target,
            have=have,
            make=make,
            group=group[order],
            width=widths[group[order]] if len(group) else group,
            values={name: column[order] for name, column in joined.items()},
            joins=self._joins(),
            kinds=kinds,
            begin=begin,
            complete=self.complete,
        )

    def _values(self, width: int, rows: _Rows) -> dict[str, Array]:
        """The columns of all arcs of one width."""
        model = self.model
        table = self.traffic.table(width)
        received, sent = table[rows.received], table[rows.sent]
        extra = self.traffic.extras(width)
        extra = extra[rows.received] + extra[rows.sent]
        moved = received + sent  # by arc, slice, column
        group = np.array(rows.group)
        compute = np.stack([self.computes[number] for number in rows.group])
        ends = np.array(rows.ends)
        is_last = self.pairs.state_prefix[ends[:, 1]] == len(self.pairs.prefixes) - 1
        # The caller deletes what the last slices have read.
        deleting = self.traffic.firsts(width)[rows.received] * is_last
        wait = moved[:, :, 0] + model.handle.wait_ms
        cpu = moved[:, :, 1] + model.handle.cpu_ms
        calls = np.array([0.0, model.call.cpu_ms])
        caller = _in_turn(received[:, :, 2:4] + calls, sent[:, :, 2:4])
        return {
            "wait": wait.max(axis=1) + extra[:, 0],
            "cpu": cpu.max(axis=1) + extra[:, 1],
            "compute": compute.max(axis=1),
            "all_wait": wait.sum(axis=1) + extra[:, 0],
            "all_cpu": cpu.sum(axis=1) + extra[:, 1],
            "all_compute": compute.sum(axis=1),
            "count": np.full(len(group), float(width)),
            "caller_wait": caller[:, 0] + extra[:, 2] + deleting
            + model.call.wait_ms + slowest_extra_ms(model.call, width),
            "caller_cpu": caller[:, 1] + extra[:, 3],
            "usd": moved[:, :, 4].sum(axis=1) + extra[:, 4] + width * model.request_usd,
            "need": np.array(self.needs)[group],
            "length": np.ones(len(group)),
        }  # fmt: skip

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
            rows.append(self.traffic.one_slice(moved, moved))
        return {name: np.array([row[name] for row in rows]) for name in COLUMNS}


def _in_turn(begins: Array, ends: Array) -> Array:
    """What the caller takes for slices that it starts and collects one after the other: while it starts
    the next one, or collects the last one, the others compute.
    """
    found: Array = np.maximum(
        begins.sum(axis=1) + ends.max(axis=1), begins.max(axis=1) + ends.sum(axis=1)
    )
    return found
