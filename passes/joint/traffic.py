"""Traffic: what the slices of a group take to receive and to send their tensors, whole or in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slicewise.cost import CostModel, Transport
from slicewise.passes.input_cuts import is_cut_on_arrival
from slicewise.passes.joint.problem import JointProblem
from slicewise.passes.partitioning.ground import Ground
from slicewise.passes.shards import Swept
from slicewise.passes.shards.boxes import Box, bytes_of, pieces

Array = NDArray[Any]
WHOLE, JOINED, FIRST_KIND = 0, 1, 2  # parts of a tensor: none; what the next slice puts together
_OUTER = {"receive": "pass_on", "send": "collect"}


@dataclass(frozen=True, slots=True)
class Flow:
    """A tensor that a slice of a group receives or sends: its bytes, and its transport."""

    bytes: int
    transport: Transport


class Traffic:
    """What groups take to move tensors, by number: each number stands for what the slices of a group
    receive, or send, and for what that takes their neighbours beyond whole tensors.

    By slice and for the neighbours: waiting and CPU there, waiting and CPU in the caller (ms), and US
    dollars. `parts_of` numbers the parts in which shards leave a tensor, by column of prefixes.
    """

    def __init__(self, base: Ground, problem: JointProblem, model: CostModel) -> None:
        self._problem, self._model = problem, model
        tensors = [base.graph.tensors[link.tensor] for link in problem.links]
        self._tensor = {tensor.name: tensor for tensor in base.graph.tensors}
        self._link = {tensor.name: index for index, tensor in enumerate(tensors)}
        self._way_of_leaf = {
            base.graph.tensors[tensor].name: leaf[1]
            for node, ops in enumerate(problem.graph.ops)
            for tensor, leaf in zip(
                (t for op in ops for t in base.makes[op] if base.leaves[t]),
                problem.leaves[node],
                strict=True,
            )
        }
        self._kinds: dict[int, dict[tuple[Box, ...], int]] = {}
        self._entries: dict[int, list[_Entry]] = {}
        self._known: dict[Any, int | None] = {}
        self._wants: dict[Any, int] = {}
        self.most_kinds = FIRST_KIND

    def kinds(self, column: int) -> list[int]:
        """In which parts a tensor may lie at a prefix, WHOLE among them."""
        return [WHOLE, *self._kinds.get(column, {}).values()]

    def parts_of(self, column: int, way: Swept) -> int:
        """The number of the parts in which shards leave the one tensor that is read after them; WHOLE
        where other shards cannot take it as it is.
        """
        names = [name for name in way.sent[0] if name in self._link]
        if len(names) != 1 or len(way.sent[0]) != 1:
            return WHOLE
        boxes = tuple(sent[names[0]] for sent in way.sent)
        if not all(boxes):
            return WHOLE  # summands
        known = self._kinds.setdefault(column, {})
        number = known.setdefault(boxes, FIRST_KIND + len(known))
        self.most_kinds = max(self.most_kinds, number + 1)
        return number

    def of(self, flows: Sequence[Sequence[Flow]], inner: str) -> int | None:
        """The number of these tensors of each slice; None where a message does not hold them."""
        taken = [self._taken(each, inner) for each in flows]
        if any(each is None for each in taken):
            return None
        first = max(
            (flow.transport.receive.wait_ms for each in flows for flow in each), default=0.0
        )
        found = np.array([each for each in taken if each is not None])
        return self._enter(found, np.zeros(5), first)

    def sent(
        self, way: Swept, column: int, target: int, after: Array
    ) -> tuple[int | None, int | None]:
        """The parts that shards return: for other shards, and for a slice that puts them together."""
        key = ("sent", column, target, self._wanted(way.sent))
        if key not in self._known:
            flows = [
                [Flow(bytes_of(self._tensor[name], (box,)), self._way(name, after))
                 for name, box in sent.items()]
                for sent in way.sent
            ]  # fmt: skip
            plain = self._known[key] = self.of(flows, "send")
            self._known[(*key, "joined")] = None if plain is None else self._joined(way, flows)
        return self._known[key], self._known[(*key, "joined")]

    def _joined(self, way: Swept, flows: Sequence[Sequence[Flow]]) -> int | None:
        extra = np.zeros(5)
        for index, name in enumerate(way.sent[0]):
            sizes = [each[index].bytes for each in flows]
            transport = flows[0][index].transport
            more = max(0, sum(sizes) - self._tensor[name].bytes)
            extra += _step(transport, "receive", more, len(sizes) - 1)
            if _is_full(transport, len(sizes), sum(sizes)):
                return None
        number = self.of(flows, "send")
        assert number is not None
        entries = self._entries[len(flows)]
        entries[number] = _Entry(entries[number].slices, extra, entries[number].first)
        return number

    def received(
        self, way: Swept, column: int, source: int, have: int, before: Array, after: Array
    ) -> int | None:
        """The parts that shards get, of tensors that lie in the parts `have` at this column."""
        stays = tuple(
            name for name in way.received[0] if name in self._link and after[self._link[name]] >= 0
        )
        key = ("received", column, source, have, self._wanted(way.received), stays)
        if key not in self._known:
            self._known[key] = (
                self._exchanged(way, column, have, before, stays)
                if have != WHOLE
                else self._cut(way, before, stays)
            )
        return self._known[key]

    def _cut(self, way: Swept, before: Array, stays: tuple[str, ...]) -> int | None:
        """Out of whole tensors, by the slices that make them; of the request's, by the shards."""
        extra = np.zeros(5)
        flows: list[list[Flow]] = [[] for _ in way.received]
        for name in dict.fromkeys(name for each in way.received for name in each):
            if name not in self._link:
                continue  # made where it is needed
            link, transport = self._problem.links[self._link[name]], self._way(name, before)
            tensor = self._tensor[name]
            sizes = [bytes_of(tensor, each[name]) for each in way.received if name in each]
            if link.producer >= 0 and any(size < link.bytes for size in sizes):
                more = sum(sizes) - link.bytes * (name not in stays)
                extra += _step(transport, "send", more, len(sizes) - 1)
                if _is_full(transport, len(sizes), sum(sizes)):
                    return None
            for shard, each in enumerate(way.received):
                if name in each and link.producer < 0:
                    flows[shard] += self._arriving(name, each[name], transport)
                elif name in each:
                    flows[shard].append(Flow(bytes_of(tensor, each[name]), transport))
        return self._with(flows, extra)

    def _exchanged(
        self, way: Swept, column: int, have: int, before: Array, stays: tuple[str, ...]
    ) -> int | None:
        """Out of the parts that other shards return: each sends each the piece that it needs."""
        lying = next(boxes for boxes, kind in self._kinds[column].items() if kind == have)
        extra = np.zeros(5)
        flows: list[list[Flow]] = [[] for _ in way.received]
        for name in dict.fromkeys(name for each in way.received for name in each):
            if name not in self._link:
                continue
            link, transport = self._problem.links[self._link[name]], self._way(name, before)
            if link.producer < 0:
                for shard, each in zip(flows, way.received, strict=True):
                    if name in each:
                        shard += self._arriving(name, each[name], transport)
                continue
            if name in stays:
                return None
            tensor = self._tensor[name]
            sent: list[dict[Box, int]] = [{} for _ in lying]
            for number, each in enumerate(way.received):
                for maker, piece in pieces(lying, each[name]) if name in each else ():
                    sent[maker][piece] = size = bytes_of(tensor, (piece,))
                    flows[number].append(Flow(size, transport))
            most = np.zeros(5)
            for box, made in zip(lying, sent, strict=True):
                if _is_full(transport, len(made), sum(made.values())):
                    return None
                more = sum(made.values()) - bytes_of(tensor, (box,))
                step = _step(transport, "send", more, len(made) - 1)
                most[:2] = np.maximum(most[:2], step[:2])  # they send at the same time
                most[2:] += step[2:]
            extra += most
        return self._with(flows, extra)

    def _arriving(self, name: str, boxes: tuple[Box, ...], transport: Transport) -> list[Flow]:
        """What a shard gets of a request's tensor."""
        tensor = self._tensor[name]
        if not all(is_cut_on_arrival(tensor, box, transport) for box in boxes):
            return [Flow(tensor.bytes, transport)]
        return [Flow(bytes_of(tensor, (box,)), transport) for box in boxes]

    def _with(self, flows: Sequence[Sequence[Flow]], extra: Array) -> int | None:
        number = self.of(flows, "receive")
        if number is not None:
            entries = self._entries[len(flows)]
            entries[number] = _Entry(entries[number].slices, extra, entries[number].first)
        return number

    def _way(self, name: str, ways: Array) -> Transport:
        index = self._link.get(name)
        is_leaf = index is None or ways[index] < 0
        way = self._way_of_leaf.get(name, 0) if is_leaf else int(ways[index])
        return self._model.transports[way]

    def _wanted(self, parts: Sequence[Mapping[str, Box | tuple[Box, ...]]]) -> int:
        key = tuple(tuple(each.items()) for each in parts)
        return self._wants.setdefault(key, len(self._wants))

    def _taken(self, flows: Sequence[Flow], inner: str) -> Array | None:
        """What one slice takes; None where a message does not hold its tensors."""
        found, first = np.zeros(5), 0.0
        held: dict[str, tuple[int, int]] = {}
        for flow in flows:
            way = flow.transport
            found += _step(way, inner, flow.bytes, 1)
            first = max(first, way.step(inner).wait_ms)
            count, size = held.get(way.name, (0, 0))
            held[way.name] = count + 1, size + flow.bytes
            if _is_full(way, count + 1, size + flow.bytes):
                return None
        found[0] += first
        return found

    def one_slice(self, received: Sequence[Flow], sent: Sequence[Flow]) -> dict[str, float]:
        """A slice that receives and sends these and computes nothing, as a row of an arc."""
        model = self._model
        into, out = self._taken(received, "receive"), self._taken(sent, "send")
        never = np.array([np.inf, 0.0, 0.0, 0.0, 0.0])
        moved = never if into is None or out is None else into + out
        wait, cpu = moved[0] + model.handle.wait_ms, moved[1] + model.handle.cpu_ms
        return {
            "wait": wait, "cpu": cpu, "compute": 0.0,
            "all_wait": wait, "all_cpu": cpu, "all_compute": 0.0, "count": 1.0,
            "caller_wait": moved[2] + model.call.wait_ms,
            "caller_cpu": moved[3] + model.call.cpu_ms,
            "usd": moved[4] + model.request_usd, "need": 0.0, "length": 1.0,
        }  # fmt: skip

    def _enter(self, slices: Array, extra: Array, first: float) -> int:
        entries = self._entries.setdefault(len(slices), [])
        entries.append(_Entry(slices, extra, first))
        return len(entries) - 1

    def slices(self, width: int, number: int) -> Array:
        """By slice and column, what a group of so many slices takes."""
        return self._entries[width][number].slices

    def extra(self, width: int, number: int) -> Array:
        """By column, what its neighbours take more."""
        return self._entries[width][number].extra

    def table(self, width: int) -> Array:
        """By number, slice and column, what groups of so many slices take."""
        return np.stack([entry.slices for entry in self._entries[width]])

    def extras(self, width: int) -> Array:
        """By number and column, what their neighbours take more."""
        return np.stack([entry.extra for entry in self._entries[width]])

    def firsts(self, width: int) -> Array:
        """By number, the longest wait for the first byte of an object."""
        return np.array([entry.first for entry in self._entries[width]])


@dataclass(frozen=True, slots=True)
class _Entry:
    slices: Array
    extra: Array
    first: float


def _step(way: Transport, inner: str, size: int, count: int) -> Array:
    """What `count` tensors of so many bytes together take, but for waiting for first bytes."""
    step, outer = way.step(inner), way.step(_OUTER[inner])
    usd, byte_usd = (
        (way.receive_usd, way.receive_byte_usd)
        if inner == "receive"
        else (way.send_usd, way.send_byte_usd)
    )
    return np.array([
        step.transfer(size), step.cpu_ms * count + step.cpu_ns * size * 1e-6,
        outer.transfer(size), outer.cpu_ms * count + outer.cpu_ns * size * 1e-6,
        usd * count + byte_usd * size,
    ])  # fmt: skip


def _is_full(way: Transport, count: int, size: int) -> bool:
    """Whether so many tensors of so many bytes are more than a message holds."""
    return way.message_bytes is not None and size + count * way.record_bytes > way.message_bytes
