"""A plan as other programs know graphs and tables: networkx, Mermaid, Graphviz, pandas."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from slicewise.errors import SlicewiseError
from slicewise.graph import INPUT, OUTPUT
from slicewise.plan import Edge, Plan, Slice
from slicewise.report import megabytes, time_shares, where

if TYPE_CHECKING:
    import networkx
    import pandas

_ENDS = {INPUT: "request", OUTPUT: "reply"}


def to_networkx(plan: Plan) -> networkx.MultiDiGraph:
    """Slices, "@input" and "@output" as nodes; an edge per tensor and reader, its key the tensor.

    Attributes are those of `Slice` and `Edge`.
    """
    import networkx as nx

    graph = nx.MultiDiGraph(name=plan.model.name)
    graph.add_nodes_from((INPUT, OUTPUT))
    for part in plan.slices:
        graph.add_node(part.name, **{k: v for k, v in asdict(part).items() if k != "name"})
    for edge in plan.edges:
        graph.add_edge(edge.producer, edge.consumer, key=edge.tensor, **asdict(edge))
    return graph


def to_mermaid(plan: Plan) -> str:
    """A Mermaid flowchart, which GitHub and many wikis draw; thick arrows go by an object store."""
    lines = ["flowchart LR", f"  request([{_quoted('request')}])", f"  reply([{_quoted('reply')}])"]
    lines += [f"  {part.name}[{_quoted('<br>'.join(_label(part)))}]" for part in plan.slices]
    for edge in plan.edges:
        arrow = "-->" if edge.transport == "payload" else "==>"
        ends = (_ENDS.get(end, end) for end in (edge.producer, edge.consumer))
        start, end = ends
        lines.append(f"  {start} {arrow}|{_quoted('<br>'.join(_edge_label(edge)))}| {end}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Mermaid has no backslashes: entities stand for what would end a string."""
    return '"' + text.replace("#", "#35;").replace('"', "#quot;") + '"'


def to_dot(plan: Plan) -> str:
    """A Graphviz graph; thick arrows go by an object store."""
    lines = [
        f"digraph {_escaped(plan.model.name)} {{",
        "  rankdir=LR;",
        '  node [shape=box, style=rounded, fontname="sans-serif"];',
        '  edge [fontname="sans-serif", fontsize=10];',
        *(f'  {_escaped(end)} [label="{word}", shape=oval];' for end, word in _ENDS.items()),
    ]
    lines += [f"  {_escaped(p.name)} [label={_escaped(*_label(p))}];" for p in plan.slices]
    for edge in plan.edges:
        width = 1 if edge.transport == "payload" else 3
        lines.append(
            f"  {_escaped(edge.producer)} -> {_escaped(edge.consumer)} "
            f"[label={_escaped(*_edge_label(edge))}, penwidth={width}];"
        )
    return "\n".join([*lines, "}"]) + "\n"


def _escaped(*lines: str) -> str:
    return '"' + r"\n".join(x.replace("\\", "\\\\").replace('"', '\\"') for x in lines) + '"'


def _label(part: Slice) -> tuple[str, ...]:
    return part.name, where(part), f"{len(part.ops)} ops, {megabytes(part.weight_bytes)}"


def _edge_label(edge: Edge) -> tuple[str, ...]:
    return edge.tensor, f"{megabytes(edge.bytes)} by {edge.transport}"


def to_dataframe(plan: Plan, what: str = "slices") -> pandas.DataFrame:
    """A row per slice, or per edge (`what="edges"`), with the columns of plan.json.

    Slices also have their prediction and `time_share`. Raises `SlicewiseError` without pandas.
    """
    if what not in ("slices", "edges"):
        raise SlicewiseError(f"to_dataframe({what!r}): there are 'slices' and 'edges'.")
    if importlib.util.find_spec("pandas") is None:
        raise SlicewiseError("to_dataframe needs pandas; install it with: pip install pandas")
    import pandas as pd

    if what == "edges":
        return pd.DataFrame([asdict(edge) for edge in plan.edges])
    shares = time_shares(plan)
    predicted: Mapping[str, Any] = {each.name: each for each in plan.prediction.slices}
    return pd.DataFrame(
        [
            {
                **asdict(part),
                **(asdict(predicted[part.name]) if part.name in predicted else {}),
                "time_share": shares.get(part.name),
            }
            for part in plan.slices
        ]
    )
