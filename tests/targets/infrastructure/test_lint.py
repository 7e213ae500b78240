"""What the tools of others say of the templates: cfn-lint, SAM's translator, checkov."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

BUNDLES = ["one", "five", "express", "sealed", "chained", "stepped"]
FORMS = ["template.yaml", "cloudformation.yaml"]
CHECKOV = "checkov==3.3.30"


@pytest.fixture(params=BUNDLES)
def made(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def expanded(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What CloudFormation gets of the SAM template, after `sam deploy` has uploaded its folders."""
    from samtranslator.translator.transform import transform

    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    template = made.template("template.yaml")
    for resource in template["Resources"].values():
        for folder in {"CodeUri", "ContentUri"} & resource.get("Properties", {}).keys():
            resource["Properties"][folder] = "s3://a-bucket/a-key.zip"
    found = transform(template, {"Name": "tied"}, _NoPolicies())
    path = tmp_path / "expanded.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(found))))
    return path


class _NoPolicies:
    """The names of AWS's managed policies, of which the templates use none."""

    def load(self) -> dict[str, str]:
        return {}


def test_cfn_lint_finds_nothing(made: Any, expanded: Path) -> None:
    files = [str(made.directory / form) for form in FORMS]
    found = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), "--template", *files, str(expanded)],
        capture_output=True,
        text=True,
    )

    assert (found.returncode, found.stdout) == (0, "")


def test_sam_expands_to_what_the_plain_form_says(made: Any, expanded: Path) -> None:
    found = yaml.safe_load(expanded.read_text())["Resources"]
    plain = made.template("cloudformation.yaml")["Resources"]
    (layer,) = (name for name in found if name.startswith("RuntimeLayer"))

    def kinds(resources: dict[str, Any]) -> dict[str, str]:
        return {k.replace(layer, "RuntimeLayer"): r["Type"] for k, r in resources.items()}

    assert kinds(found) == kinds(plain)
    for function in made.stack.functions:
        name = function.part.capitalize()
        ours, theirs = (dict(r[name]["Properties"]) for r in (plain, found))
        for settings in (ours, theirs):
            del settings["Code"]
            settings["Tags"] = [tag for tag in settings["Tags"] if tag["Value"] != "SAM"]
        assert theirs.pop("Layers") == [{"Ref": layer}]
        assert ours.pop("Layers") == [{"Ref": "RuntimeLayer"}]
        assert theirs == ours


@pytest.fixture(scope="session")
def checkov() -> Iterator[Path]:
    """checkov in an environment of its own, for it wants older boto3 and networkx than we do.

    It stays in the cache folder for the next time.
    """
    home = Path.home() / ".cache" / "slicewise" / "checkov"
    program = home / "bin" / "checkov"
    if not program.exists():
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        subprocess.run([home / "bin" / "python", "-m", "pip", "install", "-q", CHECKOV], check=True)
    yield program


def findings(checkov: Path, files: list[Path]) -> tuple[set[str], set[str]]:
    """The checks that failed, and those that were suppressed."""
    arguments = [argument for file in files for argument in ("-f", str(file))]
    found = subprocess.run(
        [checkov, *arguments, "--framework", "cloudformation", "--skip-download", "-o", "json"],
        capture_output=True,
        text=True,
    )
    results = json.loads(found.stdout)["results"]
    assert not results["parsing_errors"]
    assert results["passed_checks"]
    return tuple(  # type: ignore[return-value]
        {f"{check['check_id']} {check['resource']}" for check in results[kind]}
        for kind in ("failed_checks", "skipped_checks")
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_checkov_finds_what_is_suppressed_with_a_reason_and_nothing_else(
    express: Any, form: str, checkov: Path, tmp_path: Path
) -> None:
    bare = express.template(form)
    for resource in bare["Resources"].values():
        resource.pop("Metadata", None)
    (tmp_path / form).write_text(yaml.safe_dump(bare))

    failed, suppressed = findings(checkov, [express.directory / form])
    really_failed, _ = findings(checkov, [tmp_path / form])

    assert failed == set()
    assert suppressed == really_failed


@pytest.mark.slow
def test_checkov_finds_nothing_in_what_sam_expands_to(checkov: Path, expanded: Path) -> None:
    failed, suppressed = findings(checkov, [expanded])

    assert failed == set()
    assert suppressed
