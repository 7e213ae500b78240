"""The layer: one version per content, which its description names."""

from __future__ import annotations

from collections.abc import Collection

from ..packaging.archive import Archive
from ..resources import Stack
from .bucket import ensure_package, package_key
from .clients import Clients, found
from .owned import TAG
from .work import NEW, Change, Work


def layer_name(stack: str) -> str:
    """The layer of a stack's runtime."""
    return f"{stack}-runtime"


def read_layer(clients: Clients, stack: str) -> dict[str, str]:
    """The ARN of every published version of the stack's layer, and the SHA-256 of its zip file.

    Layers have no tags: the description says whose it is and what it holds.
    """
    pages = clients.functions.get_paginator("list_layer_versions").paginate(
        LayerName=layer_name(stack)
    )
    found_versions = {}
    for page in pages:
        for version in page["LayerVersions"]:
            whose, _, sha256 = version.get("Description", "").partition(" ")
            if whose == f"{TAG}={stack}":
                found_versions[version["LayerVersionArn"]] = sha256
    return found_versions


def ensure_layer(work: Work, clients: Clients, stack: Stack, package: Archive) -> str:
    """The ARN of the version with this content, published unless there is one."""
    for arn, sha256 in read_layer(clients, stack.name).items():
        if sha256 == package.sha256:
            work.keep(f"layer {layer_name(stack.name)}", f"version {arn.rpartition(':')[2]}")
            return arn
    bucket = stack.bucket(clients.place)
    ensure_package(work, clients, bucket, "layer", package)

    def publish() -> str:
        made = clients.functions.publish_layer_version(
            LayerName=layer_name(stack.name),
            Description=f"{TAG}={stack.name} {package.sha256}",
            Content={"S3Bucket": bucket, "S3Key": package_key(package.sha256)},
            CompatibleRuntimes=[f"python{stack.python}"],
            CompatibleArchitectures=[stack.architecture],
        )
        return str(made["LayerVersionArn"])

    return work.do(
        Change(action="publish", resource=f"layer {layer_name(stack.name)}"),
        publish,
        NEW,
    )


def remove_layers(work: Work, clients: Clients, stack: str, kept: Collection[str] = ()) -> None:
    """Delete all versions of the stack's layer but the kept ARNs."""
    for arn in read_layer(clients, stack):
        if arn not in kept:
            work.do(
                Change(action="delete", resource=f"layer {':'.join(arn.split(':')[-2:])}"),
                lambda arn=arn: delete_layer_version(clients, arn),  # type: ignore[misc]
                None,
            )


def delete_layer_version(clients: Clients, arn: str) -> None:
    """Delete one version; functions that have it keep running."""
    *_, name, number = arn.split(":")
    found(
        lambda: clients.functions.delete_layer_version(LayerName=name, VersionNumber=int(number)),
        "ResourceNotFoundException",
    )
