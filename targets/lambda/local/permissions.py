"""Permissions: instances may do what the policies allow that a deployment gives to their roles.

So a missing permission is found here and not on AWS. Who asks is told by the access key id
(identity.py); the user's own clients may do everything. In a policy count Effect, Action and Resource
with the wildcards * and ?; one that says more than that is refused, as it would be read wrongly.

This also runs in the S3 server's process: standard library and siblings only.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from .identity import ACCOUNT, REGION, Caller, caller_of
from .wsgi import App, Environ

EXPRESS_SUFFIX = "--x-s3"  # of directory buckets, S3 Express One Zone
_KNOWN = {"Sid", "Effect", "Action", "Resource"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """The role of a function and its policy document. Raises `ValueError` for one that is not
    understood.
    """

    name: str
    policy: Mapping[str, Any]

    def __post_init__(self) -> None:
        for statement in self.policy["Statement"]:
            unknown = statement.keys() - _KNOWN
            if unknown or statement["Effect"] not in ("Allow", "Deny"):
                raise ValueError(
                    f"the policy of {self.name} has {', '.join(sorted(unknown)) or 'no known Effect'}, "
                    "which the local platform does not evaluate; switch permissions off"
                )

    def allows(self, action: str, resource: str) -> bool:
        """Whether a statement allows it and none denies it."""
        effects = {
            statement["Effect"]
            for statement in self.policy["Statement"]
            if _matches(statement["Action"], action, re.IGNORECASE)
            and _matches(statement["Resource"], resource)
        }
        return effects == {"Allow"}


Roles = Mapping[str, Role]  # by function


def roles_from_json(data: Mapping[str, Any]) -> Roles:
    """The inverse of `roles_to_json`."""
    return {function: Role(**role) for function, role in data.items()}


def roles_to_json(roles: Roles) -> dict[str, Any]:
    """For another process."""
    return {name: {"name": role.name, "policy": role.policy} for name, role in roles.items()}


def refusal(roles: Roles, caller: Caller | None, action: str, resource: str) -> str | None:
    """Why an instance may not do this, in AWS's words; None when it may."""
    if caller is None:
        return None
    role = roles.get(caller.function)
    if role is not None and role.allows(action, resource):
        return None
    name = role.name if role else "none"
    return (
        f"User: arn:aws:sts::{ACCOUNT}:assumed-role/{name}/{caller.function} is not authorized to "
        f"perform: {action} on resource: {resource} because no identity-based policy allows the "
        f"{action} action"
    )


def guarded(app: App, roles: Roles) -> App:
    """S3 that refuses instances what their roles do not allow."""

    def answer(environ: Environ, start_response: Any) -> Iterable[bytes]:
        caller = caller_of(environ.get("HTTP_AUTHORIZATION"))
        if caller is None:
            return app(environ, start_response)
        wanted = needed(environ)
        refused = {key: refusal(roles, caller, *each) for key, each in wanted.items()}
        problems = {key: why for key, why in refused.items() if why}
        if not problems:
            return app(environ, start_response)
        error = "<Error>{key}<Code>AccessDenied</Code><Message>{why}</Message></Error>"
        if "" in problems:
            status, body = "403 Forbidden", error.format(key="", why=escape(problems[""]))
        else:  # of several objects S3 answers each
            named = (
                error.format(key=f"<Key>{escape(key)}</Key>", why=escape(why))
                for key, why in problems.items()
            )
            status, body = "200 OK", f"<DeleteResult>{''.join(named)}</DeleteResult>"
        raw = body.encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(raw)))]
        start_response(status, headers)
        return [raw]

    return answer


def needed(environ: Environ) -> dict[str, tuple[str, str]]:
    """(action, resource) of an S3 request; of one that deletes several objects by key, else by ""."""
    bucket, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
    method = environ["REQUEST_METHOD"]
    query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
    if bucket.endswith(EXPRESS_SUFFIX):  # a session is all that there is to allow
        arn = f"arn:aws:s3express:{REGION}:{ACCOUNT}:bucket/{bucket}"
        return {"": ("s3express:CreateSession", arn)}
    arn = f"arn:aws:s3:::{bucket}"
    if key:
        actions = {"GET": "GetObject", "HEAD": "GetObject", "DELETE": "DeleteObject"}
        return {"": (f"s3:{actions.get(method, 'PutObject')}", f"{arn}/{key}")}
    if method == "POST" and "delete" in query:
        return {each: ("s3:DeleteObject", f"{arn}/{each}") for each in _keys(environ)}
    if method in ("GET", "HEAD"):
        return {"": ("s3:ListBucket", arn) if bucket else ("s3:ListAllMyBuckets", "*")}
    return {"": (f"s3:{method.title()}Bucket", arn)}


def _keys(environ: Environ) -> list[str]:
    """The keys in the body of DeleteObjects, which the application reads again."""
    body = environ["wsgi.input"].read()
    environ["wsgi.input"] = io.BytesIO(body)
    root = ElementTree.fromstring(body)
    return [each.text or "" for each in root.iter() if each.tag.rpartition("}")[2] == "Key"]


def _matches(patterns: str | Iterable[str], text: str, flags: int = 0) -> bool:
    """Whether one of IAM's patterns is the whole text: * are any characters, ? is one."""
    each = [patterns] if isinstance(patterns, str) else patterns
    parts = {"*": ".*", "?": "."}
    return any(
        re.fullmatch(
            "".join(parts.get(c) or re.escape(c) for c in pattern), text, flags | re.DOTALL
        )
        for pattern in each
    )
