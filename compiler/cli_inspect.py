"""The command line's `inspect`: a bundle's plan as text, as JSON, or as a page for the browser."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from slicewise.plan import Plan


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--slice", "slice_name", metavar="NAME", help="One slice: its ops, edges and times.")
@click.option("--edge", metavar="TENSOR", help="One tensor: its way, and what others would take.")
@click.option(
    "--why", "op", metavar="OP", help="Why an op is where it is, and what moving it takes."
)
@click.option("--diff", "other", metavar="OTHER", type=click.Path(path_type=Path),
              help="What changed since this other bundle.")  # fmt: skip
@click.option("--html", type=click.Path(path_type=Path), help="Write a page for the browser.")
@click.option("--trace", type=click.Path(path_type=Path),
              help="With --html: measured times, as run --json prints them.")  # fmt: skip
@click.option("--frontier", type=click.Path(path_type=Path),
              help="With --html: other plans, as frontier --json prints them.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as JSON; alone, plan.json.")
def inspect(
    directory: Path,
    slice_name: str | None,
    edge: str | None,
    op: str | None,
    other: Path | None,
    html: Path | None,
    trace: Path | None,
    frontier: Path | None,
    as_json: bool,
) -> None:
    """Show the plan of a bundle: slices, edges, certificate and prediction, or a part of it."""
    from slicewise.compiled import load

    asked = [option for option in (slice_name, edge, op, other, html) if option is not None]
    if len(asked) > 1:
        raise click.UsageError("--slice, --edge, --why, --diff and --html are separate: ask one")
    if (trace or frontier) and html is None:
        raise click.UsageError("--trace and --frontier go with --html")
    bundle = load(directory)
    if slice_name is not None:
        from slicewise.inspection.told import slice_data, slice_parts

        data = slice_data(bundle.plan, bundle.detail, slice_name)
        _tell(data, slice_parts(data, bundle.plan), as_json)
    elif edge is not None:
        from slicewise.inspection.told import edge_data, edge_parts

        _tell(edge_data(bundle.plan, edge), edge_parts(bundle.plan, edge), as_json)
    elif op is not None:
        from slicewise.inspection.moves import why
        from slicewise.inspection.told import why_data, why_parts

        found = why(bundle.plan, bundle.detail, bundle.target, op)
        _tell(why_data(found), why_parts(found, bundle.plan), as_json)
    elif other is not None:
        from slicewise.inspection.differences import difference_parts, differences

        changed = differences(load(other).plan, bundle.plan)
        _tell(changed.to_json(), difference_parts(changed), as_json)
    elif html is not None:
        from slicewise.inspection.html_report import read_frontier, read_trace

        bundle.report(
            html,
            trace=read_trace(trace) if trace else None,
            frontier=read_frontier(frontier) if frontier else (),
        )
        click.echo(f"Wrote {html}.")
    elif as_json:
        click.echo(bundle.plan.to_json())
    else:
        print_plan(bundle.plan)


def print_plan(plan: Plan) -> None:
    """A plan's text, as wide as the terminal, in colour where there is one."""
    from slicewise.report import plan_text

    click.echo(plan_text(plan, color=_color(), width=_width()))


def _tell(data: Any, parts: Iterable[Any], as_json: bool) -> None:
    from slicewise.report import text

    if as_json:
        click.echo(json.dumps(data, indent=1))
    else:
        click.echo(text(parts, color=_color(), width=_width()))


def _color() -> bool:
    """Not into a pipe or file, and not for those who do not want it (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _width() -> int:
    """The terminal's; what is read by programs or kept has always the same."""
    from slicewise.report import WIDTH

    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return WIDTH
    return max(40, min(shutil.get_terminal_size((WIDTH, 24)).columns, 160))
