"""The joint pass against an oracle that tries every chain of slices, transport and memory size."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slicewise.cost import CostModel, Imports, Moved, Start, Step, Transport, entry_time, slice_time
from slicewise.errors import InfeasibleError
from slicewise.graph import Op, OpGraph, Tensor, Weight
from slicewise.limits import MB, Limits, Overheads
from slicewise.passes.joint.optimise import Optimiser
from slicewise.passes.joint.problem import CALLER_MB
from slicewise.passes.joint.search import Prices
from tests.passes.graphs import op_graphs

KB = 1024
MODEL = CostModel(
    mb_per_vcpu=150, memory_mb_min=128, memory_mb_max=400, caller_memory_mb=512,
    call=Step(wait_ms=3, cpu_ms=1), handle=Step(cpu_ms=0.5), load_ns=0,
    starts=(Start(packaging="zip", begin=Step()),), imports=Imports(),
    gb_s_usd=0.01, request_usd=1e-6,
    transports=(
        Transport(name="payload", send=Step(cpu_ns=4000), collect=Step(wait_ns=2000, cpu_ns=300),
                  pass_on=Step(wait_ns=3000, cpu_ns=200), receive=Step(cpu_ns=5000),
                  max_bytes=5 * KB, message_bytes=7 * KB, record_bytes=10),
        Transport(name="s3", send=Step(wait_ms=6, wait_ns=300, cpu_ms=0.2, cpu_ns=10),
                  collect=Step(), pass_on=Step(), receive=Step(wait_ms=4, wait_ns=300, cpu_ns=20),
                  send_usd=5e-6, receive_usd=4e-7),
    ),
)  # fmt: skip
CALLERS = CALLER_MB


@st.composite
def timed_graphs(draw: st.DrawFn, most: int = 5) -> OpGraph:
    """Random graphs with compute times and tensors of kilobytes."""
    graph = draw(op_graphs(most=most))
    own = tuple(
        Weight(name=f"v{index}", bytes=size, memory_bytes=size)
        for index, size in enumerate(
            draw(st.lists(st.integers(0, 6), min_size=len(graph.ops), max_size=len(graph.ops)))
        )
    )
    return replace(
        graph,
        weights=graph.weights + own,
        tensors=tuple(
            replace(t, bytes=t.bytes * KB, max_bytes=t.max_bytes * KB) for t in graph.tensors
        ),
        ops=tuple(
            replace(
                op,
                time=float(draw(st.integers(0, 20))),
                weights=(*op.weights, weight.name) if weight.bytes else op.weights,
            )
            for op, weight in zip(graph.ops, own, strict=True)
        ),
    )


def chains(graph: OpGraph) -> list[list[frozenset[str]]]:
    """Every sequence of slices in which dependencies go forward."""
    maker = {name: op.name for op in graph.ops for name in op.outputs}
    needs = {op.name: {maker[t] for t in op.inputs if t in maker} for op in graph.ops}
    found = []

    def extend(done: frozenset[str], chain: list[frozenset[str]]) -> None:
        left = [op.name for op in graph.ops if op.name not in done]
        if not left:
            found.append(chain)
        for count in range(1, len(left) + 1):
            for group in itertools.combinations(left, count):
                members = frozenset(group)
                if all(needs[op] <= done | members for op in group):
                    extend(done | members, [*chain, members])

    extend(frozenset(), [])
    return found


def oracle(graph: OpGraph, limits: Limits, overheads: Overheads, prices: Prices) -> float:
    """The least value, straight from `slice_time`."""
    time_of = {op.name: op.time for op in graph.ops}
    best = float("inf")
    memo: dict[tuple, float] = {}
    for chain in chains(graph):
        parts = []
        for members in chain:
            entering = list(dict.fromkeys(
                t for op in graph.ops if op.name in members for t in op.inputs
                if graph.tensor[t].producer not in members))  # fmt: skip
            leaving = [
                t for op in graph.ops if op.name in members for t in op.outputs
                if any(t in o.inputs and o.name not in members for o in graph.ops)
                or t in graph.outputs
            ]  # fmt: skip
            weights = graph.weights_of(members)
            if sum(graph.weight[w].bytes for w in weights) > (limits.weight_bytes or 1 << 60):
                break
            parts.append((members, entering, leaving))
        else:
            crossing = sorted(
                {t for _, entering, _ in parts for t in entering}
                - {t.name for t in graph.tensors if t.producer == "@input"}
                - set(graph.outputs)
            )
            for ways in itertools.product(("payload", "s3"), repeat=len(crossing)):
                way = dict(zip(crossing, ways, strict=True))
                if any(w == "payload" and graph.tensor[t].bytes > 5 * KB for t, w in way.items()):
                    continue
                for caller in CALLERS:
                    total = entry_value(graph, caller, prices)
                    waits = [
                        MODEL.transport(way.get(t, "payload")).receive.wait_ms for t in parts[-1][1]
                    ]
                    caller_usd = replace(MODEL, caller_memory_mb=caller).gb_ms_usd(caller)
                    total += max(waits, default=0.0) * (prices.ms + prices.usd * caller_usd)
                    for members, entering, leaving in parts:
                        key = (
                            members,
                            tuple(way.get(t, "") for t in (*entering, *leaving)),
                            caller,
                        )
                        if key not in memo:
                            memo[key] = slice_value(
                                graph, sum(time_of[op] for op in members), entering, leaving, way,
                                caller, limits, prices)  # fmt: skip
                        total += memo[key]
                    best = min(best, total)
    return best


def entry_value(graph: OpGraph, caller: int, prices: Prices) -> float:
    received = [Moved(transport="payload", bytes=graph.tensor["x"].bytes)]
    if not any("x" in op.inputs for op in graph.ops):
        received = []
    sizes = [graph.tensor[name].bytes for name in graph.outputs]
    sent = [Moved(transport="payload" if b <= 5 * KB else "s3", bytes=b) for b in sizes]
    found = entry_time(replace(MODEL, caller_memory_mb=caller), received, sent)
    return prices.ms * found.total_ms + prices.usd * found.usd


def slice_value(graph, compute, entering, leaving, way, caller, limits, prices) -> float:
    for name in graph.outputs:
        way = {**way, name: "payload" if graph.tensor[name].bytes <= 5 * KB else "s3"}
    received = [
        Moved(transport=way.get(t, "payload"), bytes=graph.tensor[t].bytes) for t in entering
    ]
    sent = [Moved(transport=way.get(t, "payload"), bytes=graph.tensor[t].bytes) for t in leaving]
    for moved in (received, sent):
        inline = [m.bytes + 10 for m in moved if m.transport == "payload"]
        if sum(inline) > 7 * KB:
            return float("inf")
    model = replace(MODEL, caller_memory_mb=caller)
    best = float("inf")
    for memory in range(128, limits.memory_mb + 1):
        found = slice_time(model, memory, compute, received, sent, parallel=0.7)
        usd = found.usd + found.total_ms * model.gb_ms_usd(caller)
        best = min(best, prices.ms * found.total_ms + prices.usd * usd)
    return best


PRICES = (Prices(ms=1.0, usd=1e-3), Prices(ms=1e-6, usd=1e6), Prices(ms=1.0, usd=3e5))


@given(timed_graphs(), st.integers(6, 14), st.sampled_from(PRICES))
@settings(max_examples=60)
def test_the_best_plan_is_that_of_the_oracle(graph: OpGraph, cap: int, prices: Prices) -> None:
    limits = Limits(memory_mb=330, weight_bytes=cap)
    overheads = Overheads(memory_bytes=20 * MB)
    expected = oracle(graph, limits, overheads, prices)
    try:
        found = Optimiser(
            graph, limits, overheads=overheads, model=MODEL, transports=("payload", "s3"),
            parallel=0.7,
        )  # fmt: skip
        best = found.best(prices)
    except InfeasibleError:
        assert expected == float("inf")
        return
    assert best.value == pytest.approx(expected, rel=1e-6)


@given(
    st.floats(1.0, 400.0),
    st.sampled_from(PRICES),
    st.sampled_from([0.0, 5.0, 20.0]),
    st.sampled_from([0.0, 0.1, 0.5]),
)
@settings(max_examples=60)
def test_the_memory_is_the_best_where_pauses_take_longer(
    compute_ms: float, prices: Prices, period_ms: float, resume: float
) -> None:
    """One slice, of any size: what the formula finds is what trying all of them finds."""
    model = replace(MODEL, period_ms=period_ms, resume_factor=resume)
    graph = OpGraph(
        name="g",
        ops=(Op(name="a", kind="k", inputs=("x",), outputs=("y",), time=compute_ms),),
        tensors=(
            Tensor(name="x", producer="@input", bytes=KB, max_bytes=KB),
            Tensor(name="y", producer="a", bytes=KB, max_bytes=KB),
        ),
        inputs=("x",),
        outputs=("y",),
    )
    limits = Limits(memory_mb=2000)
    found = Optimiser(
        graph, limits, overheads=Overheads(memory_bytes=MB), model=model, transports=("payload",),
        parallel=0.7,
    )  # fmt: skip
    best = found.best(prices)

    moved = [Moved(transport="payload", bytes=KB)]
    tried = []
    for caller in CALLERS:
        called = replace(model, caller_memory_mb=caller)
        entry = entry_time(called, moved, moved)
        for memory in range(model.memory_mb_min, 2001):
            one = slice_time(called, memory, compute_ms, moved, moved, parallel=0.7)
            ms = one.total_ms + entry.total_ms
            usd = one.usd + entry.usd + one.total_ms * called.gb_ms_usd(caller)
            tried.append(prices.ms * ms + prices.usd * usd)
    assert best.value == pytest.approx(min(tried), rel=1e-9)
