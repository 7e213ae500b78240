"""Deployments of other kinds: what a chain, a state machine, an image and s3express become on AWS."""

from __future__ import annotations

import importlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from cloud import Cloud
from deployable import write_bundle

import slicewise
from slicewise import DeploymentError, deployments

steps_client = importlib.import_module("slicewise.targets.lambda.steps_client")
WEIGHTS = {"slice0": b"zero", "slice1": b"one"}
CHANGED = {"slice0": b"zero", "slice1": b"1"}
ZONE = "euw1-az1"
EXPRESS_BUCKET = f"chain-123456789012--{ZONE}--x-s3"
LIVE_MACHINE = "arn:aws:states:eu-west-1:123456789012:stateMachine:chain:live"


def deploy(aws: Cloud, bundle: slicewise.Bundle, **options: Any) -> Any:
    return slicewise.deploy(bundle, clients=aws.clients, **{"smoke_test": False, **options})


def statements(aws: Cloud, role: str) -> dict[str, Any]:
    found = aws.client("iam").get_role_policy(RoleName=role, PolicyName="slicewise")
    return {each["Sid"]: each for each in found["PolicyDocument"]["Statement"]}


# A chain


@pytest.fixture
def chained(tmp_path: Path) -> slicewise.Bundle:
    return write_bundle(tmp_path / "chained", WEIGHTS, orchestration="chain")


def test_callers_of_a_chain_call_its_first_slice(aws: Cloud, chained: slicewise.Bundle) -> None:
    deployment = deploy(aws, chained)

    assert deployment.function == "chain-slice0:live"
    assert deployment.versions == {"slice0": "1", "slice1": "1"}
    assert ".lambda-url." in deployment.url
    functions = aws.client("lambda")
    live = functions.get_function_configuration(FunctionName="chain-slice0", Qualifier="live")
    assert live["Environment"]["Variables"]["SLICEWISE_VERSIONS"] == "slice1=1"
    (called,) = statements(aws, "chain-slice0-eu-west-1")["Slices"]["Resource"]
    assert called.endswith(":function:chain-slice1:*")
    assert "Slices" not in statements(aws, "chain-slice1-eu-west-1")
    by_name: Any = deployments.connect("chain", clients=aws.clients)
    assert by_name.versions == deployment.versions


def test_a_chain_is_updated_as_one_and_known_by_its_name(
    aws: Cloud, chained: slicewise.Bundle, tmp_path: Path
) -> None:
    deploy(aws, chained)
    before = aws.serving("chain", "slice0")
    assert before is not None
    new = write_bundle(tmp_path / "new", CHANGED, orchestration="chain")
    found: Any = deployments.diff("chain", new.directory, clients=aws.clients)
    assert found.changed_packages == ("slice1",)

    assert deploy(aws, new).versions == {"slice0": "2", "slice1": "2"}
    after = aws.serving("chain", "slice0")
    assert after is not None
    assert (after["slice0"], after["slice1"]) != (before["slice0"], before["slice1"])
    assert after["slice0"] == before["slice0"]
    status: Any = deployments.status(new, clients=aws.clients)
    assert status.matches
    assert status.target == "chain-slice0:live"

    before_failure = aws.snapshot()
    third = write_bundle(tmp_path / "third", WEIGHTS | {"slice1": b"3"}, orchestration="chain")
    with pytest.raises(
        DeploymentError, match=r"smoke test failed.*chain-slice0:2 serves as before"
    ):
        deploy(aws, third, smoke_test=True)
    after_failure = aws.snapshot()
    for state in (before_failure, after_failure):  # nobody calls $LATEST
        for name in ("chain-slice0", "chain-slice1"):
            del state[name]["versions"][0]
    assert after_failure == before_failure

    slicewise.destroy("chain", clients=aws.clients)
    assert not any(aws.resources().values())


# A state machine


@pytest.fixture
def stepped(tmp_path: Path) -> slicewise.Bundle:
    return write_bundle(tmp_path / "stepped", WEIGHTS, orchestration="stepfunctions")


def test_a_state_machine_has_versions_an_alias_and_a_role_for_its_functions(
    aws: Cloud, stepped: slicewise.Bundle
) -> None:
    deployment = deploy(aws, stepped)

    assert deployment.function == LIVE_MACHINE
    assert deployment.url is None
    machine = aws.machine("chain")
    assert machine["aliases"] == {"live": LIVE_MACHINE.replace(":live", ":1")}
    assert machine["tags"] == [{"key": "slicewise:stack", "value": "chain"}]
    definition = machine["versions"][1]
    assert set(re.findall(r":function:(chain-[\w-]+:\d+)\"", definition)) == {
        "chain-slice0:1", "chain-slice1:1", "chain-coordinator:1",
    }  # fmt: skip
    assert "${" not in definition
    role = "chain-states-eu-west-1"
    assert machine["role"].endswith(f":role/{role}")
    allowed = statements(aws, role)["Functions"]
    assert allowed["Action"] == ["lambda:InvokeFunction"]
    assert [each.rpartition("function:")[2] for each in allowed["Resource"]] == [
        "chain-slice0:*", "chain-slice1:*", "chain-coordinator:*",
    ]  # fmt: skip
    trust = aws.client("iam").get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]
    assert trust["Statement"][0]["Principal"] == {"Service": "states.amazonaws.com"}
    assert "Slices" not in statements(aws, "chain-coordinator-eu-west-1")
    status: Any = deployments.status("chain", clients=aws.clients)
    assert status.target == LIVE_MACHINE
    assert f"called as {LIVE_MACHINE}" in str(status)


def test_an_update_publishes_a_version_of_the_state_machine_and_old_ones_go(
    aws: Cloud, stepped: slicewise.Bundle, tmp_path: Path
) -> None:
    deploy(aws, stepped, keep=2)
    aws.calls.clear()
    deploy(aws, stepped, keep=2)
    assert aws.calls.changing == []
    first = aws.serving("chain")

    for number in (2, 3):
        weights = WEIGHTS | {"slice1": str(number).encode()}
        new = write_bundle(tmp_path / str(number), weights, orchestration="stepfunctions")
        aws.calls.clear()
        deploy(aws, new, keep=2)
        calls = aws.calls.changing
        assert calls.count("UpdateStateMachine") == 1
        assert calls.index("UpdateStateMachineAlias") < calls.index("UpdateAlias")

    machine = aws.machine("chain")
    assert list(machine["versions"]) == [3, 2]
    assert machine["aliases"]["live"].endswith(":chain:3")
    assert aws.serving("chain") != first
    # The one before comes back: its versions are there, so that only aliases move.
    aws.calls.clear()
    old: Any = deployments.preview(tmp_path / "2", clients=aws.clients, keep=2)
    deploy(aws, slicewise.load(tmp_path / "2"), keep=2)
    assert set(aws.calls.changing) == {"UpdateStateMachineAlias", "UpdateAlias"}
    assert {change.action for change in old.made} == {"move"}

    slicewise.destroy("chain", clients=aws.clients)
    assert not any(aws.resources().values())


def test_a_caller_does_not_wait_for_ever(
    aws: Cloud, stepped: slicewise.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto never ends an execution. Two stages and both ends may take as long as any function."""
    deploy(aws, stepped)
    deployment: Any = deployments.connect(stepped, clients=aws.clients)
    monkeypatch.setattr(steps_client, "LONGEST_S", 0.01)
    with pytest.raises(
        slicewise.SliceFailure, match=r"execution:chain:.* still runs after 0\.04 s"
    ):
        deployment.client._invoke(b"{}", "request", math.inf)


def test_a_state_machine_that_fails_its_test_is_taken_back(
    aws: Cloud, stepped: slicewise.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SF_EXECUTION_HISTORY_TYPE", "FAILURE")  # moto ends executions so
    with pytest.raises(DeploymentError, match=r"smoke test failed.*Nothing of chain is left"):
        deploy(aws, stepped, smoke_test=True)
    assert not any(aws.resources().values())

    deploy(aws, stepped)
    before = aws.snapshot()
    new = write_bundle(tmp_path / "new", CHANGED, orchestration="stepfunctions")
    with pytest.raises(DeploymentError, match=r"smoke test failed.*:chain:1 serves as before"):
        deploy(aws, new, smoke_test=True)

    after = aws.snapshot()
    for state in (before, after):  # nobody calls $LATEST
        for name in ("chain-slice0", "chain-slice1", "chain-coordinator"):
            del state[name]["versions"][0]
    assert after == before


@pytest.mark.parametrize("first", ["coordinator", "chain", "stepfunctions"])
@pytest.mark.parametrize("second", ["coordinator", "chain", "stepfunctions"])
def test_an_update_cannot_change_what_callers_call(
    first: str, second: str, aws: Cloud, tmp_path: Path
) -> None:
    deploy(aws, write_bundle(tmp_path / "first", WEIGHTS, orchestration=first))
    there = aws.snapshot()
    aws.calls.clear()
    new = write_bundle(tmp_path / "second", WEIGHTS, orchestration=second)

    if first == second:
        deploy(aws, new)
    else:
        with pytest.raises(DeploymentError, match=r"an update cannot change that.*another name"):
            deploy(aws, new)
    assert aws.calls.changing == []
    assert aws.snapshot() == there


def test_a_state_machine_that_is_somebody_elses_is_neither_used_nor_removed(
    aws: Cloud, stepped: slicewise.Bundle
) -> None:
    aws.client("stepfunctions").create_state_machine(
        name="chain", definition="{}", roleArn="arn:aws:iam::123456789012:role/r"
    )
    with pytest.raises(DeploymentError, match="does not carry the tag slicewise:stack=chain"):
        deploy(aws, stepped)
    slicewise.destroy(stepped, clients=aws.clients)

    found = aws.resources()
    assert found.pop("state machines") == ["chain"]
    assert not any(found.values())


# An image


@pytest.fixture
def packed(tmp_path: Path) -> slicewise.Bundle:
    return write_bundle(tmp_path / "packed", WEIGHTS, packaging="image")


def tag_wanted(aws: Cloud, bundle: slicewise.Bundle, **options: Any) -> str:
    """Deploying says how to make the image; its tag."""
    with pytest.raises(DeploymentError, match="docker push") as refusal:
        deploy(aws, bundle, **options)
    (tag,) = re.findall(r"docker push \S+:(\S+)\n", str(refusal.value))
    return str(tag)


def test_the_commands_that_make_an_image_are_said_and_its_repository_is_there(
    aws: Cloud, packed: slicewise.Bundle
) -> None:
    with pytest.raises(DeploymentError) as refusal:
        deploy(aws, packed, architecture="arm64")

    text = str(refusal.value)
    registry = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
    assert f"docker login --username AWS --password-stdin {registry}" in text
    assert "--build-arg BASE=public.ecr.aws/lambda/python:3.13 --platform linux/arm64" in text
    assert f"--provenance=false -t {registry}/chain-image:" in text
    assert str(packed.directory) in text
    assert aws.resources()["repositories"] == ["chain-image"]
    assert aws.resources()["functions"] == []
    policy = aws.client("ecr").get_repository_policy(repositoryName="chain-image")["policyText"]
    (statement,) = json.loads(policy)["Statement"]
    assert statement["Principal"] == {"Service": "lambda.amazonaws.com"}
    assert statement["Condition"]["StringLike"]["aws:sourceArn"].endswith(":function:chain-*")


def test_functions_use_the_image_by_its_digest(aws: Cloud, packed: slicewise.Bundle) -> None:
    digest = aws_push(aws, packed, "a")

    deployment = deploy(aws, packed)

    assert deployment.versions == {"slice0": "1", "slice1": "1", "coordinator": "1"}
    functions = aws.client("lambda")
    for part in deployment.versions:
        found = functions.get_function(FunctionName=f"chain-{part}", Qualifier="live")
        assert found["Code"]["ImageUri"].endswith(f"/chain-image@{digest}")
        settings = found["Configuration"]
        assert settings["PackageType"] == "Image"
        assert settings["CodeSha256"] == digest.removeprefix("sha256:")
        assert settings["Environment"]["Variables"]["SLICEWISE_PART"] == part
    assert aws.resources()["layers"] == []
    aws.calls.clear()
    deploy(aws, packed)
    assert aws.calls.changing == []


def aws_push(aws: Cloud, bundle: slicewise.Bundle, content: str, **options: Any) -> str:
    return aws.push("chain-image", tag_wanted(aws, bundle, **options), content)


def test_a_changed_bundle_needs_another_image_and_the_old_one_goes_with_its_versions(
    aws: Cloud, packed: slicewise.Bundle, tmp_path: Path
) -> None:
    aws_push(aws, packed, "a")
    deploy(aws, packed)
    new = write_bundle(tmp_path / "new", CHANGED, packaging="image")
    diff: Any = deployments.diff("chain", new.directory, clients=aws.clients)
    assert diff.changed_packages == ("image",)
    preview: Any = deployments.preview(new, clients=aws.clients)
    assert "by docker push" in str(preview)

    served = aws.serving("chain")
    digest = aws_push(aws, new, "b")
    assert aws.serving("chain") == served
    deploy(aws, new)
    assert set((aws.serving("chain") or {}).values()) == {digest.removeprefix("sha256:")}
    same: Any = deployments.diff("chain", new.directory, clients=aws.clients)
    assert same.changed_packages == ()
    images = aws.client("ecr").describe_images(repositoryName="chain-image")["imageDetails"]
    assert len(images) == 2

    deploy(aws, new, keep=1)
    images = aws.client("ecr").describe_images(repositoryName="chain-image")["imageDetails"]
    assert [each["imageDigest"] for each in images] == [digest]
    slicewise.destroy("chain", clients=aws.clients)
    assert not any(aws.resources().values())


def test_equal_bundles_have_the_same_tag_wherever_they_lie(aws: Cloud, tmp_path: Path) -> None:
    tags = [
        tag_wanted(aws, write_bundle(tmp_path / where, weights, packaging="image"), **options)
        for where, weights, options in (
            ("a", WEIGHTS, {}),
            ("b", WEIGHTS, {}),
            ("c", CHANGED, {}),
            ("d", WEIGHTS, {"python": "3.12"}),
            ("e", WEIGHTS, {"architecture": "arm64"}),
        )
    ]
    assert tags[0] == tags[1]
    assert len(set(tags)) == 4


def test_a_zip_function_does_not_become_an_image(
    aws: Cloud, packed: slicewise.Bundle, tmp_path: Path
) -> None:
    deploy(aws, write_bundle(tmp_path / "zipped", WEIGHTS))
    served = aws.serving("chain")
    aws_push(aws, packed, "a")

    with pytest.raises(DeploymentError, match=r"is a zip file and would become an image.*--name"):
        deploy(aws, packed)
    assert aws.serving("chain") == served


# S3 Express One Zone


@pytest.fixture
def zoned(tmp_path: Path) -> slicewise.Bundle:
    return write_bundle(tmp_path / "zoned", WEIGHTS, transports=("payload", "s3express"))


def test_tensors_of_s3express_have_a_bucket_in_the_zone_that_was_given(
    aws: Cloud, zoned: slicewise.Bundle
) -> None:
    deployment = deploy(aws, zoned, zone=ZONE)

    assert EXPRESS_BUCKET in aws.resources()["buckets"]
    live = aws.client("lambda").get_function_configuration(
        FunctionName="chain-slice0", Qualifier="live"
    )
    assert live["Environment"]["Variables"]["SLICEWISE_EXPRESS_BUCKET"] == EXPRESS_BUCKET
    (session,) = statements(aws, "chain-slice0-eu-west-1")["ExpressTensors"]["Resource"]
    assert session.endswith(f":bucket/{EXPRESS_BUCKET}")
    s3 = aws.client("s3")
    policy = json.loads(s3.get_bucket_policy(Bucket=EXPRESS_BUCKET)["Policy"])
    assert {each["Sid"] for each in policy["Statement"]} == {"OnlyTls", "Expiry"}
    (rule,) = s3.get_bucket_lifecycle_configuration(Bucket=EXPRESS_BUCKET)["Rules"]
    assert (rule["Filter"]["Prefix"], rule["Expiration"]["Days"]) == ("requests/", 1)
    assert deployment.client._store.transports == ("s3express",)


def test_the_zone_is_remembered_and_another_one_takes_its_place(
    aws: Cloud, zoned: slicewise.Bundle
) -> None:
    deploy(aws, zoned, zone=ZONE)
    aws.calls.clear()
    deploy(aws, zoned)
    assert aws.calls.changing == []

    deploy(aws, zoned, zone="euw1-az3", keep=2)
    names = [name for name in aws.resources()["buckets"] if name.endswith("--x-s3")]
    assert len(names) == 2, "the version before still needs its own"
    deploy(aws, zoned, keep=1)
    names = [name for name in aws.resources()["buckets"] if name.endswith("--x-s3")]
    assert names == [EXPRESS_BUCKET.replace("az1", "az3")]

    s3 = aws.client("s3")
    s3.put_object(Bucket=names[0], Key="requests/r/t", Body=b"left")
    told: Any = deployments.collect("chain", clients=aws.clients, older_than_s=0)
    assert names[0] in str(told)
    assert aws.keys(names[0]) == []
    s3.put_object(Bucket=names[0], Key="requests/r/t", Body=b"left")
    slicewise.destroy("chain", clients=aws.clients)
    assert not any(aws.resources().values())
