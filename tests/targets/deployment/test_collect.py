"""`gc`: what requests have left goes, and nothing else."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cloud import Cloud
from console import call
from deployable import write_bundle

import slicewise
from slicewise import DeploymentError, TargetError, deployments

BUCKET = "chain-123456789012-eu-west-1"
OTHERS = ("weights/kept", "packages/kept.zip", "requestsandmore")


@pytest.fixture
def bundle(aws: Cloud, tmp_path: Path) -> slicewise.Bundle:
    found = write_bundle(tmp_path / "bundle", {"slice0": b"zero"})
    slicewise.deploy(found, clients=aws.clients, smoke_test=False)
    return found


def put(minutes: float, *keys: str) -> None:
    """Objects that were written so many minutes ago."""
    from moto.s3.models import s3_backends

    backend: Any = s3_backends["123456789012"]["aws"]
    for key in keys:
        stored = backend.put_object(BUCKET, key, b"1234")
        stored.last_modified -= timedelta(minutes=minutes)


def left(aws: Cloud) -> set[str]:
    listed = aws.client("s3").list_objects_v2(Bucket=BUCKET)["Contents"]
    return {each["Key"] for each in listed if not each["Key"].startswith("packages/")}


def test_old_tensors_go_and_nothing_else(aws: Cloud, bundle: slicewise.Bundle) -> None:
    put(600, *OTHERS, "requests/old/x", "requests/old/y")
    put(59, "requests/new/x")

    changes: Any = deployments.collect(bundle, clients=aws.clients)

    assert left(aws) == {"weights/kept", "requestsandmore", "requests/new/x"}
    assert "2 tensors" in str(changes)
    deployments.collect("chain", clients=aws.clients, older_than_s=0)
    assert left(aws) == {"weights/kept", "requestsandmore"}


def test_more_objects_than_a_page_has(aws: Cloud, bundle: slicewise.Bundle) -> None:
    put(90, *(f"requests/r/{index}" for index in range(1001)))

    changes: Any = deployments.collect(bundle, clients=aws.clients)

    assert left(aws) == set()
    assert [change.resource.split()[0] for change in changes.changes] == ["1000", "1"]


def test_a_dry_run_deletes_nothing(
    aws: Cloud, bundle: slicewise.Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    put(10, "requests/old/x")
    command = ("gc", str(bundle.directory), "--older-than-minutes", "5")

    code, out, _ = call(capsys, *command, "--dry-run")

    assert (code, "delete   1 tensors in " + BUCKET in out, left(aws)) == (
        0,
        True,
        {"requests/old/x"},
    )
    assert call(capsys, *command)[0] == 0
    assert left(aws) == set()


def test_what_is_not_deployed_or_anothers_is_named(aws: Cloud, bundle: slicewise.Bundle) -> None:
    with pytest.raises(DeploymentError, match="there is no bucket other-123456789012-eu-west-1"):
        deployments.collect("other", clients=aws.clients)
    with pytest.raises(TargetError, match="an age of -1"):
        deployments.collect(bundle, clients=aws.clients, older_than_s=-1)
    aws.client("s3").put_bucket_tagging(
        Bucket=BUCKET, Tagging={"TagSet": [{"Key": "slicewise:stack", "Value": "another"}]}
    )
    put(600, "requests/old/x")
    with pytest.raises(DeploymentError, match="another"):
        deployments.collect(bundle, clients=aws.clients)
    assert "requests/old/x" in left(aws)
