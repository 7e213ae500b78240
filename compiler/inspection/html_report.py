"""The report: one HTML file of a plan, complete in itself, for a browser without a network.

page/ has its parts; page/vendor/ two libraries as they come from npm, with their licences.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from slicewise.errors import BundleError, SlicewiseError
from slicewise.inspection.detail import Detail
from slicewise.plan import Plan
from slicewise.report import group_lines

_LIBRARIES = ("d3", "dagre")
_SCRIPTS = ("data", "charts", "graph", "main")


def write_report(
    path: Path,
    plan: Plan,
    detail: Detail | None,
    *,
    handlers: Mapping[str, str] | None = None,
    trace: Mapping[str, Any] | None = None,
    frontier: Sequence[Plan] = (),
) -> None:
    """Write the report. `handlers` are sources by slice, `trace` what a request took (`last_trace`),
    `frontier` other plans of the model. Without `detail` there is no graph.
    """
    data = {
        "version": version("slicewise"),
        "plan": json.loads(plan.to_json()),
        "ops": None if detail is None else _ops(detail),
        "groups": group_lines(plan),
        "handlers": dict(handlers or {}),
        "trace": trace,
        "frontier": [_point(each) for each in frontier],
    }
    # No text of a model or a handler ends the element that it is in.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    page = files("slicewise.inspection") / "page"
    parts = {
        "title": escape(f"{plan.model.name} in {len(plan.slices)} slices"),
        "style": (page / "page.css").read_text(),
        "script": "\n".join(_scripts(page)),
        "data": text,
    }
    html = (page / "page.html").read_text()
    for name, part in parts.items():
        html = html.replace(f"@@{name}@@", part, 1)
    try:
        path.write_text(html)
    except OSError as error:
        raise SlicewiseError(
            f"the report cannot be written to {path}: {error.strerror}. Choose another place."
        ) from error


def _scripts(page: Any) -> Iterable[str]:
    for name in _LIBRARIES:
        licence = (page / "vendor" / f"{name}.LICENSE").read_text()
        yield f"/* {name}\n{licence}*/"
        yield (page / "vendor" / f"{name}.min.js").read_text()
    yield "(() => {\n'use strict';"
    for name in _SCRIPTS:
        yield (page / f"{name}.js").read_text()
    yield "})();"


def _ops(detail: Detail) -> dict[str, Any]:
    """The graph in columns, names that repeat once; edges from op to op, by their numbers."""
    graph = detail.graph
    number = {op.name: index for index, op in enumerate(graph.ops)}
    edges = [
        (number[graph.tensor[read].producer], index, graph.tensor[read].bytes)
        for index, op in enumerate(graph.ops)
        for read in op.inputs
        if graph.tensor[read].producer in number
    ]
    kinds, kind = _shared([op.kind for op in graph.ops])
    modules, module = _shared([op.module for op in graph.ops])
    sources, source = _shared([op.source for op in graph.ops])
    return {
        "name": [op.name for op in graph.ops],
        "kinds": kinds,
        "kind": kind,
        "modules": modules,
        "module": module,
        "sources": sources,
        "source": source,
        "time_ms": [round(op.time, 4) for op in graph.ops],
        "weight_bytes": [sum(graph.weight[w].bytes for w in op.weights) for op in graph.ops],
        "edges": {
            "from": [edge[0] for edge in edges],
            "to": [edge[1] for edge in edges],
            "bytes": [edge[2] for edge in edges],
            "maker": {t.name: number[t.producer] for t in graph.tensors if t.producer in number},
            "readers": {
                name: [number[op] for op in readers] for name, readers in graph.consumers.items()
            },
        },
    }


def _shared(values: Sequence[str]) -> tuple[list[str], list[int]]:
    """The different values, and the number of each one's."""
    every = list(dict.fromkeys(values))
    number = {value: index for index, value in enumerate(every)}
    return every, [number[value] for value in values]


def _point(plan: Plan) -> dict[str, Any]:
    found = plan.prediction
    sizes = sorted({part.memory_mb for part in plan.slices})
    count = len(plan.slices)
    return {
        "ms": found.latency_ms,
        "usd": found.cost_per_million_usd,
        "words": f"{count} slice{'s' * (count != 1)}, {sizes[-1]:,} MB",
    }


def read_trace(path: Path) -> dict[str, Any]:
    """The trace in a file: as `slicewise run --json` prints it, or alone. Raises `BundleError`."""
    found = _read(path, "a trace, as slicewise run --json prints it")
    trace = found.get("trace", found) if isinstance(found, dict) else None
    if not isinstance(trace, dict) or "total_ms" not in trace:
        raise BundleError(f"{path} holds no trace. Make one with slicewise run --json.")
    return trace


def read_frontier(path: Path) -> list[Plan]:
    """The plans in a file that `slicewise frontier --json` printed. Raises `BundleError`."""
    found = _read(path, "plans, as slicewise frontier --json prints them")
    if not isinstance(found, list):
        raise BundleError(
            f"{path} holds no list of plans. Make one with slicewise frontier --json."
        )
    return [Plan.from_json(json.dumps(each)) for each in found]


def _read(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read {path} ({error}). Expected {what}.") from error
