"""Status: what is deployed, and whether it is what a bundle says."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from slicewise.errors import DeploymentError
from slicewise.plan import Plan

from ..resources import ALIAS
from .bucket import plan_key
from .clients import Clients, explained, found
from .functions import FunctionState, function_url, read_function, stack_functions
from .live import Live, read_live
from .work import Changes

ERRORS = '?ERROR ?"Task timed out" ?"Runtime.ExitError"'
ERRORS_S = 3600  # how far back errors are looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionStatus:
    """One function: `live` is the version that the alias means, `called` the one that the whole which
    serves calls. `bytes` and `modified` are those of the version that serves.
    """

    name: str
    live: str | None
    called: str | None
    versions: tuple[str, ...]
    memory_mb: int
    bytes: int
    runtime: str
    modified: str
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Status:
    """A deployment. `target` is what callers address: a function with its alias, or a state machine's
    alias. `changes` is what deploying the bundle would change, None without a bundle.
    """

    stack: str
    region: str
    target: str | None
    url: str | None
    functions: tuple[FunctionStatus, ...]
    changes: Changes | None = None

    @property
    def matches(self) -> bool | None:
        """Whether deploying the bundle would change nothing; None without a bundle."""
        return None if self.changes is None else not self.changes.made

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "stack": self.stack,
            "region": self.region,
            "target": self.target,
            "url": self.url,
            "functions": [asdict(function) for function in self.functions],
            "matches": self.matches,
            "changes": None if self.changes is None else self.changes.to_json(),
        }

    def __str__(self) -> str:
        rows = [("function", "live", "serves", "versions", "memory", "package", "modified")]
        rows += [
            (
                each.name,
                each.live or "-",
                each.called or "-",
                " ".join(each.versions) or "-",
                f"{each.memory_mb:,} MB",
                f"{each.bytes:,} bytes",
                each.modified[:19],
            )
            for each in self.functions
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [f"{self.stack} in {self.region}, called as {self.target or 'nothing yet'}"]
        lines += [f"URL {self.url} (IAM)"] if self.url else []
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        for each in self.functions:
            lines += [f"{each.name}: {line}" for line in each.errors]
        if self.changes is not None:
            lines.append(
                "The deployment is what the bundle says."
                if self.matches
                else "The deployment differs from the bundle; deploying it would:"
            )
            lines += [f"  {change}" for change in self.changes.made]
        return "\n".join(lines)


def read_status(clients: Clients, stack: str, changes: Changes | None) -> Status:
    """The status of a stack. Raises `DeploymentError` when there is nothing of it."""
    with explained(f"reading {stack}"):
        names = stack_functions(clients, stack)
        states = [state for name in names if (state := read_function(clients, name))]
        if not states and changes is None:
            raise not_deployed(clients, stack)
        live = read_live(clients, stack)
        serving = live.numbers if live is not None else {}
        return Status(
            stack=stack,
            region=clients.place.region,
            target=live.target if live is not None else None,
            url=function_url(clients, f"{stack}-{live.entry}") if live is not None else None,
            functions=tuple(
                _function(clients, state, serving.get(state.name.removeprefix(f"{stack}-")))
                for state in states
            ),
            changes=changes,
        )


def must_live(clients: Clients, stack: str) -> Live:
    """What serves. Raises `DeploymentError` when nothing does."""
    with explained(f"reading {stack}"):
        live = read_live(clients, stack)
        if live is None:
            raise not_deployed(clients, stack)
        return live


def deployed_plan(clients: Clients, stack: str, live: Live) -> Plan:
    """The plan of what serves. Raises `DeploymentError`."""
    with explained(f"reading {stack}"):
        place = clients.place
        bucket = f"{stack}-{place.account}-{place.region}"
        key = plan_key(live.version.settings.sha256)
        reply = found(
            lambda: clients.s3.get_object(
                Bucket=bucket, Key=key, ExpectedBucketOwner=place.account
            ),
            "NoSuchKey",
            "NoSuchBucket",
        )
        if reply is None:
            raise DeploymentError(
                f"s3://{bucket}/{key} is not there, the plan of what serves. Deploy the bundle again, "
                "or name the bundle's directory instead of the stack."
            )
        return Plan.from_json(reply["Body"].read().decode())


def not_deployed(clients: Clients, stack: str) -> DeploymentError:
    """The error that there is no such deployment."""
    return DeploymentError(
        f"nothing called {stack} serves in {clients.place.region} (account {clients.place.account}). "
        "Deploy it first, or name another region."
    )


def _function(clients: Clients, state: FunctionState, number: str | None) -> FunctionStatus:
    version = state.version(number) or state.latest
    since = int((time.time() - ERRORS_S) * 1000)
    events = found(
        lambda: clients.logs.filter_log_events(
            logGroupName=f"/aws/lambda/{state.name}",
            startTime=since,
            filterPattern=ERRORS,
            limit=3,
        ),
        "ResourceNotFoundException",
    )
    return FunctionStatus(
        name=state.name,
        live=state.aliases.get(ALIAS),
        called=number,
        versions=tuple(each.number for each in state.versions),
        memory_mb=version.settings.memory_mb,
        bytes=version.bytes,
        runtime=version.settings.runtime,
        modified=version.modified,
        errors=tuple(event["message"].strip() for event in (events or {}).get("events", ())),
    )
