"""The image: its Dockerfile parsed, and its steps carried out in a directory, for want of an engine."""

from __future__ import annotations

import fnmatch
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

import slicewise

compiled_module = importlib.import_module("slicewise.targets.lambda.packaging.compiled")
wheels = importlib.import_module("slicewise.targets.lambda.packaging.wheels")
FROM_BASE = ("boto3", "botocore", "s3transfer", "jmespath", "python-dateutil", "six", "urllib3")
CALL = "import sys, part; sys.stdout.buffer.write(part.handler({'tensors': {}, 'plan': '?'}, None))"


@pytest.fixture
def bundle(compiled: slicewise.Compiled, tmp_path: Path) -> slicewise.Bundle:
    return compiled.save(tmp_path / "bundle")


def steps(directory: Path) -> list[dict[str, str]]:
    parser = DockerfileParser(str(directory / "Dockerfile"))
    return [step for step in parser.structure if step["instruction"] != "COMMENT"]


def test_the_dockerfile_has_two_stages_of_a_base_without_default(
    bundle: slicewise.Bundle,
) -> None:
    found = [(step["instruction"], step["value"]) for step in steps(bundle.directory)]

    assert found[:2] == [("ARG", "BASE"), ("FROM", "${BASE} AS build")]
    assert [value for name, value in found if name == "FROM"] == ["${BASE} AS build", "${BASE}"]
    assert found[-1] == ("CMD", '["part.handler"]')
    text = (bundle.directory / "Dockerfile").read_text()
    assert "slice0, slice1, slice2, coordinator" in text
    assert re.findall(r"[a-z]\.(com|io|aws|org)\b", text) == []


def test_the_context_holds_what_is_copied_and_no_more(bundle: slicewise.Bundle) -> None:
    lines = (bundle.directory / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        step["value"].split()[0].rstrip("/")
        for step in steps(bundle.directory)
        if step["instruction"] == "COPY" and "--from" not in step["value"]
    }

    assert "*" in lines
    assert copied == kept
    assert all((bundle.directory / name).is_dir() for name in kept)


def carry_out(bundle: Path, scratch: Path, python: Path) -> Path:
    """The steps of the Dockerfile, with `scratch` as the root directory; /var/task in it."""
    (scratch / "bin").mkdir(parents=True)
    (scratch / "bin" / "python3").symlink_to(python)
    environment = {
        "PATH": f"{scratch / 'bin'}:{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels.wheel_cache()),
    }
    work = scratch
    for step in steps(bundle):
        value = step["value"].replace("${LAMBDA_TASK_ROOT}", "/var/task")
        match step["instruction"]:
            case "WORKDIR":
                work = scratch / value.strip("/")
                work.mkdir(parents=True, exist_ok=True)
            case "RUN":
                done = subprocess.run(
                    ["/bin/sh", "-c", value],
                    cwd=work, env=environment, capture_output=True, text=True,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr
            case "COPY":
                *options, source, destination = shlex.split(value)
                root = scratch if options else bundle
                to = scratch / destination.strip("/") if options else work / destination
                ignored = shutil.ignore_patterns("__pycache__") if not options else None
                shutil.copytree(root / source.strip("/"), to, ignore=ignored, dirs_exist_ok=True)
            case other:
                assert other in ("ARG", "FROM", "CMD")
    return scratch / "var" / "task"


@pytest.fixture
def base_packages(tmp_path: Path) -> Path:
    """boto3, which AWS's base image has: pure Python, so this environment's will do."""
    folder = tmp_path / "base"
    folder.mkdir()
    for name in FROM_BASE:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.suffix == ".py"} - {".."}:
            (folder / top).symlink_to(Path(str(found.locate_file(top))))
    return folder


def test_one_image_runs_every_part(
    bundle: slicewise.Bundle, tmp_path: Path, base_packages: Path
) -> None:
    interpreter: Any = compiled_module.find_interpreter("3.13")
    if interpreter is None or os.uname().machine != "x86_64":
        pytest.skip("no CPython 3.13 on x86_64 here")
    wheels.runtime_wheels("3.13", "x86_64")  # into the cache

    task = carry_out(bundle.directory, tmp_path / "root", interpreter.path)

    names = [str(path.relative_to(task)) for path in task.rglob("*")]
    assert not fnmatch.filter(names, "*libonnxruntime.so*")
    assert fnmatch.filter(names, "functions/slice0/__pycache__/handler.*.pyc")
    for part in (*(part.name for part in bundle.plan.slices), "coordinator", "nobody"):
        done = subprocess.run(
            [interpreter.path, "-S", "-c", CALL],
            env={
                "PYTHONPATH": f"{task}:{base_packages}",
                "SLICEWISE_PART": part,
                "AWS_DEFAULT_REGION": "us-east-1",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            text=True,
        )
        if part == "nobody":
            assert "SLICEWISE_PART is 'nobody'; set it to one of slice0" in done.stderr
        elif part == "coordinator":
            assert "aws_request_id" in done.stderr  # its handler was reached, with no context
        else:
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout.splitlines()[-1])["error"]["slice"] == part
