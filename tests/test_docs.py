"""The documentation says what is so."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest

import slicewise
from slicewise import errors
from slicewise.cli import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.mark.parametrize(
    "name",
    ["index.md", "parallel.md", "partitioner.md", "planning.md", "serving.md", "transports.md"],
)
def test_the_example_prints_what_its_page_says(name: str) -> None:
    page = (ROOT / "docs" / name).read_text()
    found = re.search(r"```python\n(.*?)```\s*```\n(.*?)```", page, re.DOTALL)
    assert found is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(found.group(1), {})

    assert found.group(2) == printed.getvalue()


def test_the_examples_for_notebooks_run(
    compiled: slicewise.Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", (DOCS / "inspecting.md").read_text(), re.DOTALL)

    with contextlib.redirect_stdout(io.StringIO()):
        exec(program, {"compiled": compiled})

    assert (tmp_path / "report.html").exists()


def test_every_option_of_inspect_is_told_of() -> None:
    page = (DOCS / "inspecting.md").read_text()
    for parameter in cli.commands["inspect"].params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in page


def test_every_error_has_its_fix() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.SlicewiseError):
            assert re.search(rf"^(## |\*\*)`{name}`", page, re.MULTILINE), name


def test_limits_and_prices_are_the_profiles() -> None:
    page = (DOCS / "limits.md").read_text()
    profile = importlib.import_module("slicewise.targets.lambda.profile").default_profile()
    limits, prices = profile.limits, profile.prices
    for number in (
        limits.memory_mb_min, limits.memory_mb_max, limits.memory_mb_default, limits.image_mb_max,
        limits.package_mb_max, limits.payload_bytes_max, limits.timeout_s, profile.cpu.mb_per_vcpu,
    ):  # fmt: skip
        assert re.search(rf"\b{number:,.0f}\b", page), number
    stores = [profile.s3, profile.s3express]
    for number in (
        prices.request_usd, profile.gb_s_usd, *(s.put_usd for s in stores),
        *(s.get_usd for s in stores), profile.s3express.upload_gb_usd,
        profile.s3express.retrieval_gb_usd,
    ):  # fmt: skip
        assert re.search(rf"\b{re.escape(np.format_float_positional(number))}\b", page), number


def test_every_page_is_in_the_menu_and_every_link_leads_somewhere() -> None:
    menu = (ROOT / "mkdocs.yml").read_text()
    for page in DOCS.glob("*.md"):
        assert f": {page.name}\n" in menu
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert link.startswith("http") or (DOCS / link).exists(), (page.name, link)


@pytest.mark.slow
def test_the_site_is_built(tmp_path: Path) -> None:
    """Strictly: no page missing, no name of the API unknown."""
    pytest.importorskip("mkdocs")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(tmp_path / "site")],
        cwd=ROOT, check=True,
    )  # fmt: skip

    reference = (tmp_path / "site" / "reference.html").read_text()
    for name in ("compile", "frontier", "Compiled", "Bundle", "InfeasibleError"):
        assert name in reference


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in cli.commands:
        assert f"slicewise {command}" in readme


def test_the_readme_opens_with_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.index("make demo") < readme.index("make test") < readme.index("## Use")


def test_the_page_on_deploying_names_every_parameter_of_the_templates() -> None:
    parameters = importlib.import_module("slicewise.targets.lambda.infrastructure.parameters")
    page = (ROOT / "docs" / "deploying.md").read_text()
    table = page[page.index("### Options") : page.index("### Updates")]
    for definition in ("", "{}"):  # without and with a state machine
        every = SimpleNamespace(
            transports=("s3", "s3express"),
            definition=definition,
            encryption=SimpleNamespace(key="env"),
        )
        for name in parameters.parameters(every, "a-name"):
            assert f"`{name}`" in table
