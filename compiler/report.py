"""A plan as text: what was cut, what crosses, how it travels, what is proven. Fits 100 columns."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from slicewise.graph import INPUT, OUTPUT
from slicewise.plan import Edge, Plan, SplitRecord

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDTH = 100


def plan_text(plan: Plan, *, color: bool = False, width: int = WIDTH) -> str:
    """The plan as a text of tables."""
    from rich.console import Console

    console = Console(
        file=io.StringIO(), width=width, force_terminal=color, color_system="auto" if color else None,
        highlight=False, legacy_windows=False,
    )  # fmt: skip
    print_plan(plan, console)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def print_plan(plan: Plan, console: Console) -> None:
    """Print the plan to a rich console."""
    for part in _plan_parts(plan):
        console.print(part)


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

    model, limits, proof = plan.model, plan.limits, plan.certificate
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
            megabytes(part.package_bytes),
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

    total = f"{plan.cross_slice_bytes:,} bytes cross between slices"
    if proof.status == "optimal":
        verdict = (
            f"[green]{total}: proven minimal[/] under these limits "
            f"({proof.method}, {proof.seconds:.1f} s)"
        )
    else:
        verdict = (
            f"[yellow]{total}[/]; at least {proof.lower_bound:,} must (gap {proof.gap:.1%}, "
            f"{proof.method}, {proof.seconds:.1f} s)"
        )
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
        verdict,
    ]


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
