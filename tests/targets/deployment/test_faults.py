"""Deployments that are interrupted, throttled, refused, or whose answers are lost."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from cloud import Cloud, answer, reset
from deployable import write_bundle

import slicewise
from slicewise import DeploymentError

clients_module = importlib.import_module("slicewise.targets.lambda.deployment.clients")
FIRST = {"slice0": b"zero", "slice1": b"one"}
SECOND = {"slice0": b"zero", "slice1": b"1", "slice2": b"2"}  # another policy for the coordinator


UPDATE = {"keep": 1, "python": "3.12"}  # and so another layer


class Interrupted(Exception):  # noqa: N818 - no error of AWS's
    """The power goes off."""


# Everything that the plain bundle has not: a state machine, a directory bucket, an image.
OTHER: dict[str, Any] = {
    "orchestration": "stepfunctions",
    "transports": ("payload", "s3", "s3express"),
    "packaging": "image",
}
OTHER_CALLS = re.compile("StateMachine|Repository|BatchDeleteImage|Bucket|Role")


def deploy(aws: Cloud, bundle: slicewise.Bundle, **options: Any) -> Any:
    """As a user does, who pushes the image when asked for it."""
    options = {"smoke_test": False, "zone": "euw1-az1", **options}
    try:
        return slicewise.deploy(bundle, clients=aws.clients, **options)
    except DeploymentError as error:
        wanted = re.search(r"docker push \S+:(\S+)", str(error))
        if wanted is None:
            raise
        aws.push("chain-image", wanted[1], wanted[1][:40])
    return slicewise.deploy(bundle, clients=aws.clients, **options)


@pytest.fixture(params=["plain", "other"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SF_EXECUTION_HISTORY_TYPE", "FAILURE")  # moto ends executions so
    return str(request.param)


PLAIN = pytest.mark.parametrize("kind", ["plain"], indirect=True)


@pytest.fixture
def first(kind: str, tmp_path: Path) -> slicewise.Bundle:
    return write_bundle(tmp_path / "first", FIRST, **(OTHER if kind == "other" else {}))


@pytest.fixture
def second(kind: str, tmp_path: Path) -> slicewise.Bundle:
    return write_bundle(tmp_path / "second", SECOND, **(OTHER if kind == "other" else {}))


def numbers(aws: Cloud, kind: str) -> list[int]:
    """The numbers of the calls that are interrupted: of the other kind's what the plain one has not."""
    return [
        number
        for number, operation in enumerate(aws.calls.changing, 1)
        if kind == "plain" or OTHER_CALLS.search(operation)
    ]


def interrupt(aws: Cloud, number: int, when: str) -> None:
    """Let the changing call of this number not happen, or happen and nobody learn of it."""

    def stop(_: str, count: int) -> None:
        if count == number:
            raise Interrupted

    setattr(aws.calls, when, stop)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_first_deployment_is_finished_wherever_it_stopped(
    when: str, kind: str, aws: Cloud, first: slicewise.Bundle
) -> None:
    deploy(aws, first)
    whole, served, stops = aws.snapshot(), aws.serving("chain"), numbers(aws, kind)
    for number in stops:
        reset(aws.url)
        aws.calls.clear()
        interrupt(aws, number, when)
        with pytest.raises(Interrupted):
            deploy(aws, first)
        assert aws.serving("chain") in (None, served), number
        aws.calls.clear()

        deploy(aws, first)

        assert aws.snapshot() == whole, number
    aws.calls.clear()
    deploy(aws, first)
    assert aws.calls.changing == []


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_update_serves_one_whole_bundle_wherever_it_stopped(
    when: str, kind: str, aws: Cloud, first: slicewise.Bundle, second: slicewise.Bundle
) -> None:
    deploy(aws, first)
    old = aws.serving("chain")
    aws.calls.clear()
    deploy(aws, second, **UPDATE)
    whole, new, stops = aws.snapshot(), aws.serving("chain"), numbers(aws, kind)
    for number in stops:
        reset(aws.url)
        aws.calls.clear()
        deploy(aws, first)
        aws.calls.clear()
        interrupt(aws, number, when)
        with pytest.raises(Interrupted):
            deploy(aws, second, **UPDATE)
        assert aws.serving("chain") in (old, new), number
        aws.calls.clear()

        deploy(aws, second, **UPDATE)

        assert aws.snapshot() == whole, number


@pytest.mark.slow
def test_whatever_is_half_made_is_removed(kind: str, aws: Cloud, first: slicewise.Bundle) -> None:
    deploy(aws, first)
    for number in numbers(aws, kind):
        reset(aws.url)
        aws.calls.clear()
        interrupt(aws, number, "after")
        with pytest.raises(Interrupted):
            deploy(aws, first)
        aws.calls.clear()

        slicewise.destroy("chain", clients=aws.clients)

        assert not any(aws.resources().values()), number


def test_a_removal_that_stopped_is_finished_by_the_next(
    aws: Cloud, first: slicewise.Bundle
) -> None:
    deploy(aws, first)
    for _ in range(3):
        aws.calls.clear()
        interrupt(aws, 4, "after")
        with pytest.raises(Interrupted):
            slicewise.destroy(first, clients=aws.clients)
    aws.calls.clear()

    slicewise.destroy(first, clients=aws.clients)

    assert not any(aws.resources().values())
    told: Any = slicewise.destroy(first, clients=aws.clients)
    assert told.changes == ()


def test_a_failing_test_clears_up_after_an_interrupted_run_too(
    aws: Cloud, first: slicewise.Bundle, second: slicewise.Bundle
) -> None:
    deploy(aws, first)
    before = aws.snapshot()

    def stop(operation: str, _: int) -> None:
        if operation in ("UpdateAlias", "UpdateStateMachineAlias"):
            raise Interrupted

    aws.calls.before = stop
    with pytest.raises(Interrupted):
        deploy(aws, second)
    aws.calls.clear()
    with pytest.raises(DeploymentError, match="smoke test failed"):
        deploy(aws, second, smoke_test=True)

    after = aws.snapshot()
    for state in (before, after):  # nobody calls $LATEST
        for name in ("chain-slice0", "chain-slice1", "chain-coordinator"):
            del state[name]["versions"][0]
    assert after == before


@PLAIN
@pytest.mark.parametrize(
    ("operation", "status", "code", "message"),
    [
        ("CreateFunction", 429, "TooManyRequestsException", "Rate exceeded"),
        (
            "CreateFunction",
            400,
            "InvalidParameterValueException",
            "The role defined for the function cannot be assumed by Lambda.",
        ),
        (
            "PublishVersion",
            409,
            "ResourceConflictException",
            "The operation cannot be performed at this time. An update is in progress for resource",
        ),
        ("PublishVersion", 500, "ServiceException", "Internal error"),
    ],
)
def test_what_passes_is_waited_for(
    operation: str, status: int, code: str, message: str, aws: Cloud, first: slicewise.Bundle
) -> None:
    refused: list[str] = []

    def refuse(called: str, _: int) -> Any:
        if called == operation and len(refused) < 2:
            refused.append(called)
            return answer(status, code, message)
        return None

    aws.calls.before = refuse
    deploy(aws, first)

    assert len(refused) == 2
    assert aws.serving("chain") is not None


def test_calls_whose_answers_are_lost_are_repeated(
    kind: str, aws: Cloud, first: slicewise.Bundle
) -> None:
    """boto3 sends them again, and they meet what they have made themselves."""
    lost: set[str] = set()

    def loses(operation: str) -> bool:
        once = operation not in lost
        lost.add(operation)
        return once

    aws.calls.loses = loses
    deploy(aws, first)
    aws.calls.clear()

    again = deploy(aws, first)

    assert aws.calls.changing == []
    assert again.versions == {"slice0": "1", "slice1": "1", "coordinator": "1"}
    assert {"CreateBucket", "CreateRole", "CreateFunction", "CreateAlias"} <= lost
    if kind == "other":
        assert {"CreateStateMachine", "CreateStateMachineAlias", "CreateRepository"} <= lost


@PLAIN
def test_a_refusal_is_told_and_nothing_moves(
    aws: Cloud, first: slicewise.Bundle, second: slicewise.Bundle
) -> None:
    deploy(aws, first)
    served = aws.serving("chain")

    def refuse(called: str, _: int) -> Any:
        return answer(403, "AccessDeniedException", "no") if called == "PublishVersion" else None

    aws.calls.before = refuse
    with pytest.raises(DeploymentError, match=r"deploying chain: .*credentials need this permis"):
        deploy(aws, second)
    assert aws.serving("chain") == served


def test_calls_of_the_control_plane_are_paced(aws: Cloud) -> None:
    client = aws.client("lambda")
    sleeps: list[float] = []
    clock = [0.0]
    with pytest.MonkeyPatch.context() as patch:

        def sleep(seconds: float) -> None:
            sleeps.append(seconds)
            clock[0] += seconds

        patch.setattr(clients_module.time, "sleep", sleep)
        patch.setattr(clients_module.time, "monotonic", lambda: clock[0])
        clients_module.pace(client, 15.0)
        for _ in range(45):
            client.list_functions()

    assert sum(sleeps) == pytest.approx(2.0)  # a second's worth goes at once


@pytest.mark.parametrize("missing", ["region", "credentials"])
def test_what_boto3_lacks_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    region = None if missing == "region" else "eu-west-1"
    with pytest.raises(DeploymentError, match=missing):
        clients_module.connect(region)
