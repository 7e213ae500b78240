"""`Plan`: its JSON form, what it derives, and the text a user reads."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import slicewise
from slicewise import BundleError, Plan
from slicewise.graph import INPUT, OUTPUT
from slicewise.plan import Certificate, Edge
from slicewise.report import megabytes, plan_text


def test_a_plan_comes_back_from_json(compiled: slicewise.Compiled) -> None:
    assert Plan.from_json(compiled.plan.to_json()) == compiled.plan


def test_plan_json_keeps_its_names(compiled: slicewise.Compiled) -> None:
    data = json.loads(compiled.plan.to_json())

    assert list(data)[:9] == [
        "schema", "model", "target", "objective", "limits", "cross_slice_bytes", "certificate",
        "prediction", "slices",
    ]  # fmt: skip
    assert set(data["slices"][0]) == {
        "name", "stage", "shard", "ops", "weight_bytes", "peak_memory_bytes", "memory_mb",
        "package_bytes", "inputs", "outputs", "onnx", "packaging", "modules",
    }  # fmt: skip
    assert set(data["edges"][0]) == {
        "tensor", "dtype", "shape", "bytes", "producer", "consumer", "transport", "reason",
        "choices", "module", "prices",
    }  # fmt: skip


def test_cross_slice_bytes_leave_out_request_and_reply(compiled: slicewise.Compiled) -> None:
    plan = compiled.plan
    between = [e for e in plan.edges if e.producer != INPUT and e.consumer != OUTPUT]

    assert plan.cross_slice_bytes == sum(edge.bytes for edge in between) > 0
    assert any(edge.producer == INPUT for edge in plan.edges)
    assert any(edge.consumer == OUTPUT for edge in plan.edges)


def test_stages_hold_every_slice_once_in_order(compiled: slicewise.Compiled) -> None:
    plan = compiled.plan
    stage_of = {part.name: part.stage for part in plan.slices}

    assert sorted(part.name for stage in plan.stages for part in stage) == sorted(stage_of)
    for edge in plan.edges:
        if edge.crosses:
            assert stage_of[edge.producer] < stage_of[edge.consumer]
    assert replace(plan, slices=()).stages == ()


def damaged(plan: Plan) -> list[str]:
    def changed(**fields: Any) -> str:
        return json.dumps(json.loads(plan.to_json()) | fields)

    text = plan.to_json()
    missing = json.loads(text)
    del missing["edges"]
    return [
        "", "{}", "[]", "null", "3", '"plan"', text[: len(text) // 2], json.dumps(missing),
        changed(slices=[3]), changed(slices=[{}]), changed(slices="abc"), changed(edges=None),
        changed(limits={"memory_mb": -1}), changed(limits={"memory": 1}), changed(model=None),
        changed(certificate=[]), changed(dims=[{"name": "batch"}]),
    ]  # fmt: skip


def test_a_damaged_plan_is_a_bundle_error(compiled: slicewise.Compiled) -> None:
    for text in damaged(compiled.plan):
        with pytest.raises(BundleError, match="Compile the model again"):
            Plan.from_json(text)


def test_another_schema_is_named(compiled: slicewise.Compiled) -> None:
    data = json.loads(compiled.plan.to_json()) | {"schema": 99}

    with pytest.raises(BundleError, match="schema 99, this slicewise reads 1"):
        Plan.from_json(json.dumps(data))


def test_the_text_fits_100_columns(compiled: slicewise.Compiled) -> None:
    plan = compiled.plan
    edge = replace(
        plan.edges[0],
        tensor="a_very_long_name_of_a_tensor_that_some_exporter_made_up_from_a_module_path",
        shape=tuple(range(100, 112)),
    )
    part = replace(plan.slices[0], ops=("a_rather_long_operator_name_" * 3, "another_" * 12))
    wide = replace(plan, edges=(edge, *plan.edges), slices=(part, *plan.slices[1:]))
    for text in (str(plan), str(wide)):
        assert max(map(len, text.splitlines())) <= 100


def test_the_text_names_every_slice_and_edge(compiled: slicewise.Compiled) -> None:
    text = str(compiled.plan)

    for part in compiled.plan.slices:
        assert part.name in text
    for edge in compiled.plan.edges:
        assert edge.tensor in text
        assert edge.transport in text
    assert "_Tied" in text
    assert f"{compiled.plan.cross_slice_bytes:,} bytes cross between slices" in text


def test_dynamic_dimensions_are_not_taken_for_markup(compiled: slicewise.Compiled) -> None:
    edge = Edge(
        tensor="t", dtype="float32", shape=("batch", 3), bytes=1, producer="slice1",
        consumer="slice2", transport="payload", reason="1 byte, small",
    )  # fmt: skip

    assert "float32[batch, 3]" in str(replace(compiled.plan, edges=(edge,)))


def test_the_verdict_is_only_as_strong_as_the_proof(compiled: slicewise.Compiled) -> None:
    proven = Certificate(status="optimal", lower_bound=10, gap=0.0, method="m", seconds=1.0)
    bounded = Certificate(status="bounded", lower_bound=10, gap=0.25, method="m", seconds=1.0)

    assert "proven minimal" in str(replace(compiled.plan, certificate=proven))
    text = str(replace(compiled.plan, certificate=bounded))
    assert "proven minimal" not in text
    assert "at least 10 must (gap 25.0%" in text


def test_color_is_only_for_terminals(compiled: slicewise.Compiled) -> None:
    assert "\x1b[" not in str(compiled.plan)
    assert "\x1b[" in plan_text(compiled.plan, color=True)


def test_bytes_for_people() -> None:
    assert megabytes(0) == "0 B"
    assert megabytes(1023) == "1023 B"
    assert megabytes(1536) == "1.5 KB"
    assert megabytes(5 * 1024 * 1024) == "5.0 MB"


def test_plans_that_know_no_packagings_are_of_zip_files(compiled: slicewise.Compiled) -> None:
    data = json.loads(compiled.plan.to_json())
    for part in data["slices"]:
        del part["packaging"]

    assert Plan.from_json(json.dumps(data)) == compiled.plan
