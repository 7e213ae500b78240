"""The bucket: made, set up, filled with packages by their content, emptied and removed."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicewise.errors import DeploymentError

from ..packaging.archive import Archive
from ..resources import (
    LIFECYCLE_DAYS,
    PACKAGES,
    REQUESTS,
    WEIGHTS,
    Stack,
    StackFunction,
    bucket_policy,
)
from .clients import Clients, error_code, found
from .owned import check_owned, missing, tag_list, tag_map
from .work import Change, Work

BLOCKED = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}
RULE = {
    "ID": "requests",
    "Status": "Enabled",
    "Filter": {"Prefix": REQUESTS},
    "Expiration": {"Days": LIFECYCLE_DAYS},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
}
PARTS_RULE = {  # of packages: a large upload that was interrupted
    "ID": "packages",
    "Status": "Enabled",
    "Filter": {"Prefix": PACKAGES},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
}


@dataclass(frozen=True, kw_only=True)
class BucketState:
    """What S3 says of the bucket; None where a setting was never made."""

    tags: dict[str, str]
    blocked: Any = None
    policy: Any = None
    encrypted: bool = False
    rules: Any = None


def package_key(sha256: str) -> str:
    """Where a zip file lies, named by its content."""
    return f"{PACKAGES}{sha256}.zip"


def weights_key(sha256: str) -> str:
    """Where weights lie (bundle.streamed_weights)."""
    return f"{WEIGHTS}{sha256}"


def plan_key(sha256: str) -> str:
    """Where the plan lies that belongs to the coordinator with this zip file."""
    return f"{PACKAGES}{sha256}.plan.json"


def read_bucket(clients: Clients, stack: str, bucket: str) -> BucketState | None:
    """The stack's bucket, None if there is none. Raises `DeploymentError` for another's.

    An empty bucket of this name without any tag is one whose making was interrupted: S3 makes and tags
    in two steps. Account and region are in the name, so it is nobody else's.
    """
    s3, owner = clients.s3, {"Bucket": bucket, "ExpectedBucketOwner": clients.place.account}
    if found(lambda: s3.head_bucket(**owner), "404", "NoSuchBucket") is None:
        return None
    tags = found(lambda: s3.get_bucket_tagging(**owner), "NoSuchTagSet")
    named = tag_map(tags["TagSet"]) if tags else {}
    if named or s3.list_objects_v2(**owner, MaxKeys=1).get("KeyCount"):
        check_owned(f"the bucket {bucket}", named, stack)
    blocked = found(
        lambda: s3.get_public_access_block(**owner), "NoSuchPublicAccessBlockConfiguration"
    )
    policy = found(lambda: s3.get_bucket_policy(**owner), "NoSuchBucketPolicy")
    encryption = found(
        lambda: s3.get_bucket_encryption(**owner), "ServerSideEncryptionConfigurationNotFoundError"
    )
    rules = found(
        lambda: s3.get_bucket_lifecycle_configuration(**owner), "NoSuchLifecycleConfiguration"
    )
    return BucketState(
        tags=named,
        blocked=blocked and blocked["PublicAccessBlockConfiguration"],
        policy=policy and json.loads(policy["Policy"]),
        encrypted=encryption is not None,
        rules=rules and [own_fields(rule) for rule in rules["Rules"]],
    )


def ensure_bucket(work: Work, clients: Clients, stack: Stack) -> None:
    """The stack's bucket with all its settings: private, TLS only, encrypted, tensors die."""
    s3, place = clients.s3, clients.place
    bucket = stack.bucket(place)
    owner = {"Bucket": bucket, "ExpectedBucketOwner": place.account}
    what = f"bucket {bucket}"
    state = read_bucket(clients, stack.name, bucket)
    if state is None:
        work.do(
            Change(action="create", resource=what),
            lambda: clients.patiently(lambda: _create(clients, stack, bucket)),
            None,
        )
        state = BucketState(tags={})
    wanted_policy = bucket_policy(stack, place)
    settings: tuple[tuple[str, bool, Callable[[], Any]], ...] = (
        (
            "tags",
            not missing(stack.tags, state.tags),
            lambda: s3.put_bucket_tagging(
                **owner, Tagging={"TagSet": tag_list({**state.tags, **stack.tags})}
            ),
        ),
        (
            "public access blocked",
            state.blocked == BLOCKED,
            lambda: s3.put_public_access_block(**owner, PublicAccessBlockConfiguration=BLOCKED),
        ),
        (
            "TLS only",
            state.policy == wanted_policy,
            lambda: s3.put_bucket_policy(**owner, Policy=json.dumps(wanted_policy)),
        ),
        ("encryption", state.encrypted, lambda: s3.put_bucket_encryption(**owner, **_ENCRYPTION)),
        (
            f"tensors deleted after {LIFECYCLE_DAYS} day",
            state.rules == [RULE, PARTS_RULE],
            lambda: s3.put_bucket_lifecycle_configuration(
                **owner, LifecycleConfiguration={"Rules": [RULE, PARTS_RULE]}
            ),
        ),
    )
    changed = False
    for detail, holds, put in settings:
        if not holds:
            changed = True
            work.do(Change(action="update", resource=what, detail=detail), put, None)
    if not changed:
        work.keep(what)


def ensure_package(work: Work, clients: Clients, bucket: str, part: str, package: Archive) -> None:
    """The zip file in the bucket, under its content's name; what is there is not sent again."""
    key = package_key(package.sha256)
    if _has(clients, bucket, key):
        return
    work.do(
        Change(action="upload", resource=f"package {part}", detail=key, bytes=package.zip_bytes),
        lambda: clients.s3.upload_file(
            str(package.path), bucket, key, ExtraArgs={"ExpectedBucketOwner": clients.place.account}
        ),
        None,
    )


def ensure_weights(
    work: Work, clients: Clients, bucket: str, function: StackFunction, path: Path
) -> None:
    """The weights that a function streams when it starts, under their content's name."""
    key = weights_key(function.weights)
    if _has(clients, bucket, key):
        return
    size = path.stat().st_size
    work.do(
        Change(action="upload", resource=f"weights {function.part}", detail=key, bytes=size),
        lambda: clients.s3.upload_file(
            str(path), bucket, key, ExtraArgs={"ExpectedBucketOwner": clients.place.account}
        ),
        None,
    )


def ensure_plan(work: Work, clients: Clients, bucket: str, sha256: str, plan: str) -> None:
    """The plan in the bucket, for those who have only the stack's name."""
    key = plan_key(sha256)
    if _has(clients, bucket, key):
        return
    work.do(
        Change(action="upload", resource="plan", detail=key, bytes=len(plan.encode())),
        lambda: clients.s3.put_object(
            Bucket=bucket,
            Key=key,
            Body=plan.encode(),
            ContentType="application/json",
            ExpectedBucketOwner=clients.place.account,
        ),
        None,
    )


def remove_packages(work: Work, clients: Clients, bucket: str, kept: Collection[str]) -> None:
    """Delete packages, plans and weights of all contents but the kept ones."""
    forms = (package_key, plan_key, weights_key)
    keys = {form(sha256) for sha256 in kept for form in forms}
    for key in _keys(clients, bucket):
        if key not in keys:
            work.do(
                Change(action="delete", resource="package", detail=key),
                lambda key=key: clients.s3.delete_object(Bucket=bucket, Key=key),  # type: ignore[misc]
                None,
            )


def remove_bucket(work: Work, clients: Clients, stack: str, bucket: str) -> None:
    """Empty and delete the bucket, if it is there and the stack's."""
    s3, owner = clients.s3, {"Bucket": bucket, "ExpectedBucketOwner": clients.place.account}
    try:
        state = read_bucket(clients, stack, bucket)
    except DeploymentError:
        return  # another's
    if state is None:
        return

    def remove() -> None:
        pages = s3.get_paginator("list_object_versions").paginate(**owner)
        for page in pages:
            listed = (*page.get("Versions", ()), *page.get("DeleteMarkers", ()))
            objects = [{"Key": each["Key"], "VersionId": each["VersionId"]} for each in listed]
            if objects:
                s3.delete_objects(**owner, Delete={"Objects": objects, "Quiet": True})
        s3.delete_bucket(**owner)

    work.do(Change(action="delete", resource=f"bucket {bucket} and its objects"), remove, None)


_ENCRYPTION = {
    "ServerSideEncryptionConfiguration": {
        "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
    }
}


def _create(clients: Clients, stack: Stack, bucket: str) -> None:
    from botocore.exceptions import ClientError

    region = clients.place.region
    where: dict[str, Any] = {} if region == "us-east-1" else {"LocationConstraint": region}
    try:
        clients.s3.create_bucket(
            Bucket=bucket,
            CreateBucketConfiguration={**where, "Tags": tag_list(stack.tags)},
            ObjectOwnership="BucketOwnerEnforced",
        )
    except ClientError as error:  # boto3 repeats a call whose answer was lost
        if error_code(error) != "BucketAlreadyOwnedByYou":
            raise


def own_fields(rule: dict[str, Any]) -> dict[str, Any]:
    """A lifecycle rule as we write it, whatever S3 adds to it."""
    return {key: value for key, value in rule.items() if key in RULE}


def _has(clients: Clients, bucket: str, key: str) -> bool:
    """Whether an object is there."""
    owner = clients.place.account
    head = found(
        lambda: clients.s3.head_object(Bucket=bucket, Key=key, ExpectedBucketOwner=owner),
        "404", "NoSuchKey", "NoSuchBucket",
    )  # fmt: skip
    return head is not None


def _keys(clients: Clients, bucket: str) -> Iterator[str]:
    from botocore.exceptions import ClientError

    list_objects = clients.s3.get_paginator("list_objects_v2").paginate
    owner = clients.place.account
    try:
        for prefix in (PACKAGES, WEIGHTS):
            for page in list_objects(Bucket=bucket, Prefix=prefix, ExpectedBucketOwner=owner):
                yield from (each["Key"] for each in page.get("Contents", ()))
    except ClientError as error:  # a dry run of the first deployment
        if error_code(error) != "NoSuchBucket":
            raise
