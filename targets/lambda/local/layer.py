"""The layer: the packages that a real function has besides its own, and no others.

A directory of links into this environment's site-packages, so it costs no copy and its modules'
`.pyc` files are the installed ones. Instances run with `python -S` and a PYTHONPATH of the
function's package and this directory: what is not here (torch, onnx, slicewise) cannot be imported.
"""

from __future__ import annotations

import compileall
import contextlib
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from slicewise.errors import TargetError

# What Lambda's Python runtime has (boto3 and the runtime interface client) and what a bundle ships
# (numpy, onnxruntime, pybase64). onnxruntime declares more than it needs: inference imports only numpy.
ROOTS = ("numpy", "onnxruntime", "pybase64", "boto3", "awslambdaric")
NEEDED_ONLY = {"onnxruntime": ("numpy",)}


def build_layer(directory: Path, more: Sequence[str] = ()) -> None:
    """Fill `directory` with links to the files of the layer's distributions, and of `more` of them."""
    for found in layer_distributions(more):
        ensure_compiled(found)
        link_distribution(found, directory)


def layer_distributions(more: Sequence[str] = ()) -> tuple[Distribution, ...]:
    """The roots, `more`, and all that they require in this environment."""
    found: dict[str, Distribution] = {}
    waiting = [*ROOTS, *more]
    while waiting:
        name = canonical(waiting.pop())
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            raise TargetError(
                f"the local platform needs the package {name}, which is not installed; "
                "run: pip install 'slicewise[local]'"
            ) from None
        waiting += NEEDED_ONLY.get(name) or required_names(found[name])
    return tuple(found.values())


def required_names(found: Distribution) -> list[str]:
    """The distributions that one requires here, extras left out."""
    requirements = map(Requirement, found.requires or ())
    return [
        each.name for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})
    ]


def canonical(name: str) -> str:
    """A distribution's name in its normal form."""
    return re.sub(r"[-_.]+", "-", name).lower()


def recorded_files(found: Distribution) -> Iterator[str]:
    """The files of an installed distribution, relative to site-packages, scripts left out."""
    record = found.read_text("RECORD")
    if record is None:
        raise TargetError(f"{found.name} was installed without a file list (RECORD); reinstall it")
    for line in record.splitlines():
        # Importlib's own parser builds an object per file, ten times the cost of this.
        path = line.rsplit(",", 2)[0].strip('"')
        if path and not path.startswith(("..", "/")):
            yield path


def link_distribution(found: Distribution, directory: Path) -> None:
    """Link regular packages as a whole and everything else file by file.

    Directories without `__init__.py` (namespace packages, `numpy.libs`, `__pycache__`) may be
    shared with distributions that do not belong here.
    """
    site = Path(str(found.locate_file("")))
    paths = list(recorded_files(found))
    packages = {
        path.partition("/")[0]
        for path in paths
        if path.count("/") == 1 and path.endswith("/__init__.py")
    }
    for package in packages:
        (directory / package).symlink_to(site / package, target_is_directory=True)
    for path in paths:
        if path.partition("/")[0] in packages:
            continue
        link = directory / path
        if (site / path).exists() and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(site / path)


def ensure_compiled(found: Distribution) -> None:
    """Write the `.pyc` files that an installer left out; without them cold starts take 2-3 times.

    Instances cannot write them (as on Lambda), so they are written where Python itself would.
    """
    paths = list(recorded_files(found))
    if any(path.endswith(".pyc") for path in paths):
        return
    site = Path(str(found.locate_file("")))
    packages = {path.partition("/")[0] for path in paths if path.endswith(".py")}
    for name in packages:
        if (site / name / "__init__.py").exists() and not (site / name / "__pycache__").exists():
            with contextlib.suppress(OSError):
                compileall.compile_dir(site / name, quiet=2, workers=1)
