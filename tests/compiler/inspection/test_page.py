"""The HTML report, opened in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sample
import zoo
from browser import Opened, chromium, opened
from console import call

import slicewise
from slicewise.graph import INPUT, OUTPUT
from slicewise.inspection.detail import Detail
from slicewise.inspection.html_report import write_report
from slicewise.limits import Limits
from slicewise.plan import Plan

ROOT = Path(__file__).parents[3]
EXAMPLES = ("resnet50", "gpt2", "vit", "t5", "lstm")
Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def planned() -> tuple[Plan, Detail]:
    return sample.small()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Writes a report and opens it; afterwards it must not have complained, nor asked for anything."""
    windows: list[Opened] = []

    def write(plan: Plan, detail: Detail | None, fragment: str = "", **options: Any) -> Opened:
        write_report(tmp_path / "report.html", plan, detail, **options)
        windows.append(opened(browser, tmp_path / "report.html", fragment))
        return windows[-1]

    yield write
    for window in windows:
        assert window.complaints == []
        assert all(url.startswith(("file:", "data:")) for url in window.requests)
        window.page.close()


def rows(page: Any, place: str) -> list[list[str]]:
    """The words in every row of a table's body."""
    found: list[list[str]] = page.eval_on_selector_all(
        f"{place} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))"
    )
    return found


def name(end: str) -> str:
    return {INPUT: "request", OUTPUT: "reply"}.get(end, end)


def check_numbers(page: Any, plan: Plan) -> None:
    """What the page says is what plan.json says."""
    data = json.loads(plan.to_json())
    tiles = dict(
        page.eval_on_selector_all(
            "#tiles > div",
            "all => all.map(each => [each.querySelector('dt').innerText,"
            " each.querySelector('dd').firstChild.data])",
        )
    )
    found = data["prediction"]
    assert tiles["slices"] == str(len(data["slices"]))
    assert tiles["bytes between slices"] == f"{data['cross_slice_bytes']:,}"
    assert tiles["warm request"] == f"{found['latency_ms']:,.1f} ms"
    assert tiles["first request"] == f"{found['cold_latency_ms']:,.0f} ms"
    assert tiles["a million requests"] == f"${found['cost_per_million_usd']:,.2f}"
    assert tiles["certificate"] == data["certificate"]["status"]
    slices = rows(page, "#slices")
    assert [(row[0], row[1], row[2], row[5]) for row in slices] == [
        (part["name"], str(part["stage"]), f"{len(part['ops']):,}", f"{part['memory_mb']:,} MB")
        for part in data["slices"]
    ]
    assert [(row[0], row[3], row[4], row[5], row[6], row[8]) for row in rows(page, "#edges")] == [
        (
            edge["tensor"], name(edge["producer"]), name(edge["consumer"]), f"{edge['bytes']:,}",
            edge["transport"], edge["reason"],
        )
        for edge in data["edges"]
    ]  # fmt: skip
    costs = rows(page, "#cost")
    assert [(row[0], row[2], row[3]) for row in costs[:-1]] == [
        (each["name"], f"{each['billed_ms']:,.1f} ms", f"${each['cost_per_million_usd']:,.2f}")
        for each in found["slices"]
    ]
    memory = page.locator("#memory [role=img]").evaluate_all(
        "all => all.map(each => each.getAttribute('aria-label'))"
    )
    for words, part in zip(memory, data["slices"], strict=True):
        used = part["peak_memory_bytes"] / 2**20
        assert words.startswith(f"{part['name']}: {used:,.1f} of {part['memory_mb']:,} MB")


def check_clicks(page: Any, plan: Plan) -> None:
    """A click on every slice shows its edges."""
    for part in plan.slices:
        page.locator(f"[data-slice={part.name}] > .title").dispatch_event("click")
        page.wait_for_function(
            "name => document.querySelector('#detail h3').innerText === name", arg=part.name
        )
        own = [edge for edge in plan.edges if part.name in (edge.producer, edge.consumer)]
        assert [(row[0], row[3]) for row in rows(page, "#selected-edges")] == [
            (edge.tensor, f"{edge.bytes:,}") for edge in own
        ]


def test_the_numbers_are_the_plans(show: Open, planned: tuple[Plan, Detail]) -> None:
    page = show(*planned).page

    assert page.title() == "Stack in 3 slices"
    check_numbers(page, planned[0])


def test_a_click_on_a_slice_shows_its_edges_ops_and_code(
    show: Open, planned: tuple[Plan, Detail]
) -> None:
    plan, detail = planned
    handlers = {part.name: f"# the handler of {part.name}" for part in plan.slices}
    page = show(plan, detail, handlers=handlers).page

    check_clicks(page, plan)
    page.locator("#detail summary").first.click()
    assert [row[0] for row in rows(page, "#detail details")] == list(plan.slices[-1].ops)
    page.locator("#detail summary").nth(1).click()
    assert "# the handler of slice2" in page.locator("#detail pre").inner_text()


def test_a_slice_of_a_group_tells_what_the_group_gains(
    show: Open, planned: tuple[Plan, Detail]
) -> None:
    plan = sample.grouped(planned[0])
    page = show(plan, planned[1], "#slice=slice0").page

    told = page.locator("#detail").inner_text()
    assert "Group 0: rows in 2 shards (slice0 to slice1), 12.5 ms less than one slice" in told


def test_everything_is_linked_and_back_returns(show: Open, planned: tuple[Plan, Detail]) -> None:
    plan = planned[0]
    page = show(*planned).page
    page.locator("#edges button", has_text=plan.edges[1].tensor).first.click()
    page.locator("#detail h3", has_text=plan.edges[1].tensor).wait_for()
    assert page.locator(".tensor.selected").count() == 1
    page.locator("#detail button", has_text="slice1").click()
    page.locator("#detail h3", has_text="slice1").wait_for()
    assert page.locator(".frame.selected").get_attribute("data-slice") == "slice1"

    page.go_back()

    page.locator("#detail h3", has_text=plan.edges[1].tensor).wait_for()


def test_modules_unfold_down_to_ops_by_keyboard_alone(
    show: Open, planned: tuple[Plan, Detail]
) -> None:
    page = show(*planned).page
    page.get_by_role("button", name="Fold", exact=True).click()
    assert page.locator(".node.op[data-op=gelu_1_7]").count() == 0
    for _ in range(8):
        if page.locator(".node.op[data-op=gelu_1_7]").count():
            break
        group = page.locator("[data-slice=slice1] .node[aria-expanded=false]").first
        group.focus()
        page.keyboard.press("Enter")
    op = page.locator(".node.op[data-op=gelu_1_7]")
    assert op.count() == 1
    op.focus()
    page.keyboard.press("Enter")
    page.locator("#detail h3", has_text="gelu_1_7").wait_for()
    assert "Reads add_1_6" in page.locator("#detail").inner_text()


def test_what_can_be_reached_has_a_name(show: Open, planned: tuple[Plan, Detail]) -> None:
    """For those who hear the page: everything with a focus says what it is."""
    page = show(*planned).page
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('[tabindex="0"], button, [role=img]')].filter(
            each => !(each.getAttribute('aria-label') || each.textContent.trim())).length"""
    )

    assert unnamed == 0
    assert page.locator("[tabindex='0']").count() > len(planned[0].slices)


def test_names_that_are_html_are_shown_as_they_are(
    show: Open, planned: tuple[Plan, Detail]
) -> None:
    plan, detail = planned
    evil = "</script><img src=x onerror=alert(1)>"
    edges = tuple(replace(edge, tensor=evil, reason=evil) for edge in plan.edges)
    odd = replace(plan, edges=edges, model=replace(plan.model, name=evil))
    page = show(odd, detail, "#edge=0", handlers={"slice0": evil}).page

    assert page.locator("h1").inner_text() == evil
    assert page.locator("#detail h3").inner_text() == evil
    assert page.locator("img").count() == 0


def test_measured_times_and_other_plans_are_drawn(show: Open, planned: tuple[Plan, Detail]) -> None:
    plan, detail = planned
    slices = [
        {"slice": part.name, "stage": part.stage, "call_ms": 9.0, "receive_ms": 1.0,
         "compute_ms": 5.0, "send_ms": 1.5}
        for part in plan.slices
    ]  # fmt: skip
    trace = {"total_ms": 31.5, "network": "off", "slices": slices}
    page = show(plan, detail, trace=trace, frontier=[plan, plan]).page

    assert page.locator("[data-bar^=predicted-]").count() == len(plan.slices)
    bars = page.locator("[data-bar^=measured-]")
    assert bars.count() == len(plan.slices)
    assert "measured: 9.0 ms from 18.0 ms" in bars.nth(2).get_attribute("aria-label")
    assert "measured 31.5 ms" in page.locator("#time-hint").inner_text()
    assert page.locator("#frontier circle").count() == 3
    assert show(plan, detail).page.locator("#frontier-section").is_hidden()


def test_a_plan_alone_has_a_page_without_a_graph(show: Open, planned: tuple[Plan, Detail]) -> None:
    page = show(planned[0], None).page

    check_numbers(page, planned[0])
    assert "has no graph.json" in page.locator("main").inner_text()


@pytest.mark.slow
def test_ten_thousand_ops_stay_usable(show: Open) -> None:
    plan, detail = sample.planned(sample.stack(1000), Limits(weight_bytes=20_000_000))
    page = show(plan, detail).page

    assert len(detail.graph.ops) > 10_000
    assert page.locator(".node").count() < 100
    check_numbers(page, plan)
    for _ in range(3):
        page.locator("[data-slice=slice1] .node[aria-expanded=false]").first.dispatch_event("click")
    assert page.locator(".node").count() < 300
    check_clicks(page, plan)


def test_the_command_writes_the_page(
    compiled: slicewise.Compiled, browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(compiled.save(tmp_path / "bundle").directory)
    (tmp_path / "trace.json").write_text(json.dumps({"trace": {"total_ms": 5.0, "slices": []}}))
    (tmp_path / "plans.json").write_text(f"[{compiled.plan.to_json()}]")
    options = ["--trace", f"{tmp_path}/trace.json", "--frontier", f"{tmp_path}/plans.json"]

    code, out, err = call(capsys, "inspect", bundle, "--html", f"{tmp_path}/r.html", *options)

    assert (code, out) == (0, f"Wrote {tmp_path}/r.html.\n"), err
    window = opened(browser, tmp_path / "r.html", "#slice=slice1")
    assert window.complaints == []
    assert "Handler code" in window.page.locator("#detail").inner_text()
    assert window.page.locator("#frontier circle").count() == 2
    for arguments, message in (
        (["--html", f"{tmp_path}/none/r.html"], "Choose another place"),
        (["--html", f"{tmp_path}/r.html", "--trace", f"{tmp_path}/plans.json"], "no trace"),
        (["--html", f"{tmp_path}/r.html", "--trace", f"{tmp_path}/none"], "cannot read"),
        (["--html", f"{tmp_path}/r.html", "--frontier", f"{tmp_path}/trace.json"], "no list"),
    ):
        code, out, err = call(capsys, "inspect", bundle, *arguments)
        assert (code, out) == (1, "")
        assert message in err
    assert call(capsys, "inspect", bundle, "--trace", "x")[0] == 2


def test_the_libraries_are_whole_and_have_their_licences() -> None:
    vendor = ROOT / "compiler" / "inspection" / "page" / "vendor"
    notice = (ROOT / "NOTICE").read_text()

    assert {file.name for file in vendor.iterdir()} == {
        f"{library}.{end}" for library in ("d3", "dagre") for end in ("min.js", "LICENSE")
    }
    found = re.match(r"// https://d3js.org v([0-9.]+) ", (vendor / "d3.min.js").read_text())
    assert found is not None
    assert f"d3 {found[1]}," in notice
    for library in vendor.glob("*.min.js"):
        assert "</script" not in library.read_text()


@pytest.mark.parametrize(
    "model",
    [EXAMPLES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in EXAMPLES[1:])],
)
def test_the_example_models_in_light_and_dark(model: str, browser: Any, tmp_path: Path) -> None:
    """Pictures of them are left in build/screenshots."""
    case = zoo.CASES[model]()
    made = slicewise.compile(
        case.model, case.inputs, dynamic_shapes=case.dynamic_shapes, limits=case.limits
    )
    made.save(tmp_path / "bundle").report(tmp_path / "report.html")
    screenshots = ROOT / "build" / "screenshots"
    screenshots.mkdir(parents=True, exist_ok=True)

    for scheme in ("light", "dark"):
        window = opened(browser, tmp_path / "report.html", "#slice=slice1", scheme)
        window.page.screenshot(path=screenshots / f"{model}-{scheme}.png", full_page=True)
        check_numbers(window.page, made.plan)
        check_clicks(window.page, made.plan)
        assert window.complaints == []
        window.page.close()
