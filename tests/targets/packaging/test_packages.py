"""Packages: what is uploaded of a bundle, its sizes, and that equal bundles give equal bytes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from click.testing import CliRunner

import slicewise
from slicewise.errors import BundleError, TargetError

packages_module = importlib.import_module("slicewise.targets.lambda.packaging.packages")
MB = 2**20


@pytest.fixture(scope="module")
def bundle(
    compiled: slicewise.Compiled, tmp_path_factory: pytest.TempPathFactory
) -> slicewise.Bundle:
    return compiled.save(tmp_path_factory.mktemp("packages") / "bundle")


@pytest.fixture(scope="module")
def packages(bundle: slicewise.Bundle) -> Any:
    return bundle.package()


def names(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_every_function_has_a_package_and_all_have_one_layer(
    packages: Any, bundle: slicewise.Bundle
) -> None:
    parts = [*(part.name for part in bundle.plan.slices), "coordinator"]

    dist = bundle.directory / "dist"
    assert {path.name for path in dist.iterdir()} == {
        "layer.zip",
        "packages.json",
        *(f"{part}.zip" for part in parts),
    }
    assert [each.part for each in packages.packages] == parts
    for each in packages.packages:
        folder = bundle.directory / "functions" / each.part
        found = names(each.archive.path)
        assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} <= found
        assert each.with_layer_bytes == each.archive.unzipped_bytes + packages.layer.unzipped_bytes
        assert not each.is_near


def test_what_is_read_is_what_was_made(packages: Any, bundle: slicewise.Bundle) -> None:
    assert packages_module.read_packages(bundle.directory) == packages


def test_packages_that_were_changed_are_not_deployed(
    compiled: slicewise.Compiled, tmp_path: Path
) -> None:
    saved = compiled.save(tmp_path / "bundle")
    with pytest.raises(BundleError, match="Run `slicewise package"):
        packages_module.read_packages(saved.directory)
    saved.package()
    packages_module.write_zip(saved.directory / "dist" / "slice0.zip", {"handler.py": b""})

    with pytest.raises(BundleError, match=r"slice0\.zip has another SHA-256.*slicewise package"):
        packages_module.read_packages(saved.directory)


def test_the_same_model_compiled_twice_gives_the_same_bytes(packages: Any, tmp_path: Path) -> None:
    case = zoo.tied()
    batch = torch.export.Dim("batch", min=1, max=8)
    again = slicewise.compile(
        case.model, case.inputs, limits=case.limits, dynamic_shapes=({0: batch},)
    )
    saved = again.save(tmp_path / "bundle")
    (saved.directory / "functions" / "slice0" / "__pycache__").mkdir()
    (saved.directory / "functions" / "slice0" / "__pycache__" / "handler.pyc").write_text("junk")

    assert saved.package().packages != packages.packages  # their paths differ
    for each, other in zip(saved.package().packages, packages.packages, strict=True):
        assert each.archive.sha256 == other.archive.sha256, each.part
    assert saved.package().layer.sha256 == packages.layer.sha256


@pytest.mark.slow
def test_two_processes_with_other_hash_seeds_give_the_same_bytes(tmp_path: Path) -> None:
    program = (
        "import sys, zoo, slicewise\n"
        "case = zoo.tied()\n"
        "compiled = slicewise.compile(case.model, case.inputs, limits=case.limits, verify=False)\n"
        "print(compiled.save(sys.argv[1]).package().to_json())"
    )
    found = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / seed],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))

    assert found[0] == found[1]


def test_a_package_above_the_limit_names_the_part_and_the_ways_out(
    bundle: slicewise.Bundle, packages: Any
) -> None:
    before = (bundle.directory / "dist" / "packages.json").read_text()
    with pytest.raises(TargetError, match=r"slice0 takes .* more than the limit .*s3-weights"):
        packages_module.package(bundle.directory, bundle.plan, limit_mb=70)

    assert (bundle.directory / "dist" / "packages.json").read_text() == before
    assert not list(bundle.directory.glob(".dist-*"))


def test_a_package_within_one_mb_of_the_limit_is_told(packages: Any) -> None:
    first = packages.packages[0]
    near = replace(first, limit_bytes=first.with_layer_bytes + MB - 1)
    far = replace(first, limit_bytes=first.with_layer_bytes + MB)

    (note,) = replace(packages, packages=(near, far)).notes
    assert "slice0" in note
    assert "within 1 MB" in note


def test_without_an_interpreter_it_says_that_cold_starts_are_slower(packages: Any) -> None:
    (note,) = replace(packages, compiled_by=None).notes

    assert "--python-executable" in note


def test_an_unknown_python_or_architecture_is_refused(bundle: slicewise.Bundle) -> None:
    with pytest.raises(TargetError, match=r"python='3\.11' is not known; choose 3\.12 or 3\.13"):
        bundle.package(python="3.11")
    with pytest.raises(TargetError, match="architecture='mips'"):
        bundle.package(architecture="mips")


def test_the_command_prints_a_table_or_json(bundle: slicewise.Bundle, packages: Any) -> None:
    cli = importlib.import_module("slicewise.cli").cli

    table = CliRunner().invoke(cli, ["package", str(bundle.directory)])
    assert table.exit_code == 0, table.output
    assert "with layer" in table.stdout
    assert "Python 3.13, x86_64" in table.stdout
    for each in packages.packages:
        assert each.part in table.stdout

    as_json = CliRunner().invoke(cli, ["package", str(bundle.directory), "--json"])
    assert json.loads(as_json.stdout) == json.loads(packages.to_json())
