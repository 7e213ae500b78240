"""Compiled: byte code of packages, by an interpreter of the version that the functions run.

Lambda's directories are read-only, so what is not compiled is compiled again at every cold start:
numpy takes 350 to 560 ms instead of 160 to 200. The files are "unchecked-hash": they hold no times, so
they are the same whenever the source is, and Python does not look whether the source has changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slicewise.errors import TargetError

_ASK = "import sys; print(sys.implementation.name, '.'.join(map(str, sys.version_info[:3])))"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A CPython on this machine; `version` has three parts."""

    path: Path
    version: str


def find_interpreter(python: str, executable: Path | None = None) -> Interpreter | None:
    """A CPython of this version ("3.13"): the one given, this one, one on PATH, or one of pyenv's.

    None when there is none. Raises `TargetError` when the one given is none or of another version.
    """
    if executable is not None:
        given = _interpreter(executable)
        if given is None or not _is_version(given, python):
            what = "no Python that runs" if given is None else f"CPython {given.version}"
            raise TargetError(
                f"{executable} is {what}; byte code for functions with Python {python} needs a "
                f"CPython {python}. Name another one, or none: then one is searched."
            )
        return given
    for path in _candidates(python):
        found = _interpreter(path)
        if found is not None and _is_version(found, python):
            return found
    return None


def compile_directory(directory: Path, interpreter: Interpreter, place: str) -> None:
    """Write the byte code of all modules below `directory`, which will lie at `place` when it runs.

    Raises `TargetError` for a module that cannot be compiled.
    """
    command = [
        os.fspath(interpreter.path), "-m", "compileall", "-q", "-f", "-j", "1",
        "--invalidation-mode", "unchecked-hash", "-s", os.fspath(directory), "-p", place,
        os.fspath(directory),
    ]  # fmt: skip
    # The seed is for sets of constants, whose order is in the byte code.
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=_environment(PYTHONHASHSEED="0")
    )
    if done.returncode:
        raise TargetError(
            f"CPython {interpreter.version} cannot compile all of {directory}: "
            f"{(done.stdout + done.stderr).strip()[-500:]}"
        )


def _candidates(python: str) -> Iterator[Path]:
    yield Path(sys.executable)
    on_path = shutil.which(f"python{python}")
    if on_path:
        yield Path(on_path)
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted((root / "versions").glob(f"{python}.*/bin/python"))


def _interpreter(path: Path) -> Interpreter | None:
    """Asks it. None when it does not run (as pyenv's shims of versions that are switched off)."""
    try:
        done = subprocess.run(
            [os.fspath(path), "-c", _ASK], capture_output=True, text=True, check=False,
            env=_environment(), timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    kind, _, version = done.stdout.strip().partition(" ")
    if done.returncode or kind != "cpython":
        return None
    return Interpreter(path=path, version=version)


def _is_version(interpreter: Interpreter, python: str) -> bool:
    return interpreter.version.split(".")[:2] == python.split(".")


def _environment(**more: str) -> dict[str, str]:
    """Without what a user has set for another Python."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return {**kept, **more}
