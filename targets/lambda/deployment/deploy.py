"""Deploy: a bundle becomes what serves under the alias `live`, in this order:

    bucket      private, TLS only, encrypted
    packages    zip files under their content's name, only those that a function still needs
    layer       the runtime that all functions share
    access      roles and log groups; a role allows what the old and the new version need
    slices      changed and published; a version that is there already is used again
    coordinator with the numbers of the slices' versions, so that it is one whole
    check       the new version of the coordinator answers the bundle's example
    alias       `live` moves to it: from here on everybody has the new version
    rest        the slices' aliases, the URL; what no kept version needs is removed

Each step looks at what AWS has and changes what differs; nothing is remembered elsewhere. So a
deployment that was interrupted is finished by the next one, and a finished one changes nothing. Until
the alias moves, and if the check fails, the version before serves untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slicewise.errors import DeploymentError, TargetError
from slicewise.plan import Plan
from slicewise.progress import Steps
from slicewise.smoke import Smoke

from ..functions import COORDINATOR
from ..packaging.packages import Packages
from ..resources import ALIAS, LOG_DAYS, Stack, StackFunction, environment
from ..sealing import key_variables
from .access import (
    drop_next_policy,
    ensure_log_group,
    ensure_role,
    role_arn,
    settle_role,
)
from .bucket import ensure_bucket, ensure_plan, ensure_weights, weights_key
from .check import check_version
from .clients import Clients, explained, found
from .destroy import called, destroy, remove_unused
from .functions import (
    FunctionState,
    Settings,
    ensure_versions,
    move_alias,
    read_function,
    remove_version,
)
from .layer import ensure_layer
from .work import Change, Work

KEEP = 3  # versions of the coordinator, with the slices' versions that they call
AGAIN = "Deploy again: it goes on where it stopped; until then the version before serves"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be deployed. `weights` are files by their key. `smoke` None: without the check. `keep`
    versions stay, the live one among them. `log_days` that logs are kept.
    """

    stack: Stack
    plan: Plan
    packages: Packages
    weights: Mapping[str, Path]
    smoke: Smoke | None
    keep: int = KEEP
    log_days: int = LOG_DAYS
    xray: bool = False


def check_order(order: Order) -> None:
    """Raise `TargetError` or `DeploymentError` for what Lambda would refuse, before any call."""
    stack, packages = order.stack, order.packages
    for function in stack.functions:
        if function.packaging == "image":
            raise TargetError(
                f"{function.part} is packed as an image, which deploy cannot build. Build it with the "
                'bundle\'s Dockerfile, or compile with packaging="zip" or "s3-weights".'
            )
    if "s3express" in stack.transports:
        raise TargetError(
            "this plan may use s3express, whose directory bucket lies in one availability zone that "
            "deploy cannot choose. Compile with transports=('payload', 's3')."
        )
    if order.keep < 1:
        raise TargetError(f"keep={order.keep}: at least the version that serves is kept.")
    missing = [f.part for f in stack.functions if f.part not in packages.parts]
    if missing:
        raise DeploymentError(
            f"the bundle has no package of {', '.join(missing)}. Save and package it again."
        )


def carry_out(work: Work, clients: Clients, order: Order, step: Steps) -> dict[str, str]:
    """Deploy, or with a dry run list what would change. Returns the version of every part.

    Raises `DeploymentError`; when the check failed, what was made new has been removed.
    """
    stack = order.stack
    check_order(order)
    with step(f"looking at {stack.name} on AWS"), explained("reading the deployment"):
        states = {f.part: read_function(clients, f.name) for f in stack.functions}
    with explained(f"deploying {stack.name}", advice=AGAIN):
        with step("bucket, layer, roles and log groups"):
            ensure_bucket(work, clients, stack)
            layers = _layers(work, clients, order)
            for function in stack.functions:
                ensure_role(work, clients, stack, function, xray=order.xray)
                ensure_log_group(work, clients, stack, function, order.log_days)
        with step("weights"):
            for function in stack.functions:
                if function.weights:
                    path = order.weights[weights_key(function.weights)]
                    ensure_weights(work, clients, stack.bucket(clients.place), function, path)
        wanted = {f.part: _wanted(clients, order, f, layers) for f in stack.slices}
        parts = order.packages.parts
        with step(f"{len(stack.slices)} slices"):
            numbers = ensure_versions(work, clients, stack, stack.slices, wanted, parts, states)
        with step("coordinator"):
            settings = _wanted(clients, order, stack.coordinator, layers, numbers)
            _check_environment(settings)
            numbers |= ensure_versions(
                work, clients, stack, (stack.coordinator,), {COORDINATOR: settings}, parts, states
            )
            ensure_plan(
                work, clients, stack.bucket(clients.place), settings.sha256, order.plan.to_json()
            )
    before, number = states[COORDINATOR], numbers[COORDINATOR]
    moves = before is None or before.aliases.get(ALIAS) != number
    if moves and order.smoke is not None and not work.dry_run:
        with step("smoke test"):
            _check(clients, order, number, before, order.smoke)
    with explained(f"deploying {stack.name}", advice=AGAIN), step("alias and clearing up"):
        move_alias(work, clients, stack.coordinator, states[COORDINATOR], ALIAS, number)
        for function in stack.slices:
            move_alias(
                work, clients, function, states[function.part], ALIAS, numbers[function.part]
            )
        _ensure_url(work, clients, stack)
        for function in stack.functions:
            settle_role(work, clients, stack, function, xray=order.xray)
        packed = [*parts.values(), *([order.packages.layer] if order.packages.layer else [])]
        contents = {package.sha256 for package in packed}
        remove_unused(work, clients, stack, numbers, order.keep, contents)
    return numbers


def function_url(clients: Clients, coordinator: str) -> str | None:
    """The address of a coordinator's alias; callers sign their requests (IAM)."""
    reply = found(
        lambda: clients.functions.get_function_url_config(
            FunctionName=coordinator, Qualifier=ALIAS
        ),
        "ResourceNotFoundException",
    )
    return None if reply is None else str(reply["FunctionUrl"])


def _layers(work: Work, clients: Clients, order: Order) -> tuple[str, ...]:
    layer = order.packages.layer
    return () if layer is None else (ensure_layer(work, clients, order.stack, layer),)


def _wanted(
    clients: Clients,
    order: Order,
    function: StackFunction,
    layers: tuple[str, ...],
    versions: Mapping[str, str] | None = None,
) -> Settings:
    stack, place = order.stack, clients.place
    variables = environment(stack, function, place) | key_variables(stack.encryption)
    if versions is not None:
        pairs = (f"{part.part}={versions[part.part]}" for part in stack.slices)
        variables["SLICEWISE_VERSIONS"] = ",".join(pairs)
    return Settings(
        sha256=order.packages.parts[function.part].sha256,
        runtime=f"python{stack.python}",
        handler=function.handler,
        role=role_arn(function, place),
        memory_mb=function.memory_mb,
        timeout_s=function.timeout_s,
        architecture=stack.architecture,
        layers=layers,
        environment=variables,
        tracing="Active" if order.xray else "PassThrough",
    )


def _check_environment(settings: Settings) -> None:
    """Some 300 slices are more than the coordinator can be told of."""
    size = sum(len(key) + len(value) for key, value in settings.environment.items())
    if size > 4096:
        raise DeploymentError(
            f"the coordinator's variables take {size:,} bytes, Lambda allows 4,096: too many slices. "
            "Compile with larger limits, or max_slices."
        )


def _check(
    clients: Clients, order: Order, number: str, before: FunctionState | None, smoke: Smoke
) -> None:
    """Call the new version. When it fails, it is removed with all that only it needs; where no version
    serves, that is everything.
    """
    try:
        with explained("the smoke test failed"):
            check_version(clients, order.stack, order.plan, number, smoke)
    except DeploymentError as error:
        with explained(f"{error}. Removing it", advice="Deploy again, or destroy"):
            after = _take_back(clients, order, number, before)
        raise DeploymentError(f"{error}. {after}.") from error


def _take_back(clients: Clients, order: Order, number: str, before: FunctionState | None) -> str:
    """Remove a version of the coordinator that nobody has called yet; returns what is there now."""
    stack, work = order.stack, Work()
    live = before.version(before.aliases.get(ALIAS)) if before is not None else None
    if live is None:
        destroy(work, clients, stack.name)
        return f"Nothing of {stack.name} is left on AWS"
    remove_version(work, clients, stack.coordinator.name, number)
    for function in stack.functions:
        drop_next_policy(work, clients, function)
    numbers = {**called(live), COORDINATOR: live.number}
    remove_unused(work, clients, stack, numbers, order.keep)
    return f"Version {live.number} of {stack.coordinator.name} serves as before"


def _ensure_url(work: Work, clients: Clients, stack: Stack) -> None:
    from botocore.exceptions import ClientError

    name = stack.coordinator.name
    if function_url(clients, name) is not None:
        work.keep(f"URL of {name}")
        return

    def create() -> None:
        try:
            clients.functions.create_function_url_config(
                FunctionName=name, Qualifier=ALIAS, AuthType="AWS_IAM"
            )
        except ClientError:  # boto3 repeats a call whose answer was lost
            if function_url(clients, name) is None:
                raise

    work.do(Change(action="create", resource=f"URL of {name}", detail="IAM auth"), create, None)
