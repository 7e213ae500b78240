"""The package: every folder ships, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import slicewise

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "ortools", "boto3", "networkx")


def test_every_package_is_listed() -> None:
    found = {"slicewise"}
    for top in ("passes", "codegen", "targets"):
        for init in (ROOT / top).rglob("__init__.py"):
            found.add(".".join(("slicewise", *init.parent.relative_to(ROOT).parts)))
    for init in (ROOT / "compiler").glob("*/__init__.py"):
        found.add(f"slicewise.{init.parent.name}")

    assert set(SETUPTOOLS["packages"]) == found
    assert set(SETUPTOOLS["package-dir"]) == found


def test_every_folder_with_modules_is_a_package() -> None:
    for top in ("compiler", "passes", "codegen", "targets"):
        for module in (ROOT / top).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module.parent


def test_every_file_that_is_no_module_is_listed_as_data() -> None:
    for package, folder in SETUPTOOLS["package-dir"].items():
        listed = {
            path
            for pattern in SETUPTOOLS["package-data"].get(package, ())
            for path in (ROOT / folder).glob(pattern)
        }
        data = {
            path
            for path in (ROOT / folder).iterdir()
            if path.is_file() and path.suffix not in (".py", ".pyc")
        }
        assert data <= listed, package
    assert any((ROOT / "codegen" / "templates").iterdir())


@pytest.mark.parametrize(
    "code",
    [
        "import slicewise",
        "import slicewise; slicewise.Limits(memory_mb=512); slicewise.Plan",
        "from click.testing import CliRunner; from slicewise.cli import cli; "
        "assert CliRunner().invoke(cli, ['--help']).exit_code == 0",
        "from click.testing import CliRunner; from slicewise.cli import cli; "
        "assert CliRunner().invoke(cli, ['inspect', 'nowhere']).exit_code == 1",
    ],
)
def test_nothing_heavy_is_imported_early(code: str) -> None:
    check = f"{code}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"

    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)

    allowed = "['onnxruntime']" if "nowhere" in code else "[]"
    assert found.stdout.strip() in ("[]", allowed), found.stderr


def test_every_public_name_can_be_imported() -> None:
    for name in slicewise.__all__:
        assert getattr(slicewise, name) is not None
    assert slicewise.__all__ == sorted(slicewise.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = slicewise.nothing


def test_every_error_is_a_slicewise_error_and_a_builtin() -> None:
    errors = importlib.import_module("slicewise.errors")
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and kind.__module__ == errors.__name__:
            assert issubclass(kind, slicewise.SlicewiseError)
            assert name in slicewise.__all__
            if kind is not slicewise.SlicewiseError:
                assert len(kind.__bases__) == 2
