"""Live: the version of a stack that answers callers, found by the stack's name alone.

The function that callers invoke (or that a state machine begins and ends with) is the one that was told
its stack's name; its version names those of all other parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..resources import ALIAS
from .clients import Clients
from .functions import Version, read_function, stack_functions
from .machine import entry_version, read_machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """`entry` is that part, `version` what serves of it. `target` is what callers address, a function
    with its alias or the ARN of a state machine's alias; `serves` is the version that this means now.
    """

    entry: str
    version: Version
    target: str
    serves: str

    @property
    def is_machine(self) -> bool:
        """Whether callers execute a state machine."""
        return self.target.startswith("arn:")

    @property
    def numbers(self) -> dict[str, str]:
        """The version of every part."""
        return {**called(self.version), self.entry: self.version.number}

    @property
    def buckets(self) -> dict[str, str]:
        """The buckets of tensors, by transport."""
        return buckets_of(self.version.settings.environment)


def read_live(clients: Clients, stack: str) -> Live | None:
    """What serves, None if nothing does."""
    machine = read_machine(clients, stack)
    for name, settings in stack_functions(clients, stack).items():
        if "SLICEWISE_STACK" not in settings.environment:
            continue
        state = read_function(clients, name)
        if state is None:
            continue
        number, target = state.aliases.get(ALIAS), f"{name}:{ALIAS}"
        serves = f"{name}:{number}"
        if machine is not None and machine.serves is not None:
            number = entry_version(machine.versions[machine.serves], name)
            target, serves = f"{machine.arn}:{ALIAS}", machine.serves
        version = state.version(number)
        if version is not None:
            entry = name.removeprefix(f"{stack}-")
            return Live(entry=entry, version=version, target=target, serves=serves)
    return None


def called(entry: Version) -> dict[str, str]:
    """The versions of the other parts that a version of the entry function names."""
    pairs = entry.settings.environment.get("SLICEWISE_VERSIONS", "")
    return dict(pair.split("=", 1) for pair in pairs.split(",") if pair)


def buckets_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The buckets, by transport, that a function with these variables uses."""
    from ..runtime.store import BUCKET_VARIABLES

    return {way: environment[name] for way, name in BUCKET_VARIABLES.items() if name in environment}
