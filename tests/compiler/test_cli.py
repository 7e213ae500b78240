"""The command line: exit codes 0, 1 and 2, and one message instead of a traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from console import call

import slicewise
from slicewise import arrays, cli
from slicewise.plan import Plan

FACTORIES = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Settings:
    width: int = 4

number = 3

def model():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    return model, (torch.ones(2, 4),)

def dynamic():
    batch = torch.export.Dim("batch", min=1, max=8)
    return *model(), ({0: batch},)

def training():
    return nn.Linear(4, 4), (torch.ones(2, 4),)

def needs(width):
    return None

def bare():
    return nn.Linear(4, 4).eval()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "factories.py").write_text(FACTORIES)
    (tmp_path / "broken.py").write_text("import no_such_module")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "factories", raising=False)
    return tmp_path


def test_compile_then_inspect(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(
        capsys, "compile", "factories.py:dynamic", "-o", "bundle", "--weight-mb", "0.0001",
        "--max-slices", "2", "--transport", "payload",
    )  # fmt: skip
    assert (code, "Wrote bundle. Next: slicewise serve bundle" in out) == (0, True), err
    assert "verifying against the original model" in err
    assert "float32[batch, 4]" in out
    assert max(map(len, out.splitlines())) <= 100

    code, shown, _ = call(capsys, "inspect", "bundle")
    assert code == 0
    assert shown.strip() == out.split("\nWrote")[0].strip()

    code, text, _ = call(capsys, "inspect", "bundle", "--json")
    plan = Plan.from_json(text)
    assert (code, plan) == (0, slicewise.load("bundle").plan)
    assert len(plan.slices) == 2
    assert plan.transport_rule.transports == ("payload",)


def test_what_travels_smaller_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(
        capsys, "compile", "factories.py:model", "-o", "bundle", "--weight-mb", "0.0001",
        "--wire-dtype", "float16", "--compress",
    )  # fmt: skip

    assert code == 0
    assert "note: float32 travels as float16 between slices: output differs" in err
    assert "16 bytes cross between slices" in out
    assert "float16" in out
    rule = slicewise.load("bundle").plan.transport_rule
    assert (rule.wire_dtype, rule.compression) == ("float16", "zlib")


def test_compile_encrypts(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLICEWISE_KEY", "A" * 43 + "=")
    code, out, _ = call(capsys, "compile", "factories.py:model", "-o", "bundle", "--encrypt", "env")

    assert code == 0
    assert "Encrypted: models, and tensors in S3; the key is that of SLICEWISE_KEY." in out
    plan = slicewise.load("bundle").plan
    assert plan.encryption is not None
    assert Plan.from_json(plan.to_json()) == plan
    monkeypatch.delenv("SLICEWISE_KEY")
    code, _, err = call(capsys, "compile", "factories.py:model", "-o", "other", "--encrypt", "env")
    assert (code, "openssl rand -base64 32" in err) == (1, True)


def test_compile_prints_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(
        capsys, "compile", "factories:model", "-o", "bundle", "--packaging", "image", "--json"
    )

    assert code == 0
    assert {part["packaging"] for part in json.loads(out)["slices"]} == {"image"}
    assert json.loads(out)["model"]["name"] == "Sequential"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["compile", "factories:training", "-o", "b"], "Call model.eval() first"),
        (["compile", "factories:bare", "-o", "b"], "pass example_inputs"),
        (["compile", "factories:number_of_things", "-o", "b", "--memory-mb", "64"], None),
        (["compile", "factories:model", "-o", "b", "--memory-mb", "64"], "Use at least 128"),
        (["compile", "factories:model", "-o", "b", "--memory-mb", "0"], "positive whole number"),
        (["compile", "factories:model", "-o", "b", "--target", "moon"], "known targets: lambda"),
        (["compile", "factories:model", "-o", "b", "--transport", "ftp"], "payload, s3"),
        (["compile", "factories:model", "-o", "b", "--packaging", "tar"], "zip, image, s3-weights"),
        (["compile", "factories:model", "-o", "b", "--weight-mb", "0.00001"], "weight"),
        (["compile", "factories:model", "-o", "b", "--wire-dtype", "int8"], "one of float16"),
        (["inspect", "nowhere"], "holds no plan.json"),
        (["serve", "nowhere"], "holds no plan.json"),
    ],
)
def test_a_refusal_is_one_message_and_exit_code_1(
    args: list[str], text: str | None, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, *args)

    assert "Traceback" not in err
    assert out == ""
    if text is None:
        assert code == 2
    else:
        assert code == 1
        assert "error: " in err
        assert text in err


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "Usage"),
        (["fly"], "No such command 'fly'"),
        (["compile", "factories:model"], "Missing option '-o'"),
        (["compile", "factories:model", "-o", "b", "--memory-mb", "x"], "not a valid integer"),
        (["compile", "model", "-o", "b"], "is not MODULE:FACTORY"),
        (["compile", ":model", "-o", "b"], "is not MODULE:FACTORY"),
        (["compile", "factories:", "-o", "b"], "is not MODULE:FACTORY"),
        (["compile", "no_such:model", "-o", "b"], "No module named 'no_such'"),
        (["compile", "no_such.py:model", "-o", "b"], "No such file"),
        (["compile", "broken.py:model", "-o", "b"], "No module named 'no_such_module'"),
        (["compile", "factories:missing", "-o", "b"], "no attribute 'missing'"),
        (["compile", "factories:number", "-o", "b"], "is a int, not a function"),
        (["compile", "factories.py:needs", "-o", "b"], "must take no arguments"),
        (["run", "nowhere", "--input", "no.npz"], "cannot read no.npz"),
        (["run", "nowhere", "--input", "factories.py"], "cannot read factories.py"),
        (["run", "nowhere"], "Missing option '--input'"),
    ],
)
def test_a_usage_error_is_exit_code_2(
    args: list[str], text: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, *args)

    assert code == 2
    assert text in " ".join((out + err).split())
    assert "Traceback" not in err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")

    assert code == 0
    for name in cli.cli.commands:
        assert name in out
        assert call(capsys, name, "--help")[0] == 0
    assert call(capsys, "--version")[0] == 0


def test_nested_outputs_are_named_by_their_paths() -> None:
    output: Any = {"a": [1, {"b": 2}], "none": None}

    assert {name: int(v) for name, v in arrays.named_arrays(output).items()} == {
        "a.0": 1,
        "a.1.b": 2,
    }
    assert list(arrays.named_arrays((1, 2))) == ["output_0", "output_1"]
    assert list(arrays.named_arrays(3)) == ["output"]


def test_a_place_that_cannot_hold_a_bundle_is_refused_before_any_work(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("keep me")
    (here / "file").write_text("")

    for place, text in (("mine", "is no bundle"), ("file/below", "is no directory")):
        # The factory would be refused too, but is not even looked for.
        code, _, err = call(capsys, "compile", "no_such_module:model", "-o", place)
        assert code == 1
        assert text in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["local", "--bucket", "b"], "--bucket is an option of aws, not of local"),
        (["aws", "--bucket", "b"], "aws needs --role and --bucket"),
        (["aws", "--role", "r", "--bucket", "b", "--network", "aws"], "--network emulates"),
        (["mars"], "'mars' is not one of 'local', 'aws'"),
    ],
)
def test_calibrate_refuses_options_that_do_not_belong(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli.cli, ["calibrate", *arguments, "-o", "profile.toml"])

    assert result.exit_code == 2
    assert message in result.output


def test_calibrate_hands_its_options_to_the_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[Any] = []

    class Target:
        def calibrate(self, where: str, output: Path, **options: Any) -> str:
            given.append((where, output, {**options, "progress": None}))
            return "tables"

    monkeypatch.setattr("slicewise.targets.load", lambda _: Target())
    output = tmp_path / "profile.toml"
    result = CliRunner().invoke(
        cli.cli, ["calibrate", "local", "-o", str(output), "--network", "aws", "--seconds", "5"]
    )

    assert result.output == f"tables\nWrote {output}\n"
    assert given == [
        (
            "local",
            output,
            {"plot": None, "seconds": 5.0, "progress": None, "network": "aws", "network_seed": 0},
        )
    ]
