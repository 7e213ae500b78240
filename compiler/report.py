"""A plan as text: what was cut, what crosses, how it travels, what is proven. Fits 100 columns."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from slicewise.graph import INPUT, OUTPUT
from slicewise.plan import Edge, Plan, SplitRecord

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDTH = 100


def plan_text(plan: Plan, *, color: bool = False, width: int = WIDTH) -> str:
    """The plan as a text of tables."""
    console = _console(color=color, width=width)
    print_plan(plan, console)
    return _printed(console)


def _console(*, color: bool = False, width: int = WIDTH) -> Console:
    from rich.console import Console

    return Console(
        file=io.StringIO(), width=width, force_terminal=color, color_system="auto" if color else None,
        highlight=False, legacy_windows=False,
    )  # fmt: skip


def _printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def print_plan(plan: Plan, console: Console) -> None:
    """Print the plan to a rich console."""
    for part in _plan_parts(plan):
        console.print(part)


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
    console = _console(width=width)
    console.print(table)
    return _printed(console)


def megabytes(size: int) -> str:
    """Bytes for people: 1 MB is 1,048,576 bytes, as Lambda counts."""
    if size < 1024:
        return f"{size} B"
    if size < 1024 * 1024:
        return f"{size / 1024:.1f} KB"
    return f"{size / 1024 / 1024:.1f} MB"


def _plan_parts(plan: Plan) -> list[RenderableType]:
    from rich.markup import escape
    from rich.table import Table

    model, limits = plan.model, plan.limits
    count = len(plan.slices)
    title = (
        f"[bold]{model.name}[/]: {model.parameters:,} parameters, {megabytes(model.weight_bytes)} of "
        f"weights, in {count} slice{'s' * (count != 1)} for {plan.target}"
    )
    bounds = [f"{limits.memory_mb:,} MB of memory" if limits.memory_mb else ""]
    bounds += [f"{limits.package_mb:g} MB of package" if limits.package_mb else ""]
    bounds += [f"{megabytes(limits.weight_bytes)} of weights" if limits.weight_bytes else ""]
    bounds += [f"at most {limits.max_slices} slices" if limits.max_slices else ""]

    slices = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "slice",
        "ops",
        "stage",
        "weights",
        "peak memory",
        "function",
        "package",
        "first … last op",
    ):
        right = name not in ("slice", "first … last op")
        slices.add_column(name, justify="right" if right else "left", no_wrap=right)
    for part in plan.slices:
        slices.add_row(
            part.name,
            str(len(part.ops)),
            str(part.stage),
            megabytes(part.weight_bytes),
            megabytes(part.peak_memory_bytes),
            f"{part.memory_mb:,} MB",
            megabytes(part.package_bytes) + f" {part.packaging}" * (part.packaging != "zip"),
            f"{part.ops[0]} … {part.ops[-1]}" if len(part.ops) > 1 else part.ops[0],
        )

    edges = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("tensor", "shape", "bytes", "from", "to", "transport"):
        edges.add_column(name, justify="right" if name == "bytes" else "left", overflow="fold")
    rules: dict[str, None] = {}
    for sent in _by_tensor(plan):
        edge = sent[0]
        readers = ["reply" if e.consumer == OUTPUT else e.consumer for e in sent]
        rules[_rule(sent)] = None
        edges.add_row(
            edge.tensor,
            escape(f"{edge.dtype}[{', '.join(map(str, edge.shape))}]"),
            f"{edge.bytes:,}",
            "request" if edge.producer == INPUT else edge.producer,
            ", ".join(readers),
            edge.transport,
            style=None if any(e.crosses for e in sent) else "dim",
        )
    why = "Transports. " + "; ".join(rules) + "." + _packing(plan)

    verdict = _verdict(plan)
    return [
        title,
        f"Each slice within {', '.join(b for b in bounds if b)}.",
        *(escape(_split_line(split)) for split in plan.splits),
        "",
        slices,
        "",
        edges,
        "",
        why,
        *_prediction(plan),
        verdict,
    ]


def _prediction(plan: Plan) -> list[str]:
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


def _verdict(plan: Plan) -> str:
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


def _by_tensor(plan: Plan) -> list[list[Edge]]:
    """The edges of one tensor together: it is sent once, whoever reads it."""
    found: dict[tuple[str, str], list[Edge]] = {}
    for edge in plan.edges:
        found.setdefault((edge.producer, edge.tensor), []).append(edge)
    return list(found.values())
