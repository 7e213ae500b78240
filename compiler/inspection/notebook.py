"""A plan as a piece of HTML, for notebooks: no scripts, and the colours of the page around it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from slicewise.plan import Plan
from slicewise.report import (
    by_tensor,
    megabytes,
    prediction_text,
    route,
    runner_up,
    shape_text,
    text,
    time_shares,
    verdict,
    where,
)

_STYLE = """<style>
.slicewise-plan { font-family: sans-serif; line-height: 1.4; }
.slicewise-plan table { border-collapse: collapse; margin: .6em 0; }
.slicewise-plan th { text-align: left; font-weight: 600; border-bottom: 1px solid currentColor; }
.slicewise-plan th, .slicewise-plan td { padding: .2em .8em .2em 0; background: none; }
.slicewise-plan td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.slicewise-plan .bar { display: inline-block; width: 6em; height: .6em; margin-right: .6em;
  border: 1px solid currentColor; }
.slicewise-plan .bar > i { display: block; height: 100%; background: currentColor; opacity: .5; }
.slicewise-plan .end { opacity: .65; }
</style>"""


def plan_html(plan: Plan) -> str:
    """Summary, slices with bars of their memory, edges, prediction and certificate."""
    model = plan.model
    head = (
        f"<p><b>{escape(model.name)}</b>: {model.parameters:,} parameters, "
        f"{megabytes(model.weight_bytes)} of weights, in {len(plan.slices)} slices for "
        f"{escape(plan.target)}</p>"
    )
    shares = time_shares(plan)
    slices = [
        (
            escape(part.name),
            f"{part.stage}",
            f"{len(part.ops):,}",
            megabytes(part.weight_bytes),
            _bar(part.peak_memory_bytes / 1024 / 1024, part.memory_mb),
            f"{shares[part.name]:.0%}" if part.name in shares else "",
            escape(where(part)),
        )
        for part in plan.slices
    ]
    edges = [
        (
            escape(sent[0].tensor),
            escape(sent[0].module),
            escape(shape_text(sent[0])),
            f"{sent[0].bytes:,}",
            escape(route(sent)),
            escape(sent[0].transport),
            escape(runner_up(sent[0])),
        )
        for sent in by_tensor(plan)
    ]
    crossing = [any(edge.crosses for edge in sent) for sent in by_tensor(plan)]
    words = [*prediction_text(plan), text([verdict(plan)], width=10_000)]
    return "\n".join(
        [
            f'{_STYLE}<div class="slicewise-plan">{head}',
            _table(
                ("slice", "stage", "ops", "weights", "memory", "time", "modules"),
                slices,
                numbers=(1, 2, 3, 4, 5),
            ),
            _table(
                ("tensor", "module", "shape", "bytes", "way", "transport", "or else"),
                edges,
                numbers=(3,),
                faint=[not each for each in crossing],
            ),
            *(f"<p>{escape(line)}</p>" for line in words),
            "</div>",
        ]
    )


def _bar(used: float, of: int) -> str:
    share = min(1.0, used / of)
    return f'<span class="bar"><i style="width:{share:.0%}"></i></span>{used:,.1f} of {of:,} MB'


def _table(
    names: Iterable[str],
    rows: Iterable[tuple[str, ...]],
    *,
    numbers: tuple[int, ...],
    faint: list[bool] | None = None,
) -> str:
    """Cells are HTML."""
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(
            f'<td class="n">{cell}</td>' if column in numbers else f"<td>{cell}</td>"
            for column, cell in enumerate(row)
        )
        lines.append(
            f'<tr class="end">{cells}</tr>' if faint and faint[index] else f"<tr>{cells}</tr>"
        )
    body = "".join(lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
