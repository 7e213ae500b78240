"""Owned: what belongs to a stack carries its tag; nothing else is ever changed or removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slicewise.errors import DeploymentError

TAG = "slicewise:stack"


def is_owned(tags: Mapping[str, str], stack: str) -> bool:
    """Whether the tags say that something belongs to this stack."""
    return tags.get(TAG) == stack


def check_owned(what: str, tags: Mapping[str, str], stack: str) -> None:
    """Raise `DeploymentError` for something that has our name but not our tag."""
    if not is_owned(tags, stack):
        raise DeploymentError(
            f"{what} exists and does not carry the tag {TAG}={stack}, so it is not this stack's. "
            "Deploy under another name=... (--name), or remove it yourself."
        )


def missing(wanted: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that are wanted and not there; others are left as they are."""
    return {key: value for key, value in wanted.items() if tags.get(key) != value}


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as S3 and IAM take them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tag_map(tags: list[dict[str, Any]]) -> dict[str, str]:
    """Tags as S3 and IAM give them."""
    return {tag["Key"]: tag["Value"] for tag in tags}
