"""Cheap ops may run in every slice that needs them, instead of sending what they make.

*Inlining* decides most of them for good. Let a cheap op's inputs, down through inlined ops, have no
more bytes than the smallest of its outputs. Then a slice that receives one of its outputs may as well
receive the inputs and run the op itself: it costs no more, the inputs exist by then, and the op brings
no weight. So no slice need ever receive its outputs; its readers read its inputs instead.
What makes little of much (a scalar size, one row of a tensor) stays an op like any other, an *option*:
slices may still run it again where its inputs are at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slicewise.passes.partitioning.ground import Ground, Measure, breaks, measure
from slicewise.passes.partitioning.problem import Load, Net, Problem

Layout = list[set[int]]  # the ops of every slice, recomputed ones included


@dataclass(frozen=True, slots=True)
class Result:
    """The best layout, a lower bound for all, and whether the search is `closed`.

    Closed: the layout is optimal; without one, that there is none.
    """

    layout: Layout | None
    lower_bound: int
    closed: bool
    method: str


def relaxation(base: Ground, *, inline: bool = True, free_options: bool = False) -> Problem:
    """The problem without liveness and buffers: ops as nodes, tensors and weights as sums.

    With `inline` its optimum, after `spread`, is that of partitions that may recompute, unless there
    are options. With `free_options` the outputs of those worth it cost nothing, which makes a lower
    bound for partitions that run them again.
    """
    free = set(worthwhile_options(base)) if free_options else set[int]()
    sources = sources_of(base) if inline else [(t,) for t in range(len(base.size))]
    kept = [op for op in range(len(base.reads)) if not _vanishes(base, sources, op)]
    number = {op: node for node, op in enumerate(kept)}
    reads = {op: {s for t in base.reads[op] for s in sources[t]} for op in kept}
    readers: dict[int, list[int]] = {}
    for op in kept:
        for tensor in reads[op]:
            if base.producer[tensor] >= 0:
                readers.setdefault(tensor, []).append(number[op])
    succs: list[set[int]] = [set() for _ in kept]
    nets: dict[tuple[int, tuple[int, ...]], int] = {}
    for tensor, nodes in readers.items():
        producer = base.producer[tensor]
        succs[number[producer]].update(nodes)
        key = (number[producer], tuple(nodes))
        size = 0 if producer in free else base.cost[tensor]
        nets[key] = nets.get(key, 0) + size
    users: dict[int, list[int]] = {}
    for op in kept:
        for weight in base.uses[op]:
            users.setdefault(weight, []).append(number[op])
    loads: dict[tuple[int, ...], tuple[int, int]] = {}
    for weight, nodes in users.items():
        held, memory = loads.get(tuple(nodes), (0, 0))
        loads[tuple(nodes)] = held + base.weight_bytes[weight], memory + base.weight_memory[weight]
    return Problem(
        ops=tuple((op,) for op in kept),
        succs=tuple(tuple(sorted(nodes)) for nodes in succs),
        nets=tuple(Net(size, *key) for key, size in nets.items() if size),
        loads=tuple(Load(*amounts, nodes) for nodes, amounts in loads.items() if any(amounts)),
        weight_cap=base.weight_cap,
        memory_cap=base.memory_cap,
        max_slices=base.limits.max_slices,
    )


def sources_of(base: Ground) -> list[tuple[int, ...]]:
    """For every tensor what to receive in its place: itself, or the sources of an inlined op."""
    sources: list[tuple[int, ...]] = [(t,) for t in range(len(base.size))]
    for op, cheap in enumerate(base.cheap):
        if not cheap:
            continue
        needed = tuple(dict.fromkeys(s for t in base.reads[op] for s in sources[t]))
        received = sum(base.cost[s] for s in needed if base.producer[s] >= 0)
        wanted = [base.cost[t] for t in base.makes[op] if base.readers[t]]
        if wanted and received <= min(wanted):
            for t in base.makes[op]:
                sources[t] = needed
    return sources


def _vanishes(base: Ground, sources: Sequence[tuple[int, ...]], op: int) -> bool:
    """Whether an op is inlined into all that need it, and need not run for its own sake."""
    makes = base.makes[op]
    return bool(makes) and all(
        sources[t] != (t,) and base.readers[t] and not base.leaves[t] for t in makes
    )


def _is_inlined(base: Ground, sources: Sequence[tuple[int, ...]], op: int) -> bool:
    return any(sources[t] != (t,) for t in base.makes[op])


def options(base: Ground) -> list[int]:
    """Cheap ops with readers that inlining leaves open."""
    sources = sources_of(base)
    return [
        op
        for op, cheap in enumerate(base.cheap)
        if cheap and any(sources[t] == (t,) and base.readers[t] for t in base.makes[op])
    ]


def worthwhile_options(base: Ground) -> list[int]:
    """Those options whose running again can save bytes.

    Not so: an op that alone needs a tensor s, no smaller than what the op makes, of an op that is not
    cheap. Where it runs again, s (or what an inlined op made of it, which is no smaller) is received
    for it alone: s is made in one slice, and that is no later than the first one to run the op. So a
    slice that reads what the op makes pays no less for it than if it had received just that.
    """
    sources, needing = sources_of(base), sent_by(base)

    def is_private(op: int) -> bool:
        made = sum(base.cost[t] for t in base.makes[op] if base.readers[t])
        needed = {s for t in base.reads[op] for s in sources[t] if base.producer[s] >= 0}
        return any(
            needing[s] == (op,) and not base.cheap[base.producer[s]] and base.cost[s] >= made
            for s in needed
        )

    return [op for op in options(base) if not is_private(op)]


def spread(base: Ground, slice_of: Sequence[int], copies: Iterable[tuple[int, int]] = ()) -> Layout:
    """The ops that every slice runs, given the slice of every op that was not inlined (else -1)."""
    layout = plain_layout(slice_of, copies)
    inlined = inlined_ops(base)
    for ops in layout:
        add_inlined(base, ops, inlined)
    return tidy(base, layout)


def inlined_ops(base: Ground) -> list[int]:
    """The ops that every slice runs for itself when it needs them."""
    sources = sources_of(base)
    return [op for op, cheap in enumerate(base.cheap) if cheap and _is_inlined(base, sources, op)]


def vanished_ops(base: Ground) -> set[int]:
    """The inlined ops that need not run for their own sake."""
    sources = sources_of(base)
    return {op for op in range(len(base.reads)) if _vanishes(base, sources, op)}


def add_inlined(base: Ground, ops: set[int], inlined: Sequence[int]) -> None:
    """Add to a slice the inlined ops that its ops need."""
    for op in reversed(inlined):
        if any(reader in ops for t in base.makes[op] for reader in base.readers[t]):
            ops.add(op)


def sent_by(base: Ground) -> list[tuple[int, ...]]:
    """For every tensor the kept ops that need it, directly or through inlined ops; a slice that makes
    it sends it when one of them runs elsewhere.
    """
    sources = sources_of(base)
    needing: list[dict[int, None]] = [{} for _ in base.size]
    for op in range(len(base.reads)):
        if _vanishes(base, sources, op):
            continue
        for tensor in base.reads[op]:
            for source in sources[tensor]:
                needing[source][op] = None
    return [tuple(ops) for ops in needing]


def plain_layout(slice_of: Sequence[int], copies: Iterable[tuple[int, int]] = ()) -> Layout:
    """Every op in its slice, and the copies in theirs."""
    layout: Layout = [set() for _ in range(max(slice_of) + 1)]
    for op, index in (*enumerate(slice_of), *copies):
        if 0 <= index < len(layout):
            layout[index].add(op)
    return layout


def tidy(base: Ground, layout: Layout) -> Layout:
    """The same or fewer bytes: options run again where that is free, others where that saves."""
    layout = [set(ops) for ops in layout]
    if any(base.cheap):
        _recompute_at_hand(base, layout)
        _send_again(base, layout)
    return [ops for ops in layout if ops]


def _recompute_at_hand(base: Ground, layout: Layout) -> None:
    """Run an option again wherever all that it reads is at hand."""
    for index, ops in enumerate(layout):
        for op, cheap in enumerate(base.cheap):
            if not cheap or op in ops or not any(op in before for before in layout[:index]):
                continue
            wanted = any(reader in ops for t in base.makes[op] for reader in base.readers[t])
            if wanted and all(_at_hand(base, ops, t) for t in base.reads[op]):
                ops.add(op)


def _at_hand(base: Ground, ops: set[int], tensor: int) -> bool:
    """Whether a slice of these ops has the tensor anyway, or has it for nothing."""
    producer = base.producer[tensor]
    return producer < 0 or producer in ops or any(r in ops for r in base.readers[tensor])


def _send_again(base: Ground, layout: Layout) -> None:
    """Where sending costs no more than running an op again, send: fewer ops run."""
    for op in range(len(base.cheap) - 1, -1, -1):
        if not base.cheap[op]:
            continue
        holders = [index for index, ops in enumerate(layout) if op in ops]
        for index in reversed(holders[1:]):
            ops = layout[index]
            wanted = [t for t in base.makes[op] if any(r in ops for r in base.readers[t])]
            saved = sum(
                base.cost[t]
                for t in base.reads[op]
                if base.producer[t] >= 0
                and base.producer[t] not in ops
                and not any(r in ops for r in base.readers[t] if r != op)
            )
            if sum(base.cost[t] for t in wanted) <= saved or not wanted:
                ops.discard(op)


def measures(base: Ground, layout: Layout) -> list[Measure]:
    """What every slice of a layout holds, receives and sends; a tensor is sent by its first maker."""
    received = {
        t
        for ops in layout
        for op in ops
        for t in base.reads[op]
        if base.producer[t] >= 0 and base.producer[t] not in ops
    }
    wanted = received | {t for t, leaves in enumerate(base.leaves) if leaves}
    found, made = [], set[int]()
    for ops in layout:
        sent = {t for op in ops for t in base.makes[op] if t in wanted and op not in made}
        found.append(measure(base, ops, sent))
        made |= ops
    return found


def layout_cost(base: Ground, found: Sequence[Measure]) -> int:
    """Bytes that cross between slices."""
    return sum(base.cost[t] for part in found for t in part.inputs if base.producer[t] >= 0)


def obeys(base: Ground, layout: Layout) -> bool:
    """Whether every slice keeps every limit, and their number too."""
    most = base.limits.max_slices
    if most is not None and len(layout) > most:
        return False
    return not any(breaks(base, found) for found in measures(base, layout))
