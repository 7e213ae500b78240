"""The layer: the stripped runtime, one zip file that all functions of zip packages share."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from .archive import Archive, describe, file_sha256, write_zip
from .compiled import Interpreter, compile_directory
from .strip import strip
from .wheels import cache_directory

_FORMAT = 1  # raise it when the same wheels shall give another layer
_SOURCES = ("strip.py", "compiled.py", "archive.py")  # and when one of these changes, it does


def build_layer(
    wheels: Sequence[Path], interpreter: Interpreter | None, *, cache: Path | None = None
) -> Archive:
    """The layer of these wheels, with byte code when there is an interpreter; from the cache if it was
    built before. Equal wheels and interpreters give equal bytes.
    """
    cache = cache_directory("layers") if cache is None else cache
    path = cache / f"{_key(wheels, interpreter)}.zip"
    with contextlib.suppress(OSError, zipfile.BadZipFile):
        return describe(path)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="slicewise-layer-", dir=cache) as scratch:
        tree = Path(scratch) / "layer"
        unpack(wheels, tree / "python")
        if interpreter is not None:
            compile_directory(tree, interpreter, "/opt")
        files = (path for path in tree.rglob("*") if path.is_file())
        built = Path(scratch) / "layer.zip"
        write_zip(built, {file.relative_to(tree).as_posix(): file for file in files})
        built.replace(path)  # at once: another process may be building the same
    return describe(path)


def unpack(wheels: Sequence[Path], directory: Path) -> None:
    """What the wheels install, stripped."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(directory)
    strip(directory)


def _key(wheels: Sequence[Path], interpreter: Interpreter | None) -> str:
    made_of = [
        str(_FORMAT),
        interpreter.version if interpreter else "",
        *(file_sha256(Path(__file__).with_name(name)) for name in _SOURCES),
        *(f"{wheel.name} {file_sha256(wheel)}" for wheel in wheels),
    ]
    return hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:32]
