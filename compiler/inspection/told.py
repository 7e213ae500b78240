"""What `slicewise inspect` tells of one slice, one tensor, one op: as data, and as text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from slicewise.errors import SlicewiseError
from slicewise.graph import INPUT, OUTPUT
from slicewise.inspection.detail import Detail
from slicewise.inspection.moves import Figures, Move, Why, near
from slicewise.plan import Edge, Plan
from slicewise.report import (
    by_tensor,
    group_lines,
    megabytes,
    route,
    shape_text,
    time_shares,
    where,
)

if TYPE_CHECKING:
    from rich.console import RenderableType


def slice_data(plan: Plan, detail: Detail, name: str) -> dict[str, Any]:
    """A slice as plan.json has it, with its edges, its prediction and its ops one by one."""
    part = next((part for part in plan.slices if part.name == name), None)
    if part is None:
        raise SlicewiseError(f"no slice {name!r}." + near(name, [p.name for p in plan.slices]))
    graph = detail.graph
    predicted = [asdict(each) for each in plan.prediction.slices if each.name == name]
    return {
        **asdict(part),
        "time_share": time_shares(plan).get(name),
        "prediction": predicted[0] if predicted else None,
        "edges": [asdict(edge) for edge in plan.edges if name in (edge.producer, edge.consumer)],
        "ops": [
            {
                "name": op.name, "kind": op.kind, "module": op.module, "source": op.source,
                "time_ms": op.time, "weights": list(op.weights),
                "weight_bytes": sum(graph.weight[w].bytes for w in op.weights),
                "output_bytes": sum(graph.tensor[t].bytes for t in op.outputs),
            }
            for op in (graph.op[each] for each in part.ops)
        ],
    }  # fmt: skip


def slice_parts(data: Mapping[str, Any], plan: Plan) -> list[RenderableType]:
    """`slice_data` for people: ops by module, with what they hold and take."""
    from rich.markup import escape

    part = next(part for part in plan.slices if part.name == data["name"])
    lines: list[RenderableType] = [
        f"[bold]{part.name}[/], stage {part.stage}: {len(part.ops)} ops, {escape(where(part))}",
        f"Holds {megabytes(part.weight_bytes)} of weights; takes {megabytes(part.peak_memory_bytes)} "
        f"of its {part.memory_mb:,} MB; package {megabytes(part.package_bytes)} ({part.packaging}).",
    ]
    if part.shard is not None:
        lines.append(escape(group_lines(plan)[part.shard["group"]]))
    found = data["prediction"]
    if found is not None:
        lines.append(
            f"A call: {found['call_ms']:.1f} ms on the way, {found['receive_ms']:.1f} receiving, "
            f"{found['compute_ms']:.1f} computing, {found['send_ms']:.1f} sending; billed "
            f"{found['billed_ms']:.1f} ms, ${found['cost_per_million_usd']:.2f} per million"
            + (f"; {data['time_share']:.0%} of a request" if data["time_share"] else "")
            + "."
        )
    for title, mine in (("Receives", "consumer"), ("Sends", "producer")):
        lines += ["", f"[bold]{title}[/]"]
        edges = [edge for edge in plan.edges if getattr(edge, mine) == part.name]
        lines += [
            _edge_line(edge, "producer" if mine == "consumer" else "consumer") for edge in edges
        ]
    lines += ["", "[bold]Ops[/] by module, in order", _op_table(data["ops"])]
    return lines


def _edge_line(edge: Edge, other: str) -> str:
    from rich.markup import escape

    end = {INPUT: "the request", OUTPUT: "the reply"}.get(
        getattr(edge, other), getattr(edge, other)
    )
    way = "from" if other == "producer" else "to"
    made = f" of {edge.module}" if edge.module else ""
    return escape(
        f"  {edge.tensor}{made}, {shape_text(edge)}, {edge.bytes:,} bytes {way} {end} by "
        f"{edge.transport}: {edge.reason}"
    )


def _op_table(ops: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Consecutive ops of one module are one row."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("module", "ops", "weights", "time"):
        right = name in ("weights", "time")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    start = 0
    while start < len(ops):
        end = start
        while end < len(ops) and ops[end]["module"] == ops[start]["module"]:
            end += 1
        run = ops[start:end]
        weights = {w: op["weight_bytes"] for op in run for w in op["weights"]}
        table.add_row(
            escape(run[0]["module"] or "(no module)"),
            escape(", ".join(op["name"] for op in run)),
            megabytes(sum(op["weight_bytes"] for op in run)) if weights else "",
            f"{sum(op['time_ms'] for op in run):.2f} ms",
        )
        start = end
    return table


def edge_data(plan: Plan, name: str) -> list[dict[str, Any]]:
    """The edges of one tensor as plan.json has them, a reader each."""
    found = [asdict(edge) for edge in plan.edges if edge.tensor == name]
    if not found:
        tensors = dict.fromkeys(edge.tensor for edge in plan.edges)
        raise SlicewiseError(f"no tensor {name!r} goes between functions." + near(name, tensors))
    return found


def edge_parts(plan: Plan, name: str) -> list[RenderableType]:
    """`edge_data` for people: what goes where, how, and what other ways would take."""
    from rich.markup import escape
    from rich.table import Table

    edge_data(plan, name)
    lines: list[RenderableType] = []
    for sent in by_tensor(plan):
        edge = sent[0]
        if edge.tensor != name:
            continue
        made = f", made by {edge.module}" if edge.module else ""
        lines += [
            f"[bold]{escape(edge.tensor)}[/]{escape(made)}",
            escape(f"{route(sent)}: {shape_text(edge)}, {edge.bytes:,} bytes by {edge.transport}."),
            escape(f"Why: {edge.reason}."),
            "",
        ]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("transport", "expected", "per million requests", ""):
            right = column in ("expected", "per million requests")
            table.add_column(column, justify="right" if right else "left")
        for transport, ms, usd in sorted(edge.prices, key=lambda price: price[1]):
            chosen = "chosen" if transport == edge.transport else ""
            table.add_row(transport, f"{ms:,.1f} ms", f"${usd:,.2f}", chosen)
        sizes = [
            f"{way} up to {most:,} bytes" if most is not None else f"{way} above any other"
            for way, most in edge.choices
        ]
        lines += [table, "", f"By size: {', '.join(sizes)}."]
    return lines


def why_data(found: Why) -> dict[str, Any]:
    """For --json."""
    return asdict(found)


def why_parts(found: Why, plan: Plan) -> list[RenderableType]:
    """Why an op is where it is."""
    from rich.markup import escape

    op = found.op
    at = f" of {op.module}" if op.module else ""
    lines: list[RenderableType] = [
        f"[bold]{escape(op.name)}[/] ({escape(op.kind)}{escape(at)}) runs in {', '.join(found.slices)}."
    ]
    if op.source:
        lines.append(escape(f"From {op.source}."))
    reads = [f"{tensor} ({size:,} bytes, {place})" for tensor, place, size in found.reads]
    readers = [f"{reader} ({place})" for reader, place in dict.fromkeys(found.read_by)]
    lines.append(escape(f"Reads {_some(reads)}; is read by {_some(readers)}."))
    lines.append(
        f"It takes {op.time:.3f} ms on one vCPU"
        + ("; slices may each run it again." if op.is_cheap and not op.weights else ".")
    )
    lines += ["", *(escape(_move_text(move, found.now)) for move in found.moves)]
    status = plan.certificate.status
    if plan.objective == "bytes" and status == "optimal":
        lines += ["", "No plan within these limits has fewer bytes between slices: that is proven."]
    return lines


def _some(words: Sequence[str]) -> str:
    shown = ", ".join(words[:6]) + (f" and {len(words) - 6} more" if len(words) > 6 else "")
    return shown or "nothing"


def _move_text(move: Move, now: Figures) -> str:
    if move.way == "not again":
        head = f"Not run again in {move.source}, but sent there"
    elif move.destination is None:
        return f"{move.way.capitalize()}: {move.refused}, so there is no other to move it to."
    else:
        head = f"{move.way.capitalize()}, in {move.destination}"
        if move.along:
            needs = "what it needs" if move.way == "earlier" else "what needs it"
            head += f", with {needs} of {move.source} ({_some(move.along)})"
    if move.figures is None:
        return f"{head}: {move.refused}."
    words = f"{head}: {_difference(move.figures, now)}"
    return f"{words}. Not allowed: {move.refused}." if move.refused else f"{words}."


def _difference(then: Figures, now: Figures) -> str:
    crossing = then.cross_slice_bytes - now.cross_slice_bytes
    words = [f"{crossing:+,} bytes between slices" if crossing else "as many bytes between slices"]
    if then.latency_ms is not None and now.latency_ms is not None:
        words.append(f"{then.latency_ms - now.latency_ms:+,.2f} ms")
    if then.cost_per_million_usd is not None and now.cost_per_million_usd is not None:
        usd = then.cost_per_million_usd - now.cost_per_million_usd
        words.append(f"{'-' if usd < 0 else '+'}${abs(usd):,.3f} per million requests")
    return ", ".join(words)
