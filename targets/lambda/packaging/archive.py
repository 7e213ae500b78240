"""Archives: zip files that are the same, byte for byte, whenever their contents are."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can hold
_MODE = 0o100644  # Lambda's user is another one than the owner
_LEVEL = 6
_SAMPLES = 8
_SAMPLE_BYTES = 256 * 1024
_LARGE_BYTES = 4 * _SAMPLES * _SAMPLE_BYTES
# float32 weights shrink by 7 %, which is not worth 40 s of deflating a GB.
_WORTHWHILE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A zip file: where, its SHA-256 in hexadecimal, its bytes, and those of all files in it."""

    path: Path
    sha256: str
    zip_bytes: int
    unzipped_bytes: int


def write_zip(path: Path, contents: Mapping[str, Path | bytes]) -> Archive:
    """Write a zip file with these contents by their names, and describe it.

    Names are sorted, times and modes fixed, so equal contents make equal files wherever the zlib
    library is the same. Files are read in pieces. A large one that hardly shrinks is stored.
    """
    with zipfile.ZipFile(path, "w") as into:
        for name in sorted(contents):
            content = contents[name]
            info = zipfile.ZipInfo(name, _TIME)
            info.create_system = 3  # Unix, on every system
            info.external_attr = _MODE << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            if isinstance(content, Path):
                info.file_size = content.stat().st_size  # lets it be larger than 4 GB
                if info.file_size > _LARGE_BYTES and not _shrinks(content):
                    info.compress_type = zipfile.ZIP_STORED
            info._compresslevel = _LEVEL  # type: ignore[attr-defined]  # public from 3.13 on
            source = content.open("rb") if isinstance(content, Path) else BytesIO(content)
            with source, into.open(info, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    return describe(path)


def describe(path: Path) -> Archive:
    """A zip file that is there. Raises `zipfile.BadZipFile` and `OSError`."""
    with zipfile.ZipFile(path) as archive:
        unzipped = sum(info.file_size for info in archive.infolist())
    return Archive(
        path=path,
        sha256=file_sha256(path),
        zip_bytes=path.stat().st_size,
        unzipped_bytes=unzipped,
    )


def file_sha256(path: Path) -> str:
    """In hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(*roots: Path) -> str:
    """SHA-256 of the names and contents of all files below these folders, or of files. Byte code of
    whatever Python ran there does not count; a folder that is missing is empty.
    """
    found = hashlib.sha256()
    for root in roots:
        paths = [root] if root.is_file() else sorted(root.rglob("*"))
        for path in paths:
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(root).as_posix()
                found.update(f"{name}\n{file_sha256(path)}\n".encode())
    return found.hexdigest()


def _shrinks(path: Path) -> bool:
    """Whether deflating is worth it, by pieces from the whole of the file."""
    size = path.stat().st_size
    shrunk = 0
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            shrunk += len(zlib.compress(file.read(_SAMPLE_BYTES), 1))
    return shrunk < _WORTHWHILE * _SAMPLES * _SAMPLE_BYTES
