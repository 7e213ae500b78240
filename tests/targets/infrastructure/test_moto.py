"""The plain form, made into a stack by moto's CloudFormation."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import boto3
import pytest
from cloudformation import resolved
from moto import mock_aws
from moto.awslambda.models import LambdaVersion
from moto.cloudformation.parsing import resource_class_from_type

# What moto 5.2.5 cannot make. The rest of the template is made as it is.
UNKNOWN = {
    "AWS::CloudWatch::Alarm",
    "AWS::Lambda::Alias",
    "AWS::Lambda::Url",
    "AWS::S3::BucketPolicy",
    "AWS::S3Express::BucketPolicy",
    "AWS::S3Express::DirectoryBucket",
}


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    # moto makes versions, but does not tell their numbers.
    monkeypatch.setattr(
        LambdaVersion, "get_cfn_attribute", lambda self, name: self.version, raising=False
    )
    with mock_aws():
        yield lambda service: boto3.client(service, region_name="eu-west-1")


@pytest.mark.parametrize("name", ["one", "five", "express"])
def test_cloudformation_makes_the_stack(name: str, aws: Any, request: Any) -> None:
    made = request.getfixturevalue(name)
    template = made.template("cloudformation.yaml")
    kinds = {r["Type"] for r in template["Resources"].values()}
    assert {kind for kind in kinds if resource_class_from_type(kind) is None} == kinds & UNKNOWN
    template["Resources"] = {
        key: r for key, r in template["Resources"].items() if r["Type"] not in UNKNOWN
    }
    del template["Outputs"]
    s3, functions = aws("s3"), aws("lambda")
    s3.create_bucket(Bucket="code", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    given = {key: "code.zip" for key in template["Parameters"] if key.endswith("Key")}
    given |= {"CodeBucket": "code"}
    given |= {"Zone": "euw1-az1"} if name == "express" else {}
    s3.put_object(Bucket="code", Key="code.zip", Body=zip_file())

    aws("cloudformation").create_stack(
        StackName="a-stack",
        TemplateBody=json.dumps(template),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()],
    )

    made_resources = aws("cloudformation").describe_stack_resources(StackName="a-stack")
    states = {r["LogicalResourceId"]: r["ResourceStatus"] for r in made_resources["StackResources"]}
    assert states == dict.fromkeys(template["Resources"], "CREATE_COMPLETE")
    expected = resolved(template, **given)
    names = [function.name for function in made.stack.functions]
    assert sorted(f["FunctionName"] for f in functions.list_functions()["Functions"]) == sorted(
        names
    )
    for function in made.stack.functions:
        found = functions.get_function_configuration(FunctionName=function.name, Qualifier="1")
        settings = expected[function.part.capitalize()]["Properties"]
        assert found["MemorySize"] == function.memory_mb
        assert found["Timeout"] == function.timeout_s
        assert found["Role"].endswith(f":role/{function.name}-eu-west-1")
        variables = found["Environment"]["Variables"]
        versions = variables.pop("SLICEWISE_VERSIONS", "")
        settings["Environment"]["Variables"].pop("SLICEWISE_VERSIONS", None)
        assert variables == settings["Environment"]["Variables"]
        if function.part == "coordinator":
            assert versions == ",".join(f"{part}=1" for part in function.calls)
    assert len(functions.list_layers()["Layers"]) == 1  # under a name of moto's
    groups = aws("logs").describe_log_groups()["logGroups"]
    assert {group["logGroupName"]: group["retentionInDays"] for group in groups} == {
        function.log_group: 30 for function in made.stack.functions
    }
    buckets = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]} - {"code"}
    assert buckets == ({"tied-123456789012-eu-west-1"} if name != "one" else set())


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("handler.py", "def handler(event, context): ...")
    return buffer.getvalue()
