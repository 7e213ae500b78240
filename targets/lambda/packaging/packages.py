"""Packages: the zip files of a bundle, in its folder dist/, and packages.json that describes them.

dist/layer.zip       the runtime, for all functions of zip packages
dist/<part>.zip      handler, slicewise_runtime, model and byte code of one function
dist/packages.json   their hashes and sizes; a deployment reads this and nothing else

Parts that are packed as an image have no zip file: the bundle's Dockerfile makes one image for them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from slicewise.errors import BundleError, TargetError
from slicewise.plan import Plan

from ..bundle import package_folders
from ..profile import MB
from ..resources import ARCHITECTURES, PYTHON, PYTHONS
from .archive import Archive, describe, write_zip
from .compiled import Interpreter, compile_directory, find_interpreter
from .layer import build_layer
from .wheels import requirements_of, runtime_wheels

SCHEMA = 1
DIST = "dist"
NEAR_BYTES = MB  # of the limit: told, for the next version of the model may not fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """The zip file of one part. `with_layer_bytes` is what Lambda counts, of at most `limit_bytes`."""

    part: str
    packaging: str
    archive: Archive
    with_layer_bytes: int
    limit_bytes: int

    @property
    def is_near(self) -> bool:
        """Whether less than 1 MB is left."""
        return self.limit_bytes - self.with_layer_bytes < NEAR_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """All packages of a bundle. `layer` is None when no part is a zip package; `compiled_by` is the
    CPython that wrote the byte code, None if none was found; `images` are the parts without a zip file.
    """

    python: str
    architecture: str
    compiled_by: str | None
    layer: Archive | None
    packages: tuple[Package, ...]
    images: tuple[str, ...] = ()

    @property
    def parts(self) -> Mapping[str, Archive]:
        """The zip file of every part that has one."""
        return {each.part: each.archive for each in self.packages}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        found = [
            f"{each.part} takes {each.with_layer_bytes:,} bytes with the layer, within 1 MB of the "
            f"limit of {each.limit_bytes:,}: a little more and it cannot be deployed."
            for each in self.packages
            if each.is_near
        ]
        if self.packages and self.compiled_by is None:
            found.append(
                f"no CPython {self.python} was found, so there is no byte code in the packages: every "
                "cold start compiles its modules and takes about half a second longer. Install one, "
                "or name one with --python-executable."
            )
        return tuple(found)

    def to_json(self) -> str:
        """packages.json."""
        data: dict[str, Any] = {"schema": SCHEMA, **asdict(self)}
        for archive in (*(each["archive"] for each in data["packages"]), data["layer"]):
            if archive:
                archive["path"] = archive["path"].name
        return json.dumps(data, indent=1)

    def __str__(self) -> str:
        from .sizes import sizes_text

        return sizes_text(self)


def package(
    directory: Path,
    plan: Plan,
    *,
    python: str = PYTHON,
    architecture: str = "x86_64",
    limit_mb: float = 250,
    python_executable: Path | None = None,
    wheels: Path | None = None,
) -> Packages:
    """Make the packages of a bundle for a Python and an architecture of Lambda, in BUNDLE/dist.

    `wheels` is the cache of wheels (see `wheels.runtime_wheels`). Equal bundles and equal interpreters
    give equal files. What dist/ held before is replaced only when all has succeeded.

    Raises `BundleError`, and `TargetError` for an unknown version or architecture, a wheel that cannot
    be had, or a package above the limit.
    """
    for what, value, known in (
        ("python", python, PYTHONS),
        ("architecture", architecture, ARCHITECTURES),
    ):
        if value not in known:
            raise TargetError(f"{what}={value!r} is not known; choose {' or '.join(known)}.")
    packagings = {part.name: part.packaging for part in plan.slices}
    folders = package_folders(directory)
    all_images = set(packagings.values()) == {"image"}
    zipped = {
        part: folder
        for part, folder in folders.items()
        if packagings.get(part, "image" if all_images else "zip") != "image"
    }
    interpreter = find_interpreter(python, python_executable)
    layer = None
    if zipped:
        needed = [
            wheel
            for file in requirements_of(plan.encryption is not None)
            for wheel in runtime_wheels(python, architecture, cache=wheels, requirements=file)
        ]
        layer = build_layer(needed, interpreter)
    building = Path(tempfile.mkdtemp(prefix=f".{DIST}-", dir=directory))
    try:
        found = []
        for part, folder in zipped.items():
            assert layer is not None
            archive = zip_function(folder, building / f"{part}.zip", interpreter)
            each = Package(
                part=part,
                packaging=packagings.get(part, "zip"),
                archive=archive,
                with_layer_bytes=archive.unzipped_bytes + layer.unzipped_bytes,
                limit_bytes=int(limit_mb * MB),
            )
            _check_size(each, layer)
            found.append(each)
        if layer is not None:
            layer = replace(layer, path=shutil.copyfile(layer.path, building / "layer.zip"))
        made = Packages(
            python=python,
            architecture=architecture,
            compiled_by=interpreter.version if interpreter else None,
            layer=layer,
            packages=tuple(found),
            images=tuple(part for part in folders if part not in zipped),
        )
        (building / "packages.json").write_text(made.to_json())
        building.chmod(0o755)
        shutil.rmtree(directory / DIST, ignore_errors=True)
        building.rename(directory / DIST)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return read_packages(directory)


def read_packages(directory: Path) -> Packages:
    """The packages that `package` made, checked against their hashes. Raises `BundleError`."""
    dist = directory / DIST
    try:
        data = json.loads((dist / "packages.json").read_text())
        if data["schema"] != SCHEMA:
            raise BundleError(
                f"{dist} has schema {data['schema']!r}, this slicewise reads {SCHEMA}."
            )
        packages = tuple(
            Package(**{**each, "archive": _archive(dist, each["archive"])})
            for each in data["packages"]
        )
        layer = _archive(dist, data["layer"]) if data["layer"] else None
        rest = {key: data[key] for key in ("python", "architecture", "compiled_by")}
        return Packages(packages=packages, layer=layer, images=tuple(data["images"]), **rest)
    except BundleError as error:
        raise BundleError(f"{error} Run `slicewise package {directory}`.") from None
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{directory} has no complete packages ({error!r}). Run `slicewise package {directory}`."
        ) from error


def zip_function(folder: Path, path: Path, interpreter: Interpreter | None) -> Archive:
    """One function's package, with byte code when there is an interpreter."""
    # Byte code that lies there is of whatever Python has run the bundle here.
    files = {
        file.relative_to(folder).as_posix(): file
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    if interpreter is None:
        return write_zip(path, files)
    with tempfile.TemporaryDirectory(prefix="slicewise-package-") as scratch:
        code = Path(scratch)
        for name, file in files.items():
            if name.endswith(".py"):
                (code / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, code / name)
        compile_directory(code, interpreter, "/var/task")
        compiled = {file.relative_to(code).as_posix(): file for file in code.rglob("*.pyc")}
        return write_zip(path, {**files, **compiled})


def _check_size(package: Package, layer: Archive) -> None:
    over = package.with_layer_bytes - package.limit_bytes
    if over > 0:
        raise TargetError(
            f"{package.part} takes {package.archive.unzipped_bytes:,} bytes unzipped and the layer "
            f"{layer.unzipped_bytes:,}, together {over:,} more than the limit of "
            f"{package.limit_bytes:,}. Compile again with a smaller Limits(package_mb=...), for more "
            'slices, or with packaging="s3-weights" or packaging="image".'
        )


def _archive(dist: Path, data: Mapping[str, Any]) -> Archive:
    found = describe(dist / data["path"])
    if found.sha256 != data["sha256"]:
        raise BundleError(f"{found.path} has another SHA-256 than packages.json says.")
    return found
