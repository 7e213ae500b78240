"""The state machine of a stack that one drives: numbered versions, and the alias `live`.

A version's definition names the versions of all functions, so it is one whole, as a version of the
coordinator is for other stacks. Definitions are eventually consistent, versions are not: executions are
started by version or alias only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..resources import ALIAS, Place, Stack, machine_role
from ..states import filled_in
from .access import role_arn
from .clients import Clients, found
from .owned import check_owned, is_owned, missing
from .work import NEW, Change, Work

_GONE = ("StateMachineDoesNotExist", "ResourceNotFound")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """What Step Functions has: definitions by version ARN, oldest first; `serves` is the version that
    the alias means.
    """

    arn: str
    role: str
    tags: Mapping[str, str]
    versions: Mapping[str, str]
    serves: str | None


def machine_arn(place: Place, stack: str) -> str:
    """The ARN of a stack's state machine, which has the stack's name."""
    return place.arn("states", f"stateMachine:{stack}")


def read_machine(clients: Clients, stack: str) -> MachineState | None:
    """The state machine with its versions and its alias, None if there is none."""
    states, arn = clients.states, machine_arn(clients.place, stack)
    head = found(lambda: states.describe_state_machine(stateMachineArn=arn), *_GONE)
    if head is None or head["status"] == "DELETING":
        return None
    tags = states.list_tags_for_resource(resourceArn=arn)["tags"]
    alias = found(
        lambda: states.describe_state_machine_alias(stateMachineAliasArn=f"{arn}:{ALIAS}"), *_GONE
    )
    return MachineState(
        arn=arn,
        role=head["roleArn"],
        tags={tag["key"]: tag["value"] for tag in tags},
        versions={each: _definition(clients, each) for each in _versions(clients, arn)},
        serves=alias and alias["routingConfiguration"][0]["stateMachineVersionArn"],
    )


def entry_version(definition: str, entry: str) -> str | None:
    """The version of the entry function that a definition names."""
    match = re.search(rf":function:{re.escape(entry)}:(\d+)", definition)
    return match[1] if match else None


def ensure_machine(
    work: Work,
    clients: Clients,
    stack: Stack,
    numbers: Mapping[str, str],
    state: MachineState | None,
) -> str:
    """The ARN of a published version that calls these versions of the functions (by part)."""
    place, states = clients.place, clients.states
    arn, what = machine_arn(place, stack.name), f"state machine {stack.name}"
    role = role_arn(machine_role(stack, place), place)
    functions = {
        each.part: place.arn("lambda", f"function:{each.name}:{numbers[each.part]}")
        for each in stack.functions
    }
    wanted = filled_in(stack.definition, {**functions, "partition": place.partition})

    def create() -> str:
        made = states.create_state_machine(
            name=stack.name,
            definition=wanted,
            roleArn=role,
            publish=True,
            tags=_tag_list(stack.tags),
        )
        return str(made["stateMachineVersionArn"])

    def update() -> str:
        made = states.update_state_machine(
            stateMachineArn=arn, definition=wanted, roleArn=role, publish=True
        )
        return str(made["stateMachineVersionArn"])

    if state is None:
        return work.do(
            Change(action="create", resource=what), lambda: clients.patiently(create), NEW
        )
    check_owned(f"the {what}", state.tags, stack.name)
    if wanting := missing(stack.tags, state.tags):
        work.do(
            Change(action="update", resource=what, detail="tags"),
            lambda: states.tag_resource(resourceArn=arn, tags=_tag_list(wanting)),
            None,
        )
    same = [version for version, text in state.versions.items() if text == wanted]
    if same and state.role == role:
        work.keep(what, f"version {same[-1].rpartition(':')[2]}")
        return same[-1]
    return work.do(
        Change(action="publish", resource=f"version of {what}"),
        lambda: clients.patiently(update),
        NEW,
    )


def move_machine_alias(
    work: Work, clients: Clients, stack: Stack, state: MachineState | None, version: str
) -> None:
    """Let the alias mean this version (by ARN)."""
    now = state.serves if state is not None else None
    if now == version:
        return
    states, arn = clients.states, machine_arn(clients.place, stack.name)
    route = [{"stateMachineVersionArn": version, "weight": 100}]

    def move() -> None:
        if now is None:  # Step Functions takes the same call twice for one
            states.create_state_machine_alias(name=ALIAS, routingConfiguration=route)
        else:
            states.update_state_machine_alias(
                stateMachineAliasArn=f"{arn}:{ALIAS}", routingConfiguration=route
            )

    number = version.rpartition(":")[2]
    detail = f"to version {number}" + (f", from {now.rpartition(':')[2]}" if now else "")
    work.do(
        Change(action="move", resource=f"alias {stack.name}:{ALIAS}", detail=detail), move, None
    )


def remove_machine_versions(
    work: Work, clients: Clients, stack: Stack, kept: Collection[str]
) -> None:
    """Delete all versions but those of the kept versions of the entry function, of each the newest."""
    state = read_machine(clients, stack.name)
    if state is None or not is_owned(state.tags, stack.name):
        return
    entry = stack.coordinator.name
    newest = {entry_version(text, entry): version for version, text in state.versions.items()}
    stay = {version for number, version in newest.items() if number in kept}
    for version in state.versions:
        if version not in stay:
            remove_machine_version(work, clients, version)


def remove_machine_version(work: Work, clients: Clients, version: str) -> None:
    """Delete one published version (by ARN)."""
    name = ":".join(version.split(":")[-2:])
    work.do(
        Change(action="delete", resource=f"version of state machine {name}"),
        lambda: clients.states.delete_state_machine_version(stateMachineVersionArn=version),
        None,
    )


def remove_machine(work: Work, clients: Clients, stack: str) -> None:
    """Delete the state machine with its versions and its alias, if it is there and the stack's."""
    state = read_machine(clients, stack)
    if state is not None and is_owned(state.tags, stack):
        work.do(
            Change(action="delete", resource=f"state machine {stack}"),
            lambda: clients.states.delete_state_machine(stateMachineArn=state.arn),
            None,
        )


def _versions(clients: Clients, arn: str) -> list[str]:
    """ARNs, oldest first. boto3 has no paginator for this."""
    found_versions: list[str] = []
    more: dict[str, Any] = {}
    while True:
        page = clients.states.list_state_machine_versions(stateMachineArn=arn, **more)
        found_versions += [each["stateMachineVersionArn"] for each in page["stateMachineVersions"]]
        if not page.get("nextToken"):
            return sorted(found_versions, key=lambda each: int(each.rpartition(":")[2]))
        more = {"nextToken": page["nextToken"]}


def _definition(clients: Clients, version: str) -> str:
    return str(clients.states.describe_state_machine(stateMachineArn=version)["definition"])


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Step Functions writes tags in lower case."""
    return [{"key": key, "value": value} for key, value in tags.items()]
