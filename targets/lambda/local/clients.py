"""boto3 clients that depend on nothing of this machine's user."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

from .identity import REGION

CONNECT_SECONDS = 10.0
READ_SECONDS = 960.0  # Lambda's longest timeout, and a cold start before it


def boto_client(
    service: str, url: str, credentials: tuple[str, str], *, read_timeout_s: float = READ_SECONDS
) -> Any:
    """A client with explicit endpoint, region, credentials and time limits, and no retries."""
    # Imported here: it takes a quarter of a second, which only its users should pay.
    import boto3.session
    import botocore.session
    from botocore.config import Config

    # Neither ~/.aws nor AWS_PROFILE: a profile may set endpoints, retries or a region.
    core = botocore.session.Session(
        session_vars={
            "profile": (None, None, None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        read_timeout=read_timeout_s,
        connect_timeout=CONNECT_SECONDS,
        tcp_keepalive=True,
        max_pool_connections=64,
        proxies={},
        s3={"addressing_style": "path"},
        user_agent="slicewise",  # see runtime/calls.py
        inject_host_prefix=False,  # StartSyncExecution's would be "sync-127.0.0.1"
    )
    session = boto3.session.Session(botocore_session=core, region_name=REGION)
    return session.client(
        service,
        endpoint_url=url,
        aws_access_key_id=credentials[0],
        aws_secret_access_key=credentials[1],
        config=config,
    )


def create_buckets(client: Any, buckets: Sequence[str]) -> None:
    """Create the buckets that do not exist yet."""
    for bucket in buckets:
        with contextlib.suppress(
            client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists
        ):
            client.create_bucket(Bucket=bucket)
