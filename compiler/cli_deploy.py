"""The command line of deployments: deploy, invoke, status, gc, destroy, diff."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from slicewise.target import Report

_BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
_WHICH = click.argument("which", metavar="STACK|BUNDLE")
_REGION = click.option("--region", help="AWS region, instead of the configured one.")
_NAME = click.option("--name", help="Name of the deployment, instead of the bundle's own.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("deploy")
@_BUNDLE
@_NAME
@_REGION
@click.option("--python", default="3.13", show_default=True, help="Python of the functions.")
@click.option(
    "--architecture",
    type=click.Choice(["x86_64", "arm64"]),
    help="Of the functions, instead of the bundle's profile's.",
)
@click.option("--zone", help="Availability zone (use1-az4) of the bucket of s3express.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Of everything made.")
@click.option("--keep", type=int, default=3, show_default=True, help="Versions that stay.")
@click.option("--log-days", type=int, default=30, show_default=True, help="Logs are kept so long.")
@click.option("--xray", is_flag=True, help="Trace with X-Ray.")
@click.option("--no-smoke-test", is_flag=True, help="Move without asking the new version first.")
@click.option("--dry-run", is_flag=True, help="List the changes and the cost, and change nothing.")
@click.option("--requests-per-month", type=int, default=0, help="For the cost of --dry-run.")
@_JSON
def deploy_command(
    bundle: Path,
    name: str | None,
    region: str | None,
    tags: tuple[str, ...],
    no_smoke_test: bool,
    dry_run: bool,
    requests_per_month: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Deploy BUNDLE, or bring its deployment up to it.

    The new version serves when it has answered the bundle's example as the original model did.
    Interrupted, the same command goes on; repeated, it changes nothing.
    """
    from slicewise.deployments import deploy, preview

    options["tags"] = _tags(tags)
    if dry_run:
        report = preview(
            bundle, name=name, region=region, requests_per_month=requests_per_month, **options
        )
        _show(report, as_json)
        return
    deployment = deploy(
        bundle, name=name, region=region, smoke_test=not no_smoke_test, progress=True, **options
    )
    assert deployment.changes is not None
    if as_json:
        told = {**deployment.changes.to_json(), "function": deployment.function}
        click.echo(json.dumps({**told, "url": deployment.url}, indent=1))
        return
    click.echo(str(deployment.changes))
    url = f", URL {deployment.url} (IAM)" if deployment.url else ""
    click.echo(f"\n{deployment.name} serves as {deployment.function}{url}")
    click.echo(f"Next: slicewise invoke {bundle} --input x.npz")


@click.command("invoke")
@_WHICH
@_NAME
@_REGION
@click.option(
    "--input", "input_file", required=True, type=click.Path(path_type=Path),
    help="One array per input, .npz or .json.",
)  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), help="Write the outputs to this .npz.")
@_JSON
def invoke_command(
    which: str,
    name: str | None,
    region: str | None,
    input_file: Path,
    output: Path | None,
    as_json: bool,
) -> None:
    """Send one request to a deployment, named by its stack or its bundle."""
    import numpy as np

    from slicewise.arrays import named_arrays
    from slicewise.deployments import connect

    inputs = read_input(input_file)
    deployment = connect(which, name=name, region=region)
    outputs = named_arrays(deployment(**inputs))
    if output is not None:
        np.savez(output, **outputs)  # type: ignore[arg-type]  # its stub
    if as_json:
        values = {key: array.tolist() for key, array in outputs.items()}
        click.echo(json.dumps({"outputs": values, "trace": dict(deployment.last_trace)}))
        return
    for key, array in outputs.items():
        click.echo(f"{key}: {array.dtype}{list(array.shape)}")
        click.echo(np.array2string(array, threshold=24, edgeitems=3, precision=5))


@click.command("status")
@_WHICH
@_NAME
@_REGION
@_JSON
def status_command(which: str, name: str | None, region: str | None, as_json: bool) -> None:
    """Show what is deployed; for a bundle also whether that is what it says."""
    from slicewise.deployments import status

    _show(status(which, name=name, region=region), as_json)


@click.command("destroy")
@_WHICH
@_NAME
@_REGION
@click.option("--dry-run", is_flag=True, help="List what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_JSON
def destroy_command(
    which: str, name: str | None, region: str | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Remove everything of a deployment, in whatever state it is."""
    from slicewise.deployments import destroy

    if not (dry_run or yes):
        click.echo(str(destroy(which, name=name, region=region, dry_run=True)), err=True)
        click.confirm("Remove all of this?", abort=True, err=True)
    _show(destroy(which, name=name, region=region, dry_run=dry_run), as_json)


@click.command("gc")
@_WHICH
@_NAME
@_REGION
@click.option("--older-than-minutes", type=click.FloatRange(min=0), default=60.0, show_default=True)
@click.option("--dry-run", is_flag=True, help="List what would be deleted.")
@_JSON
def gc_command(
    which: str,
    name: str | None,
    region: str | None,
    older_than_minutes: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete tensors that requests have left in a deployment's buckets.

    That happens when a coordinator is killed; a lifecycle rule would delete them after a day.
    """
    from slicewise.deployments import collect

    seconds = older_than_minutes * 60
    _show(collect(which, name=name, region=region, older_than_s=seconds, dry_run=dry_run), as_json)


@click.command("diff")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@_REGION
@_JSON
def diff_command(old: str, new: str, region: str | None, as_json: bool) -> None:
    """Show what an update from OLD to NEW would change. Each is a bundle or a deployment's name."""
    from slicewise.deployments import diff

    _show(diff(old, new, region=region), as_json)


COMMANDS = (
    deploy_command,
    invoke_command,
    status_command,
    gc_command,
    destroy_command,
    diff_command,
)


def read_input(path: Path) -> dict[str, Any]:
    """The arrays of --input; a file that has none is a usage error."""
    from slicewise.arrays import read_arrays
    from slicewise.errors import RequestError

    try:
        return dict(read_arrays(path))
    except RequestError as error:
        raise click.BadParameter(str(error)) from error


def _show(report: Report, as_json: bool) -> None:
    click.echo(json.dumps(report.to_json(), indent=1) if as_json else str(report))


def _tags(pairs: tuple[str, ...]) -> dict[str, str]:
    tags = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not (key and separator):
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE")
        tags[key] = value
    return tags
