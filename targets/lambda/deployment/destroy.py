"""Destroy, and clearing up: what carries the stack's tag and is not needed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..resources import ALIAS, WEIGHTS_VARIABLE, Stack, machine_role
from .access import (
    remove_log_group,
    remove_role,
    stack_log_groups,
    stack_roles,
)
from .bucket import remove_bucket, remove_packages
from .clients import Clients
from .express import remove_express_buckets
from .functions import (
    FunctionState,
    Settings,
    Version,
    read_function,
    remove_function,
    remove_version,
    stack_functions,
)
from .image import remove_images, remove_repository
from .layer import read_layer, remove_layers
from .live import buckets_of, called
from .machine import remove_machine, remove_machine_versions
from .work import Work


def destroy(work: Work, clients: Clients, stack: str) -> None:
    """Remove everything of a stack, however much of it there is: what callers call first, so that
    nothing half removed is called.
    """
    place = clients.place
    remove_machine(work, clients, stack)
    functions = stack_functions(clients, stack)
    for name in sorted(functions, key=lambda name: (not _is_entry(functions[name]), name)):
        remove_function(work, clients, name)
    remove_layers(work, clients, stack)
    remove_repository(work, clients, stack)
    for name in stack_roles(clients, stack):
        remove_role(work, clients, name)
    for name in stack_log_groups(clients, stack):
        remove_log_group(work, clients, name)
    remove_express_buckets(work, clients, stack)
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
    `keep` in all: versions, functions of slices that are no more, layer versions, directory buckets, and
    packages and images of other contents (SHA-256) than these and the given ones.

    A version of the entry function names the versions that it calls; these and no others are kept.
    """
    entry = read_function(clients, stack.coordinator.name)
    if entry is None:
        return  # a dry run of the first deployment
    kept = _kept(entry, numbers[stack.entry], keep)
    needed: dict[str, set[str]] = {stack.entry: {version.number for version in kept}}
    for part, number in numbers.items():
        needed.setdefault(part, set()).add(number)
    for version in kept:
        for part, number in called(version).items():
            needed.setdefault(part, set()).add(number)
    if stack.definition:
        remove_machine_versions(work, clients, stack, needed[stack.entry])
    else:
        remove_machine(work, clients, stack.name)  # of a first deployment that was never finished
    contents = set(contents)
    layers: set[str] = set()
    buckets: set[str] = set()
    if "s3express" in stack.transports:
        buckets.add(stack.express_bucket(clients.place))
    for name in stack_functions(clients, stack.name):
        state = entry if name == entry.name else read_function(clients, name)
        part = name.removeprefix(f"{stack.name}-")
        if state is None or part not in needed:
            remove_function(work, clients, name)
            continue
        # An alias is a reason to keep a version; `live` of a part that is deployed has moved on.
        moved = {ALIAS} if part in numbers else set()
        named = {number for alias, number in state.aliases.items() if alias not in moved}
        for version in state.versions:
            if version.number in needed[part] | named:
                settings = version.settings
                contents |= {settings.sha256, settings.environment.get(WEIGHTS_VARIABLE, "")}
                layers.update(settings.layers)
                buckets.update(buckets_of(settings.environment).values())
            else:
                remove_version(work, clients, name, version.number)
    _remove_access(work, clients, stack, needed)
    contents |= {digest for arn, digest in read_layer(clients, stack.name).items() if arn in layers}
    remove_layers(work, clients, stack.name, layers)
    remove_images(work, clients, stack.name, contents)
    remove_express_buckets(work, clients, stack.name, buckets)
    remove_packages(work, clients, stack.bucket(clients.place), contents)


def _is_entry(settings: Settings) -> bool:
    """Whether callers invoke this function: it was told its stack."""
    return "SLICEWISE_STACK" in settings.environment


def _kept(entry: FunctionState, live: str, keep: int) -> list[Version]:
    """The version that serves and the newest others, `keep` in all; one to come counts too."""
    others = [each for each in entry.versions if each.number != live]
    newest = others[-(keep - 1) :] if keep > 1 else []
    serving = entry.version(live)
    return [*newest, *([serving] if serving else [])]


def _remove_access(
    work: Work, clients: Clients, stack: Stack, needed: Mapping[str, set[str]]
) -> None:
    """Remove roles and log groups of functions that are no more, or of a state machine."""
    names = {f"{stack.name}-{part}" for part in needed}
    kept_roles = {f"{name}-{clients.place.region}" for name in names}
    if stack.definition:
        kept_roles.add(machine_role(stack, clients.place))
    for role in stack_roles(clients, stack.name):
        if role not in kept_roles:
            remove_role(work, clients, role)
    for group in stack_log_groups(clients, stack.name):
        if group.removeprefix("/aws/lambda/") not in names:
            remove_log_group(work, clients, group)
