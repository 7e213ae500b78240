"""Wheels: the packages that a function needs besides its own code, for the platform that it runs on.

requirements.txt names one version of each with the hashes of its wheels (packaging/lock.py writes it).
Wheels are taken from a cache, and downloaded by pip when one is missing, never copied from what happens
to be installed: a developer's machine has another Python, processor or C library.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slicewise.errors import TargetError

from .archive import file_sha256

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
ENCRYPTION = Path(__file__).with_name("encryption.txt")  # what encrypted bundles need besides
CACHE_VARIABLE = "SLICEWISE_WHEELS"
MACHINES = {"x86_64": "x86_64", "arm64": "aarch64"}  # as Lambda calls them, and as wheels do
# Lambda's Python 3.12 and later (Amazon Linux 2023) have glibc 2.34; the newest wheels need 2.28.
_GLIBC_MINORS = range(28, 16, -1)
_LOCKED = re.compile(
    r"^([A-Za-z0-9._-]+)==(\S+)((?:\s*\\\n\s+--hash=sha256:[0-9a-f]{64})+)\s*$", re.M
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """One requirement: the normal form of a name, a version, and the SHA-256 of its wheels."""

    name: str
    version: str
    hashes: frozenset[str]


def cache_directory(what: str) -> Path:
    """Where slicewise keeps what it can make or get again."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "slicewise" / what


def wheel_cache() -> Path:
    """The directory of the variable SLICEWISE_WHEELS, or ~/.cache/slicewise/wheels."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else cache_directory("wheels")


def requirements_of(is_encrypted: bool) -> tuple[Path, ...]:
    """The files with what the functions of a bundle need."""
    return (REQUIREMENTS, ENCRYPTION) if is_encrypted else (REQUIREMENTS,)


def runtime_wheels(
    python: str,
    architecture: str,
    *,
    cache: Path | None = None,
    requirements: Path = REQUIREMENTS,
) -> tuple[Path, ...]:
    """One wheel per requirement, checked against its hash, for a Python ("3.13") and an architecture
    ("x86_64" or "arm64"). No index is asked when the cache has them all.

    Raises `TargetError` when one is missing and cannot be downloaded.
    """
    cache = wheel_cache() if cache is None else cache
    locked = read_requirements(requirements)
    found = _in_cache(locked, python, architecture, cache)
    if len(found) < len(locked):
        problem = _download(python, architecture, cache, requirements)
        found = _in_cache(locked, python, architecture, cache)
        missing = [f"{each.name} {each.version}" for each in locked if each.name not in found]
        if missing:
            raise TargetError(
                f"no wheel of {', '.join(missing)} for Python {python} on {architecture} is in "
                f"{cache} with a hash of {requirements}, and pip could not download it: {problem}. "
                f"Connect to a package index, or let {CACHE_VARIABLE} name a directory that has it."
            )
    return tuple(found[each.name] for each in locked)


def read_requirements(path: Path) -> tuple[Locked, ...]:
    """The requirements of a file that packaging/lock.py wrote, by name. Raises `TargetError`."""
    text = path.read_text()
    found = [
        Locked(
            name=_canonical(name),
            version=version,
            hashes=frozenset(re.findall(r"sha256:([0-9a-f]{64})", hashes)),
        )
        for name, version, hashes in _LOCKED.findall(text)
    ]
    if not found or text.count("==") != len(found):
        raise TargetError(
            f"{path} has requirements without a hash; write it with packaging/lock.py"
        )
    return tuple(sorted(found, key=lambda each: each.name))


def pip_download(
    python: str, architecture: str, into: Path, *what: str
) -> subprocess.CompletedProcess[str]:
    """Run `pip download` of wheels for this platform, without what they require."""
    platforms = [f"--platform={tag}" for tag in _platforms(architecture)]
    into.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
        "--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}",
        *platforms, f"--dest={into}", *what,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _download(python: str, architecture: str, cache: Path, requirements: Path) -> str:
    """Fill the cache. What pip said if that failed."""
    try:
        done = pip_download(
            python, architecture, cache, "--require-hashes", "-r", os.fspath(requirements)
        )
    except OSError as error:
        return str(error)
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return " ".join(lines or done.stderr.splitlines()[-1:]) if done.returncode else "it has no such"


def _in_cache(
    locked: tuple[Locked, ...], python: str, architecture: str, cache: Path
) -> dict[str, Path]:
    """The wheels whose names fit the platform and whose bytes have a locked hash."""
    versions = {each.name: each for each in locked}
    found = {}
    for path, name, version in _wheels(cache, python, architecture):
        wanted = versions.get(name)
        if wanted and version == wanted.version and file_sha256(path) in wanted.hashes:
            found[name] = path
    return found


def _wheels(cache: Path, python: str, architecture: str) -> Iterator[tuple[Path, str, str]]:
    """Wheels for the platform, with the names and versions that their file names give."""
    from packaging.tags import compatible_tags, cpython_tags
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    major, minor = (int(part) for part in python.split("."))
    platforms = _platforms(architecture)
    fitting = {
        *cpython_tags((major, minor), platforms=platforms),
        *compatible_tags((major, minor), f"cp{major}{minor}", platforms),
    }
    for path in sorted(cache.glob("*.whl")):
        try:
            name, version, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if tags & fitting:
            yield path, name, str(version)


def _platforms(architecture: str) -> list[str]:
    machine = MACHINES[architecture]
    return [
        *(f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS),
        f"manylinux2014_{machine}",
    ]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
