"""Deploying: what AWS has afterwards, what is changed for it, and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cloud import Cloud
from deployable import write_bundle

import slicewise
from slicewise import DeploymentError, TargetError, deployments

BUCKET = "chain-123456789012-eu-west-1"
WEIGHTS = {"slice0": b"zero", "slice1": b"one"}


@pytest.fixture
def bundle(tmp_path: Path) -> slicewise.Bundle:
    return write_bundle(tmp_path / "bundle", WEIGHTS)


def deploy(aws: Cloud, bundle: slicewise.Bundle, **options: Any) -> Any:
    return slicewise.deploy(bundle, clients=aws.clients, **{"smoke_test": False, **options})


def test_a_bundle_becomes_functions_with_versions_and_an_alias(
    aws: Cloud, bundle: slicewise.Bundle
) -> None:
    deployment = deploy(aws, bundle)

    assert deployment.versions == {"slice0": "1", "slice1": "1", "coordinator": "1"}
    assert deployment.function == "chain-coordinator:live"
    assert ".lambda-url.eu-west-1." in deployment.url
    functions = aws.client("lambda")
    live = functions.get_function(FunctionName="chain-coordinator", Qualifier="live")
    settings = live["Configuration"]
    assert settings["Environment"]["Variables"]["SLICEWISE_VERSIONS"] == "slice0=1,slice1=1"
    assert settings["Environment"]["Variables"]["SLICEWISE_STACK"] == "chain"
    assert (settings["Runtime"], settings["MemorySize"]) == ("python3.13", 512)
    assert settings["Role"].endswith(":role/chain-coordinator-eu-west-1")
    assert len(settings["Layers"]) == 1
    assert functions.list_tags(
        Resource=settings["FunctionArn"].removesuffix(":1")
    )["Tags"] == {"slicewise:stack": "chain"}  # fmt: skip
    url = functions.get_function_url_config(FunctionName="chain-coordinator", Qualifier="live")
    assert url["AuthType"] == "AWS_IAM"


def test_the_bucket_is_private_encrypted_and_forgets_tensors(
    aws: Cloud, bundle: slicewise.Bundle
) -> None:
    deploy(aws, bundle)

    s3 = aws.client("s3")
    blocked = s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"]
    assert set(blocked.values()) == {True}
    (statement,) = json.loads(s3.get_bucket_policy(Bucket=BUCKET)["Policy"])["Statement"]
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    rules = s3.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    (tensors, _) = s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert (tensors["Filter"]["Prefix"], tensors["Expiration"]["Days"]) == ("requests/", 1)


def test_weights_that_functions_stream_lie_in_the_bucket(aws: Cloud, tmp_path: Path) -> None:
    streamed = write_bundle(tmp_path / "streamed", WEIGHTS, packaging="s3-weights")
    changed = {**WEIGHTS, "slice1": b"two"}
    deploy(aws, streamed)
    s3, functions = aws.client("s3"), aws.client("lambda")

    def contents() -> set[bytes]:
        listed = s3.list_objects_v2(Bucket=BUCKET, Prefix="weights/").get("Contents", [])
        keys = [each["Key"] for each in listed]
        return {s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}

    assert contents() == {b"zero", b"one"}
    settings = functions.get_function_configuration(FunctionName="chain-slice0")
    named = settings["Environment"]["Variables"]
    spec = json.loads((streamed.directory / "functions" / "slice0" / "weights.json").read_text())
    assert (named["SLICEWISE_WEIGHTS"], named["SLICEWISE_BUCKET"]) == (spec["sha256"], BUCKET)

    again = write_bundle(tmp_path / "again", changed, packaging="s3-weights")
    made = deploy(aws, again).changes.made
    assert [change.resource for change in made if change.resource.startswith("weights")] == [
        "weights slice1"
    ]
    assert contents() == {b"zero", b"one", b"two"}, "the version before still needs its own"

    deploy(aws, write_bundle(tmp_path / "last", changed, packaging="s3-weights"), keep=1)
    assert contents() == {b"zero", b"two"}


def test_another_python_comes_with_another_layer(aws: Cloud, bundle: slicewise.Bundle) -> None:
    deploy(aws, bundle)
    deploy(aws, bundle, python="3.12", keep=1)

    functions = aws.client("lambda")
    live = functions.get_function(FunctionName="chain-slice0", Qualifier="live")["Configuration"]
    (layer,) = functions.list_layers()["Layers"]
    (left,) = functions.list_layer_versions(LayerName=layer["LayerName"])["LayerVersions"]
    assert live["Runtime"] == "python3.12"
    assert [each["Arn"] for each in live["Layers"]] == [left["LayerVersionArn"]]


def test_deploying_twice_changes_nothing(aws: Cloud, bundle: slicewise.Bundle) -> None:
    deploy(aws, bundle)
    assert aws.calls.changing
    aws.calls.clear()

    again = deploy(aws, bundle, smoke_test=True)  # nothing moves, so nothing is tested

    assert aws.calls.changing == []
    assert again.changes.made == ()


def test_only_what_has_changed_is_uploaded_published_and_moved(
    aws: Cloud, bundle: slicewise.Bundle, tmp_path: Path
) -> None:
    deploy(aws, bundle)
    before = set(aws.keys(BUCKET))
    aws.calls.clear()

    deployment = deploy(aws, write_bundle(tmp_path / "new", {**WEIGHTS, "slice1": b"1"}))

    assert deployment.versions == {"slice0": "1", "slice1": "2", "coordinator": "2"}
    assert aws.calls.changing == [
        "PutObject",
        "UpdateFunctionCode",
        "PublishVersion",
        "UpdateFunctionConfiguration",
        "PublishVersion",
        "UpdateAlias",
        "UpdateAlias",
    ]
    assert len(set(aws.keys(BUCKET)) - before) == 1


def test_the_bundle_before_comes_back_without_an_upload(
    aws: Cloud, bundle: slicewise.Bundle, tmp_path: Path
) -> None:
    deploy(aws, bundle)
    first = aws.serving("chain")
    deploy(aws, write_bundle(tmp_path / "new", {**WEIGHTS, "slice1": b"1"}))
    assert aws.serving("chain") != first
    aws.calls.clear()

    deploy(aws, bundle)

    assert aws.serving("chain") == first
    assert set(aws.calls.changing) == {"UpdateAlias"}


def test_a_dry_run_changes_nothing_and_lists_what_deploying_changes(
    aws: Cloud, bundle: slicewise.Bundle, tmp_path: Path
) -> None:
    new = write_bundle(tmp_path / "new", {"slice0": b"zero", "slice2": b"2"})
    for each in (bundle, new):
        aws.calls.clear()
        preview: Any = deployments.preview(each, clients=aws.clients, requests_per_month=10**6)
        assert aws.calls.changing == []

        made = deploy(aws, each).changes

        assert [(c.action, c.resource, c.bytes) for c in preview.made] == [
            (c.action, c.resource, c.bytes) for c in made.made
        ]
        assert preview.monthly_usd["1,000,000 requests (predicted, Lambda and S3)"] == 4.0
        assert f"{preview.upload_bytes:,} bytes to upload" in str(preview)
        assert json.dumps(preview.to_json())


def test_a_slice_that_is_no_more_stays_while_a_kept_version_calls_it(
    aws: Cloud, bundle: slicewise.Bundle, tmp_path: Path
) -> None:
    deploy(aws, bundle)
    smaller = write_bundle(tmp_path / "smaller", {"slice0": b"all"})

    deploy(aws, smaller, keep=2)
    assert "chain-slice1" in aws.resources()["functions"]

    deploy(aws, smaller, keep=1)
    assert aws.resources()["functions"] == ["chain-coordinator", "chain-slice0"]
    assert aws.resources()["roles"] == ["chain-coordinator-eu-west-1", "chain-slice0-eu-west-1"]
    assert aws.resources()["log groups"] == [
        "/aws/lambda/chain-coordinator",
        "/aws/lambda/chain-slice0",
    ]


def test_the_last_versions_stay_with_all_that_they_call(aws: Cloud, tmp_path: Path) -> None:
    for number in range(3):
        weights = {**WEIGHTS, "slice1": str(number).encode()}
        deploy(aws, write_bundle(tmp_path / str(number), weights), keep=2)

    state = aws.snapshot()
    versions = {
        name: [version["Version"] for version in state[name]["versions"]]
        for name in aws.resources()["functions"]
    }
    # moto numbers a version after how many there are, not after the last one
    assert {name: len(found) for name, found in versions.items()} == {
        "chain-coordinator": 3,
        "chain-slice0": 2,
        "chain-slice1": 3,
    }
    zips = [key for key in state[BUCKET]["keys"] if key.endswith(".zip")]
    assert len(zips) == 1 + 1 + 1 + 2  # layer, coordinator, slice0, slice1 twice


def test_a_failing_smoke_test_leaves_the_version_before(
    aws: Cloud, bundle: slicewise.Bundle, tmp_path: Path
) -> None:
    deploy(aws, bundle)
    before = aws.snapshot()
    new = write_bundle(
        tmp_path / "new",
        {**WEIGHTS, "slice1": b"1", "slice2": b"2"},
        transports=("payload",),
    )

    with pytest.raises(
        DeploymentError, match=r"smoke test failed.*chain-coordinator:1 serves as before"
    ):
        deploy(aws, new, smoke_test=True)

    after = aws.snapshot()
    for state in (before, after):  # nobody calls $LATEST
        for name in ("chain-slice0", "chain-slice1", "chain-coordinator"):
            del state[name]["versions"][0]
    assert after == before


def test_a_failing_smoke_test_of_the_first_deployment_leaves_nothing(
    aws: Cloud, bundle: slicewise.Bundle
) -> None:
    with pytest.raises(DeploymentError, match=r"smoke test failed.*Nothing of chain is left"):
        deploy(aws, bundle, smoke_test=True)

    assert not any(aws.resources().values())


def test_what_failed_its_test_can_be_deployed_again(
    aws: Cloud, bundle: slicewise.Bundle, tmp_path: Path
) -> None:
    """Lambda publishes nothing while $LATEST is as it was, even when that version was deleted."""
    deploy(aws, bundle)
    new = write_bundle(tmp_path / "new", {**WEIGHTS, "slice1": b"1"})
    for _ in range(2):
        with pytest.raises(DeploymentError, match="smoke test failed"):
            deploy(aws, new, smoke_test=True)

    deployment = deploy(aws, new)

    assert deployment.versions["slice0"] == "1"
    assert aws.serving("chain") is not None
    status: Any = deployments.status(new, clients=aws.clients)
    assert status.matches


def test_until_it_serves_a_new_version_takes_nothing_from_the_old_one(
    aws: Cloud, bundle: slicewise.Bundle, tmp_path: Path
) -> None:
    """Roles belong to all versions of a function: they allow both until the alias has moved."""
    deploy(aws, bundle)
    new = write_bundle(tmp_path / "new", {"slice0": b"zero"})
    role = "chain-coordinator-eu-west-1"
    seen: list[dict[str, str]] = []

    def look(operation: str, _: int) -> None:
        if operation == "UpdateAlias" and not seen:
            policies = aws.snapshot()[role]["policies"]
            seen.append({name: json.dumps(each) for name, each in policies.items()})

    aws.calls.before = look
    deploy(aws, new)

    assert "chain-slice1:*" in seen[0]["slicewise"]
    assert "chain-slice1:*" not in seen[0]["slicewise-next"]
    settled = aws.snapshot()[role]["policies"]
    assert "chain-slice1:*" not in json.dumps(settled["slicewise"])
    assert list(settled) == ["slicewise"]


def test_two_deployments_of_one_bundle_live_side_by_side(
    aws: Cloud, bundle: slicewise.Bundle
) -> None:
    deploy(aws, bundle)
    alone = aws.snapshot()
    deploy(aws, bundle, name="chain-two", tags={"team": "ml"})
    assert len(aws.resources()["functions"]) == 6

    slicewise.destroy("chain-two", clients=aws.clients)

    assert aws.snapshot() == alone


@pytest.mark.parametrize(
    "occupy",
    [
        lambda aws: aws.client("iam").create_role(
            RoleName="chain-slice0-eu-west-1", AssumeRolePolicyDocument="{}"
        ),
        lambda aws: aws.client("logs").create_log_group(logGroupName="/aws/lambda/chain-slice0"),
        lambda aws: (
            aws.client("s3").create_bucket(
                Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
            ),
            aws.client("s3").put_object(Bucket=BUCKET, Key="mine", Body=b""),
        ),
    ],
    ids=["role", "log group", "bucket"],
)
def test_what_is_somebody_elses_is_neither_used_nor_removed(
    occupy: Callable[[Cloud], Any], aws: Cloud, bundle: slicewise.Bundle
) -> None:
    occupy(aws)
    theirs = aws.resources()

    with pytest.raises(DeploymentError, match=r"does not carry the tag slicewise:stack=chain"):
        deploy(aws, bundle)
    slicewise.destroy(bundle, clients=aws.clients)

    assert aws.resources() == theirs


def test_settings_that_somebody_changed_are_set_again(aws: Cloud, bundle: slicewise.Bundle) -> None:
    deploy(aws, bundle)
    before = aws.snapshot()
    s3, iam, logs = aws.client("s3"), aws.client("iam"), aws.client("logs")
    s3.delete_public_access_block(Bucket=BUCKET)
    s3.delete_bucket_policy(Bucket=BUCKET)
    s3.delete_bucket_lifecycle(Bucket=BUCKET)
    iam.delete_role_policy(RoleName="chain-slice0-eu-west-1", PolicyName="slicewise")
    logs.delete_retention_policy(logGroupName="/aws/lambda/chain-slice1")
    aws.client("lambda").update_alias(
        FunctionName="chain-slice0", Name="live", FunctionVersion="$LATEST"
    )
    status: Any = deployments.status(bundle, clients=aws.clients, smoke_test=False)
    assert len(status.changes.made) == 6
    assert "differs from the bundle" in str(status)

    deploy(aws, bundle)

    assert aws.snapshot() == before


def test_refusals_come_before_any_change(aws: Cloud, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", WEIGHTS, transports=("payload", "s3express"))
    with pytest.raises(TargetError, match=r"s3express.*none was given.*--zone"):
        deploy(aws, bundle)
    with pytest.raises(TargetError, match="keep=0"):
        deploy(aws, write_bundle(tmp_path / "other", WEIGHTS), keep=0)
    with pytest.raises(TargetError, match=r"python='3\.9'"):
        deploy(aws, bundle, python="3.9")
    (bundle.directory / "smoke.npz").unlink()
    with pytest.raises(slicewise.BundleError, match=r"smoke\.npz holds no smoke test"):
        deploy(aws, bundle, smoke_test=True)

    assert aws.calls.changing == []


def test_status_and_diff_know_a_stack_by_its_name(
    aws: Cloud, bundle: slicewise.Bundle, tmp_path: Path
) -> None:
    with pytest.raises(DeploymentError, match="nothing called chain serves in eu-west-1"):
        deployments.status("chain", clients=aws.clients)
    deploy(aws, bundle)
    new = tmp_path / "new"
    write_bundle(new, {**WEIGHTS, "slice1": b"1", "slice2": b"2"}, memory_mb=1024)

    status: Any = deployments.status("chain", clients=aws.clients)
    found: Any = deployments.diff("chain", new, clients=aws.clients)
    between: Any = deployments.diff(bundle.directory, new, clients=aws.clients)

    assert [function.called for function in status.functions] == ["1", "1", "1"]
    assert status.matches is None
    assert found.lines == between.lines
    assert found.changed_packages == ("slice1", "slice2")
    text = str(found)
    assert "~ slice0 memory: 512 MB -> 1,024 MB" in text
    assert "+ slice2: 1 ops, 1 bytes of weights, 1,024 MB" in text
    assert "+ edge t2: slice1 -> slice2: 4 bytes by payload" in text
    same: Any = deployments.diff("chain", bundle.directory, clients=aws.clients)
    assert str(same).endswith("are the same.")


def test_status_shows_recent_errors(aws: Cloud, bundle: slicewise.Bundle) -> None:
    import time

    deploy(aws, bundle)
    logs, group = aws.client("logs"), "/aws/lambda/chain-slice0"
    logs.create_log_stream(logGroupName=group, logStreamName="s")
    now = int(time.time() * 1000)
    logs.put_log_events(
        logGroupName=group,
        logStreamName="s",
        logEvents=[{"timestamp": now, "message": "ERROR no memory"}],
    )

    status: Any = deployments.status("chain", clients=aws.clients)

    assert "chain-slice0: ERROR no memory" in str(status)
