"""Shards in the joint pass: which groups are chosen, and what they count."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from shardable import graph_of
from torch import nn

from slicewise.cost import CostModel
from slicewise.graph import OpGraph
from slicewise.limits import Limits, Overheads
from slicewise.passes.joint.optimise import Choice, Optimiser
from slicewise.passes.joint.search import Prices
from tests.passes.test_parallel import MODEL

CALLER = (1769,)
LATENCY = Prices(ms=1.0, usd=1e-9)


def timed(graph: OpGraph, ms: float) -> OpGraph:
    """Every convolution or linear layer takes so long, all else nothing."""
    return replace(
        graph, ops=tuple(replace(op, time=ms if op.weights else 0.0) for op in graph.ops)
    )


@pytest.fixture(scope="module")
def convolutions() -> OpGraph:
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
    return graph_of(nn.Sequential(*layers), (torch.randn(1, 4, 64, 16),))


def chosen(graph: OpGraph, most: int, model: CostModel = MODEL, **limits: int) -> Choice:
    found = Optimiser(
        graph, Limits(memory_mb=1000, **limits), overheads=Overheads(), model=model,
        transports=("payload",), most=most, shards=True,
    )  # fmt: skip
    return found.best(LATENCY, CALLER)


def test_layers_that_take_long_are_split_together(convolutions: OpGraph) -> None:
    choice = chosen(timed(convolutions, 50), 4)
    (sharding,) = choice.shardings
    assert (sharding.kind, sharding.degree, len(sharding.ops)) == ("rows", 4, 8)
    # Its results must be put together, by a slice of nothing else.
    assert [step.ops for step in choice.steps] == [(), (set(),)]
    slowest = max(sum(share * 50 for op, share in part.work if op.startswith("conv"))
                  for part in sharding.parts)  # fmt: skip
    assert 50 < slowest < 60  # the halo of three layers is computed by two shards
    assert choice.steps[0].gain_ms == pytest.approx(200 - slowest - 3, abs=2)
    alone = chosen(timed(convolutions, 50), 1)
    assert choice.ms < alone.ms - 100


def test_layers_that_take_less_than_calls_are_not_split(convolutions: OpGraph) -> None:
    choice = chosen(timed(convolutions, 0.5), 16)
    assert choice.shardings == ()
    assert len(choice.steps) == 1


@pytest.mark.parametrize("most", [1, 2, 3, 5, 16])
def test_no_more_shards_than_may_run_at_once(convolutions: OpGraph, most: int) -> None:
    choice = chosen(timed(convolutions, 200), most)
    assert max([sharding.degree for sharding in choice.shardings], default=1) <= most
    assert bool(choice.shardings) == (most > 1)


def test_shards_count_as_slices(convolutions: OpGraph) -> None:
    graph = timed(convolutions, 200)
    for most in (2, 3, 5):
        choice = chosen(graph, 16, max_slices=most)
        slices = sum(step.width for step in choice.steps)
        assert slices <= most


def test_bytes_decide_how_many_shards(convolutions: OpGraph) -> None:
    """What is broadcast and put together goes through one caller."""
    graph = timed(convolutions, 40)
    dear = tuple(
        replace(way, pass_on=replace(way.pass_on, wait_ns=way.pass_on.wait_ns * 60))
        for way in MODEL.transports
    )
    free = chosen(graph, 16)
    costly = chosen(graph, 16, replace(MODEL, transports=dear))
    widest = max(s.degree for s in free.shardings)
    assert widest > max((s.degree for s in costly.shardings), default=1)


@pytest.fixture(scope="module")
def deep() -> OpGraph:
    """Layers with so much halo that no group should have many of them."""
    layers = [layer for _ in range(8) for layer in (nn.Conv2d(2, 2, 9, padding=4), nn.ReLU())]
    return graph_of(nn.Sequential(*layers), (torch.randn(1, 2, 64, 16),))


def test_groups_follow_each_other_without_a_slice_between(deep: OpGraph) -> None:
    graph = timed(deep, 30)
    choice = chosen(graph, 4)
    assert len(choice.shardings) > 1
    assert [step.width for step in choice.steps] == [4] * len(choice.shardings) + [1]
    # What the neighbours' rows are is sent once more; else groups would have one layer each.
    assert len(choice.shardings) < 8
    slow = replace(MODEL.transports[0], send=replace(MODEL.transports[0].send, cpu_ns=20_000))
    assert len(chosen(graph, 4, replace(MODEL, transports=(slow,))).shardings) < len(
        choice.shardings
    )


def test_larger_parts_at_the_ends_make_the_slowest_shard_faster(deep: OpGraph) -> None:
    choice = chosen(timed(deep, 30), 4)
    rows = [dict(part.sent) for part in choice.shardings[0].parts]
    sizes = [next(iter(part.values())) for part in rows]
    assert min(sizes[0], sizes[-1]) > max(sizes[1:-1])
