"""Calibrating AWS, against moto's control plane: what is created, made cold, and deleted."""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from slicewise.errors import TargetError

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto")
aws = importlib.import_module("slicewise.targets.lambda.calibrate_aws")
sites = importlib.import_module("slicewise.targets.lambda.calibrate_site")

BUCKET = "a-bucket"


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Clients of an empty account with a bucket and a role, whose ARN is under `role`."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setattr(aws, "LAYER", ("pybase64",))  # the others take seconds to pack
    monkeypatch.setattr(sites, "LOADED_MB", 4)
    with moto.mock_aws():
        s3 = boto3.client("s3")
        s3.create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
        )
        trust = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"Service": "lambda.amazonaws.com"},
                    "Action": "sts:AssumeRole",
                }
            ],
        }
        role = boto3.client("iam").create_role(
            RoleName="probes", AssumeRolePolicyDocument=json.dumps(trust)
        )
        yield {"s3": s3, "lambda": boto3.client("lambda"), "role": role["Role"]["Arn"]}


def functions(cloud: dict[str, Any]) -> dict[str, Any]:
    return {each["FunctionName"]: each for each in cloud["lambda"].list_functions()["Functions"]}


def keys(cloud: dict[str, Any]) -> list[str]:
    return [each["Key"] for each in cloud["s3"].list_objects_v2(Bucket=BUCKET).get("Contents", ())]


def test_functions_have_their_sizes_a_layer_and_the_bucket(cloud: dict[str, Any]) -> None:
    with aws.aws_site(role=cloud["role"], bucket=BUCKET, memories_mb=[256, 1769]) as site:
        found = functions(cloud)
        layer = {key for key in keys(cloud) if key.endswith("layer.zip")}
        packed = cloud["s3"].get_object(Bucket=BUCKET, Key=layer.pop())["Body"].read()
        plain = next(key for key in keys(cloud) if key.endswith("plain.zip"))
        package = cloud["s3"].get_object(Bucket=BUCKET, Key=plain)["Body"].read()

    assert (site.region, site.network, site.buckets) == ("eu-west-1", "off", {"s3": BUCKET})
    assert {name: found[name]["MemorySize"] for name in found} == {
        site.probes[256]: 256,
        site.probes[1769]: 1769,
        site.loader: 1769,
    }
    for name, function in found.items():
        assert name.startswith("slicewise-calibrate-")
        assert function["Role"] == cloud["role"]
        assert function["Environment"]["Variables"] == {"SLICEWISE_BUCKET": BUCKET}
        assert len(function["Layers"]) == 1
    assert "python/pybase64/__init__.py" in zipfile.ZipFile(BytesIO(packed)).namelist()
    inside = zipfile.ZipFile(BytesIO(package)).namelist()
    assert {"handler.py", "model.onnx", "model.data", "probe/calibrate_probe.py"} <= set(inside)


def test_cold_functions_get_other_variables_and_keep_their_bucket(cloud: dict[str, Any]) -> None:
    seen = set()
    with aws.aws_site(role=cloud["role"], bucket=BUCKET, memories_mb=[1769]) as site:
        for _ in range(2):
            site.make_cold()
            for function in functions(cloud).values():
                variables = function["Environment"]["Variables"]
                assert variables["SLICEWISE_BUCKET"] == BUCKET
                seen.add(variables[aws.COLD_VARIABLE])

    assert len(seen) == 2


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left(cloud: dict[str, Any], fails: bool) -> None:
    def use() -> None:
        with aws.aws_site(role=cloud["role"], bucket=BUCKET, memories_mb=[1769]) as site:
            key = f"requests/{site.run}/0-1/y"
            cloud["s3"].put_object(Bucket=BUCKET, Key=key, Body=b"")
            cloud["s3"].put_object(Bucket=BUCKET, Key="requests/another", Body=b"")
            if fails:
                raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            use()
    else:
        use()

    assert functions(cloud) == {}
    assert cloud["lambda"].list_layers()["Layers"] == []
    assert keys(cloud) == ["requests/another"]


def test_a_role_that_is_none_is_refused_and_nothing_is_left(cloud: dict[str, Any]) -> None:
    role = cloud["role"].replace("probes", "nobody")
    with (
        pytest.raises(TargetError, match=r"AWS could not be calibrated: .*role"),
        aws.aws_site(role=role, bucket=BUCKET),
    ):
        pass

    assert (functions(cloud), keys(cloud)) == ({}, [])
    assert cloud["lambda"].list_layers()["Layers"] == []


def test_the_probes_are_what_a_bundle_runs(tmp_path: Path) -> None:
    probes = sites.write_probes(tmp_path, "probe", [256, 1769], {"A": "b"})
    runtime = Path(str(sites.__file__)).parent / "runtime"

    assert [(each.name, each.memory_mb) for each in probes] == [
        ("probe-256", 256),
        ("probe-1769", 1769),
        ("probe-weights", 1769),
    ]
    for source in runtime.glob("*.py"):
        shipped = probes[0].package / "probe" / "runtime" / source.name
        assert shipped.read_text() == source.read_text()
    assert (probes[2].package / "model.data").stat().st_size == sites.LOADED_MB * 2**20
