"""Permissions: instances may do what their policies allow, and are told what they may not."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

permissions = importlib.import_module("slicewise.targets.lambda.local.permissions")
FUNCTION_ARN = "arn:aws:lambda:us-east-1:123456789012:function:"

SOURCE = """
import boto3, json

def handler(event, context):
    client = boto3.client(event["service"])
    try:
        answer = getattr(client, event["do"])(**event["with"])
        return {"errors": answer.get("Errors", [])}
    except client.exceptions.ClientError as error:
        told = error.response["Error"]
        return {"code": told["Code"], "message": told["Message"]}
"""


def document(*statements: Any) -> Any:
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": effect, "Action": action, "Resource": resource}
            for effect, action, resource in statements
        ],
    }


ROLES = {
    "probe": permissions.Role(
        name="role-of-probe",
        policy=document(
            ("Allow", ["s3:PutObject", "s3:GetObject"], ["arn:aws:s3:::bucket/requests/*"]),
            ("Allow", ["s3:DeleteObject"], ["arn:aws:s3:::bucket/requests/a*"]),
            ("Allow", ["lambda:InvokeFunction"], [f"{FUNCTION_ARN}other:*"]),
        ),
    )
}


@pytest.fixture(scope="module")
def ask(make_function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    local = importlib.import_module("slicewise.targets.lambda.local")
    functions = [make_function("probe", SOURCE, memory_mb=512), make_function("other")]
    buckets = ["bucket", "express--use1-az4--x-s3"]
    with local.Platform(functions, buckets=buckets, cpu_scale=8.0, roles=ROLES) as platform:
        client = platform.client("lambda")

        def ask(service: str, do: str, **parameters: Any) -> Any:
            event = {"service": service, "do": do, "with": parameters}
            answer = client.invoke(FunctionName="probe", Payload=json.dumps(event))
            return json.loads(answer["Payload"].read())

        yield ask


def test_what_is_allowed_is_done(ask: Callable[..., Any]) -> None:
    done: Any = {"errors": []}
    key = {"Bucket": "bucket", "Key": "requests/a"}
    assert ask("s3", "put_object", **key) == done
    assert ask("s3", "head_object", **key) == done
    assert (
        ask("s3", "delete_objects", Bucket="bucket", Delete={"Objects": [{"Key": key["Key"]}]})
        == done
    )
    assert ask("lambda", "invoke", FunctionName="other:3", Payload="{}") == done


DENIED = [
    ("s3", "put_object", {"Bucket": "bucket", "Key": "weights/a"}, "s3:PutObject"),
    ("s3", "get_object", {"Bucket": "elsewhere", "Key": "requests/a"}, "s3:GetObject"),
    ("s3", "delete_object", {"Bucket": "bucket", "Key": "requests/b"}, "s3:DeleteObject"),
    ("s3", "list_objects_v2", {"Bucket": "bucket"}, "s3:ListBucket"),
    ("s3", "list_buckets", {}, "s3:ListAllMyBuckets"),
    ("s3", "delete_bucket", {"Bucket": "bucket"}, "s3:DeleteBucket"),
    ("lambda", "invoke", {"FunctionName": "probe", "Payload": "{}"}, "lambda:InvokeFunction"),
    # Without a version: the policy names those that have one.
    ("lambda", "invoke", {"FunctionName": "other", "Payload": "{}"}, "lambda:InvokeFunction"),
]


@pytest.mark.parametrize(("service", "do", "parameters", "action"), DENIED)
def test_what_is_not_allowed_names_action_resource_and_role(
    service: str, do: str, parameters: Any, action: str, ask: Callable[..., Any]
) -> None:
    found = ask(service, do, **parameters)

    assert found["code"] == ("AccessDenied" if service == "s3" else "AccessDeniedException")
    assert (
        f"assumed-role/role-of-probe/probe is not authorized to perform: {action} on"
        in found["message"]
    )
    for value in parameters.values():
        assert value == "{}" or value in found["message"]


def test_a_session_of_a_directory_bucket_needs_its_permission(ask: Callable[..., Any]) -> None:
    found = ask("s3", "get_object", Bucket="express--use1-az4--x-s3", Key="requests/a")

    assert "perform: s3express:CreateSession on resource: arn:aws:s3express:" in found["message"]


def test_of_several_objects_each_that_may_not_be_deleted_is_named(ask: Callable[..., Any]) -> None:
    keys = [{"Key": key} for key in ("requests/a", "requests/b", "weights/a<&>")]

    found = ask("s3", "delete_objects", Bucket="bucket", Delete={"Objects": keys})

    assert [error["Key"] for error in found["errors"]] == ["requests/b", "weights/a<&>"]
    assert {error["Code"] for error in found["errors"]} == {"AccessDenied"}


def test_a_policy_that_says_more_is_refused() -> None:
    statement = {"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": {}}
    with pytest.raises(ValueError, match="the policy of r has Condition"):
        permissions.Role(name="r", policy={"Statement": [statement]})


TEXT = st.text("ab:*", min_size=1, max_size=5)
STATEMENTS = st.lists(
    st.tuples(
        st.sampled_from(["Allow", "Deny"]),
        st.lists(TEXT.map("s3:".__add__), min_size=1, max_size=2),
        st.lists(TEXT.map("arn:aws:s3:::".__add__), min_size=1, max_size=2),
    ),
    min_size=1,
    max_size=3,
)
PLAIN = st.text("ab:", max_size=5)


@given(STATEMENTS, PLAIN, PLAIN)
def test_policies_mean_what_another_evaluator_says(statements: Any, action: str, key: str) -> None:
    """moto's, which takes ? for a regular expression's."""
    from moto.iam.access_control import IAMPolicy, PermissionResult

    policy = document(*statements)
    asked = f"s3:{action}", f"arn:aws:s3:::{key}"
    wanted = IAMPolicy(json.dumps(policy)).is_action_permitted(*asked) == PermissionResult.PERMITTED

    assert permissions.Role(name="r", policy=policy).allows(*asked) == wanted


def test_a_question_mark_is_one_character() -> None:
    role = permissions.Role(name="r", policy=document(("Allow", "s3:?et", "*")))

    assert role.allows("S3:GET", "any\nthing")
    assert not role.allows("s3:et", "x")
