"""README.md of a bundle: what it says is so."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from slicewise.plan import Prediction

readme = importlib.import_module("slicewise.targets.lambda.infrastructure.readme")
profiles = importlib.import_module("slicewise.targets.lambda.profile")
write = importlib.import_module("slicewise.targets.lambda.infrastructure.write")
BUNDLES = ["one", "five", "express"]


@pytest.fixture(params=BUNDLES)
def made(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


STRIP = Path(__file__).parents[3] / "targets" / "lambda" / "packaging" / "strip.py"


def text_of(made: Any) -> str:
    return str((made.directory / "README.md").read_text())


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_it_shows_the_plan_and_names_every_file_of_the_bundle(made: Any) -> None:
    text = text_of(made)

    assert str(made.plan) in text
    names = {path.name for path in made.directory.iterdir()} - {"README.md"}
    assert {name for name in names if f"`{name}" not in text} == set()


def test_its_costs_add_up_to_the_plans(five: Any) -> None:
    profile = profiles.default_profile()
    rows = readme.costs(five.plan, five.stack, profile)

    assert [row.name for row in rows] == [f.part for f in five.stack.functions]
    total = five.plan.prediction.cost_per_million_usd
    assert sum(row.usd for row in rows) == pytest.approx(total)
    own = rows[-1]
    gb_s = own.billed_ms / 1000 * own.memory_mb / 1024
    assert own.usd == pytest.approx(1e6 * (gb_s * profile.gb_s_usd + profile.prices.request_usd))
    for row in rows:
        assert f"| {row.name} | {row.memory_mb:,} MB | {row.billed_ms:,.1f} ms" in text_of(five)
    assert f"**${total:,.2f}**" in text_of(five)


def test_what_is_kept_ready_costs_by_the_price_list(one: Any) -> None:
    """1,769 MB and 512 MB for a month of 730 hours, by hand."""
    provisioned, cache, restore = readme.kept(one.stack, profiles.default_profile())
    gb = (1769 + 512) / 1024

    assert provisioned.usd == pytest.approx(gb * 4.1667e-6 * 2_628_000)
    assert cache.usd == pytest.approx(gb * 1.5046e-6 * 2_628_000)
    assert restore.usd == pytest.approx(gb * 1.397998e-4 * 1e6)
    assert f"${provisioned.usd:,.2f} a month" in text_of(one)
    assert "6 alarms (`Alarms=off`: none) | $0.60 a month" in text_of(one)


def test_without_a_prediction_it_says_so(five: Any) -> None:
    plan = replace(five.plan, prediction=Prediction())

    assert "The plan has no prediction" in readme.readme_text(
        plan, five.stack, profiles.default_profile()
    )


def test_its_commands_are_shell_and_name_the_templates_parameters(made: Any) -> None:
    text = text_of(made)
    for block in blocks(text, "sh"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)

    plain = made.template("cloudformation.yaml")
    for name in plain["Parameters"]:
        assert name in text, name
    pairs = re.search(r"for pair in (.*); do", text)
    assert pairs is not None
    keys = {pair.split("=")[1] for pair in pairs[1].split()}
    assert keys == {name for name in plain["Parameters"] if name.endswith("Key")}
    for output in re.findall(r"OutputKey=='(\w+)'", text):
        assert output in plain["Outputs"]


def test_its_table_of_parameters_has_the_defaults(made: Any) -> None:
    text = text_of(made)

    for name, parameter in made.template("template.yaml")["Parameters"].items():
        default = parameter.get("Default", "")
        shown = f"`{default}`" if default != "" else "none"
        assert f"| `{name}` | {shown} |" in text


def test_its_programs_are_python_for_every_dtype(five: Any) -> None:
    spec = five.plan.inputs[0]
    dtypes = ("bool", "int64", "uint8", "float32", "float16", "bfloat16")
    inputs = tuple(replace(spec, name=f"x{dtype}", dtype=dtype) for dtype in dtypes)
    outputs = tuple(replace(out, dtype="bfloat16") for out in five.plan.outputs)
    plan = replace(five.plan, inputs=inputs, outputs=outputs)

    (program,) = blocks(readme.readme_text(plan, five.stack, profiles.default_profile()), "python")
    compile(program, "README.md", "exec")
    up_to_request = program.split("Path(")[0].replace("import boto3\n", "")
    found: dict[str, Any] = {}
    exec(up_to_request, found)
    sent = found["request"]["inputs"]
    assert [tensor["dtype"] for tensor in sent.values()] == list(dtypes)
    assert all(tensor["shape"] == [2, 6] for tensor in sent.values())


LOCKED = """\
pybase64==1.5.1 --hash=sha256:c7b14c5ec14c8c3aceb161afbcbf75d6239a3bea1f86c2b13991487871dbc542
"""


@pytest.mark.slow
def test_its_layer_is_built_by_make(five: Any, tmp_path: Path) -> None:
    """With the wheel of the target, whichever machine and Python this is."""
    layer = tmp_path / "layer"
    layer.mkdir()
    (layer / "Makefile").write_text((five.directory / "layer" / "Makefile").read_text())
    (layer / "strip.py").write_text(STRIP.read_text())
    (layer / "requirements.txt").write_text(LOCKED)
    built = tmp_path / "built"

    command = ["make", "-C", str(layer), f"PYTHON={sys.executable}", f"ARTIFACTS_DIR={built}"]
    subprocess.run([*command, "build-RuntimeLayer"], check=True)

    assert {path.name for path in built.iterdir()} == {"python"}
    names = {path.name for path in built.rglob("*") if path.is_file()}
    assert any(name.endswith("cpython-313-x86_64-linux-gnu.so") for name in names)
    assert any(name.endswith(".pyc") for name in names)
    assert not any(name.endswith(".pyi") for name in names)


def test_arm_gets_the_wheels_of_arm(make: Any) -> None:
    made = make(1, "payload")
    stack = replace(made.stack, architecture="arm64", python="3.12")
    write.write_infrastructure(made.directory, made.plan, profiles.default_profile(), stack=stack)

    makefile = (made.directory / "layer" / "Makefile").read_text()
    assert "manylinux_2_28_aarch64" in makefile
    assert "x86_64" not in makefile
    assert "--python-version 3.12" in makefile
    template = yaml.safe_load((made.directory / "template.yaml").read_text())
    assert template["Resources"]["Slice0"]["Properties"]["Architectures"] == ["arm64"]
    assert "python3.12" in json.dumps(template)
