"""Who sends a request: every instance has an access key id of its own that says which it is.

The id stands in the `Authorization` header (Signature Version 4) of every request of an AWS client.
Lambda's ids say nothing, but these must be read in the S3 server's process too, which knows nothing
of the instances; so the id contains the instance's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

REGION = "us-east-1"
ACCOUNT = "123456789012"

PREFIX = "ASIALOCAL."  # AWS's ids of temporary credentials begin with ASIA
CREDENTIAL = re.compile(r"Credential=([^/,\s]+)/")
INSTANCE_KEY = re.compile(re.escape(PREFIX) + r"(?P<instance>(?P<function>[\w-]+)-\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An instance that sent a request."""

    function: str
    instance: str


def instance_id(function: str, number: int) -> str:
    """The id of a platform's n-th instance."""
    return f"{function}-{number}"


def access_key_id(instance: str) -> str:
    """The access key id of an instance."""
    return PREFIX + instance


def access_key_id_of(authorization: str | None) -> str | None:
    """The access key id in an `Authorization` header; None when the request is not signed.

    CreateSession has to give it back, so that a session of S3 Express still says whose it is.
    """
    match = CREDENTIAL.search(authorization or "")
    return match[1] if match else None


def caller_of(authorization: str | None) -> Caller | None:
    """The instance that signed a request; None for everybody else (the user's own clients).

    Signatures are not checked: nothing on this machine has a reason to lie.
    """
    match = INSTANCE_KEY.fullmatch(access_key_id_of(authorization) or "")
    return Caller(function=match["function"], instance=match["instance"]) if match else None
