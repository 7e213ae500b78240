"""Functions and their versions: what AWS has, and how it becomes what is wanted."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from slicewise.errors import DeploymentError

from ..packaging.archive import Archive
from ..resources import ALIAS, Stack, StackFunction, repository_name
from .bucket import ensure_package, package_key
from .clients import Clients, error_code, found
from .owned import check_owned, is_owned, missing
from .work import NEW, Change, Work

LATEST = "$LATEST"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of a function that decides how it runs; two versions with the same are the same.

    `sha256` is of its zip file, or the digest of its container image (`is_image`), which has a runtime,
    a handler and no layers of its own.
    """

    sha256: str
    runtime: str
    handler: str
    role: str
    memory_mb: int
    timeout_s: int
    architecture: str
    layers: tuple[str, ...]
    environment: Mapping[str, str]
    tracing: str
    is_image: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version of a function; `bytes` of its zip file, `modified` as AWS writes it."""

    number: str
    settings: Settings
    bytes: int
    modified: str


@dataclass(frozen=True, kw_only=True)
class FunctionState:
    """What Lambda has of one function, oldest version first."""

    name: str
    tags: Mapping[str, str]
    latest: Version
    versions: tuple[Version, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    def version(self, number: str | None) -> Version | None:
        """The published version of this number."""
        return next((each for each in self.versions if each.number == number), None)

    def matching(self, wanted: Settings) -> Version | None:
        """The newest published version with these settings."""
        return next((each for each in self.versions[::-1] if each.settings == wanted), None)


def read_function(clients: Clients, name: str) -> FunctionState | None:
    """The function with its versions and aliases, None if there is none."""
    api = clients.functions
    head = found(lambda: api.get_function(FunctionName=name), "ResourceNotFoundException")
    if head is None:
        return None
    pages = api.get_paginator("list_versions_by_function").paginate(FunctionName=name)
    versions = [_version(each) for page in pages for each in page["Versions"]]
    published = [each for each in versions if each.number != LATEST]
    pages = api.get_paginator("list_aliases").paginate(FunctionName=name)
    aliases = {each["Name"]: each["FunctionVersion"] for page in pages for each in page["Aliases"]}
    return FunctionState(
        name=name,
        tags=head.get("Tags", {}),
        latest=_version(head["Configuration"]),
        versions=tuple(sorted(published, key=lambda each: int(each.number))),
        aliases=aliases,
    )


def stack_functions(clients: Clients, stack: str) -> dict[str, Settings]:
    """All functions of the stack by name, with the settings of what is published next."""
    pages = clients.functions.get_paginator("list_functions").paginate()
    listed = [each for page in pages for each in page["Functions"]]
    return {
        each["FunctionName"]: settings_of(each)
        for each in listed
        if each["FunctionName"].startswith(f"{stack}-")
        and is_owned(clients.functions.list_tags(Resource=each["FunctionArn"])["Tags"], stack)
    }


def function_url(clients: Clients, name: str) -> str | None:
    """The address of a function's alias, None without one; callers sign their requests (IAM)."""
    reply = found(
        lambda: clients.functions.get_function_url_config(FunctionName=name, Qualifier=ALIAS),
        "ResourceNotFoundException",
    )
    return None if reply is None else str(reply["FunctionUrl"])


def ensure_versions(
    work: Work,
    clients: Clients,
    stack: Stack,
    functions: tuple[StackFunction, ...],
    wanted: Mapping[str, Settings],
    packages: Mapping[str, Archive],
    states: Mapping[str, FunctionState | None],
) -> dict[str, str]:
    """The number of a published version with the wanted settings, by part.

    Where there is one already, nothing is changed. Functions are changed first and published then, so
    that AWS works on all of them at once. `packages` are of those that are no images. Raises
    `DeploymentError`.
    """
    bucket = stack.bucket(clients.place)
    numbers: dict[str, str] = {}
    changing = []
    for function in functions:
        state = states[function.part]
        if state is not None:
            check_owned(f"the function {function.name}", state.tags, stack.name)
            _check_kind(state, wanted[function.part])
            _ensure_tags(work, clients, stack, state)
            same = state.matching(wanted[function.part])
            if same is not None:
                work.keep(f"function {function.name}", f"version {same.number}")
                numbers[function.part] = same.number
                continue
        changing.append(function)
    for function in changing:
        part, state = function.part, states[function.part]
        target = wanted[part]
        is_new = state is None or state.latest.settings.sha256 != target.sha256
        if is_new and not target.is_image:
            ensure_package(work, clients, bucket, part, packages[part])
        if state is None:
            _create(work, clients, stack, function, target)
        elif _code(state.latest.settings) != _code(target):
            _update_code(work, clients, stack, function, target)
    for function in changing:
        state = states[function.part]
        if state is not None and _configuration(state.latest.settings) != _configuration(
            wanted[function.part]
        ):
            _update_configuration(work, clients, function, wanted[function.part])
    for function in changing:
        numbers[function.part] = _publish(work, clients, function, wanted[function.part])
    return numbers


def move_alias(
    work: Work,
    clients: Clients,
    function: StackFunction,
    state: FunctionState | None,
    alias: str,
    number: str,
) -> None:
    """Let the alias mean this version."""
    now = state.aliases.get(alias) if state is not None else None
    if now == number:
        return
    call = {"FunctionName": function.name, "Name": alias, "FunctionVersion": number}

    def move() -> None:
        from botocore.exceptions import ClientError

        if now is not None:
            clients.patiently(lambda: clients.functions.update_alias(**call))
            return
        try:
            clients.patiently(lambda: clients.functions.create_alias(**call))
        except ClientError as error:  # boto3 repeats a call whose answer was lost
            if not error_code(error).endswith("ConflictException"):
                raise
            clients.functions.update_alias(**call)

    detail = f"to version {number}" + (f", from {now}" if now else "")
    work.do(
        Change(action="move", resource=f"alias {function.name}:{alias}", detail=detail), move, None
    )


def remove_version(work: Work, clients: Clients, name: str, number: str) -> None:
    """Delete one published version."""
    work.do(
        Change(action="delete", resource=f"version {name}:{number}"),
        lambda: _delete(clients, name, number),
        None,
    )


def remove_function(work: Work, clients: Clients, name: str) -> None:
    """Delete a function with its versions, aliases and URL."""
    work.do(
        Change(action="delete", resource=f"function {name}"), lambda: _delete(clients, name), None
    )


def _delete(clients: Clients, name: str, number: str | None = None) -> None:
    which = {"FunctionName": name} | ({"Qualifier": number} if number else {})
    clients.patiently(
        lambda: found(
            lambda: clients.functions.delete_function(**which), "ResourceNotFoundException"
        )
    )


def _ensure_tags(work: Work, clients: Clients, stack: Stack, state: FunctionState) -> None:
    wanting = missing(stack.tags, state.tags)
    if wanting:
        arn = clients.place.arn("lambda", f"function:{state.name}")
        work.do(
            Change(action="update", resource=f"function {state.name}", detail="tags"),
            lambda: clients.functions.tag_resource(Resource=arn, Tags=wanting),
            None,
        )


def _create(
    work: Work, clients: Clients, stack: Stack, function: StackFunction, target: Settings
) -> None:
    from botocore.exceptions import ClientError

    def create() -> None:
        try:
            clients.functions.create_function(
                FunctionName=function.name,
                Description=_description(function),
                PackageType="Image" if target.is_image else "Zip",
                Code=_place_of_code(clients, stack, target),
                Architectures=[target.architecture],
                Tags=dict(stack.tags),
                **_arguments(target),
            )
        except ClientError as error:  # boto3 repeats a call whose answer was lost
            if error_code(error) != "ResourceConflictException" or "exist" not in str(error):
                raise
            made = read_function(clients, function.name)
            check_owned(f"the function {function.name}", made.tags if made else {}, stack.name)

    work.do(
        Change(
            action="create",
            resource=f"function {function.name}",
            detail=f"{target.memory_mb} MB, {target.runtime or 'image'}, {target.architecture}",
        ),
        lambda: clients.patiently(create),
        None,
    )


def _update_code(
    work: Work, clients: Clients, stack: Stack, function: StackFunction, target: Settings
) -> None:
    def update() -> None:
        clients.patiently(
            lambda: clients.functions.update_function_code(
                FunctionName=function.name,
                **_place_of_code(clients, stack, target),
                Architectures=[target.architecture],
            )
        )

    work.do(
        Change(action="update", resource=f"function {function.name}", detail="code"), update, None
    )


def _update_configuration(
    work: Work, clients: Clients, function: StackFunction, target: Settings
) -> None:
    def update() -> None:
        _settled(clients, function.name)
        clients.patiently(
            lambda: clients.functions.update_function_configuration(
                FunctionName=function.name, **_arguments(target)
            )
        )

    work.do(
        Change(action="update", resource=f"function {function.name}", detail="configuration"),
        update,
        None,
    )


def _publish(work: Work, clients: Clients, function: StackFunction, target: Settings) -> str:
    """Publish $LATEST and return the number.

    Lambda publishes nothing when $LATEST has not changed since the version before, even if that was
    deleted: what it then returns is older. A changed description makes it a new one.
    """
    name, api = function.name, clients.functions
    code = target.sha256  # of an image as it is, of a zip file in base64
    if not target.is_image and not work.dry_run:
        code = base64.b64encode(bytes.fromhex(code)).decode()

    def publish() -> str:
        for again in (False, True):
            _settled(clients, name)
            if again:
                words = f"{_description(function)}, once more"
                now = api.get_function_configuration(FunctionName=name).get("Description", "")
                words = words if now != words else f"{words}, and again"
                clients.patiently(
                    lambda words=words: api.update_function_configuration(  # type: ignore[misc]
                        FunctionName=name, Description=words
                    )
                )
                _settled(clients, name)
            made = clients.patiently(
                lambda: api.publish_version(FunctionName=name, CodeSha256=code)
            )
            if settings_of(made) == target:
                number = str(made["Version"])
                api.get_waiter("published_version_active").wait(
                    FunctionName=name, Qualifier=number, WaiterConfig=clients.waiter_config
                )
                return number
        raise DeploymentError(
            f"version {made['Version']} of {name} has other settings than were just written: "
            "somebody else is changing this function. Deploy again when they have ended."
        )

    return work.do(
        Change(action="publish", resource=f"version of {name}"),
        publish,
        NEW,
    )


def _settled(clients: Clients, name: str) -> None:
    """Wait until Lambda has made or changed a function."""
    for waiter in ("function_active_v2", "function_updated_v2"):
        clients.functions.get_waiter(waiter).wait(
            FunctionName=name, WaiterConfig=clients.waiter_config
        )


def _description(function: StackFunction) -> str:
    return f"{function.part} of a slicewise bundle"


def _arguments(target: Settings) -> dict[str, Any]:
    """Of create and update alike."""
    of_zip = {
        "Runtime": target.runtime,
        "Handler": target.handler,
        "Layers": list(target.layers),
    }
    return {
        "Role": target.role,
        "MemorySize": target.memory_mb,
        "Timeout": target.timeout_s,
        "Environment": {"Variables": dict(target.environment)},
        "TracingConfig": {"Mode": target.tracing},
        **({} if target.is_image else of_zip),
    }


def _place_of_code(clients: Clients, stack: Stack, target: Settings) -> dict[str, str]:
    """Where Lambda finds it."""
    if target.is_image:
        repository = f"{clients.place.registry}/{repository_name(stack.name)}"
        return {"ImageUri": f"{repository}@sha256:{target.sha256}"}
    return {"S3Bucket": stack.bucket(clients.place), "S3Key": package_key(target.sha256)}


def _check_kind(state: FunctionState, target: Settings) -> None:
    """Lambda cannot make an image of a zip function, nor the reverse."""
    if state.latest.settings.is_image != target.is_image:
        kinds = ("an image", "a zip file")
        was, wanted = kinds if state.latest.settings.is_image else kinds[::-1]
        raise DeploymentError(
            f"the function {state.name} is {was} and would become {wanted}, which Lambda does not "
            "allow. Deploy under another name=... (--name), or destroy this deployment first."
        )


def _code(settings: Settings) -> tuple[str, str]:
    """What update_function_code changes."""
    return settings.sha256, settings.architecture


def _configuration(settings: Settings) -> Settings:
    """What update_function_configuration changes."""
    return replace(settings, sha256="", architecture="")


def _version(configuration: Mapping[str, Any]) -> Version:
    return Version(
        number=configuration["Version"],
        settings=settings_of(configuration),
        bytes=configuration["CodeSize"],
        modified=configuration["LastModified"],
    )


def settings_of(configuration: Mapping[str, Any]) -> Settings:
    """The settings in what Lambda says of a function or version."""
    is_image = configuration.get("PackageType") == "Image"
    code = configuration["CodeSha256"]
    return Settings(
        sha256=code if is_image else base64.b64decode(code).hex(),
        # Lambda says nothing of these for an image, moto says that they are empty.
        runtime="" if is_image else configuration.get("Runtime", ""),
        handler="" if is_image else configuration.get("Handler", ""),
        role=configuration["Role"],
        memory_mb=configuration["MemorySize"],
        timeout_s=configuration["Timeout"],
        architecture=configuration.get("Architectures", ["x86_64"])[0],
        layers=tuple(layer["Arn"] for layer in configuration.get("Layers", ())),
        environment=dict(configuration.get("Environment", {}).get("Variables", {})),
        tracing=configuration.get("TracingConfig", {}).get("Mode", "PassThrough"),
        is_image=is_image,
    )
