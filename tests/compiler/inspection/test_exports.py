"""A plan in a notebook, and as other programs know graphs and tables."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import networkx as nx
import pytest
import sample

import slicewise
from slicewise.graph import INPUT, OUTPUT
from slicewise.plan import Plan


@pytest.fixture(scope="module")
def plan() -> Plan:
    return sample.small()[0]


@pytest.fixture(scope="module")
def odd(plan: Plan) -> Plan:
    """Names that mean something to every format."""
    edges = tuple(replace(edge, tensor=f'a"<b>#\\{edge.tensor}') for edge in plan.edges)
    return replace(plan, edges=edges, model=replace(plan.model, name='My "<Model>"'))


def test_networkx_has_every_slice_and_edge(plan: Plan) -> None:
    graph = plan.to_networkx()

    assert set(graph) == {INPUT, OUTPUT, *(part.name for part in plan.slices)}
    assert nx.is_directed_acyclic_graph(graph)
    assert graph.number_of_edges() == len(plan.edges)
    crossing = [e for *ends, e in graph.edges(data="bytes") if not {INPUT, OUTPUT} & set(ends)]
    assert sum(crossing) == plan.cross_slice_bytes
    assert graph.nodes["slice1"]["weight_bytes"] == plan.slices[1].weight_bytes


def test_mermaid_has_a_line_per_slice_and_edge(plan: Plan, odd: Plan) -> None:
    text = plan.to_mermaid()

    assert text.startswith("flowchart LR\n")
    assert len(re.findall(r"^  slice\d+\[", text, re.MULTILINE)) == len(plan.slices)
    assert len(re.findall(r"[-=]+>\|", text)) == len(plan.edges)
    assert 'slice0 -->|"sum_0_9<br>8.0 KB by payload"| slice1' in text
    for line in odd.to_mermaid().splitlines():
        assert line.count('"') in (0, 2)


@pytest.mark.skipif(shutil.which("dot") is None, reason="no Graphviz here")
def test_graphviz_reads_the_dot(odd: Plan) -> None:
    subprocess.run(["dot", "-Tsvg"], input=odd.to_dot(), text=True, capture_output=True, check=True)


def test_dot_has_a_line_per_slice_and_edge(plan: Plan, odd: Plan) -> None:
    text = plan.to_dot()

    assert text.count(" -> ") == len(plan.edges)
    assert text.count("ops, ") == len(plan.slices)
    assert r"a\"<b>#\\sum_0_9" in odd.to_dot()


def test_dataframes_have_a_row_per_slice_and_per_edge(plan: Plan) -> None:
    pytest.importorskip("pandas")
    slices, edges = plan.to_dataframe(), plan.to_dataframe("edges")

    assert list(slices["name"]) == [part.name for part in plan.slices]
    assert slices["weight_bytes"].sum() == sum(part.weight_bytes for part in plan.slices)
    assert list(slices["compute_ms"]) == [part.compute_ms for part in plan.prediction.slices]
    assert edges["bytes"].sum() == sum(edge.bytes for edge in plan.edges)
    with pytest.raises(slicewise.SlicewiseError, match="there are 'slices' and 'edges'"):
        plan.to_dataframe("ops")


def test_without_pandas_the_error_says_so(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(slicewise.SlicewiseError, match="pip install pandas"):
        plan.to_dataframe()


class _Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_notebook_shows_what_the_terminal_shows(plan: Plan, odd: Plan) -> None:
    for each in (plan, odd):
        page = _Balanced()
        page.feed(each._repr_html_())
        words = " ".join(page.words)

        assert page.open == []
        assert each.model.name in words
        for part in each.slices:
            assert part.name in words
        for edge in each.edges:
            assert edge.tensor in words
            assert f"{edge.bytes:,}" in words
        assert "proven minimal" in words
        assert f"{each.prediction.latency_ms:,.1f} ms warm" in words
        assert "<script" not in each._repr_html_()
