"""The bounds along bottlenecks and at windows against every assignment of small problems."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from slicewise.passes.partitioning import segments, spine, windows
from slicewise.passes.partitioning.anneal import anneal
from slicewise.passes.partitioning.improve import improve
from slicewise.passes.partitioning.order import cut_order
from slicewise.passes.partitioning.problem import (
    Load,
    Net,
    Problem,
    cost,
    even_weights,
    fits,
)
from slicewise.passes.partitioning.segments import bottlenecks, segment_bound
from slicewise.passes.partitioning.windows import window_bound


def narrow_problem(pick: random.Random) -> Problem:
    """Segments between bottlenecks, some empty or wide, with skips, free nets and shared loads."""
    largest = pick.choice((1, 6, 40))
    preds: list[set[int]] = []
    while len(preds) < pick.randint(4, 9):
        first = len(preds) - 1
        wide = pick.choice((0, 1, 2, 3))
        for _ in range(wide):
            size = len(preds)
            near = [*range(max(0, first), size)]
            preds.append({pick.choice(near)} if near else set())
            if size and pick.random() < 0.3:
                preds[-1].add(pick.randrange(size))
        inner = range(max(0, first), len(preds))
        read = {node for before in preds[max(0, first) :] for node in before}
        preds.append(set(inner) if pick.random() < 0.3 else set(inner) - read)
    if pick.random() < 0.3:  # some end that is not a bottleneck
        preds.append({pick.randrange(len(preds))})
    preds = preds[:10]
    size = len(preds)
    succs = [tuple(v for v in range(size) if u in preds[v]) for u in range(size)]
    nets = []
    for node, after in enumerate(succs):
        if after:
            cut = pick.randint(1, len(after))
            for readers in {after[:cut], after[cut:]} - {()}:
                amount = 0 if pick.random() < 0.15 else pick.randint(0, largest)
                nets.append(Net(amount, node, readers))
    loads = [Load(pick.randint(0, 8), 0, (node,)) for node in range(size) if pick.random() < 0.85]
    for _ in range(pick.choice((0, 0, 1, 2))):
        users = tuple(sorted(pick.sample(range(size), min(size, 2))))
        loads.append(Load(pick.randint(1, 8), 0, users))
    return tight_problem(succs, nets, loads, pick.randint(0, 12))


def twin_problem(pick: random.Random) -> Problem:
    """One or two bunches of chains between bottlenecks, many of them equal, some nearly."""
    preds: list[list[int]] = [[]]
    size_of, held = [pick.randint(0, 6)], [pick.randint(0, 4)]
    kinds = [(pick.randint(0, 6), pick.randint(0, 6), pick.randint(0, 4)) for _ in range(2)]
    while len(preds) < 7:
        root, ends = len(preds) - 1, []
        length = pick.choice((1, 2))
        for _ in range(pick.randint(2, 4 if length == 1 else 3)):
            first, second, weight = pick.choice(kinds)
            for step in range(length):
                preds.append([root if step == 0 else len(preds) - 1])
                if step and pick.random() < 0.2:
                    preds[-1].append(root)
                size_of.append(second if step else first)
                held.append(weight)
            ends.append(len(preds) - 1)
        preds.append(ends if pick.random() < 0.7 else [*ends, root])
        size_of.append(pick.randint(0, 6))
        held.append(pick.randint(0, 4))
    size = len(preds)
    succs = [tuple(v for v in range(size) if u in preds[v]) for u in range(size)]
    nets = []
    for node, after in enumerate(succs):
        split = pick.randint(0, len(after)) if pick.random() < 0.3 else len(after)
        parts = {after[:split], after[split:]} - {()}
        nets += [Net(size_of[node], node, readers) for readers in parts]
    return Problem(
        ops=tuple((node,) for node in range(size)),
        succs=tuple(succs),
        nets=tuple(nets),
        loads=tuple(Load(amount, 0, (node,)) for node, amount in enumerate(held)),
        weight_cap=max(4, *held) + pick.randint(0, 8),
    )


def fewest_bytes(problem: Problem) -> int:
    """Over all pairs of prefixes, as the definition says."""
    size, cap = problem.size, problem.weight_cap
    assert cap is not None
    need = [sum(1 << u for u in before) for before in problem.preds]
    ideals = [
        i for i in range(1 << size) if all(need[v] & ~i == 0 for v in range(size) if i >> v & 1)
    ]
    value = {0: 0}
    for end in ideals[1:]:
        for begin in ideals:
            if begin == end or begin & ~end or begin not in value:
                continue
            new = end & ~begin
            held = sum(x.bytes for x in problem.loads if any(new >> u & 1 for u in x.users))
            if held <= cap:
                received = sum(
                    net.bytes
                    for net in problem.nets
                    if begin >> net.producer & 1 and any(new >> v & 1 for v in net.readers)
                )
                value[end] = min(value.get(end, 1 << 60), value[begin] + received)
    return value[(1 << size) - 1]


def check_bound(problem: Problem) -> tuple[int, int]:
    assert problem.weight_cap is not None
    weights = even_weights(problem, problem.resources[0][0])
    bound = segment_bound(problem, weights, problem.weight_cap, deadline=time.monotonic() + 10)
    wanted = fewest_bytes(problem)
    assert bound <= wanted
    return bound, wanted


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 32))
def test_the_bound_along_bottlenecks_holds(seed: int):
    check_bound(narrow_problem(random.Random(seed)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_the_bound_holds_and_stays_the_same_without_equal_branches(seed: int):
    problem = twin_problem(random.Random(seed))
    with mock.patch.object(segments, "_MANY_NODES", 1):
        bound, _ = check_bound(problem)

    assert check_bound(problem)[0] == bound


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 32))
def test_bottlenecks_are_before_and_behind_all_others(seed: int):
    problem = narrow_problem(random.Random(seed))
    after = [set(nodes) for nodes in problem.succs]
    for node in reversed(range(problem.size)):
        after[node] |= {other for v in problem.succs[node] for other in after[v]}

    assert bottlenecks(problem) == [
        node
        for node in range(problem.size)
        if all(node in after[v] for v in range(node))
        and all(v in after[node] for v in range(node + 1, problem.size))
    ]


def wide_problem(layers: int, width: int) -> Problem:
    """Layers of nodes that each read two of the layer before."""
    pick = random.Random(0)
    preds = [
        [] if layer == 0 else [(layer - 1) * width + i for i in pick.sample(range(width), 2)]
        for layer in range(layers)
        for _ in range(width)
    ]
    size = layers * width
    succs = [tuple(v for v in range(size) if u in preds[v]) for u in range(size)]
    return Problem(
        ops=tuple((node,) for node in range(size)),
        succs=tuple(succs),
        nets=tuple(Net(pick.randint(1, 60), u, after) for u, after in enumerate(succs) if after),
        loads=tuple(Load(pick.randint(1, 8), 0, (node,)) for node in range(size)),
        weight_cap=size,
    )


def test_annealing_keeps_the_caps_and_the_order_and_saves_bytes():
    problem = wide_problem(12, 6)
    start, held = [], 0
    for node in range(problem.size):
        amount = problem.loads[node].bytes
        fresh = held % problem.size + amount > problem.size
        held += amount + (problem.size - held % problem.size if fresh else 0)
        start.append((held - 1) // problem.size)
    assert fits(problem, start)

    found = anneal(problem, start, deadline=time.monotonic() + 1, seed=0)

    assert fits(problem, found)
    assert all(found[u] <= found[v] for u in range(problem.size) for v in problem.succs[u])
    assert cost(problem, found) < cost(problem, start)


def test_improvement_goes_on_until_the_time_is_over_or_the_bound_is_met():
    problem = wide_problem(8, 4)
    start = [node // 4 for node in range(problem.size)]
    began = time.monotonic()

    improve(problem, start, least=0, deadline=began + 1.5, workers=1, seed=0)
    assert time.monotonic() - began >= 1.5

    least = cost(problem, start)
    assert improve(problem, start, least=least, deadline=began + 99, workers=1, seed=0) == start


def tight_problem(succs: list, nets: list[Net], loads: list[Load], slack: int) -> Problem:
    """A cap that the heaviest node alone keeps, with `slack` to spare."""
    size = len(succs)
    alone = max((sum(x.bytes for x in loads if n in x.users) for n in range(size)), default=1)
    return Problem(
        ops=tuple((node,) for node in range(size)),
        succs=tuple(succs),
        nets=tuple(nets),
        loads=tuple(loads),
        weight_cap=max(1, alone + slack),
    )


def random_problem(pick: random.Random) -> Problem:
    """Any graph: dead ends, several nets of one node, no bytes, shared loads, nodes without weight."""
    size = pick.randint(2, 9)
    dense = pick.choice((0.2, 0.4, 0.7))
    succs = [tuple(v for v in range(u + 1, size) if pick.random() < dense) for u in range(size)]
    nets = []
    for node, after in enumerate(succs):
        cut = pick.randint(0, len(after))
        nets += [
            Net(pick.choice((0, pick.randint(1, 60), 1000)), node, readers)
            for readers in sorted({after[:cut], after[cut:]} - {()})
        ]
    loads = [Load(pick.randint(0, 8), 0, (node,)) for node in range(size) if pick.random() < 0.8]
    loads += [
        Load(pick.randint(1, 8), 0, tuple(sorted(pick.sample(range(size), 2))))
        for _ in range(pick.choice((0, 0, 1, 2)))
    ]
    return tight_problem(succs, nets, loads, pick.randint(0, 8))


def check_window_bound(problem: Problem) -> tuple[int, int]:
    assert problem.weight_cap is not None
    weights = even_weights(problem, problem.resources[0][0])
    cap = problem.weight_cap
    with mock.patch.object(windows, "_ROUNDS", 3), mock.patch.object(windows, "_STEPS", 20):
        bound = window_bound(problem, weights, cap, deadline=time.monotonic() + 10)
    wanted = fewest_bytes(problem)
    assert bound <= wanted
    return bound, wanted


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from((random_problem, narrow_problem, twin_problem)))
def test_the_bound_at_windows_holds(seed: int, make: Callable[[random.Random], Problem]):
    check_window_bound(make(random.Random(seed)))


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.sampled_from((random_problem, narrow_problem, twin_problem)),
    st.sampled_from((1, 2, 4)),
)
def test_the_bound_at_windows_holds_with_a_sparse_spine(
    seed: int, make: Callable[[random.Random], Problem], most: int
):
    problem = make(random.Random(seed))
    free = most * problem.size
    with (
        mock.patch.object(spine, "_MOST_TRIED", 2 * most),
        mock.patch.object(spine, "_MOST_FREE", free),
    ):
        check_window_bound(problem)


def test_the_bound_at_windows_is_no_small_part_of_what_wide_graphs_pay():
    problem = wide_problem(14, 6)
    weights = np.array([load.bytes for load in problem.loads])
    start = [node // 6 // 2 for node in range(problem.size)]
    cap = max(int(weights[[s == k for s in start]].sum()) for k in set(start)) * 2
    found = cut_order(replace(problem, weight_cap=cap), range(problem.size))
    assert found is not None

    bound = window_bound(problem, weights, cap, deadline=time.monotonic() + 10)

    assert cost(problem, found) * 0.2 <= bound <= cost(problem, found)
