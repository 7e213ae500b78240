"""Collecting what the requests of a deployment have left in its buckets."""

from __future__ import annotations

from slicewise.errors import DeploymentError

from ..garbage import leftovers, remove
from .bucket import read_bucket
from .clients import Clients
from .express import express_buckets
from .work import Change, Work


def collect(work: Work, clients: Clients, stack: str, older_than_s: float) -> None:
    """Delete tensors in the stack's buckets that were written longer ago.

    Raises `DeploymentError` when there is no bucket, or it is another's.
    """
    place = clients.place
    bucket = f"{stack}-{place.account}-{place.region}"
    if read_bucket(clients, stack, bucket) is None:
        raise DeploymentError(
            f"there is no bucket {bucket}: {stack} is not deployed in {place.region}, or in another "
            "account. Name a deployment that `slicewise status` finds."
        )
    for each in (bucket, *express_buckets(clients, stack)):
        found = list(leftovers(clients.s3, each, older_than_s, ExpectedBucketOwner=place.account))
        for start in range(0, len(found), 1000):
            some = found[start : start + 1000]
            size = sum(one.bytes for one in some)
            work.do(
                Change(
                    action="delete",
                    resource=f"{len(some)} tensors in {each}",
                    detail=f"{some[0].key} and others, {size:,} bytes" if some else "",
                ),
                lambda each=each, some=some: remove(  # type: ignore[misc]
                    clients.s3, each, some, ExpectedBucketOwner=place.account
                ),
                None,
            )
