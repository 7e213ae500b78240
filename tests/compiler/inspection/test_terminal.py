"""`slicewise inspect` in the terminal: what it prints, kept in snapshots/ as it looks.

To accept what is printed now: SNAPSHOTS=update pytest tests/compiler/inspection.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import sample
from console import call

import slicewise
from slicewise import targets
from slicewise.graph import Op, Tensor
from slicewise.inspection.detail import Detail, read_detail, write_detail
from slicewise.inspection.differences import difference_parts, differences
from slicewise.inspection.moves import why
from slicewise.inspection.told import edge_parts, slice_data, slice_parts, why_parts
from slicewise.limits import Limits
from slicewise.plan import Plan
from slicewise.report import plan_text, text

SNAPSHOTS = Path(__file__).parent / "snapshots"


@pytest.fixture(scope="module")
def planned() -> tuple[Plan, Detail]:
    return sample.small()


@pytest.fixture(scope="module")
def larger() -> Plan:
    return sample.planned(sample.stack(4), Limits(weight_bytes=300_000))[0]


def printed(name: str, plan: Plan, detail: Detail, larger: Plan) -> str:
    def reason(op: str) -> str:
        return text(why_parts(why(plan, detail, targets.load("lambda"), op), plan))

    return {
        "plan": lambda: plan_text(plan),
        "narrow": lambda: plan_text(plan, width=50),
        "color": lambda: plan_text(plan, color=True),
        "slice": lambda: text(slice_parts(slice_data(plan, detail, "slice1"), plan)),
        "edge": lambda: text(edge_parts(plan, plan.slices[1].outputs[0])),
        "why": lambda: reason(plan.slices[1].ops[0]),
        "diff": lambda: text(difference_parts(differences(plan, larger))),
    }[name]()


@pytest.mark.parametrize("name", ["plan", "narrow", "color", "slice", "edge", "why", "diff"])
def test_what_is_printed(
    name: str, planned: tuple[Plan, Detail], larger: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLORTERM", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    found = printed(name, *planned, larger) + "\n"
    file = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("SNAPSHOTS") == "update":
        file.write_text(found)

    assert found == file.read_text()
    if name != "color":
        assert max(map(len, found.splitlines())) <= (50 if name == "narrow" else 100)
        assert "\x1b" not in found


def test_a_slice_of_a_group_tells_what_the_group_gains(planned: tuple[Plan, Detail]) -> None:
    plan, detail = planned
    plan = sample.grouped(plan)

    for name in ("slice0", "slice1"):
        found = text(slice_parts(slice_data(plan, detail, name), plan))
        assert "Group 0: rows in 2 shards (slice0 to slice1), 12.5 ms less than one slice;" in found
        assert "4,096 bytes and 7.0% of compute more than unsplit" in " ".join(found.split())
    assert "Group" not in text(slice_parts(slice_data(plan, detail, "slice2"), plan))


def test_staying_is_what_the_plan_says(planned: tuple[Plan, Detail]) -> None:
    plan, detail = planned
    found = why(plan, detail, targets.load("lambda"), plan.slices[1].ops[0])

    assert found.now.cross_slice_bytes == plan.cross_slice_bytes
    assert found.now.latency_ms == pytest.approx(plan.prediction.latency_ms)
    assert found.now.cost_per_million_usd == pytest.approx(plan.prediction.cost_per_million_usd)


def test_no_move_within_the_limits_beats_a_proven_plan(compiled: slicewise.Compiled) -> None:
    """Of a real model with a weight in two slices and cheap ops."""
    plan = compiled.plan
    assert plan.certificate.status == "optimal"

    moved = 0
    for op in compiled.graph.ops:
        for move in why(plan, compiled.detail, compiled.target, op.name).moves:
            if move.figures is not None and not move.refused:
                moved += 1
                assert move.figures.cross_slice_bytes >= plan.cross_slice_bytes
    assert moved > 0


def test_a_move_that_breaks_a_limit_says_which(planned: tuple[Plan, Detail]) -> None:
    plan, detail = planned
    target = targets.load("lambda")
    refusals = [
        move.refused for op in plan.slices[1].ops for move in why(plan, detail, target, op).moves
    ]

    assert any("of weights, over the limit of 195.3 KB" in refusal for refusal in refusals)
    first = why(plan, detail, target, plan.slices[0].ops[0]).moves[0]
    assert (first.way, first.destination, first.figures) == ("earlier", None, None)


def test_what_an_op_needs_moves_along(planned: tuple[Plan, Detail]) -> None:
    """A cut that is no cut of the graph would be a cycle of slices."""
    plan, detail = planned
    second = plan.slices[1]
    (earlier, later) = why(plan, detail, targets.load("lambda"), second.ops[2]).moves

    assert earlier.along == second.ops[:2]
    assert set(later.along) <= set(second.ops[3:])


def test_an_op_that_runs_twice_is_told_what_sending_would_take() -> None:
    graph = sample.stack(2)
    mask = Op(name="mask", kind="aten.mask", inputs=("tokens",), outputs=("mask",), is_cheap=True)
    tensor = Tensor(name="mask", producer="mask", bytes=5000, max_bytes=5000)

    def masked(op: Op) -> Op:
        return replace(op, inputs=(*op.inputs, "mask")) if "softmax" in op.name else op

    graph = replace(graph, ops=(mask, *map(masked, graph.ops)), tensors=(*graph.tensors, tensor))
    plan, detail = sample.planned(graph, Limits(weight_bytes=170_000))
    runs_in = [part.name for part in plan.slices if "mask" in part.ops]
    found = why(plan, detail, targets.load("lambda"), "mask")

    assert len(runs_in) > 1
    assert list(found.slices) == runs_in
    assert [move.way for move in found.moves] == ["not again"] * (len(runs_in) - 1)
    for move in found.moves:
        assert move.figures is not None
        # The mask crosses, and the tokens, which come from the request, count nothing.
        assert move.figures.cross_slice_bytes == plan.cross_slice_bytes + 5000


def test_the_details_come_back(planned: tuple[Plan, Detail], tmp_path: Path) -> None:
    write_detail(tmp_path, planned[1])

    assert read_detail(tmp_path) == planned[1]
    for damaged in ("", "{}", '{"schema": 99}', '{"schema": 1, "parallel": 0.5, "graph": {}}'):
        (tmp_path / "graph.json").write_text(damaged)
        with pytest.raises(slicewise.BundleError, match="Compile the model again"):
            read_detail(tmp_path)
    (tmp_path / "graph.json").unlink()
    with pytest.raises(slicewise.BundleError, match="an older slicewise wrote it"):
        read_detail(tmp_path)


@pytest.fixture(scope="module")
def bundle(compiled: slicewise.Compiled, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(compiled.save(tmp_path_factory.mktemp("inspect") / "bundle").directory)


def test_every_question_has_a_text_and_json(
    bundle: str, compiled: slicewise.Compiled, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = compiled.plan
    op, tensor = plan.slices[1].ops[0], plan.slices[1].outputs[0]
    for question in (["--slice", "slice1"], ["--edge", tensor], ["--why", op], ["--diff", bundle]):
        code, shown, _ = call(capsys, "inspect", bundle, *question)
        assert code == 0
        assert "\x1b" not in shown
        assert max(map(len, shown.splitlines())) <= 100

        code, shown, _ = call(capsys, "inspect", bundle, *question, "--json")
        assert (code, json.loads(shown) is not None) == (0, True)
    data = json.loads(call(capsys, "inspect", bundle, "--slice", "slice1", "--json")[1])
    assert [each["name"] for each in data["ops"]] == list(plan.slices[1].ops)
    assert data["weight_bytes"] == plan.slices[1].weight_bytes


@pytest.mark.parametrize(
    ("question", "code", "message"),
    [
        (["--slice", "slice9"], 1, "There are: slice"),
        (["--edge", "nothing"], 1, "no tensor 'nothing' goes between functions"),
        (["--why", "liner_3"], 1, "There are: linear_3"),
        (["--diff", "nowhere"], 1, "holds no plan.json"),
        (["--slice", "slice0", "--why", "linear"], 2, "ask one"),
    ],
)
def test_a_question_that_has_no_answer_says_what_there_is(
    bundle: str, question: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = call(capsys, "inspect", bundle, *question)

    assert (found, out) == (code, "")
    assert message in " ".join(err.split())


def test_a_plan_without_modules_and_prices_is_still_shown(planned: tuple[Plan, Detail]) -> None:
    """Plans of older versions have none."""
    data = json.loads(planned[0].to_json())
    for part in data["slices"]:
        del part["modules"]
    for edge in data["edges"]:
        del edge["module"], edge["prices"]
    shown = str(Plan.from_json(json.dumps(data)))

    assert f"{planned[0].slices[0].ops[0]} …" in shown
