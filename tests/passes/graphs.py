"""Random graphs and an oracle for partitions, written as plainly as the definition."""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations

from hypothesis import strategies as st

from slicewise.graph import INPUT, Op, OpGraph, Tensor, Weight
from slicewise.limits import MB, Limits, Overheads

INFINITE = (math.inf, math.inf)


@st.composite
def op_graphs(draw: st.DrawFn, most: int = 8, cheap: bool = False) -> OpGraph:
    """DAGs with several outputs per op, shared weights, views, request and reply tensors.

    With `cheap`, about half of the ops without weights may run in several slices.
    """
    count = draw(st.integers(2, most))
    small = st.integers(0, 6)
    tensors = [Tensor(name="x", producer=INPUT, bytes=3, max_bytes=draw(st.integers(3, 5)))]
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
                    max_bytes=size + draw(st.integers(0, 2)),
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
                memory_bytes=draw(st.integers(0, 3)),
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


def slice_is_allowed(
    graph: OpGraph, ops: frozenset[str], limits: Limits, overheads: Overheads
) -> bool:
    """The limits, straight from the documentation of `partition`."""
    weights = graph.weights_of(op.name for op in graph.ops if op.name in ops)
    weight_bytes = sum(graph.weight[name].bytes for name in weights)
    entering, leaving = crossing(graph, ops)
    received = sum(graph.tensor[name].max_bytes for name in entering)
    sent = sum(graph.tensor[name].max_bytes for name in leaving)
    if limits.weight_bytes is not None and weight_bytes > limits.weight_bytes:
        return False
    package = overheads.package_bytes + weight_bytes
    if limits.package_mb is not None and package > limits.package_mb * MB:
        return False
    if overheads.max_edge_bytes is not None and max(received, sent) > overheads.max_edge_bytes:
        return False
    if limits.memory_mb is None:
        return True
    memory = (
        overheads.memory_bytes
        + sum(graph.weight[name].memory_bytes for name in weights)
        + graph.peak_activation_bytes(ops)
        + math.ceil(overheads.edge_factor * (received + sent))
    )
    return memory <= limits.memory_mb * MB


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


def best_partition(graph: OpGraph, limits: Limits, overheads: Overheads) -> tuple[float, float]:
    """(bytes, slices) of the best partition by trying every one; infinite when there is none.

    Cheap ops may be in several slices. Then what a slice sends is not known here: leave out limits
    on it.
    """
    everything = frozenset(graph.op)
    cheap = {op.name for op in graph.ops if op.is_cheap and not op.weights}
    before = {
        op.name: {
            graph.tensor[name].producer
            for name in op.inputs
            if graph.tensor[name].producer != INPUT
        }
        for op in graph.ops
    }
    allowed = cache(lambda ops: slice_is_allowed(graph, ops, limits, overheads))

    def received(ops: frozenset[str]) -> int:
        entering, _ = crossing(graph, ops)
        return sum(
            graph.tensor[name].bytes for name in entering if graph.tensor[name].producer != INPUT
        )

    @cache
    def rest(done: frozenset[str], left: int) -> tuple[float, float]:
        if done == everything:
            return 0, 0
        if left == 0:
            return INFINITE
        best = INFINITE
        possible = sorted(everything - done | cheap)
        for size in range(1, len(possible) + 1):
            for chosen in combinations(possible, size):
                ops = frozenset(chosen)
                if ops <= done or not all(before[name] <= done | ops for name in ops):
                    continue
                if allowed(ops):
                    more = rest(done | ops, left - 1)
                    best = min(best, (received(ops) + more[0], 1 + more[1]))
        return best

    return rest(frozenset(), limits.max_slices or len(everything))
