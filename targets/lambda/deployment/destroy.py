"""Destroy, and clearing up: what carries the stack's tag and is not needed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..functions import COORDINATOR
from ..resources import ALIAS, WEIGHTS_VARIABLE, Stack
from .access import (
    remove_log_group,
    remove_role,
    stack_log_groups,
    stack_roles,
)
from .bucket import remove_bucket, remove_packages
from .clients import Clients
from .functions import (
    FunctionState,
    Version,
    read_function,
    remove_function,
    remove_version,
    stack_functions,
)
from .layer import read_layer, remove_layers
from .work import Work


def destroy(work: Work, clients: Clients, stack: str) -> None:
    """Remove everything of a stack, however much of it there is: the coordinator first, so that nothing
    half removed is called.
    """
    place = clients.place
    coordinator = f"{stack}-{COORDINATOR}"
    for name in sorted(stack_functions(clients, stack), key=lambda name: name != coordinator):
        remove_function(work, clients, name)
    remove_layers(work, clients, stack)
    for name in stack_roles(clients, stack):
        remove_role(work, clients, name)
    for name in stack_log_groups(clients, stack):
        remove_log_group(work, clients, name)
    remove_bucket(work, clients, stack, f"{stack}-{place.account}-{place.region}")


def remove_unused(
    work: Work,
    clients: Clients,
    stack: Stack,
    numbers: Mapping[str, str],
    keep: int,
    contents: Collection[str] = (),
) -> None:
    """Remove what neither the version that serves needs (`numbers`, by part) nor the newest others,
    `keep` in all: versions, functions of slices that are no more, layer versions, and packages of other
    contents (SHA-256) than these and the given ones.

    A version of the coordinator names the slices' versions that it calls; these and no others are kept.
    """
    coordinator = read_function(clients, stack.coordinator.name)
    if coordinator is None:
        return  # a dry run of the first deployment
    kept = _kept(coordinator, numbers[COORDINATOR], keep)
    needed: dict[str, set[str]] = {COORDINATOR: {version.number for version in kept}}
    for part, number in numbers.items():
        needed.setdefault(part, set()).add(number)
    for version in kept:
        for part, number in called(version).items():
            needed.setdefault(part, set()).add(number)
    contents = set(contents)
    layers: set[str] = set()
    for name in stack_functions(clients, stack.name):
        state = coordinator if name == coordinator.name else read_function(clients, name)
        part = name.removeprefix(f"{stack.name}-")
        if state is None or part not in needed:
            remove_function(work, clients, name)
            continue
        # An alias is a reason to keep a version; `live` of a part that is deployed has moved on.
        moved = {ALIAS} if part in numbers else set()
        named = {number for alias, number in state.aliases.items() if alias not in moved}
        for version in state.versions:
            if version.number in needed[part] | named:
                contents.add(version.settings.sha256)
                contents.add(version.settings.environment.get(WEIGHTS_VARIABLE, ""))
                layers.update(version.settings.layers)
            else:
                remove_version(work, clients, name, version.number)
    _remove_access(work, clients, stack, needed)
    contents |= {digest for arn, digest in read_layer(clients, stack.name).items() if arn in layers}
    remove_layers(work, clients, stack.name, layers)
    remove_packages(work, clients, stack.bucket(clients.place), contents)


def called(coordinator: Version) -> dict[str, str]:
    """The slices' versions that a version of the coordinator calls."""
    pairs = coordinator.settings.environment.get("SLICEWISE_VERSIONS", "")
    return dict(pair.split("=", 1) for pair in pairs.split(",") if pair)


def _kept(coordinator: FunctionState, live: str, keep: int) -> list[Version]:
    """The version that serves and the newest others, `keep` in all; one to come counts too."""
    others = [each for each in coordinator.versions if each.number != live]
    newest = others[-(keep - 1) :] if keep > 1 else []
    serving = coordinator.version(live)
    return [*newest, *([serving] if serving else [])]


def _remove_access(
    work: Work, clients: Clients, stack: Stack, needed: Mapping[str, set[str]]
) -> None:
    """Remove roles and log groups of functions that are no more."""
    names = {f"{stack.name}-{part}" for part in needed}
    region = clients.place.region
    for role in stack_roles(clients, stack.name):
        if role.removesuffix(f"-{region}") not in names:
            remove_role(work, clients, role)
    for group in stack_log_groups(clients, stack.name):
        if group.removeprefix("/aws/lambda/") not in names:
            remove_log_group(work, clients, group)
