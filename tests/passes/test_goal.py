"""Goals and frontiers: bounds are kept, proofs hold against a sweep, errors name the nearest."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import pytest

from slicewise import Goal, Limits, OpGraph, targets
from slicewise.errors import InfeasibleError, LimitsError
from slicewise.goal import objective_of
from slicewise.passes.joint.decide import decide, decision, frontier_choices
from slicewise.passes.joint.goal import Bounds, optimum
from slicewise.passes.joint.optimise import Optimiser
from slicewise.passes.joint.search import Prices

LAMBDA = targets.load("lambda")
LIMITS = LAMBDA.resolve_limits(Limits(weight_bytes=70_000_000))
RULE = LAMBDA.transport_rule(LIMITS, ("payload", "s3", "s3express"))
OVERHEADS = LAMBDA.overheads(RULE)
MODEL = LAMBDA.cost_model(LIMITS)


def residual_net(blocks: int = 6) -> OpGraph:
    """Blocks of a convolution beside a skip, tensors of megabytes that shrink."""
    graph = nx.DiGraph()
    graph.add_node("stem", weight_bytes=1_000_000, bytes=3_000_000, time=20)
    last = "stem"
    for index in range(blocks):
        size = 3_000_000 // (1 + index)
        graph.add_node(f"conv{index}", weight_bytes=20_000_000, bytes=size, time=60)
        graph.add_node(f"add{index}", bytes=size, time=1)
        graph.add_edges_from([(last, f"conv{index}"), (f"conv{index}", f"add{index}"),
                              (last, f"add{index}")])  # fmt: skip
        last = f"add{index}"
    return OpGraph.from_networkx(graph)


def optimiser(parallel: float = 0.9) -> Optimiser:
    return Optimiser(
        residual_net(), LIMITS, overheads=OVERHEADS, model=MODEL, transports=RULE.transports,
        parallel=parallel,
    )  # fmt: skip


def test_a_bound_on_cost_is_kept_and_the_certificate_holds() -> None:
    solver = optimiser()
    fastest = optimum(solver, "latency", Bounds())
    cheapest = optimum(solver, "cost", Bounds())
    assert fastest.ms < cheapest.ms and cheapest.usd < fastest.usd

    sweep = [solver.best(Prices(ms=1.0, usd=10.0**power)) for power in range(3, 9)]
    for share in (0.1, 0.4, 0.8):
        limit = cheapest.usd + share * (fastest.usd - cheapest.usd)
        found = optimum(solver, "latency", Bounds(usd=limit))
        assert found.usd <= limit * (1 + 1e-6)
        assert fastest.ms - 1e-6 <= found.lower_bound <= found.ms + 1e-6
        for other in sweep:
            if other.usd <= limit:
                assert found.ms <= other.ms * (1 + 1e-6)
                assert found.lower_bound <= other.ms * (1 + 1e-9)


def test_a_bound_on_latency_is_kept() -> None:
    solver = optimiser()
    fastest, cheapest = (optimum(solver, kind, Bounds()) for kind in ("latency", "cost"))
    limit = (fastest.ms + cheapest.ms) / 2

    found = optimum(solver, "cost", Bounds(ms=limit))

    assert found.ms <= limit * (1 + 1e-6)
    assert cheapest.usd <= found.usd <= fastest.usd
    assert found.lower_bound <= found.usd


def test_a_loose_bound_changes_nothing() -> None:
    solver = optimiser()
    assert optimum(solver, "latency", Bounds(usd=1.0)).ms == optimum(solver, "latency", Bounds()).ms


@pytest.mark.parametrize(
    ("objective", "bounds", "name"),
    [
        ("latency", Bounds(usd=1e-9), "cost_per_million_usd"),
        ("cost", Bounds(ms=1.0), "latency_ms"),
        ("latency", Bounds(ms=1.0), "latency_ms"),
        ("cost", Bounds(usd=1e-9), "cost_per_million_usd"),
    ],
)
def test_what_no_plan_keeps_is_said_with_the_nearest(objective, bounds, name) -> None:
    with pytest.raises(
        InfeasibleError, match=rf"no plan keeps {name}.*nearest one reaches"
    ) as info:
        optimum(optimiser(), objective, bounds)
    assert info.value.limit_name == name


def test_a_frontier_goes_down_and_has_both_ends() -> None:
    choices = frontier_choices(
        residual_net(), LIMITS, 5, overheads=OVERHEADS, model=MODEL, rule=RULE, parallel=0.9,
        time_limit_s=30,
    )  # fmt: skip
    found = [decision(choices, choice) for choice in choices.choices]
    solver = optimiser()
    assert 2 <= len(found) <= 5
    first, last = found[0][1], found[-1][1]
    assert first.model.caller_memory_mb == optimum(solver, "latency", Bounds()).caller_mb
    assert last.model.caller_memory_mb == optimum(solver, "cost", Bounds()).caller_mb


@pytest.mark.parametrize("objective", ["latency", "cost"])
def test_a_decision_has_settings_for_every_slice(objective) -> None:
    partition, settings = decide(
        residual_net(), LIMITS, objective, goal=None, overheads=OVERHEADS, model=MODEL, rule=RULE,
        parallel=0.9, time_limit_s=30,
    )  # fmt: skip
    assert partition.certificate.status == "optimal"
    assert set(settings.memory_mb) == {part.name for part in partition.slices}
    crossing = {name for part in partition.slices[1:] for name in part.inputs}
    assert crossing <= set(settings.transports)


def test_too_many_prefixes_are_sampled_and_said_to_be() -> None:
    graph = nx.DiGraph()
    for index in range(14):
        graph.add_node(f"a{index}", weight_bytes=8_000_000, bytes=1000, time=5)
        graph.add_node(f"b{index}", weight_bytes=8_000_000, bytes=1000, time=5)
        graph.add_edge(f"a{index}", f"b{index}")
        graph.add_edge(f"b{index}", "end")
    graph.nodes["end"].update(weight_bytes=1, bytes=10, time=1)
    partition, _ = decide(
        OpGraph.from_networkx(graph), LIMITS, "latency", goal=None, overheads=OVERHEADS,
        model=MODEL, rule=RULE, parallel=0.9, time_limit_s=30,
    )  # fmt: skip
    proof = partition.certificate
    assert proof.status == "bounded"
    assert proof.lower_bound > 0
    assert 0 < proof.gap < 0.6


def test_max_slices_is_kept() -> None:
    graph = residual_net()
    limits = replace(LIMITS, weight_bytes=45_000_000)
    free = Optimiser(graph, limits, overheads=OVERHEADS, model=MODEL, transports=RULE.transports)
    count = len(free.best(Prices(ms=1.0, usd=0.0)).layout)
    with pytest.raises(InfeasibleError):
        Optimiser(
            graph, replace(limits, max_slices=count - 1), overheads=OVERHEADS, model=MODEL,
            transports=RULE.transports,
        ).best(Prices(ms=1.0, usd=0.0))  # fmt: skip
    bounded = Optimiser(
        graph, replace(limits, max_slices=count), overheads=OVERHEADS, model=MODEL,
        transports=RULE.transports,
    ).best(Prices(ms=1.0, usd=0.0))  # fmt: skip
    assert len(bounded.layout) == count


def test_goals_are_checked_before_any_work() -> None:
    assert objective_of("bytes", None) == "bytes"
    assert objective_of("bytes", Goal(latency_ms=5)) == "cost"
    assert objective_of("bytes", Goal(cost_per_million_usd=5)) == "latency"
    both = Goal(latency_ms=5, cost_per_million_usd=5)
    assert objective_of("cost", both) == "cost"
    with pytest.raises(LimitsError, match="say with objective="):
        objective_of("bytes", both)
    with pytest.raises(LimitsError, match="choose 'bytes', 'latency' or 'cost'"):
        objective_of("speed", None)
    for bad in (
        {"latency_ms": 0},
        {"latency_ms": -1.0},
        {"cost_per_million_usd": float("nan")},
        {},
    ):
        with pytest.raises(LimitsError):
            Goal(**bad)
