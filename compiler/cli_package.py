"""`slicewise package`: make what is uploaded."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("directory", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--python", default="3.13", show_default=True, help="The functions' Python.")
@click.option("--architecture", help="x86_64 or arm64, instead of the bundle's profile's.")
@click.option(
    "--python-executable",
    type=click.Path(path_type=Path),
    help="A Python of that version here, to compile modules; without it one is searched.",
)
@click.option(
    "--wheels",
    type=click.Path(path_type=Path),
    help="Cache of wheels, instead of $SLICEWISE_WHEELS or ~/.cache/slicewise/wheels.",
)
@click.option("--json", "as_json", is_flag=True, help="Print packages.json.")
def package(
    directory: Path,
    python: str,
    architecture: str | None,
    python_executable: Path | None,
    wheels: Path | None,
    as_json: bool,
) -> None:
    """Make the zip files of BUNDLE, in BUNDLE/dist: a layer, and a package per function.

    Wheels are downloaded for the functions' Python and architecture when the cache has them not.
    """
    from slicewise.compiled import load

    packages = load(directory).package(
        python=python,
        architecture=architecture,
        python_executable=python_executable,
        wheels=wheels,
    )
    click.echo(packages.to_json() if as_json else str(packages))
    for note in packages.notes:
        click.echo(f"note: {note}", err=True)
