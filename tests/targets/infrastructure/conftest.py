"""Bundles with any number of slices and any transports, made without compiling."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import slicewise
from slicewise.codegen.handlers import render
from slicewise.plan import Plan

bundle = importlib.import_module("slicewise.targets.lambda.bundle")
resources = importlib.import_module("slicewise.targets.lambda.resources")
profiles = importlib.import_module("slicewise.targets.lambda.profile")


@dataclass(frozen=True)
class Made:
    """A bundle on disk, its plan and its stack."""

    directory: Path
    plan: Plan
    stack: Any

    def template(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((self.directory / name).read_text())
        return found


def plan_of(model: Plan, count: int, transports: tuple[str, ...]) -> Plan:
    """A chain of `count` slices: the first slice of a real plan, again and again."""
    first = model.slices[0]
    names = [f"slice{index}" for index in range(count)]
    slices = tuple(
        replace(
            first,
            name=name,
            stage=index,
            inputs=(f"t{index}",),
            outputs=(f"t{index + 1}",),
            onnx=f"functions/{name}/model.onnx",
        )
        for index, name in enumerate(names)
    )
    ends = ["@input", *names, "@output"]
    edges = tuple(
        replace(model.edges[0], tensor=f"t{index}", producer=ends[index], consumer=ends[index + 1])
        for index in range(count + 1)
    )
    parts = tuple(replace(model.prediction.slices[0], name=name) for name in names)
    return replace(
        model,
        slices=slices,
        edges=edges,
        prediction=replace(model.prediction, slices=parts),
        transport_rule=replace(model.transport_rule, transports=transports),
    )


@pytest.fixture(scope="session")
def make(
    compiled: slicewise.Compiled, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Made]:
    """Writes a bundle as `Compiled.save` does, with weights of a few bytes."""

    def make(
        count: int,
        *transports: str,
        orchestration: str = "coordinator",
        encrypt: str | None = None,
    ) -> Made:
        plan = plan_of(compiled.plan, count, transports)
        if orchestration != "coordinator":  # where inputs are looked up by name
            inputs = tuple(replace(spec, name="t0", tensor="t0") for spec in plan.inputs[:1])
            plan = replace(plan, orchestration=orchestration, inputs=inputs)
        slices = tmp_path_factory.mktemp("slices")
        for part in plan.slices:
            (slices / part.name).mkdir()
            (slices / part.name / "model.onnx").write_text(f"the model of {part.name}")
        directory = tmp_path_factory.mktemp(f"bundle-of-{count}")
        profile = profiles.default_profile()
        bundle.write_bundle(plan, render(plan), profile, slices, directory, encrypt)
        plan = slicewise.load(directory).plan
        return Made(directory, plan, resources.stack_of(directory, plan))

    return make


@pytest.fixture(scope="session")
def one(make: Callable[..., Made]) -> Made:
    """One slice, tensors only in messages."""
    return make(1, "payload")


@pytest.fixture(scope="session")
def five(make: Callable[..., Made]) -> Made:
    """Five slices, tensors in messages and in S3."""
    return make(5, "payload", "s3")


@pytest.fixture(scope="session")
def express(make: Callable[..., Made]) -> Made:
    """Two slices, tensors in messages and in both kinds of buckets."""
    return make(2, "payload", "s3", "s3express")


@pytest.fixture(scope="session")
def sealed(make: Callable[..., Made]) -> Made:
    """Two encrypted slices, whose key is a parameter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLICEWISE_KEY", "A" * 43 + "=")
        return make(2, "payload", "s3", encrypt="env")


@pytest.fixture(scope="session")
def chained(make: Callable[..., Made]) -> Made:
    """Three slices, each of which calls the next."""
    return make(3, "payload", "s3", orchestration="chain")


@pytest.fixture(scope="session")
def stepped(make: Callable[..., Made]) -> Made:
    """Three slices that a state machine calls."""
    return make(3, "s3", orchestration="stepfunctions")
