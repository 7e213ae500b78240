"""Stacks: names, settings and permissions of what is deployed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

import slicewise
from slicewise.errors import BundleError, TargetError

resources = importlib.import_module("slicewise.targets.lambda.resources")
PLACE = resources.Place(region="eu-west-1", account="123456789012")


@pytest.fixture
def saved(compiled: slicewise.Compiled, tmp_path: Path) -> slicewise.Bundle:
    return compiled.save(tmp_path / "bundle")


def test_a_stack_has_a_function_per_slice_and_the_coordinator(saved: slicewise.Bundle) -> None:
    stack = resources.stack_of(saved.directory, saved.plan)

    names = [part.name for part in saved.plan.slices]
    assert [f.part for f in stack.slices] == names
    assert [f.name for f in stack.functions] == [f"tied-{n}" for n in (*names, "coordinator")]
    assert stack.coordinator.calls == tuple(names)
    assert stack.bucket(PLACE) == "tied-123456789012-eu-west-1"


def test_the_longest_names_still_fit(saved: slicewise.Bundle) -> None:
    stack = resources.stack_of(saved.directory, saved.plan, name="a" * 32)
    place = resources.Place(region="ap-southeast-2", account="123456789012")

    assert all(len(resources.role_name(f, place)) <= 64 for f in stack.functions)
    assert len(stack.bucket(place)) <= 63


def test_a_function_may_do_what_it_does_and_nothing_else(saved: slicewise.Bundle) -> None:
    stack = resources.stack_of(saved.directory, saved.plan)

    def allowed(function: object) -> dict[str, set[str]]:
        statements = resources.policy(stack, function, PLACE)["Statement"]
        return {r: {*s["Action"]} for s in statements for r in s["Resource"]}

    tensors = "arn:aws:s3:::tied-123456789012-eu-west-1/requests/*"
    logs = "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/"
    write_logs = {"logs:CreateLogStream", "logs:PutLogEvents"}
    called = "arn:aws:lambda:eu-west-1:123456789012:function:tied-"
    first = stack.slices[0]
    assert allowed(first) == {
        f"{logs}{first.name}:*": write_logs,
        tensors: {"s3:PutObject", "s3:GetObject"},
    }
    assert allowed(stack.coordinator) == {
        f"{logs}tied-coordinator:*": write_logs,
        tensors: {"s3:PutObject", "s3:GetObject", "s3:DeleteObject"},
        **{f"{called}{f.part}:*": {"lambda:InvokeFunction"} for f in stack.slices},
    }


@pytest.mark.parametrize("name", ["", "Upper", "1st", "ends-", "a" * 33, "with_underscore"])
def test_names_that_aws_refuses_are_refused(saved: slicewise.Bundle, name: str) -> None:
    if name == "":
        assert resources.stack_of(saved.directory, saved.plan, name=name).name == "tied"
        return
    with pytest.raises(TargetError, match="cannot be used"):
        resources.stack_of(saved.directory, saved.plan, name=name)


def test_memory_above_a_standard_functions_is_refused(saved: slicewise.Bundle) -> None:
    path = saved.directory / "functions.json"
    data = json.loads(path.read_text())
    data["functions"][0]["memory_mb"] = 32_768
    path.write_text(json.dumps(data))

    with pytest.raises(TargetError, match=r"slice0 has 32768 MB .* 10,240 MB"):
        resources.stack_of(saved.directory, saved.plan)


def test_a_bundle_without_functions_is_named(saved: slicewise.Bundle) -> None:
    (saved.directory / "functions.json").unlink()
    with pytest.raises(BundleError, match="no complete bundle"):
        resources.stack_of(saved.directory, saved.plan)


def test_every_part_is_packed_as_the_bundle_says(saved: slicewise.Bundle) -> None:
    path = saved.directory / "functions.json"
    data = json.loads(path.read_text())
    assert {entry["packaging"] for entry in data["functions"]} == {"zip"}
    for entry, packaging in zip(data["functions"], ("image", "s3-weights"), strict=False):
        entry["packaging"] = packaging
    path.write_text(json.dumps(data))

    stack = resources.stack_of(saved.directory, saved.plan)
    image, streams = stack.slices[:2]
    assert (image.packaging, streams.packaging) == ("image", "s3-weights")
    assert stack.coordinator.packaging == "zip"
    assert resources.environment(stack, image, PLACE)["SLICEWISE_PART"] == image.part
    assert "SLICEWISE_PART" not in resources.environment(stack, streams, PLACE)
    statements = resources.policy(stack, streams, PLACE)["Statement"]
    weights = next(each for each in statements if each["Sid"] == "Weights")
    assert weights["Resource"] == [f"arn:aws:s3:::{stack.bucket(PLACE)}/weights/*"]
