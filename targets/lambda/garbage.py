"""Objects that requests have left: a killed coordinator deletes nothing.

A lifecycle rule deletes them after a day (resources.LIFECYCLE_DAYS); `slicewise gc` does it now.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from slicewise.errors import TargetError

from .resources import REQUESTS

OLDER_THAN_S = 3600.0  # no request lives that long: a function runs 15 minutes at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """An object of a request that has ended."""

    key: str
    bytes: int


def leftovers(
    s3: Any, bucket: str, older_than_s: float = OLDER_THAN_S, **owner: str
) -> Iterator[Leftover]:
    """The tensors that were written longer ago, by S3's own clock. `owner` goes along with each call.

    Raises `TargetError` for a negative age, and boto3's errors.
    """
    if not older_than_s >= 0:
        raise TargetError(f"an age of {older_than_s} s makes no sense; give 0 or more")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=REQUESTS, **owner)
    for page in pages:
        told = page["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
        now = parsedate_to_datetime(told) if told else datetime.now(UTC)
        oldest = now - timedelta(seconds=older_than_s)
        for found in page.get("Contents", ()):
            # S3 tells whole seconds.
            if found["LastModified"] <= oldest:
                yield Leftover(key=found["Key"], bytes=found["Size"])


def remove(s3: Any, bucket: str, found: list[Leftover], **owner: str) -> None:
    """Delete them. Raises `TargetError` for what S3 would not delete, and boto3's errors."""
    for start in range(0, len(found), 1000):
        keys = [{"Key": each.key} for each in found[start : start + 1000]]
        answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True}, **owner)
        for error in answer.get("Errors", ()):
            raise TargetError(
                f"{error.get('Key')} in {bucket} cannot be deleted: {error.get('Code')}: "
                f"{error.get('Message')}"
            )
