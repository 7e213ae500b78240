"""Wheels: for the functions' platform, checked by hash, from the cache whenever it has them.

A tiny wheel of our own stands for the runtime; pip is the real one, asked for nothing but a folder.
"""

from __future__ import annotations

import hashlib
import importlib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from slicewise.errors import TargetError

wheels = importlib.import_module("slicewise.targets.lambda.packaging.wheels")
TAGS = {
    "x86_64": "cp313-cp313-manylinux_2_27_x86_64.manylinux_2_28_x86_64",
    "arm64": "cp313-cp313-manylinux2014_aarch64",
}


def write_wheel(folder: Path, tag: str, text: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"tiny_one-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_one.py", f"# {tag} {text}")
        wheel.writestr("tiny_one-1.0.dist-info/METADATA", "Name: tiny-one\nVersion: 1.0\n")
        wheel.writestr("tiny_one-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        wheel.writestr("tiny_one-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from, and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    for tag in TAGS.values():
        write_wheel(tmp_path / "index", tag)
    return tmp_path / "index"


@pytest.fixture
def options(index: Path, tmp_path: Path) -> dict[str, Any]:
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in index.iterdir()]
    lines = [f"    --hash=sha256:{each}" for each in sorted(hashes)]
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# comment\n" + " \\\n".join(["tiny-one==1.0", *lines]) + "\n")
    return {"requirements": requirements, "cache": tmp_path / "cache"}


@pytest.mark.parametrize("architecture", ["x86_64", "arm64"])
def test_wheels_are_those_of_the_functions_platform(
    architecture: str, options: dict[str, Any]
) -> None:
    (found,) = wheels.runtime_wheels("3.13", architecture, **options)

    assert found.name == f"tiny_one-1.0-{TAGS[architecture]}.whl"


def test_a_full_cache_needs_no_index(index: Path, options: dict[str, Any]) -> None:
    first = wheels.runtime_wheels("3.13", "x86_64", **options)
    for path in index.iterdir():
        path.unlink()

    assert wheels.runtime_wheels("3.13", "x86_64", **options) == first
    with pytest.raises(TargetError, match=r"no wheel of tiny-one 1\.0 for Python 3\.13 on arm64"):
        wheels.runtime_wheels("3.13", "arm64", **options)
    with pytest.raises(TargetError, match=r"Python 3\.12 on x86_64.*SLICEWISE_WHEELS"):
        wheels.runtime_wheels("3.12", "x86_64", **options)


def test_the_cache_is_where_the_variable_says(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLICEWISE_WHEELS", str(tmp_path / "elsewhere"))
    del options["cache"]

    (found,) = wheels.runtime_wheels("3.13", "x86_64", **options)

    assert found.parent == tmp_path / "elsewhere"


def test_a_damaged_wheel_is_got_again(options: dict[str, Any]) -> None:
    (found,) = wheels.runtime_wheels("3.13", "x86_64", **options)
    right = found.read_bytes()
    found.write_bytes(right[:-1] + b"x")

    assert wheels.runtime_wheels("3.13", "x86_64", **options) == (found,)
    assert found.read_bytes() == right


def test_a_wheel_with_another_hash_is_refused(index: Path, options: dict[str, Any]) -> None:
    write_wheel(index, TAGS["x86_64"], "someone else's")

    with pytest.raises(TargetError, match="HASH"):
        wheels.runtime_wheels("3.13", "x86_64", **options)


def test_requirements_without_hashes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("numpy==2.5.5\n")

    with pytest.raises(TargetError, match="without a hash"):
        wheels.read_requirements(path)


def test_what_ships_is_locked_for_every_platform() -> None:
    locked = wheels.read_requirements(wheels.REQUIREMENTS)

    assert [each.name for each in locked] == ["numpy", "onnxruntime", "pybase64"]
    assert {len(each.hashes) for each in locked} == {4}  # two Pythons, two architectures
