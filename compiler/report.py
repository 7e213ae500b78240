"""A plan as text: what was cut, what crosses, how it travels, what is proven. Fits 100 columns."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from slicewise.graph import INPUT, OUTPUT
from slicewise.plan import BRANCHES, Edge, Plan, Slice, SplitRecord

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDTH = 100
NARROW = 80  # below this, tables become lists
MODULE = 20  # of a module's path, in a table of tensors


def plan_text(plan: Plan, *, color: bool = False, width: int = WIDTH) -> str:
    """The plan as a text of tables, or of lists where these would not fit."""
    return text(_plan_parts(plan, narrow=width < NARROW), color=color, width=width)


def text(parts: Iterable[RenderableType], *, color: bool = False, width: int = WIDTH) -> str:
    """What rich makes of parts, without spaces at the ends of lines."""
    from rich.console import Console

    console = Console(
        file=io.StringIO(), width=width, force_terminal=color, color_system="auto" if color else None,
        highlight=False, legacy_windows=False,
    )  # fmt: skip
    for part in parts:
        console.print(part)
    return _printed(console)


def _printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def frontier_text(plans: Sequence[Plan], *, width: int = WIDTH) -> str:
    """A table of plans, one line each."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("latency", "p99", "per million", "slices", "memory", "coordinator", "transports"):
        table.add_column(name, justify="left" if name == "transports" else "right")
    for plan in plans:
        found = plan.prediction
        ways = sorted({edge.transport for edge in plan.edges if edge.crosses})
        table.add_row(
            f"{found.latency_ms:,.1f} ms",
            f"{found.latency_p99_ms:,.1f} ms",
            f"${found.cost_per_million_usd:,.2f}",
            str(len(plan.slices)),
            ", ".join(f"{mb:,}" for mb in dict.fromkeys(s.memory_mb for s in plan.slices)) + " MB",
            f"{plan.coordinator_memory_mb:,} MB",
            ", ".join(ways) or "none",
        )
    return text([table], width=width)


def counted(count: int, what: str) -> str:
    """1 slice, 2 slices."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def megabytes(size: int) -> str:
    """Bytes for people: 1 MB is 1,048,576 bytes, as Lambda counts."""
    if size < 1024:
        return f"{size} B"
    if size < 1024 * 1024:
        return f"{size / 1024:.1f} KB"
    return f"{size / 1024 / 1024:.1f} MB"


def _plan_parts(plan: Plan, *, narrow: bool) -> list[RenderableType]:
    from rich.markup import escape

    model, limits = plan.model, plan.limits
    title = (
        f"[bold]{escape(model.name)}[/]: {model.parameters:,} parameters, "
        f"{megabytes(model.weight_bytes)} of weights, in {counted(len(plan.slices), 'slice')} "
        f"for {plan.target}"
    )
    bounds = [f"{limits.memory_mb:,} MB of memory" if limits.memory_mb else ""]
    bounds += [f"{limits.package_mb:,g} MB of package" if limits.package_mb else ""]
    bounds += [f"{megabytes(limits.weight_bytes)} of weights" if limits.weight_bytes else ""]
    bounds += [f"at most {limits.max_slices} slices" if limits.max_slices else ""]
    bounds += [f"at most {limits.max_parallel} at once" if limits.max_parallel else ""]
    sent = by_tensor(plan)
    rules = dict.fromkeys(_rule(edges) for edges in sent)
    return [
        title,
        f"Each slice within {', '.join(b for b in bounds if b)}.",
        *(escape(_split_line(split)) for split in plan.splits),
        *(escape(line) for line in group_lines(plan).values()),
        "",
        *(_slices(plan, narrow=narrow)),
        "",
        *(_edges(sent, narrow=narrow)),
        "",
        "Transports. " + "; ".join(rules) + "." + _packing(plan),
        *_encryption(plan),
        *prediction_text(plan),
        verdict(plan),
    ]


def _encryption(plan: Plan) -> list[str]:
    if plan.encryption is None:
        return []
    key = plan.encryption.key_id or "SLICEWISE_KEY"
    return [f"Encrypted: models, and tensors in S3; the key is that of {key}."]


def _slices(plan: Plan, *, narrow: bool) -> list[RenderableType]:
    """Memory is what the largest request was seen to take, of what the function has."""
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    shares = time_shares(plan)
    rows = [
        (
            part.name,
            str(part.stage),
            str(len(part.ops)),
            megabytes(part.weight_bytes),
            _memory(part),
            f"{shares[part.name]:.0%}" if part.name in shares else "",
            escape(where(part)),
        )
        for part in plan.slices
    ]
    if narrow:
        return [
            line
            for name, stage, ops, weights, memory, share, modules in rows
            for line in (
                f"[bold]{name}[/]: {counted(int(ops), 'op')}, stage {stage}, {weights} of weights, "
                f"{memory}" + (f", {share} of the time" if share else ""),
                Padding(modules, (0, 0, 0, 2), style="dim"),
            )
        ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("slice", "stage", "ops", "weights", "memory", "time"):
        table.add_column(name, justify="left" if name == "slice" else "right", no_wrap=True)
    table.add_column("modules", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return [table]


def _memory(part: Slice) -> str:
    packed = f" {part.packaging}" * (part.packaging != "zip")
    return f"{part.peak_memory_bytes / 1024 / 1024:,.1f} of {part.memory_mb:,} MB{packed}"


def where(part: Slice) -> str:
    """What of the model a slice is: its modules, or its first and last op where there are none."""
    if part.modules:
        return ", ".join(part.modules)
    return f"{part.ops[0]} … {part.ops[-1]}" if len(part.ops) > 1 else part.ops[0]


def time_shares(plan: Plan) -> dict[str, float]:
    """The part of a warm request's expected time that each slice's call takes, where it is known."""
    total = plan.prediction.latency_ms
    if not total:
        return {}
    return {part.name: (part.call_ms + part.billed_ms) / total for part in plan.prediction.slices}


def _edges(sent: Sequence[list[Edge]], *, narrow: bool) -> list[RenderableType]:
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    rows = [
        (
            escape(_named(edges[0])),
            escape(shape_text(edges[0])),
            f"{edges[0].bytes:,}",
            route(edges),
            edges[0].transport,
            runner_up(edges[0]),
        )
        for edges in sent
    ]
    styles = [None if any(e.crosses for e in edges) else "dim" for edges in sent]
    if narrow:
        return [
            line
            for tensor, shape, size, ends, transport, other in rows
            for line in (
                f"[bold]{tensor}[/]",
                Padding(
                    f"{ends}: {shape}, {size} bytes by {transport}"
                    + (f" ({other})" if other else ""),
                    (0, 0, 0, 2),
                ),
            )
        ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    longest = max((len(word) for row in rows for word in row[0].split(" of ")), default=0)
    table.add_column("tensor", overflow="fold", min_width=min(longest, 2 * MODULE))
    for name in ("shape", "bytes", "way", "transport", "or else"):
        table.add_column(name, justify="right" if name == "bytes" else "left", overflow="fold")
    for row, style in zip(rows, styles, strict=True):
        table.add_row(*row, style=style)
    return [table]


def _named(edge: Edge) -> str:
    """A tensor and the end of its module's path: the whole of it would leave no room in a table."""
    path = edge.module
    while len(path) > MODULE and "." in path:
        path = path.split(".", 1)[1]
    if path != edge.module:
        path = f"…{path}"
    return f"{edge.tensor} of {path}" if path else edge.tensor


def shape_text(edge: Edge) -> str:
    """float32[batch, 384]."""
    return f"{edge.dtype}[{', '.join(map(str, edge.shape))}]"


def route(edges: Sequence[Edge]) -> str:
    """From where to where one tensor goes."""
    readers = ["reply" if edge.consumer == OUTPUT else edge.consumer for edge in edges]
    producer = "request" if edges[0].producer == INPUT else edges[0].producer
    return f"{producer} → {', '.join(readers)}"


def runner_up(edge: Edge) -> str:
    """The best of the other transports between slices, and how much longer it would take."""
    own = next((ms for name, ms, _ in edge.prices if name == edge.transport), None)
    others = [(ms, name) for name, ms, _ in edge.prices if name != edge.transport]
    if own is None or not others or not edge.crosses:
        return ""
    ms, name = min(others)
    return f"{name} {ms - own:+,.1f} ms"


def prediction_text(plan: Plan) -> list[str]:
    """What a request takes and costs."""
    found = plan.prediction
    if found.latency_ms is None:
        return []
    return [
        f"Predicted. {found.latency_ms:,.1f} ms warm (p50 {found.latency_p50_ms:,.1f}, p99 "
        f"{found.latency_p99_ms:,.1f}), {found.cold_latency_ms:,.0f} ms cold, "
        f"${found.cost_per_million_usd:,.2f} per million requests; {_driver(plan)}; {found.source}."
    ]


def _driver(plan: Plan) -> str:
    """What drives the slices."""
    match plan.orchestration:
        case "chain":
            return "each slice calls the next"
        case "stepfunctions":
            return "a Standard state machine calls the slices"
        case _:
            return f"coordinator with {plan.coordinator_memory_mb:,} MB"


def verdict(plan: Plan) -> str:
    """What is proven of the objective."""
    proof = plan.certificate
    how = f"({proof.method}, {proof.seconds:.1f} s)"
    if plan.objective == "bytes":
        total = f"{plan.cross_slice_bytes:,} bytes cross between slices"
        if proof.status == "optimal":
            return f"[green]{total}: proven minimal[/] under these limits {how}"
        least = f"{proof.lower_bound:,.0f}"
        return f"[yellow]{total}[/]; at least {least} must (gap {proof.gap:.1%}, {how[1:]}"
    if plan.objective == "latency":
        total, least = f"{plan.prediction.latency_ms:,.1f} ms", f"{proof.lower_bound:,.1f} ms"
    else:
        total = f"${plan.prediction.cost_per_million_usd:,.2f} per million"
        least = f"${proof.lower_bound:,.2f}"
    if proof.status == "optimal":
        return f"[green]{total}: proven least[/] by the prediction, under these limits {how}"
    return f"[yellow]{total}[/]; at least {least} (gap {proof.gap:.1%}, {how[1:]}"


def _rule(sent: list[Edge]) -> str:
    """How a tensor travels by its size; why, where its size makes no difference."""
    edge = next((e for e in sent if e.crosses), sent[0])
    if not edge.crosses or len(edge.choices) < 2:
        return f"{edge.transport}: {edge.reason.split(', ', 1)[-1]}"
    sizes = [f"{name} up to {most:,} bytes" if most else name for name, most in edge.choices]
    return ", ".join(sizes) + " above"


def _packing(plan: Plan) -> str:
    """What is done to tensors that go only between slices, if anything."""
    rule, told = plan.transport_rule, []
    if rule.wire_dtype:
        told.append(f"float32 travels as {rule.wire_dtype}, which its bytes count")
    if rule.compression:
        told.append(f"{rule.compression} compresses what shrinks by it, which bytes do not count")
    return f" Between slices {'; '.join(told)}." if told else ""


def _split_line(split: SplitRecord) -> str:
    where = f" of {split.module}" if split.module else ""
    return (
        f"Split: {split.op}{where} ({split.kind}) by {split.axis} into {len(split.sizes)} pieces of "
        f"at most {max(split.sizes):,}: {split.reason}."
    )


def group_lines(plan: Plan) -> dict[int, str]:
    """What every group gains, and what it takes for that, by the group's number."""
    groups: dict[int, list[Slice]] = {}
    for part in plan.slices:
        if part.shard is not None:
            groups.setdefault(part.shard["group"], []).append(part)
    return {number: _group_line(number, parts) for number, parts in sorted(groups.items())}


def _group_line(number: int, parts: Sequence[Slice]) -> str:
    told = parts[0].shard
    assert told is not None
    gain = told["gain_ms"]
    gained = "no slice holds it alone" if gain is None else f"{gain:,.1f} ms less than one slice"
    what = (
        f"{told['of']} branches"
        if told["kind"] == BRANCHES
        else f"{told['kind']} in {told['of']} shards"
    )
    return (
        f"Group {number}: {what} ({parts[0].name} to {parts[-1].name}), {gained}; "
        f"{told['extra_bytes']:,} bytes and {told['redundant_compute']:.1%} of compute more than "
        "unsplit."
    )


def by_tensor(plan: Plan) -> list[list[Edge]]:
    """The edges of one tensor together: it is sent once, whoever reads it."""
    found: dict[tuple[str, str], list[Edge]] = {}
    for edge in plan.edges:
        found.setdefault((edge.producer, edge.tensor), []).append(edge)
    return list(found.values())
