"""Access: the roles of functions and of the state machine, and the log groups of functions."""

from __future__ import annotations

import json
from typing import Any

from ..resources import Place, Role, Stack, StackFunction, trust_policy
from .clients import Clients, error_code, found
from .owned import check_owned, is_owned, missing, tag_list, tag_map
from .work import Change, Work

POLICY = "slicewise"
NEXT_POLICY = "slicewise-next"  # what a version that serves not yet needs besides


def role_arn(name: str, place: Place) -> str:
    """The ARN of a role."""
    return f"arn:{place.partition}:iam::{place.account}:role/{name}"


def ensure_role(work: Work, clients: Clients, stack: Stack, role: Role) -> None:
    """The role, which then allows what the new version needs and still all that the one that serves
    needs: a policy that differs stands beside the old one until `settle_role`.
    """
    iam, name = clients.iam, role.name
    what = f"role {name}"
    there = found(lambda: iam.get_role(RoleName=name), "NoSuchEntity")
    trust = trust_policy(role.service)
    if there is None:
        work.do(
            Change(action="create", resource=what),
            lambda: _create_role(clients, stack, name, trust),
            None,
        )
        _put(work, clients, name, POLICY, role.policy)
        return
    tags = tag_map(there["Role"].get("Tags", []))
    check_owned(f"the role {name}", tags, stack.name)
    start = len(work.changes)
    if wanting := missing(stack.tags, tags):
        work.do(
            Change(action="update", resource=what, detail="tags"),
            lambda: iam.tag_role(RoleName=name, Tags=tag_list(wanting)),
            None,
        )
    if there["Role"]["AssumeRolePolicyDocument"] != trust:
        work.do(
            Change(action="update", resource=what, detail="who may take it"),
            lambda: iam.update_assume_role_policy(RoleName=name, PolicyDocument=json.dumps(trust)),
            None,
        )
    now = _policy(clients, name, POLICY)
    if now is None:
        _put(work, clients, name, POLICY, role.policy)
    elif now != role.policy and _policy(clients, name, NEXT_POLICY) != role.policy:
        _put(work, clients, name, NEXT_POLICY, role.policy)
    if len(work.changes) == start:
        work.keep(what)


def settle_role(work: Work, clients: Clients, role: Role) -> None:
    """Allow what the version that serves needs and nothing else."""
    now = _policy(clients, role.name, POLICY)
    differs = now is not None and now != role.policy
    if differs:
        _put(work, clients, role.name, POLICY, role.policy)
    drop_next_policy(work, clients, role, to_come=differs and work.dry_run)


def drop_next_policy(work: Work, clients: Clients, role: Role, *, to_come: bool = False) -> None:
    """Take away what only a version needed that serves not yet; `to_come` says that it will be there."""
    name = role.name
    if to_come or _policy(clients, name, NEXT_POLICY) is not None:
        work.do(
            Change(action="delete", resource=f"role {name}", detail=f"policy {NEXT_POLICY}"),
            lambda: _delete_policy(clients, name, NEXT_POLICY),
            None,
        )


def ensure_log_group(
    work: Work, clients: Clients, stack: Stack, function: StackFunction, days: int
) -> None:
    """The function's log group, which forgets after `days` days."""
    logs, name = clients.logs, function.log_group
    what = f"log group {name}"
    group = _log_groups(clients, name).get(name)
    start = len(work.changes)
    if group is None:
        work.do(
            Change(action="create", resource=what),
            lambda: _create_log_group(clients, stack, name),
            None,
        )
    else:
        tags = _log_tags(clients, group)
        check_owned(f"the log group {name}", tags, stack.name)
        if wanting := missing(stack.tags, tags):
            work.do(
                Change(action="update", resource=what, detail="tags"),
                lambda: logs.tag_resource(resourceArn=_log_arn(group), tags=wanting),
                None,
            )
    if group is None or group.get("retentionInDays") != days:
        work.do(
            Change(action="update", resource=what, detail=f"kept {days} days"),
            lambda: logs.put_retention_policy(logGroupName=name, retentionInDays=days),
            None,
        )
    if len(work.changes) == start:
        work.keep(what)


def stack_roles(clients: Clients, stack: str) -> list[str]:
    """The names of all roles of the stack in this region."""
    pages = clients.iam.get_paginator("list_roles").paginate()
    start, end = f"{stack}-", f"-{clients.place.region}"
    names = [
        role["RoleName"]
        for page in pages
        for role in page["Roles"]
        if role["RoleName"].startswith(start) and role["RoleName"].endswith(end)
    ]
    return [
        name
        for name in names
        if is_owned(tag_map(clients.iam.list_role_tags(RoleName=name)["Tags"]), stack)
    ]


def stack_log_groups(clients: Clients, stack: str) -> list[str]:
    """The names of all log groups of the stack."""
    groups = _log_groups(clients, f"/aws/lambda/{stack}-")
    return [name for name, group in groups.items() if is_owned(_log_tags(clients, group), stack)]


def remove_role(work: Work, clients: Clients, name: str) -> None:
    """Delete a role with its policies."""
    work.do(
        Change(action="delete", resource=f"role {name}"), lambda: _delete_role(clients, name), None
    )


def remove_log_group(work: Work, clients: Clients, name: str) -> None:
    """Delete a log group with its logs."""
    work.do(
        Change(action="delete", resource=f"log group {name}"),
        lambda: clients.logs.delete_log_group(logGroupName=name),
        None,
    )


def _create_role(clients: Clients, stack: Stack, name: str, trust: Any) -> None:
    from botocore.exceptions import ClientError

    try:
        clients.iam.create_role(
            RoleName=name,
            AssumeRolePolicyDocument=json.dumps(trust),
            Description=f"Of the slicewise stack {stack.name}",
            Tags=tag_list(stack.tags),
        )
    except ClientError as error:  # boto3 repeats a call whose answer was lost
        if error_code(error) != "EntityAlreadyExists":
            raise
        role = clients.iam.get_role(RoleName=name)["Role"]
        check_owned(f"the role {name}", tag_map(role.get("Tags", [])), stack.name)


def _delete_role(clients: Clients, name: str) -> None:
    iam = clients.iam
    for policy_name in iam.list_role_policies(RoleName=name)["PolicyNames"]:
        iam.delete_role_policy(RoleName=name, PolicyName=policy_name)
    for attached in iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]:
        iam.detach_role_policy(RoleName=name, PolicyArn=attached["PolicyArn"])
    iam.delete_role(RoleName=name)


def _policy(clients: Clients, role: str, name: str) -> Any:
    reply = found(
        lambda: clients.iam.get_role_policy(RoleName=role, PolicyName=name), "NoSuchEntity"
    )
    return None if reply is None else reply["PolicyDocument"]


def _put(work: Work, clients: Clients, role: str, name: str, document: Any) -> None:
    work.do(
        Change(action="update", resource=f"role {role}", detail=f"policy {name}"),
        lambda: clients.iam.put_role_policy(
            RoleName=role, PolicyName=name, PolicyDocument=json.dumps(document)
        ),
        None,
    )


def _delete_policy(clients: Clients, role: str, name: str) -> None:
    found(lambda: clients.iam.delete_role_policy(RoleName=role, PolicyName=name), "NoSuchEntity")


def _create_log_group(clients: Clients, stack: Stack, name: str) -> None:
    from botocore.exceptions import ClientError

    try:
        clients.logs.create_log_group(logGroupName=name, tags=dict(stack.tags))
    except ClientError as error:  # boto3 repeats a call whose answer was lost
        if error_code(error) != "ResourceAlreadyExistsException":
            raise


def _log_groups(clients: Clients, prefix: str) -> dict[str, Any]:
    pages = clients.logs.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=prefix)
    return {group["logGroupName"]: group for page in pages for group in page["logGroups"]}


def _log_tags(clients: Clients, group: Any) -> dict[str, str]:
    reply = clients.logs.list_tags_for_resource(resourceArn=_log_arn(group))
    return dict(reply["tags"])


def _log_arn(group: Any) -> str:
    return str(group["arn"]).removesuffix(":*")
