"""Random graphs and an oracle for partitions, written as plainly as the definition."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import TypeVar

from hypothesis import strategies as st

from slicewise.graph import INPUT, Op, OpGraph, Tensor, Weight
from slicewise.limits import MB, Limits, Overheads

INFINITE = (math.inf, math.inf)
_T = TypeVar("_T")


@st.composite
def op_graphs(draw: st.DrawFn, most: int = 10, *, cheap: bool = False, unit: int = 1) -> OpGraph:
    """DAGs with several outputs per op, shared weights, views, request and reply tensors.

    With `cheap`, about half of the ops without weights may run in several slices. All sizes are small
    multiples of `unit` bytes.
    """
    count = draw(st.integers(2, most))
    small = st.integers(0, 6).map(unit.__mul__)
    tensors = [
        Tensor(name="x", producer=INPUT, bytes=3 * unit, max_bytes=unit * draw(st.integers(3, 5)))
    ]
    ops: list[Op] = []
    weights = [
        Weight(name=f"w{i}", bytes=draw(small), memory_bytes=draw(small)) for i in range(count)
    ]
    for index in range(count):
        available = [tensor.name for tensor in tensors]
        inputs = draw(st.lists(st.sampled_from(available), max_size=3))
        outputs = []
        for port in range(draw(st.integers(1, 2))):
            size = draw(small)
            name = f"t{index}.{port}"
            outputs.append(name)
            tensors.append(
                Tensor(
                    name=name,
                    producer=f"op{index}",
                    bytes=size,
                    max_bytes=size + unit * draw(st.integers(0, 2)),
                )
            )
        used = draw(st.lists(st.sampled_from([w.name for w in weights]), max_size=2, unique=True))
        if cheap and draw(st.booleans()):
            used = []
        ops.append(
            Op(
                name=f"op{index}",
                inputs=tuple(inputs),
                outputs=tuple(outputs),
                weights=tuple(used),
                memory_bytes=unit * draw(st.integers(0, 3)),
                is_view=bool(inputs) and draw(st.booleans()),
                is_cheap=cheap and draw(st.booleans()),
            )
        )
    made = [name for op in ops for name in op.outputs]
    replies = draw(st.lists(st.sampled_from(made), min_size=1, max_size=2, unique=True))
    return OpGraph(
        name="random",
        ops=tuple(ops),
        tensors=tuple(tensors),
        weights=tuple(weights),
        inputs=("x",),
        outputs=tuple(replies),
    )


@dataclass(frozen=True, slots=True)
class Case:
    """A graph with what a slice of it may take."""

    graph: OpGraph
    limits: Limits
    overheads: Overheads


@st.composite
def cases(draw: st.DrawFn, kinds: Set[str], *, cheap: bool = False) -> Case:
    """Graphs with limits of these kinds, most of them near what the largest op needs.

    One limit alone is always there, of several each may be missing.
    """
    unit = draw(
        st.sampled_from([MB, 700_001])
    )  # megabytes that come out even, and some that do not
    graph = draw(op_graphs(cheap=cheap, unit=unit))
    factor = draw(st.sampled_from([0.0, 0.5, 1.34])) if "memory" in kinds else 0.0
    overheads = Overheads(memory_bytes=2 * MB, package_bytes=MB, edge_factor=factor)
    heaviest = largest = widest = 0
    for op in graph.ops:
        alone = frozenset([op.name])
        heaviest = max(heaviest, _weights(graph, alone))
        largest = max(largest, _memory(graph, alone, None, overheads))
        widest = max(widest, *_received_and_sent(graph, alone, None))

    def near(kind: str, most: int, spare: int) -> int | None:
        if kind not in kinds or (len(kinds) > 1 and draw(st.booleans())):
            return None
        return max(unit, most + unit * draw(st.integers(-1, spare)))

    weights, package = near("weights", heaviest, 8), near("package", heaviest, 8)
    memory, edge = near("memory", largest, 10), near("payload", widest, 8)
    return Case(
        graph,
        Limits(
            weight_bytes=weights,
            package_mb=None if package is None else -(-(package + MB) // MB),
            memory_mb=None if memory is None else -(-memory // MB),
            max_slices=draw(st.none() | st.integers(1, 5)) if "slices" in kinds else None,
        ),
        replace(overheads, max_edge_bytes=edge),
    )


def slice_is_allowed(case: Case, ops: frozenset[str], sent: frozenset[str] | None = None) -> bool:
    """The limits, straight from the documentation of `partition`.

    `sent` are the tensors that leave the slice if that is not what ops outside read.
    """
    graph, limits, overheads = case.graph, case.limits, case.overheads
    weights = _weights(graph, ops)
    if limits.weight_bytes is not None and weights > limits.weight_bytes:
        return False
    package = overheads.package_bytes + weights
    if limits.package_mb is not None and package > limits.package_mb * MB:
        return False
    edges = _received_and_sent(graph, ops, sent)
    if overheads.max_edge_bytes is not None and max(edges) > overheads.max_edge_bytes:
        return False
    if limits.memory_mb is None:
        return True
    return _memory(graph, ops, sent, overheads) <= limits.memory_mb * MB


def _weights(graph: OpGraph, ops: frozenset[str]) -> int:
    return sum(graph.weight[name].bytes for name in graph.weights_of(ops))


def _received_and_sent(
    graph: OpGraph, ops: frozenset[str], sent: frozenset[str] | None
) -> tuple[int, int]:
    entering, leaving = crossing(graph, ops)
    return (
        sum(graph.tensor[name].max_bytes for name in entering),
        sum(graph.tensor[name].max_bytes for name in (leaving if sent is None else sent)),
    )


def _memory(
    graph: OpGraph, ops: frozenset[str], sent: frozenset[str] | None, overheads: Overheads
) -> int:
    if sent is not None and not sent <= crossing(graph, ops)[1]:
        # What another slice runs a reader of again is held to the end as well.
        graph = replace(graph, outputs=tuple({*graph.outputs, *sent}))
    return (
        overheads.memory_bytes
        + sum(graph.weight[name].memory_bytes for name in graph.weights_of(ops))
        + graph.peak_activation_bytes(ops)
        + math.ceil(
            Fraction(str(overheads.edge_factor)) * sum(_received_and_sent(graph, ops, sent))
        )
    )


def crossing(graph: OpGraph, ops: frozenset[str]) -> tuple[set[str], set[str]]:
    """Names of the tensors that enter and that leave these ops."""
    entering = {
        name for op in ops for name in graph.op[op].inputs if graph.tensor[name].producer not in ops
    }
    leaving = {
        name
        for op in ops
        for name in graph.op[op].outputs
        if name in graph.outputs or any(reader not in ops for reader in graph.consumers[name])
    }
    return entering, leaving


def best_partition(case: Case) -> tuple[float, float]:
    """(bytes, slices) of the best partition by trying every one; infinite when there is none.

    From the last slice to the first: what is left to place are always the ops of a prefix, and all
    that matters of the slices behind it is which tensors they receive. Each of the prefix's last
    slices is tried, with every choice of cheap ops that it runs again. Sets are bits of an integer.
    """
    graph = case.graph
    op_bit = {op.name: 1 << index for index, op in enumerate(graph.ops)}
    tensor_bit = {tensor.name: 1 << index for index, tensor in enumerate(graph.tensors)}
    wanted_by_reply = sum(tensor_bit[name] for name in graph.outputs)
    cheap = sum(op_bit[op.name] for op in graph.ops if op.is_cheap and not op.weights)
    before = [
        sum({op_bit[p] for name in op.inputs if (p := graph.tensor[name].producer) != INPUT})
        for op in graph.ops
    ]

    @cache
    def made(ops: int) -> int:
        return sum(tensor_bit[name] for op in _of(graph.ops, ops) for name in op.outputs)

    @cache
    def enters(ops: int) -> int:
        read = {name for op in _of(graph.ops, ops) for name in op.inputs}
        sent = {name for name in read if graph.tensor[name].producer != INPUT}
        return sum(tensor_bit[name] for name in sent) & ~made(ops)

    @cache
    def size(tensors: int) -> int:
        return sum(tensor.bytes for tensor in _of(graph.tensors, tensors))

    @cache
    def allowed(ops: int, sent: int) -> bool:
        members = frozenset(op.name for op in _of(graph.ops, ops))
        leaving = frozenset(tensor.name for tensor in _of(graph.tensors, sent))
        return slice_is_allowed(case, members, leaving)

    @cache
    def is_prefix(ops: int) -> bool:
        return not any(ops >> i & 1 and need & ~ops for i, need in enumerate(before))

    @cache
    def first_ones(prefix: int, received: int, left: int | None) -> tuple[float, float]:
        """The best slices for a prefix of which later ones receive these tensors."""
        if not prefix:
            return 0, 0
        if left == 0:
            return INFINITE
        best = INFINITE
        for new in _subsets(prefix):
            earlier = prefix ^ new
            if not new or not is_prefix(earlier):
                continue
            sent = made(new) & (received | wanted_by_reply)
            for again in _subsets(earlier & cheap):
                ops = new | again
                if allowed(ops, sent):
                    needs = enters(ops)
                    rest = first_ones(
                        earlier, (received | needs) & ~made(new), None if left is None else left - 1
                    )
                    best = min(best, (size(needs) + rest[0], 1 + rest[1]))
        return best

    return first_ones((1 << len(graph.ops)) - 1, 0, case.limits.max_slices)


def _of(items: Sequence[_T], bits: int) -> list[_T]:
    return [item for index, item in enumerate(items) if bits >> index & 1]


def _subsets(bits: int) -> Iterator[int]:
    """All subsets, the empty one last."""
    subset = bits
    while subset:
        yield subset
        subset = (subset - 1) & bits
    yield 0
