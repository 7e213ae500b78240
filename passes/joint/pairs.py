"""All slices between two prefixes, with every way for the tensors that cross, as arrays.

A *state* is a prefix (a set of nodes closed under predecessors: all slices so far) and the transport of
every link that is live there. A slice is a *pair* of states; all that it takes and costs depends on
these two alone. What it takes is kept apart by what a memory size changes, so that one set of pairs
serves every objective and price.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slicewise.cost import CostModel
from slicewise.passes.joint.problem import JointProblem
from slicewise.passes.partitioning.ground import Ground

Array = NDArray[Any]

MOST_PAIRS = 5_000_000
_MOST_WAYS = 64  # transports of the links live at one prefix; beyond that the largest come first


@dataclass(frozen=True, slots=True)
class Pairs:
    """Slices by their two states, sorted by the second one; ms at one vCPU, US dollars, bytes.

    `states[s]` is (prefix, transport of every link or -1). `begin[s]` is the first pair into state s.
    `wait` and `cpu` are billed to the slice besides `compute`; `caller_wait` and `caller_cpu` pass in
    the caller. `need` is memory that the slice takes at least. `complete` says that no state was left
    out.
    """

    prefixes: list[int]
    state_prefix: Array
    state_ways: Array
    begin: Array
    source: Array
    target: Array
    wait: Array
    cpu: Array
    compute: Array
    caller_wait: Array
    caller_cpu: Array
    usd: Array
    need: Array
    complete: bool


def build_pairs(
    base: Ground,
    problem: JointProblem,
    model: CostModel,
    prefixes: Sequence[int],
    deadline: float,
) -> Pairs | None:
    """The pairs between these prefixes (bit sets of nodes); None when they are too many."""
    return _Builder(base, problem, model, prefixes).build(deadline)


class _Builder:
    def __init__(
        self, base: Ground, problem: JointProblem, model: CostModel, prefixes: Sequence[int]
    ) -> None:
        self.base, self.problem, self.model = base, problem, model
        size = problem.graph.size
        self.prefixes = sorted(prefixes, key=lambda bits: (bits.bit_count(), bits))
        self.member = _members(self.prefixes, size)  # a row per node, a column per prefix
        self.links = problem.links
        self.live = self._live()
        self._make_states()
        self._weigh()
        self._price_links()

    def _live(self) -> Array:
        """Which links have been made and will still be read; a column per prefix."""
        live = np.zeros((len(self.links), self.member.shape[1]), dtype=bool)
        for index, link in enumerate(self.links):
            made = True if link.producer < 0 else self.member[link.producer]
            live[index] = made & ~self.member[list(link.readers)].all(axis=0)
        return live

    def _make_states(self) -> None:
        state_prefix: list[int] = []
        rows: list[Array] = []
        self.complete = True
        self.first_state = [0]
        for column in range(self.member.shape[1]):
            open_links = np.flatnonzero(self.live[:, column]).tolist()
            for ways in self._ways(open_links):
                row = np.full(len(self.links), -1, dtype=np.int8)
                row[open_links] = ways
                rows.append(row)
                state_prefix.append(column)
            self.first_state.append(len(rows))
        self.state_prefix = np.array(state_prefix, dtype=np.int64)
        self.state_ways = np.array(rows, dtype=np.int8).reshape(len(rows), len(self.links))
        self.live_count = np.array([self.live[:, c].sum() for c in self.state_prefix])

    def _ways(self, open_links: list[int]) -> list[tuple[int, ...]]:
        """Transports of the live links: all combinations, or only those by size."""
        options = [self.links[index].ways for index in open_links]
        count = 1
        for ways in options:
            count *= len(ways)
        if count == 0:
            return []
        if count <= _MOST_WAYS:
            return list(itertools.product(*options))
        # Larger tensors take a later transport: what is best when all are read alike.
        self.complete = False
        by_size = sorted(range(len(options)), key=lambda i: -self.links[open_links[i]].bytes)
        found: dict[tuple[int, ...], None] = {}
        last = max(len(ways) for ways in options)
        for later in range(1, last):
            for number in range(len(options) + 1):
                chosen = [ways[0] for ways in options]
                for index in by_size[:number]:
                    chosen[index] = options[index][min(later, len(options[index]) - 1)]
                found[tuple(chosen)] = None
        return list(found)

    def _weigh(self) -> None:
        """Additive loads per prefix for every cap, and compute time."""
        graph = self.problem.graph
        self.shared = [i for i, load in enumerate(graph.loads) if len(load.users) > 1]
        self.own: list[Array] = []
        amounts_of = [tuple(load.memory for load in graph.loads)]
        amounts_of += [amounts for amounts, _ in graph.resources]
        for amounts in amounts_of:
            own = np.zeros(graph.size, dtype=np.float64)
            for load, amount in zip(graph.loads, amounts, strict=True):
                if len(load.users) == 1:
                    own[load.users[0]] += amount
            self.own.append(own @ self.member)
        self.amounts_of = amounts_of
        self.time = np.array(self.problem.times) @ self.member
        base = self.base
        alone = np.zeros(graph.size)
        for node, ops in enumerate(graph.ops):
            for op in ops:
                fresh = sum(base.size[t] for t in base.makes[op] if base.root[t] == t)
                alone[node] = max(alone[node], fresh + base.scratch[op])
        self.alone = alone
        self.heaviest_first = np.argsort(-alone, kind="stable")

    def _price_links(self) -> None:
        """Per transport and link: cost of sending (once) and of receiving (per slice)."""
        ways, links = len(self.model.transports), len(self.links)
        sizes = np.array([link.bytes for link in self.links], dtype=np.float64)
        self.is_new = is_new = np.array(
            [not link.is_sent and link.producer >= 0 for link in self.links], dtype=bool
        )

        def table(step_of: str) -> tuple[Array, Array]:
            cpu, wait = np.zeros((ways, links)), np.zeros((ways, links))
            for index, transport in enumerate(self.model.transports):
                step = transport.step(step_of)
                cpu[index] = step.cpu_ms + step.cpu_ns * 1e-6 * sizes
                wait[index] = step.wait_ns * 1e-6 * sizes
            return cpu, wait

        self.send_cpu, self.send_wait = (t * is_new for t in table("send"))
        self.collect_cpu, self.collect_wait = (t * is_new for t in table("collect"))
        self.pass_cpu, self.pass_wait = table("pass_on")
        self.receive_cpu, self.receive_wait = table("receive")
        transports = self.model.transports
        self.send_usd = is_new * np.array(
            [t.send_usd + t.send_byte_usd * sizes for t in transports]
        ).reshape(ways, links)
        self.receive_usd = np.array(
            [t.receive_usd + t.receive_byte_usd * sizes for t in transports]
        ).reshape(ways, links)
        self.send_first = np.array([t.send.wait_ms for t in transports])
        self.receive_first = np.array([t.receive.wait_ms for t in transports])
        self.message = np.array(
            [np.inf if t.message_bytes is None else t.message_bytes for t in transports]
        )
        record = np.array([t.record_bytes for t in transports], dtype=np.float64)
        self.inside = sizes[None, :] + record[:, None]  # what a link takes of a message
        self._price_leaves()

    def _price_leaves(self) -> None:
        """Per node what it takes to send its part of the reply, whoever else reads it."""
        transports = self.model.transports
        names = ["send_cpu", "send_wait", "collect_cpu", "collect_wait", "send_usd"]
        names += [
            f"{what}{index}" for what in ("count", "bytes") for index in range(len(transports))
        ]
        leaf = {name: np.zeros(self.problem.graph.size) for name in names}
        for node, leaves in enumerate(self.problem.leaves):
            for size, way in leaves:
                transport = transports[way]
                leaf["send_cpu"][node] += transport.send.cpu(size)
                leaf["send_wait"][node] += transport.send.transfer(size)
                leaf["collect_cpu"][node] += transport.collect.cpu(size)
                leaf["collect_wait"][node] += transport.collect.transfer(size)
                leaf["send_usd"][node] += transport.send_usd + transport.send_byte_usd * size
                leaf[f"count{way}"][node] += 1
                leaf[f"bytes{way}"][node] += size + transport.record_bytes
        self.leaf = {name: values @ self.member for name, values in leaf.items()}

    def build(self, deadline: float) -> Pairs | None:
        """See `build_pairs`."""
        chunks: list[dict[str, Array]] = []
        total = 0
        self.outgoing = self._outgoing()
        columns = self.member.shape[1]
        for column in range(columns - 1):
            if self.first_state[column] == self.first_state[column + 1]:
                continue
            good, need = self._allowed(column)
            if not len(good):
                continue
            for chunk in self._from(column, good, need):
                chunks.append(chunk)
                total += len(chunk["target"])
            if total > MOST_PAIRS or time.monotonic() > deadline:
                return None
        if not chunks:
            return None
        joined = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}
        order = np.argsort(joined["target"], kind="stable")
        joined = {key: values[order] for key, values in joined.items()}
        states = len(self.state_prefix)
        begin = np.searchsorted(joined["target"], np.arange(states + 1))
        return Pairs(
            prefixes=self.prefixes,
            state_prefix=self.state_prefix,
            state_ways=self.state_ways,
            begin=begin,
            complete=self.complete,
            **joined,
        )

    def _allowed(self, column: int) -> tuple[Array, Array]:
        """The prefixes that a slice from here may end at, and the memory that it takes at least."""
        member, graph = self.member, self.problem.graph
        inside = member[:, column]
        good = np.arange(column + 1, member.shape[1])
        for node in np.flatnonzero(inside).tolist():
            if not any(inside[other] for other in graph.succs[node]):  # it has all before it
                good = good[member[node].take(good)]
        held = []
        for number, amounts in enumerate(self.amounts_of):
            amount = self.own[number][good] - self.own[number][column]
            for index in self.shared:
                users = [v for v in graph.loads[index].users if not inside[v]]
                if users:
                    amount = (
                        amount + member[np.array(users)[:, None], good].any(axis=0) * amounts[index]
                    )
            held.append(amount)
        keep = np.ones(len(good), dtype=bool)
        for amount, (_, cap) in zip(held[1:], graph.resources, strict=True):
            keep &= amount <= cap
        largest = np.zeros(len(good))
        unset = np.ones(len(good), dtype=bool)
        for node in self.heaviest_first.tolist():
            if inside[node]:
                continue
            hit = unset & member[node].take(good)
            largest[hit] = self.alone[node]
            unset &= ~hit
            if not unset.any():
                break
        need = self.base.overheads.memory_bytes + held[0] + largest
        return good[keep], need[keep]

    def _outgoing(self) -> dict[str, Array]:
        """Per state, sums over all its live links as if its slice sent them all."""
        found = {}
        ways = self.state_ways
        at = np.arange(len(self.links))
        picked = np.maximum(ways, 0)
        is_live = (ways >= 0) & self.is_new
        for name in ("send_cpu", "send_wait", "collect_cpu", "collect_wait", "send_usd"):
            found[name] = (getattr(self, name)[picked, at] * is_live).sum(axis=1)
        for index in range(len(self.model.transports)):
            chosen = is_live & (ways == index)
            found[f"count{index}"] = chosen.sum(axis=1)
            found[f"bytes{index}"] = chosen @ self.inside[index]
        return found

    def _from(self, column: int, good: Array, need: Array) -> list[dict[str, Array]]:
        """All pairs that start at the states of one prefix."""
        live = np.flatnonzero(self.live[:, column]).tolist()
        inside = self.member[:, column]
        hits = np.zeros((len(live), len(good)), dtype=bool)
        for row, index in enumerate(live):
            readers = [node for node in self.links[index].readers if not inside[node]]
            hits[row] = self.member[np.array(readers)[:, None], good].any(axis=0)
        factor = 1 + float(self.base.edge_factor)
        sizes = np.array([self.base.size[self.links[index].tensor] for index in live])
        need = need + factor * (sizes @ hits if live else 0.0)
        first, after = np.array(self.first_state)[good], np.array(self.first_state)[good + 1]
        counts = after - first
        target = np.repeat(first - np.concatenate(([0], np.cumsum(counts)[:-1])), counts)
        target = target + np.arange(len(target))
        place = np.repeat(np.arange(len(good)), counts)
        compute = (self.time[good] - self.time[column])[place]
        chunks = []
        for source in range(self.first_state[column], self.first_state[column + 1]):
            chunk = self._pairs(source, column, live, hits, good, place, target)
            if chunk is not None:
                kept = chunk.pop("kept")
                chunk["compute"] = compute[kept]
                chunk["need"] = need[place[kept]]
                chunks.append(chunk)
        return chunks

    def _pairs(
        self,
        source: int,
        column: int,
        live: list[int],
        hits: Array,
        good: Array,
        place: Array,
        target: Array,
    ) -> dict[str, Array] | None:
        own = self.state_ways[source]
        made = [index for index in live if self.is_new[index]]
        # What is live at both ends keeps its transport, and has been sent already.
        fitting = np.ones(len(target), dtype=bool)
        for index in live:
            there = self.state_ways[target, index]
            fitting &= (there < 0) | (there == own[index])
        kept = np.flatnonzero(fitting)
        if not len(kept):
            return None
        target, place = target[kept], place[kept]
        hit = hits[:, place]
        ways = own[live]
        at = np.array(live, dtype=np.int64)

        def received(table: Array) -> Array:
            return table[ways, at] @ hit if len(live) else np.zeros(len(target))

        passing = {index: self.state_ways[target, index] >= 0 for index in made}

        def replied(name: str) -> Array:
            values = self.leaf[name]
            found: Array = (values[good] - values[column])[place]
            return found

        def sent(name: str) -> Array:
            total = self.outgoing[name][target] + replied(name)
            table = getattr(self, name)
            for index in made:
                total = total - passing[index] * table[own[index], index]
            return total

        wait = received(self.receive_wait) + sent("send_wait")
        longest_in, longest_out = np.zeros(len(target)), np.zeros(len(target))
        room = np.ones(len(target), dtype=bool)
        for index in range(len(self.model.transports)):
            mine = np.flatnonzero(ways == index)
            some_in = hit[mine].any(axis=0) if len(mine) else np.zeros(len(target), dtype=bool)
            count = self.outgoing[f"count{index}"][target] + replied(f"count{index}")
            for link in made:
                if own[link] == index:
                    count = count - passing[link]
            longest_in = np.maximum(longest_in, some_in * self.receive_first[index])
            longest_out = np.maximum(longest_out, (count > 0) * self.send_first[index])
            if np.isfinite(self.message[index]):
                into = self.inside[index][at[mine]] @ hit[mine] if len(mine) else 0.0
                out = self.outgoing[f"bytes{index}"][target] + replied(f"bytes{index}")
                for link in made:
                    if own[link] == index:
                        out = out - passing[link] * self.inside[index][link]
                room &= (into <= self.message[index]) & (out <= self.message[index])
        model = self.model
        is_last = good[place] == self.member.shape[1] - 1
        chunk = {
            "source": np.full(len(target), source),
            "target": target,
            "wait": wait + longest_in + longest_out + model.handle.wait_ms,
            "cpu": received(self.receive_cpu) + sent("send_cpu") + model.handle.cpu_ms,
            "caller_wait": received(self.pass_wait) + sent("collect_wait")
            + longest_in * is_last  # the caller deletes what the last slice has read
            + model.call.wait_ms,
            "caller_cpu": received(self.pass_cpu) + sent("collect_cpu") + model.call.cpu_ms,
            "usd": received(self.receive_usd) + sent("send_usd") + model.request_usd,
            "kept": kept,
        }  # fmt: skip
        return {key: values[room] for key, values in chunk.items()}


def _members(prefixes: Sequence[int], size: int) -> Array:
    width = (size + 7) // 8
    packed = np.frombuffer(
        b"".join(bits.to_bytes(width, "little") for bits in prefixes), dtype=np.uint8
    ).reshape(len(prefixes), width)
    return np.ascontiguousarray(
        np.unpackbits(packed, axis=1, count=size, bitorder="little").astype(bool).T
    )
