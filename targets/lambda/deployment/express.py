"""The directory bucket of S3 Express One Zone: tensors on their way, within one availability zone.

Its name has stack, account and zone, and so says whose it is. Public access is always blocked, and what
it holds always encrypted.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from ..resources import EXPRESS_SUFFIX, Stack, express_bucket_policy, express_prefix
from .bucket import RULE, own_fields
from .clients import Clients, error_code, found
from .owned import tag_list
from .work import Change, Work


def zone_of(bucket: str) -> str:
    """The availability zone that the name of a directory bucket tells."""
    return bucket.removesuffix(EXPRESS_SUFFIX).rpartition("--")[2]


def express_buckets(clients: Clients, stack: str) -> list[str]:
    """The directory buckets of the stack: more than one when it was moved to another zone."""
    pages = clients.s3.get_paginator("list_directory_buckets").paginate()
    names = [each["Name"] for page in pages for each in page.get("Buckets", ())]
    prefix = express_prefix(stack, clients.place)
    return [name for name in names if name.startswith(prefix) and name.endswith(EXPRESS_SUFFIX)]


def ensure_express_bucket(work: Work, clients: Clients, stack: Stack) -> None:
    """The bucket, TLS only, in which tensors die."""
    s3, bucket = clients.s3, stack.express_bucket(clients.place)
    what = f"bucket {bucket}"
    is_there = bucket in express_buckets(clients, stack.name)
    if not is_there:
        work.do(
            Change(action="create", resource=what),
            lambda: clients.patiently(lambda: _create(clients, stack, bucket)),
            None,
        )
    policy = rules = None
    if is_there:
        policy = found(lambda: s3.get_bucket_policy(Bucket=bucket), "NoSuchBucketPolicy")
        rules = found(
            lambda: s3.get_bucket_lifecycle_configuration(Bucket=bucket),
            "NoSuchLifecycleConfiguration",
        )
    changed = len(work.changes)
    wanted = express_bucket_policy(stack, clients.place)
    if policy is None or json.loads(policy["Policy"]) != wanted:
        work.do(
            Change(action="update", resource=what, detail="TLS only"),
            lambda: s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(wanted)),
            None,
        )
    if rules is None or [own_fields(rule) for rule in rules["Rules"]] != [RULE]:
        work.do(
            Change(action="update", resource=what, detail="tensors deleted"),
            lambda: s3.put_bucket_lifecycle_configuration(
                Bucket=bucket, LifecycleConfiguration={"Rules": [RULE]}
            ),
            None,
        )
    if is_there and len(work.changes) == changed:
        work.keep(what)


def remove_express_buckets(
    work: Work, clients: Clients, stack: str, kept: Collection[str] = ()
) -> None:
    """Empty and delete all directory buckets of the stack but the kept ones."""
    for bucket in express_buckets(clients, stack):
        if bucket not in kept:
            work.do(
                Change(action="delete", resource=f"bucket {bucket} and its objects"),
                lambda bucket=bucket: _remove(clients, bucket),  # type: ignore[misc]
                None,
            )


def _create(clients: Clients, stack: Stack, bucket: str) -> None:
    from botocore.exceptions import ClientError

    where: dict[str, Any] = {
        "Location": {"Type": "AvailabilityZone", "Name": clients.place.zone},
        "Bucket": {"Type": "Directory", "DataRedundancy": "SingleAvailabilityZone"},
        "Tags": tag_list(stack.tags),
    }
    try:
        clients.s3.create_bucket(Bucket=bucket, CreateBucketConfiguration=where)
    except ClientError as error:  # boto3 repeats a call whose answer was lost
        if error_code(error) != "BucketAlreadyOwnedByYou":
            raise


def _remove(clients: Clients, bucket: str) -> None:
    s3 = clients.s3
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        objects = [{"Key": each["Key"]} for each in page.get("Contents", ())]
        if objects:
            s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
    s3.delete_bucket(Bucket=bucket)
