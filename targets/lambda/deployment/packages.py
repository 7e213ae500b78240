"""Packages: the zip files of a bundle. The same shape as `packaging.package`, which replaces it."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slicewise.errors import BundleError

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that zip files know


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A zip file; `sha256` in hexadecimal digits."""

    path: Path
    sha256: str
    bytes: int
    unzipped_bytes: int


@dataclass(frozen=True, kw_only=True)
class Packages:
    """Of each part (slice or coordinator) its zip file, and the layer that all functions share."""

    parts: Mapping[str, Package]
    layer: Package | None = None


def package(directory: Path, *, python: str, architecture: str) -> Packages:  # noqa: ARG001
    """Zip files in `directory`/dist, the same bytes for the same bundle; the layer is one that lies
    there. Raises `BundleError`.
    """
    folders = sorted(path for path in (directory / "functions").glob("*") if path.is_dir())
    if not folders:
        raise BundleError(f"{directory} holds no functions; is it a bundle?")
    dist = directory / "dist"
    dist.mkdir(exist_ok=True)
    parts = {}
    for folder in folders:
        archive = dist / f"{folder.name}.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as into:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                info = zipfile.ZipInfo(str(path.relative_to(folder)), _EPOCH)
                info.external_attr = 0o644 << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                info.file_size = path.stat().st_size  # above 2 GiB the header is another one
                with into.open(info, "w") as entry, path.open("rb") as source:
                    while chunk := source.read(1 << 20):
                        entry.write(chunk)
        parts[folder.name] = _described(archive)
    layer = dist / "layer.zip"
    return Packages(parts=parts, layer=_described(layer) if layer.exists() else None)


def _described(archive: Path) -> Package:
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with zipfile.ZipFile(archive) as content:
        unzipped = sum(info.file_size for info in content.infolist())
    return Package(
        path=archive, sha256=digest, bytes=archive.stat().st_size, unzipped_bytes=unzipped
    )
