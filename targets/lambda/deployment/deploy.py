"""Deploy: a bundle becomes what serves under the alias `live`, in this order:

    buckets     private, TLS only, encrypted
    image       found in its repository, where functions are packed as one
    packages    zip files under their content's name, only those that a function still needs
    layer       the runtime that all functions share
    access      roles and log groups; a role allows what the old and the new version need
    functions   changed and published; a version that is there already is used again
    entry       the function that callers invoke, with the numbers of the others' versions: one whole
    machine     where a state machine drives the slices: a version that names all of these
    check       the new version answers the bundle's example
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

from ..packaging.packages import Packages
from ..resources import (
    ALIAS,
    LOG_DAYS,
    Place,
    Stack,
    StackFunction,
    environment,
    role_name,
    roles,
)
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
from .clients import Clients, explained
from .destroy import destroy, remove_unused
from .express import ensure_express_bucket
from .functions import (
    Settings,
    ensure_versions,
    function_url,
    move_alias,
    read_function,
    remove_version,
)
from .image import ensure_image
from .layer import ensure_layer
from .live import Live, buckets_of, read_live
from .machine import ensure_machine, move_machine_alias, read_machine, remove_machine_version
from .work import Change, Work

KEEP = 3  # versions of the whole, with the versions of all functions that they call
AGAIN = "Deploy again: it goes on where it stopped; until then the version before serves"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be deployed. `weights` are files by their key; `image_tag` names the image of the
    bundle's content. `smoke` None: without the check. `keep` versions stay, the live one among them.
    `log_days` that logs are kept.
    """

    directory: Path
    stack: Stack
    plan: Plan
    packages: Packages
    weights: Mapping[str, Path]
    image_tag: str
    smoke: Smoke | None
    keep: int = KEEP
    log_days: int = LOG_DAYS
    xray: bool = False


@dataclass(frozen=True, kw_only=True)
class Made:
    """What functions share: the layers of zip packages, and the SHA-256 of the image ("" without)."""

    layers: tuple[str, ...]
    image: str


def check_order(order: Order, place: Place) -> None:
    """Raise `TargetError` or `DeploymentError` for what AWS would refuse, before any call."""
    stack, packages = order.stack, order.packages
    if "s3express" in stack.transports:
        _ = stack.express_bucket(place)
    _ = key_variables(stack.encryption)
    if order.keep < 1:
        raise TargetError(f"keep={order.keep}: at least the version that serves is kept.")
    zipped = [f.part for f in stack.functions if f.packaging != "image"]
    missing = [part for part in zipped if part not in packages.parts]
    if missing:
        raise DeploymentError(
            f"the bundle has no package of {', '.join(missing)}. Save and package it again."
        )


def carry_out(work: Work, clients: Clients, order: Order, step: Steps) -> dict[str, str]:
    """Deploy, or with a dry run list what would change. Returns the version of every part.

    Raises `DeploymentError`; when the check failed, what was made new has been removed.
    """
    stack, entry = order.stack, order.stack.coordinator
    check_order(order, clients.place)
    with step(f"looking at {stack.name} on AWS"), explained("reading the deployment"):
        live = read_live(clients, stack.name)
        states = {f.part: read_function(clients, f.name) for f in stack.functions}
        machine = read_machine(clients, stack.name)
        _check_driver(order, live)
    with explained(f"deploying {stack.name}", advice=AGAIN):
        with step("buckets, image, layer, roles and log groups"):
            made = _shared(work, clients, order)
        with step("weights"):
            for function in stack.functions:
                if function.weights:
                    path = order.weights[weights_key(function.weights)]
                    ensure_weights(work, clients, stack.bucket(clients.place), function, path)
        wanted = {f.part: _wanted(clients, order, f, made) for f in stack.slices}
        parts = order.packages.parts
        with step(f"{len(stack.slices)} functions"):
            numbers = ensure_versions(work, clients, stack, stack.slices, wanted, parts, states)
        with step(f"{entry.part}, which names their versions"):
            settings = _wanted(clients, order, entry, made, numbers)
            _check_environment(settings)
            numbers |= ensure_versions(
                work, clients, stack, (entry,), {entry.part: settings}, parts, states
            )
            ensure_plan(
                work, clients, stack.bucket(clients.place), settings.sha256, order.plan.to_json()
            )
        serves = f"{entry.name}:{numbers[entry.part]}"
        if stack.definition:
            with step("state machine"):
                serves = ensure_machine(work, clients, stack, numbers, machine)
    moves = live is None or live.serves != serves
    if moves and order.smoke is not None and not work.dry_run:
        with step("smoke test"):
            buckets = buckets_of(settings.environment)
            _check(clients, order, order.smoke, serves, buckets, live, numbers)
    with explained(f"deploying {stack.name}", advice=AGAIN), step("alias and clearing up"):
        if stack.definition:
            move_machine_alias(work, clients, stack, machine, serves)
        for function in (entry, *stack.slices):
            move_alias(
                work, clients, function, states[function.part], ALIAS, numbers[function.part]
            )
        if not stack.definition:  # a state machine answers no HTTP requests
            _ensure_url(work, clients, stack)
        for role in roles(stack, clients.place, xray=order.xray):
            settle_role(work, clients, role)
        packed = [*parts.values(), *([order.packages.layer] if order.packages.layer else [])]
        contents = {package.sha256 for package in packed} | {made.image}
        remove_unused(work, clients, stack, numbers, order.keep, contents)
    return numbers


def _shared(work: Work, clients: Clients, order: Order) -> Made:
    """Everything that is not a function's code."""
    stack, layer = order.stack, order.packages.layer
    ensure_bucket(work, clients, stack)
    if "s3express" in stack.transports:
        ensure_express_bucket(work, clients, stack)
    image = ""
    if stack.has_image:
        image = ensure_image(work, clients, stack, order.image_tag, order.directory)
    layers = () if layer is None else (ensure_layer(work, clients, stack, layer),)
    for role in roles(stack, clients.place, xray=order.xray):
        ensure_role(work, clients, stack, role)
    for function in stack.functions:
        ensure_log_group(work, clients, stack, function, order.log_days)
    return Made(layers=layers, image=image)


def _check_driver(order: Order, live: Live | None) -> None:
    """Callers would have to call something else, so this is no update."""
    stack = order.stack
    target = stack.coordinator.name if not stack.definition else f"state machine {stack.name}"
    if live is None:
        return
    now = f"state machine {stack.name}" if live.is_machine else f"{stack.name}-{live.entry}"
    if now != target:
        raise DeploymentError(
            f"callers of {stack.name} call {now}, those of this bundle call {target}: an update cannot "
            "change that. Deploy under another name=... (--name), or destroy this deployment first."
        )


def _wanted(
    clients: Clients,
    order: Order,
    function: StackFunction,
    made: Made,
    versions: Mapping[str, str] | None = None,
) -> Settings:
    stack, place = order.stack, clients.place
    variables = environment(stack, function, place) | key_variables(stack.encryption)
    if versions is not None:
        pairs = (f"{part.part}={versions[part.part]}" for part in stack.slices)
        variables["SLICEWISE_VERSIONS"] = ",".join(pairs)
    is_image = function.packaging == "image"
    return Settings(
        sha256=made.image if is_image else order.packages.parts[function.part].sha256,
        runtime="" if is_image else f"python{stack.python}",
        handler="" if is_image else function.handler,
        role=role_arn(role_name(function, place), place),
        memory_mb=function.memory_mb,
        timeout_s=function.timeout_s,
        architecture=stack.architecture,
        layers=() if is_image else made.layers,
        environment=variables,
        tracing="Active" if order.xray else "PassThrough",
        is_image=is_image,
    )


def _check_environment(settings: Settings) -> None:
    """Some 300 slices are more than the entry function can be told of."""
    size = sum(len(key) + len(value) for key, value in settings.environment.items())
    if size > 4096:
        raise DeploymentError(
            f"the variables of the entry function take {size:,} bytes, Lambda allows 4,096: too many "
            "slices. Compile with larger limits, or max_slices."
        )


def _check(
    clients: Clients,
    order: Order,
    smoke: Smoke,
    serves: str,
    buckets: Mapping[str, str],
    live: Live | None,
    numbers: Mapping[str, str],
) -> None:
    """Call the new version. When it fails, it is removed with all that only it needs; where no version
    serves, that is everything.
    """
    try:
        with explained("the smoke test failed"):
            check_version(clients, order.plan, serves, buckets, smoke)
    except DeploymentError as error:
        with explained(f"{error}. Removing it", advice="Deploy again, or destroy"):
            after = _take_back(clients, order, serves, live, numbers)
        raise DeploymentError(f"{error}. {after}.") from error


def _take_back(
    clients: Clients, order: Order, serves: str, live: Live | None, numbers: Mapping[str, str]
) -> str:
    """Remove a version that nobody has called yet; returns what is there now."""
    stack, work = order.stack, Work()
    if live is None:
        destroy(work, clients, stack.name)
        return f"Nothing of {stack.name} is left on AWS"
    if stack.definition:
        remove_machine_version(work, clients, serves)
    entry = stack.coordinator
    if numbers[entry.part] != live.version.number:
        remove_version(work, clients, entry.name, numbers[entry.part])
    for role in roles(stack, clients.place):
        drop_next_policy(work, clients, role)
    remove_unused(work, clients, stack, live.numbers, order.keep)
    return f"{live.serves} serves as before"


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
