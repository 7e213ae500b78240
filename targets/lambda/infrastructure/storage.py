"""The buckets of a stack: where tensors lie that are too large for a message, for a day at most."""

from __future__ import annotations

from typing import Any

from ..resources import (
    LIFECYCLE_DAYS,
    REQUESTS,
    Place,
    Stack,
    bucket_policy,
    express_bucket_policy,
)
from .intrinsics import filled, ref
from .suppressions import suppressed

BUCKET, EXPRESS_BUCKET = "TensorBucket", "ExpressBucket"


def storage(stack: Stack, place: Place, tags: list[dict[str, str]]) -> dict[str, Any]:
    """The buckets that the plan's transports need, by logical id; none when all goes in messages."""
    found: dict[str, Any] = {}
    if "s3" in stack.transports:
        found[BUCKET] = {
            "Type": "AWS::S3::Bucket",
            "Metadata": suppressed("bucket"),
            # A bucket that holds objects cannot be deleted: README.md has the command that empties it.
            "DeletionPolicy": "Delete",
            "UpdateReplacePolicy": "Delete",
            "Properties": {
                "BucketName": filled(stack.bucket(place)),
                "PublicAccessBlockConfiguration": {
                    "BlockPublicAcls": True,
                    "BlockPublicPolicy": True,
                    "IgnorePublicAcls": True,
                    "RestrictPublicBuckets": True,
                },
                "OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]},
                "BucketEncryption": _encryption(),
                "LifecycleConfiguration": {
                    "Rules": [
                        _expiry(),
                        {
                            "Id": "abort-incomplete-uploads",
                            "Status": "Enabled",
                            "AbortIncompleteMultipartUpload": {
                                "DaysAfterInitiation": LIFECYCLE_DAYS
                            },
                        },
                    ]
                },
                "Tags": tags,
            },
        }
        found[f"{BUCKET}Policy"] = {
            "Type": "AWS::S3::BucketPolicy",
            "Properties": {
                "Bucket": ref(BUCKET),
                "PolicyDocument": filled(bucket_policy(stack, place)),
            },
        }
    if "s3express" in stack.transports:
        found[EXPRESS_BUCKET] = {
            # Public access is always blocked, and the owner enforced, for directory buckets.
            "Type": "AWS::S3Express::DirectoryBucket",
            "DeletionPolicy": "Delete",
            "UpdateReplacePolicy": "Delete",
            "Properties": {
                "BucketName": filled(stack.express_bucket(place)),
                "LocationName": ref("Zone"),
                "DataRedundancy": "SingleAvailabilityZone",
                "BucketEncryption": _encryption(),
                "LifecycleConfiguration": {
                    "Rules": [
                        {
                            **_expiry(),
                            "AbortIncompleteMultipartUpload": {
                                "DaysAfterInitiation": LIFECYCLE_DAYS
                            },
                        }
                    ]
                },
                "Tags": tags,
            },
        }
        found[f"{EXPRESS_BUCKET}Policy"] = {
            "Type": "AWS::S3Express::BucketPolicy",
            "Properties": {
                "Bucket": ref(EXPRESS_BUCKET),
                "PolicyDocument": filled(express_bucket_policy(stack, place)),
            },
        }
    return found


def _encryption() -> dict[str, Any]:
    rule = {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    return {"ServerSideEncryptionConfiguration": [rule]}


def _expiry() -> dict[str, Any]:
    """Requests delete what they made; this is for those that were cut short."""
    return {
        "Id": "expire-requests",
        "Status": "Enabled",
        "Prefix": REQUESTS,
        "ExpirationInDays": LIFECYCLE_DAYS,
    }
