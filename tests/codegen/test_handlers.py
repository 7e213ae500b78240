"""Handlers: short source that compiles, with each edge, its transport and the reason."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from itertools import pairwise

import pytest

import slicewise
from slicewise import Plan
from slicewise.codegen.handlers import render


@pytest.fixture(scope="module")
def plan(compiled: slicewise.Compiled) -> Plan:
    return compiled.plan


def test_every_slice_and_the_coordinator_have_source_that_compiles(plan: Plan) -> None:
    handlers = render(plan)

    assert handlers.slices.keys() == {part.name for part in plan.slices}
    assert handlers.coordinator is not None
    for name, source in (*handlers.slices.items(), ("coordinator", handlers.coordinator)):
        tree = compile(source, f"{name}.py", "exec", ast.PyCF_ONLY_AST)
        assert isinstance(tree, ast.Module)
        assert "handler = " in source
        assert len(source.splitlines()) < 80


def test_each_edge_is_listed_with_transport_and_reason(plan: Plan) -> None:
    sources = render(plan).slices

    for edge in plan.edges:
        for name in {edge.producer, edge.consumer} & sources.keys():
            assert repr(edge.tensor) in sources[name]
            assert edge.reason in sources[name]
            assert f"{edge.transport}" in sources[name]


def test_a_tensor_for_several_slices_is_sent_once(plan: Plan) -> None:
    edge = next(e for e in plan.edges if e.crosses)
    other = next(p.name for p in plan.slices if p.name not in (edge.producer, edge.consumer))
    forked = replace(plan, edges=(*plan.edges, replace(edge, consumer=other)))

    source = render(forked).slices[edge.producer]

    outputs = source.split("OUTPUTS = [")[1].split("]\n\nhandler")[0]
    assert outputs.count(repr(edge.tensor)) == 1
    assert f"-> {edge.consumer}, {other}: " in outputs


def test_equal_plans_give_equal_text(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())

    assert render(again) == render(plan)


def test_different_plans_have_different_ids(plan: Plan) -> None:
    other = replace(plan, edges=(replace(plan.edges[0], transport="s3"), *plan.edges[1:]))

    assert render(other).plan_id != render(plan).plan_id


def test_the_manifest_is_plain_data(plan: Plan) -> None:
    manifest = render(plan).manifest

    assert json.loads(json.dumps(manifest)) == manifest
    assert manifest["id"] == render(plan).plan_id


def test_handlers_say_what_is_packed(plan: Plan) -> None:
    rule = replace(plan.transport_rule, wire_dtype="float16", compression="zlib")
    packed = render(replace(plan, transport_rule=rule)).slices

    assert not any(
        "float16" in source or "zlib" in source for source in render(plan).slices.values()
    )
    assert plan.internal
    for edge in plan.edges:
        words = f"{edge.transport} as float16 and zlib"
        for name in {edge.producer, edge.consumer} & packed.keys():
            assert "wire_dtype='float16'" in packed[name]
            assert "compression='zlib'" in packed[name]
            (above,) = [
                before
                for before, line in pairwise(packed[name].splitlines())
                if line.strip().startswith(f"Edge({edge.tensor!r}, ")
                and ("->" in before)
                and (edge.producer in before.split("->")[0]) == (edge.consumer == name)
            ]
            assert (words in above) == (edge.tensor in plan.internal and edge.dtype == "float32")
