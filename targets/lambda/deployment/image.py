"""The container image: its repository, made and removed here, and what `docker push` put into it.

Deploy builds no images: it says the commands, and uses by digest what lies under the tag of the bundle's
content.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from slicewise.errors import DeploymentError

from ..resources import Place, Stack, repository_name, repository_policy
from .clients import Clients, error_code, found
from .owned import check_owned, is_owned, missing, tag_list, tag_map
from .work import NEW, Change, Work

_PLATFORMS = {"x86_64": "linux/amd64", "arm64": "linux/arm64"}


def ensure_image(work: Work, clients: Clients, stack: Stack, tag: str, bundle: Path) -> str:
    """The SHA-256 of the image with this tag, in the stack's repository, which is made if need be.

    Raises `DeploymentError` with the commands that build and push it when it is not there.
    """
    _ensure_repository(work, clients, stack)
    name = repository_name(stack.name)
    details = found(
        lambda: clients.ecr.describe_images(repositoryName=name, imageIds=[{"imageTag": tag}]),
        "ImageNotFoundException",
        "RepositoryNotFoundException",
    )
    if details is not None:
        digest = str(details["imageDetails"][0]["imageDigest"]).removeprefix("sha256:")
        work.keep(f"image {name}:{tag}", digest[:12])
        return digest

    def refuse() -> str:
        uri = f"{clients.place.registry}/{name}:{tag}"
        lines = "\n".join(f"    {line}" for line in commands(clients.place, stack, uri, bundle))
        raise DeploymentError(
            f"the image {uri} is not there, and deploy cannot build it. Build and push it, then deploy "
            f"again:\n{lines}\n"
        )

    return work.do(
        Change(action="upload", resource=f"image {name}:{tag}", detail="by docker push"),
        refuse,
        NEW,
    )


def tag_of(clients: Clients, stack: str, sha256: str) -> str:
    """The tag of an image that is there, by its digest."""
    details = clients.ecr.describe_images(
        repositoryName=repository_name(stack), imageIds=[{"imageDigest": f"sha256:{sha256}"}]
    )["imageDetails"][0]
    return str(next(iter(details.get("imageTags", ())), "untagged"))


def commands(place: Place, stack: Stack, uri: str, bundle: Path) -> tuple[str, ...]:
    """What builds and pushes the image of a bundle."""
    base = f"public.ecr.aws/lambda/python:{stack.python}"
    return (
        f"aws ecr get-login-password --region {place.region} | "
        f"docker login --username AWS --password-stdin {place.registry}",
        f"docker build --build-arg BASE={base} --platform {_PLATFORMS[stack.architecture]} "
        f"--provenance=false -t {uri} {shlex.quote(str(bundle))}",
        f"docker push {uri}",
    )


def remove_images(work: Work, clients: Clients, stack: str, kept: Collection[str]) -> None:
    """Delete the stack's images of all digests (SHA-256) but the kept ones."""
    name = repository_name(stack)
    if _tags(clients, name, stack) is None:
        return
    pages = clients.ecr.get_paginator("list_images").paginate(repositoryName=name)
    listed = {each["imageDigest"] for page in pages for each in page["imageIds"]}
    for digest in sorted(listed - {f"sha256:{each}" for each in kept}):
        work.do(
            Change(action="delete", resource=f"image {name}@{digest}"),
            lambda digest=digest: clients.ecr.batch_delete_image(  # type: ignore[misc]
                repositoryName=name, imageIds=[{"imageDigest": digest}]
            ),
            None,
        )


def remove_repository(work: Work, clients: Clients, stack: str) -> None:
    """Delete the repository with its images, if it is there and the stack's."""
    name = repository_name(stack)
    tags = _tags(clients, name, stack)
    if tags is not None:
        work.do(
            Change(action="delete", resource=f"repository {name} and its images"),
            lambda: found(
                lambda: clients.ecr.delete_repository(repositoryName=name, force=True),
                "RepositoryNotFoundException",
            ),
            None,
        )


def _ensure_repository(work: Work, clients: Clients, stack: Stack) -> None:
    ecr, name = clients.ecr, repository_name(stack.name)
    what = f"repository {name}"
    there = _read(clients, name)
    start = len(work.changes)
    if there is None:
        work.do(Change(action="create", resource=what), lambda: _create(clients, stack, name), None)
    else:
        tags = _tags_of(clients, there)
        check_owned(f"the repository {name}", tags, stack.name)
        if wanting := missing(stack.tags, tags):
            work.do(
                Change(action="update", resource=what, detail="tags"),
                lambda: ecr.tag_resource(
                    resourceArn=there["repositoryArn"], tags=tag_list(wanting)
                ),
                None,
            )
    wanted = repository_policy(stack, clients.place)
    reply = found(
        lambda: ecr.get_repository_policy(repositoryName=name),
        "RepositoryPolicyNotFoundException",
        "RepositoryNotFoundException",
    )
    if reply is None or json.loads(reply["policyText"]) != wanted:
        work.do(
            Change(action="update", resource=what, detail="Lambda may load images"),
            lambda: ecr.set_repository_policy(repositoryName=name, policyText=json.dumps(wanted)),
            None,
        )
    if len(work.changes) == start:
        work.keep(what)


def _create(clients: Clients, stack: Stack, name: str) -> None:
    from botocore.exceptions import ClientError

    try:
        clients.ecr.create_repository(repositoryName=name, tags=tag_list(stack.tags))
    except ClientError as error:  # boto3 repeats a call whose answer was lost
        if error_code(error) != "RepositoryAlreadyExistsException":
            raise
        check_owned(f"the repository {name}", _tags_of(clients, _read(clients, name)), stack.name)


def _read(clients: Clients, name: str) -> Any:
    reply = found(
        lambda: clients.ecr.describe_repositories(repositoryNames=[name]),
        "RepositoryNotFoundException",
    )
    return reply and reply["repositories"][0]


def _tags_of(clients: Clients, repository: Any) -> dict[str, str]:
    arn = repository["repositoryArn"]
    return tag_map(clients.ecr.list_tags_for_resource(resourceArn=arn)["tags"])


def _tags(clients: Clients, name: str, stack: str) -> dict[str, str] | None:
    """The tags of the stack's repository, None where there is none or it is another's."""
    there = _read(clients, name)
    tags = _tags_of(clients, there) if there else {}
    return tags if is_owned(tags, stack) else None
