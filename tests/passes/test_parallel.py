"""Groups of branches in the joint pass: against an oracle of every chain of stages, and by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slicewise.cost import CostModel, Imports, Moved, Start, Step, Transport, slice_time
from slicewise.graph import OpGraph
from slicewise.limits import Limits, Overheads
from slicewise.passes.joint.optimise import Choice, Optimiser
from slicewise.passes.joint.search import Prices

MODEL = CostModel(
    mb_per_vcpu=1000, memory_mb_min=128, memory_mb_max=1000, caller_memory_mb=1769,
    call=Step(wait_ms=3, cpu_ms=1), handle=Step(cpu_ms=0.5), load_ns=0,
    starts=(Start(packaging="zip", begin=Step()),), imports=Imports(),
    gb_s_usd=0.01, request_usd=1e-6,
    transports=(
        Transport(name="payload", send=Step(cpu_ns=40), collect=Step(wait_ns=20, cpu_ns=3),
                  pass_on=Step(wait_ns=30, cpu_ns=2), receive=Step(cpu_ns=50),
                  max_bytes=5_000_000, message_bytes=7_000_000, record_bytes=10),
    ),
)  # fmt: skip
LATENCY = Prices(ms=1.0, usd=1e-9)
CALLER = (1769,)


def graph_of(edges: list[tuple[str, str]], **time: float) -> OpGraph:
    graph = nx.DiGraph()
    for name, ms in time.items():
        graph.add_node(name, weight_bytes=1000, bytes=10_000, time=ms)
    graph.add_edges_from(edges)
    return OpGraph.from_networkx(graph)


def best(graph: OpGraph, most: int, **limits: int) -> Choice:
    found = Optimiser(
        graph, Limits(memory_mb=1000, **limits), overheads=Overheads(), model=MODEL,
        transports=("payload",), most=most,
    )  # fmt: skip
    return found.best(LATENCY, CALLER)


def names(graph: OpGraph, choice: Choice) -> list[list[str]]:
    return [["".join(sorted(graph.ops[op].name for op in ops)) for ops in step.ops]
            for step in choice.steps]  # fmt: skip


FORK = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]


def test_two_long_branches_run_at_the_same_time() -> None:
    graph = graph_of(FORK, a=5, b=80, c=70, d=5)
    choice = best(graph, 4)
    assert names(graph, choice) == [["a"], ["b", "c"], ["d"]]
    # c's time, less a second call in the caller; and two more calls in the whole plan.
    assert choice.steps[1].gain_ms == pytest.approx(70 - 1, abs=2)
    assert best(graph, 1).ms - choice.ms == pytest.approx(70 - 1 - 2 * 4.5, abs=5)


def test_short_branches_stay_in_one_slice() -> None:
    graph = graph_of(FORK, a=5, b=4, c=4, d=5)
    assert names(graph, best(graph, 4)) == [["abcd"]]


def test_no_more_slices_at_once_than_allowed() -> None:
    edges = [("a", x) for x in "bcef"] + [(x, "z") for x in "bcef"]
    graph = graph_of(edges, a=1, b=90, c=80, e=70, f=60, z=1)
    widths = {most: max(len(step.ops) for step in best(graph, most).steps) for most in (1, 2, 3, 4)}
    assert widths == {1: 1, 2: 2, 3: 3, 4: 4}
    assert names(graph, best(graph, 2))[1] in (["bf", "ce"], ["ce", "bf"])


def test_a_limit_on_slices_counts_all_that_run_at_once() -> None:
    graph = graph_of(FORK, a=5, b=80, c=70, d=5)
    for most in (1, 2, 3, 4):
        choice = best(graph, 4, max_slices=most)
        assert len(choice.layout) <= most
    assert len(best(graph, 4, max_slices=4).steps) == 3


def test_towers_that_share_only_the_request() -> None:
    edges = [("a", "b"), ("c", "d"), ("b", "e"), ("d", "e")]
    graph = graph_of(edges, a=40, b=40, c=40, d=40, e=1)
    assert names(graph, best(graph, 4)) == [["ab", "cd"], ["e"]]


@st.composite
def dags(draw: st.DrawFn) -> OpGraph:
    count = draw(st.integers(2, 5))
    edges = [
        (f"n{i}", f"n{j}")
        for i, j in itertools.combinations(range(count), 2)
        if draw(st.booleans())
    ]
    return graph_of(edges, **{f"n{i}": float(draw(st.integers(0, 40))) for i in range(count)})


def set_partitions(items: tuple[str, ...]) -> Iterator[list[tuple[str, ...]]]:
    if not items:
        yield []
        return
    for rest in range(1 << (len(items) - 1)):
        first = (items[0], *(x for i, x in enumerate(items[1:]) if rest >> i & 1))
        left = tuple(x for i, x in enumerate(items[1:]) if not rest >> i & 1)
        for others in set_partitions(left):
            yield [first, *others]


def stages(graph: OpGraph) -> Iterator[list[list[tuple[str, ...]]]]:
    """Every chain of stages of independent slices, of which dependencies go to later stages only."""
    needs = {op.name: set(op.inputs) for op in graph.ops}

    def extend(done: frozenset[str], chain: list[list[tuple[str, ...]]]) -> Iterator[list]:
        left = tuple(op.name for op in graph.ops if op.name not in done)
        if not left:
            yield chain
        for count in range(1, len(left) + 1):
            for members in itertools.combinations(left, count):
                if any(needs[op] - done - set(members) for op in members):
                    continue
                for parts in set_partitions(members):
                    if all(not (needs[op] & set(members)) <= set(part) for part in parts
                           for op in part):  # fmt: skip
                        continue
                    if all(
                        (needs[op] & set(members)) <= set(part) for part in parts for op in part
                    ):
                        yield from extend(done | set(members), [*chain, parts])

    yield from extend(frozenset(), [])


def chain_ms(graph: OpGraph, chain: list[list[tuple[str, ...]]]) -> float:
    """The least ms of any plan of these stages: each as long as its slowest slice, and as the caller
    takes to start (or collect) all but one of them while the others run.
    """
    total = 0.0
    for parts in chain:
        times = []
        for part in parts:
            entering = {t for op in part for t in graph.op[op].inputs} - set(part)
            leaving = [
                op for op in part
                if op in graph.outputs or any(c not in part for c in graph.consumers[op])
            ]  # fmt: skip
            times.append(slice_time(
                replace(MODEL, caller_memory_mb=CALLER[0]), 1000,
                sum(graph.op[op].time for op in part),
                [Moved(transport="payload", bytes=10_000) for _ in entering],
                [Moved(transport="payload", bytes=10_000) for _ in leaving],
            ))  # fmt: skip
        total += max(t.billed_ms for t in times) + MODEL.call.wait_ms
        begins, ends = [t.begin_ms + t.call_ms for t in times], [t.end_ms for t in times]
        total += max(sum(begins) + max(ends), max(begins) + sum(ends))
    return total


@given(dags())
@settings(max_examples=60)
def test_never_slower_than_one_by_one_and_never_better_than_any_stages(graph: OpGraph) -> None:
    alone, choice = best(graph, 1), best(graph, 3)
    assert choice.ms <= alone.ms + 1e-6
    least = min(chain_ms(graph, chain) for chain in stages(graph))
    entry = alone.ms - min(
        chain_ms(graph, chain) for chain in stages(graph) if all(len(s) == 1 for s in chain)
    )
    assert choice.ms >= least + entry - 1e-6
    done: set[str] = set()
    for step in names_of(graph, choice):
        for part in step:
            assert all(set(graph.op[op].inputs) <= done | part for op in part)
        done |= set().union(*step)
    assert done == {op.name for op in graph.ops}


def names_of(graph: OpGraph, choice: Choice) -> list[list[set[str]]]:
    return [[{graph.ops[op].name for op in ops} for ops in step.ops] for step in choice.steps]
