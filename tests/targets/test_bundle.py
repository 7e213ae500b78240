"""Bundles: what is written, what ships with it, and that saving never loses the old one."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import slicewise
from slicewise import BundleError

bundle_module = importlib.import_module("slicewise.targets.lambda.bundle")
RUNTIME = Path(str(bundle_module.__file__)).parent / "runtime"


def files(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def test_a_bundle_holds_a_package_per_function(
    compiled: slicewise.Compiled, tmp_path: Path
) -> None:
    saved = compiled.save(tmp_path / "bundle")
    runtime = {f"slicewise_runtime/{path.name}" for path in RUNTIME.glob("*.py")}

    expected = {
        "plan.json",
        "profile.json",
        "functions.json",
        "README.md",
        "smoke.npz",
        "graph.json",
    }
    expected |= {"template.yaml", "cloudformation.yaml", "layer/Makefile"}
    expected |= {"Dockerfile", ".dockerignore", "image/part.py"}
    expected |= {"layer/requirements.txt", "layer/strip.py"}
    for part in compiled.plan.slices:
        own = {"handler.py", "model.onnx", "model.data"} | runtime
        expected |= {f"functions/{part.name}/{name}" for name in own}
    own = {"handler.py", "manifest.json"} | runtime
    expected |= {f"functions/coordinator/{name}" for name in own}
    assert files(saved.directory) == expected
    assert saved.plan == compiled.plan
    assert slicewise.load(tmp_path / "bundle").plan == compiled.plan
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o755


def test_functions_have_lambda_names_and_the_plans_memory(
    compiled: slicewise.Compiled, tmp_path: Path
) -> None:
    compiled.save(tmp_path)

    entry, functions = bundle_module.read_functions(tmp_path, {"A": "b"})
    assert entry == functions[-1].name == "tied-coordinator"
    assert [f.memory_mb for f in functions[:-1]] == [s.memory_mb for s in compiled.plan.slices]
    for function in functions:
        assert len(function.name) <= 64
        assert (function.package / "handler.py").is_file()
        assert function.environment == {"A": "b"}


def test_a_long_model_name_still_makes_function_names(
    compiled: slicewise.Compiled, tmp_path: Path
) -> None:
    from dataclasses import replace

    from slicewise.codegen.handlers import render
    from slicewise.plan import ModelInfo, Prediction

    for name in ("A" * 200, "___", "Ünï", "3d"):
        model = ModelInfo(name=name, parameters=0, weight_bytes=0)
        plan = replace(compiled.plan, model=model, slices=(), edges=(), prediction=Prediction())
        directory = tmp_path / name[:5]
        directory.mkdir()
        profile = importlib.import_module("slicewise.targets.lambda.profile").default_profile()
        bundle_module.write_bundle(plan, render(plan), profile, tmp_path, directory)
        entry, _ = bundle_module.read_functions(directory, {})
        assert len(entry) <= 64
        assert entry.endswith("-coordinator")


def test_the_runtime_imports_only_what_ships() -> None:
    allowed = {"numpy", "onnxruntime", "boto3", "botocore", "pybase64", "__future__"} | set(
        sys.stdlib_module_names
    )
    for path in RUNTIME.glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1, f"{path.name} reaches out of the runtime"
            # Encrypted bundles have cryptography, and only functions of seal.py import it; of what calls
            # the handlers, awslambdaric, only a function of messages.py knows.
            also = {"seal.py": {"cryptography"}, "messages.py": {"awslambdaric"}}
            more = also.get(path.name, set()) if node not in tree.body else set()
            assert {name.split(".")[0] for name in names} <= allowed | more, path.name


def test_saving_twice_replaces_the_bundle(compiled: slicewise.Compiled, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    compiled.save(target)
    (target / "functions" / "left-over").mkdir()

    compiled.save(target)

    assert not (target / "functions" / "left-over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_empty_directory_and_a_link_to_one_are_taken(
    compiled: slicewise.Compiled, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")

    compiled.save(tmp_path / "link")
    compiled.save(tmp_path / "link")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "plan.json").is_file()


def test_the_working_directory_is_taken(
    compiled: slicewise.Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    assert compiled.save(".").directory == tmp_path / "here"


@pytest.mark.parametrize(
    "content",
    [
        {"notes.txt": "mine"},
        {"plan.json": '{"resource_changes": []}', "main.tf": ""},
        {"plan.json": "[]"},
        {"plan.json": "not json"},
    ],
)
def test_a_directory_that_is_no_bundle_is_never_touched(
    content: dict[str, str], compiled: slicewise.Compiled, tmp_path: Path
) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)

    with pytest.raises(BundleError, match="exists and is no bundle"):
        compiled.save(tmp_path)
    assert files(tmp_path) == set(content)


def test_a_file_is_no_directory(compiled: slicewise.Compiled, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    with pytest.raises(BundleError, match="exists and is no bundle"):
        compiled.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_overwrite_false_keeps_the_old_bundle(compiled: slicewise.Compiled, tmp_path: Path) -> None:
    compiled.save(tmp_path / "bundle", overwrite=False)

    with pytest.raises(BundleError, match="is a bundle and overwrite=False"):
        compiled.save(tmp_path / "bundle", overwrite=False)


@pytest.mark.parametrize("step", ["write_text", "rename"])
def test_a_failure_half_way_leaves_the_old_bundle(
    step: str, compiled: slicewise.Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled.save(tmp_path / "bundle")
    before = files(tmp_path)
    real = getattr(Path, step)

    def full(self: Path, *args: Any) -> Any:
        moves_in = args == (tmp_path / "bundle",) and "-old" not in self.name
        if self.name == "functions.json" or moves_in:
            raise OSError("No space left on device")
        return real(self, *args)

    monkeypatch.setattr(Path, step, full)
    with pytest.raises(OSError, match="No space left"):
        compiled.save(tmp_path / "bundle")

    assert files(tmp_path) == before
    assert slicewise.load(tmp_path / "bundle").plan == compiled.plan


def test_weights_are_not_copied_when_they_can_be_linked(
    compiled: slicewise.Compiled, tmp_path: Path
) -> None:
    compiled.save(tmp_path)

    (first, *_) = compiled.plan.slices
    weights = tmp_path / "functions" / first.name / "model.data"
    assert weights.stat().st_size <= first.weight_bytes + 4096
    assert os.access(weights, os.R_OK)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"entry": "x", "functions": [{}]}', "3"])
def test_a_damaged_functions_json_is_a_bundle_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "functions.json").write_text(text)

    with pytest.raises(BundleError, match=r"no complete bundle.*Compiled\.save"):
        bundle_module.read_functions(tmp_path, {})


def test_a_missing_bundle_is_a_bundle_error(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match=r"holds no plan\.json"):
            slicewise.load(directory)
        with pytest.raises(BundleError):
            bundle_module.read_functions(directory, {})


def test_the_manifest_is_what_the_coordinator_reads(
    compiled: slicewise.Compiled, tmp_path: Path
) -> None:
    compiled.save(tmp_path)
    manifest = json.loads((tmp_path / "functions" / "coordinator" / "manifest.json").read_text())

    assert [spec["name"] for spec in manifest["inputs"]] == ["tokens"]
    assert [spec["name"] for spec in manifest["outputs"]] == ["output_0", "output_1"]
    assert manifest["stack"] == "tied"
    assert [part["name"] for stage in manifest["stages"] for part in stage] == [
        part.name for stage in compiled.plan.stages for part in stage
    ]


NET = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))
"""
MEASURED = {"plan.json", "graph.json", "README.md"}  # they tell seconds and milliseconds


def test_bundles_do_not_tell_the_folder_that_they_were_made_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of one model, whose code lies in two folders, are byte for byte the same."""
    directories = []
    for name in ("one", "two"):
        source = tmp_path / name / "net.py"
        source.parent.mkdir()
        source.write_text(NET)
        spec = importlib.util.spec_from_file_location("net", source)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.chdir(source.parent)
        torch.manual_seed(0)
        limits = slicewise.Limits(weight_bytes=20_000)
        compiled = slicewise.compile(module.Net().eval(), (torch.ones(1, 64),), limits=limits)
        directories.append(compiled.save(source.parent / "bundle").directory)

    one, two = directories
    assert files(one) == files(two)
    different = {
        name for name in files(one) if (one / name).read_bytes() != (two / name).read_bytes()
    }
    assert different <= MEASURED
    telling = [name for name in files(one) if str(tmp_path).encode() in (one / name).read_bytes()]
    assert telling == []
    sources = {op.source for op in slicewise.load(one).detail.graph.ops}
    assert "net.py:11 (forward)" in sources
