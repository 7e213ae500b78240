"""The truth about slices: what a set of ops holds, receives and sends, and whether that is allowed.

Everything here counts exactly as `slicewise.passes.partition` promises; the fast models are checked
against it, and no plan is returned that it refuses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Set
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from slicewise.graph import OpGraph
from slicewise.limits import MB, Limits, Overheads


@dataclass(frozen=True)
class Ground:
    """An `OpGraph` and its limits as integers. Tensors and ops are numbered in graph order.

    `size` and `cost` of a tensor are its largest and its example bytes, `producer` is -1 for the
    request's tensors, `root[t]` is the tensor whose memory t shares (t itself unless an op's view),
    `last[r]` the last op that reads r or a view of it, `cheap` ops may run in several slices. `brief`
    are bytes of tensors that only count from the first to the last op of a slice that uses them.
    """

    graph: OpGraph
    limits: Limits
    overheads: Overheads
    size: tuple[int, ...]
    cost: tuple[int, ...]
    producer: tuple[int, ...]
    readers: tuple[tuple[int, ...], ...]
    leaves: tuple[bool, ...]
    root: tuple[int, ...]
    last: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]
    makes: tuple[tuple[int, ...], ...]
    scratch: tuple[int, ...]
    uses: tuple[tuple[int, ...], ...]
    cheap: tuple[bool, ...]
    weight_bytes: tuple[int, ...]
    weight_memory: tuple[int, ...]
    brief: tuple[int, ...] = ()

    @property
    def weight_cap(self) -> int | None:
        """The most bytes of weights that a slice may hold: the tighter of two limits."""
        caps = [self.limits.weight_bytes] if self.limits.weight_bytes is not None else []
        if self.limits.package_mb is not None:
            caps.append(math.floor(self.limits.package_mb * MB) - self.overheads.package_bytes)
        return min(caps, default=None)

    @cached_property
    def edge_factor(self) -> Fraction:
        """The overheads' factor as the fraction that its digits say."""
        return Fraction(str(self.overheads.edge_factor)).limit_denominator(1_000_000)

    @property
    def memory_cap(self) -> int | None:
        """What the memory limit leaves for a slice after the function's own overhead."""
        if self.limits.memory_mb is None:
            return None
        return self.limits.memory_mb * MB - self.overheads.memory_bytes


@dataclass(frozen=True, slots=True)
class Measure:
    """What one slice holds, receives and sends; `busiest` is the op during which the peak is."""

    weight_bytes: int
    weight_memory: int
    peak: int
    busiest: int
    buffers: int
    received: int
    sent: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def memory(self) -> int:
        """Bytes of memory beyond the function's own overhead."""
        return self.weight_memory + self.peak + self.buffers


def ground(graph: OpGraph, limits: Limits, overheads: Overheads) -> Ground:
    """Number the parts of `graph`."""
    tensor_id = {tensor.name: index for index, tensor in enumerate(graph.tensors)}
    weight_id = {weight.name: index for index, weight in enumerate(graph.weights)}
    producer = [-1] * len(graph.tensors)
    readers: list[list[int]] = [[] for _ in graph.tensors]
    root = list(range(len(graph.tensors)))
    last = [-1] * len(graph.tensors)
    reads, makes = [], []
    for index, op in enumerate(graph.ops):
        inputs = tuple(dict.fromkeys(tensor_id[name] for name in op.inputs))
        outputs = tuple(dict.fromkeys(tensor_id[name] for name in op.outputs))
        reads.append(inputs)
        makes.append(outputs)
        for tensor in inputs:
            readers[tensor].append(index)
        for position, tensor in enumerate(outputs):
            producer[tensor] = index
            if op.is_view and position == 0 and inputs:
                root[tensor] = root[inputs[0]]
            last[tensor] = index
        for tensor in (*inputs, *outputs):
            last[root[tensor]] = max(last[root[tensor]], index)
    wanted = {tensor_id[name] for name in graph.outputs}
    return Ground(
        graph=graph,
        limits=limits,
        overheads=overheads,
        size=tuple(tensor.max_bytes for tensor in graph.tensors),
        cost=tuple(tensor.bytes for tensor in graph.tensors),
        producer=tuple(producer),
        readers=tuple(map(tuple, readers)),
        leaves=tuple(index in wanted for index in range(len(graph.tensors))),
        root=tuple(root),
        last=tuple(last),
        reads=tuple(reads),
        makes=tuple(makes),
        scratch=tuple(op.memory_bytes for op in graph.ops),
        uses=tuple(
            tuple(dict.fromkeys(weight_id[name] for name in op.weights)) for op in graph.ops
        ),
        cheap=tuple(op.is_cheap and not op.weights for op in graph.ops),
        weight_bytes=tuple(weight.bytes for weight in graph.weights),
        weight_memory=tuple(weight.memory_bytes for weight in graph.weights),
    )


def measure(base: Ground, members: Iterable[int], sent: Set[int] | None = None) -> Measure:
    """What a slice of these ops holds, receives and sends: what of `sent` it makes.

    Without `sent`, everything that ops outside read. The peak counts as `OpGraph` does, and holds
    what is sent for others to recompute from: for recomputed ops never too little.
    """
    order = sorted(members)
    inside = set(order)
    weights = {weight for op in order for weight in base.uses[op]}
    inputs = tuple(
        dict.fromkeys(t for op in order for t in base.reads[op] if base.producer[t] not in inside)
    )
    left = tuple(
        t
        for op in order
        for t in base.makes[op]
        if base.leaves[t] or any(reader not in inside for reader in base.readers[t])
    )
    outputs = (
        left if sent is None else tuple(t for op in order for t in base.makes[op] if t in sent)
    )
    kept = {base.root[t] for t in (*left, *outputs)}
    received_bytes = sum(base.size[t] for t in inputs)
    sent_bytes = sum(base.size[t] for t in outputs)
    peak, busiest = _peak(base, order, received_bytes, kept)
    return Measure(
        weight_bytes=sum(base.weight_bytes[w] for w in weights),
        weight_memory=sum(base.weight_memory[w] for w in weights),
        peak=peak,
        busiest=busiest,
        buffers=math.ceil(base.edge_factor * (received_bytes + sent_bytes)),
        received=received_bytes,
        sent=sent_bytes,
        inputs=inputs,
        outputs=outputs,
    )


def _peak(base: Ground, order: list[int], received: int, kept: Set[int]) -> tuple[int, int]:
    """Peak of live bytes and the op that runs then. Only non-views made here take new memory."""
    end = len(base.scratch)
    freed: dict[int, int] = {}
    live = received
    peak, worst = received, order[0]
    begins, ends = _brief(base, order)
    for op in order:
        live += begins.get(op, 0)
        for t in base.makes[op]:
            if base.root[t] == t:
                live += base.size[t]
                until = end if t in kept else base.last[t]
                freed[until] = freed.get(until, 0) + base.size[t]
        if live + base.scratch[op] > peak:
            peak, worst = live + base.scratch[op], op
        live -= freed.pop(op, 0) + ends.get(op, 0)
    return peak, worst


def _brief(base: Ground, order: list[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Bytes that begin and that cease to count at each op."""
    if not base.brief:
        return {}, {}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for op in order:
        for t in (*base.reads[op], *base.makes[op]):
            if base.brief[t]:
                first.setdefault(t, op)
                last[t] = op
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    for t, op in first.items():
        begins[op] = begins.get(op, 0) + base.brief[t]
        ends[last[t]] = ends.get(last[t], 0) + base.brief[t]
    return begins, ends


def breaks(base: Ground, found: Measure) -> bool:
    """Whether a slice that measures so exceeds a limit."""
    caps = (
        (found.weight_bytes, base.weight_cap),
        (found.memory, base.memory_cap),
        (found.received, base.overheads.max_edge_bytes),
        (found.sent, base.overheads.max_edge_bytes),
    )
    return any(cap is not None and amount > cap for amount, cap in caps)
