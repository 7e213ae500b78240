"""The documentation says what is so."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from slicewise.cli import cli

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["partitioner.md", "planning.md", "serving.md"])
def test_the_example_prints_what_its_page_says(name: str) -> None:
    page = (ROOT / "docs" / name).read_text()
    found = re.search(r"```python\n(.*?)```\s*```\n(.*?)```", page, re.DOTALL)
    assert found is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(found.group(1), {})

    assert found.group(2) == printed.getvalue()


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
    every = SimpleNamespace(transports=("s3", "s3express"), definition="{}")

    for name in parameters.parameters(every, "a-name"):
        assert f"`{name}`" in table
