"""Resources: what a bundle becomes on AWS, described once for templates and for `deploy`.

A *stack* is the functions of one bundle, a role for each, and a bucket for tensors on their way.
Account and region are either names or, in a template, CloudFormation's pseudo parameters.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicewise.errors import TargetError
from slicewise.plan import Encryption, Plan

from .bundle import STACK_NAME_MAX, read_index
from .functions import COORDINATOR, ONE_THREAD
from .states import DEFINITION

ALIAS = "live"
LIFECYCLE_DAYS = 1  # no request lives that long
LOG_DAYS = 30  # that logs are kept unless a deployment says otherwise
REQUESTS = "requests/"  # the prefix of tensors on their way (runtime/transport.py)
WEIGHTS = "weights/"  # the prefix of weights that functions stream when they start
WEIGHTS_VARIABLE = "SLICEWISE_WEIGHTS"
PACKAGES = "packages/"  # the prefix of uploaded zip files
ARCHITECTURES = ("x86_64", "arm64")
PYTHONS = ("3.12", "3.13")
PYTHON = PYTHONS[-1]  # of functions, unless a deployment says otherwise
PACKAGINGS = ("zip", "image", "s3-weights")
EXPRESS_SUFFIX = "--x-s3"  # of directory buckets, S3 Express One Zone
LAMBDA, STATES = "lambda.amazonaws.com", "states.amazonaws.com"
_STACK_NAME = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a stack is: names, or pseudo parameters such as "${AWS::Region}".

    `zone` is the availability zone id ("use1-az4") of the directory bucket, where a stack has one.
    """

    partition: str = "aws"
    region: str
    account: str
    zone: str | None = None

    def arn(self, service: str, resource: str) -> str:
        """The ARN of a resource in this account and region."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"

    @property
    def registry(self) -> str:
        """The host of this account's container images."""
        suffix = "amazonaws.com.cn" if self.partition == "aws-cn" else "amazonaws.com"
        return f"{self.account}.dkr.ecr.{self.region}.{suffix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StackFunction:
    """One function of a stack. `part` is its slice's name, or "coordinator"; `package` is the folder
    in the bundle; `calls` are the parts that it invokes; `puts`, `gets` and `deletes` say what it does
    with tensors in the bucket; `weights` is the SHA-256 of those that it streams from there, or empty.
    """

    part: str
    name: str
    package: Path
    handler: str
    memory_mb: int
    timeout_s: int
    packaging: str
    calls: tuple[str, ...] = ()
    puts: bool = False
    gets: bool = False
    deletes: bool = False
    weights: str = ""

    @property
    def log_group(self) -> str:
        """Where Lambda writes its logs."""
        return f"/aws/lambda/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A role of a stack: the service that takes it, and its policy as an IAM document."""

    name: str
    service: str
    policy: Any


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A bundle as it is deployed. `transports` are those with buckets: "s3", "s3express"; `entry` is the
    part that callers invoke, in a chain its first slice; `definition` is its state machine, or empty.
    """

    name: str
    model: str
    python: str
    architecture: str
    functions: tuple[StackFunction, ...]
    transports: tuple[str, ...]
    tags: Mapping[str, str]
    entry: str = COORDINATOR
    definition: str = ""
    encryption: Encryption | None = None

    @property
    def coordinator(self) -> StackFunction:
        """The function that callers invoke, or that a state machine begins and ends with."""
        return next(f for f in self.functions if f.part == self.entry)

    @property
    def slices(self) -> tuple[StackFunction, ...]:
        """All functions but that one."""
        return tuple(f for f in self.functions if f.part != self.entry)

    @property
    def has_image(self) -> bool:
        """Whether a function runs the bundle's container image."""
        return any(f.packaging == "image" for f in self.functions)

    def bucket(self, place: Place) -> str:
        """The bucket of tensors, weights and packages; bucket names are global."""
        return f"{self.name}-{place.account}-{place.region}"

    def express_bucket(self, place: Place) -> str:
        """The directory bucket of tensors that go by S3 Express. Raises `TargetError` without a zone."""
        if place.zone is None:
            raise TargetError(
                f"{self.name} sends tensors by s3express, whose bucket lies in one availability zone; "
                "none was given. Name one of the region's zone ids (--zone), such as use1-az4."
            )
        return f"{express_prefix(self.name, place)}{place.zone}{EXPRESS_SUFFIX}"


def stack_of(
    directory: Path,
    plan: Plan,
    *,
    name: str | None = None,
    python: str = PYTHON,
    architecture: str = "x86_64",
    packaging: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Stack:
    """The stack of a bundle. `name` replaces the one after the model, so that two deployments of one
    model live side by side; `packaging` says how each part is packed (default: as functions.json does).

    Raises `TargetError` for a name, version, architecture or memory size that Lambda does not have, and
    `BundleError`.
    """
    data = read_index(directory)
    stack = name or data["stack"]
    parts = {entry["package"].removeprefix("functions/"): entry for entry in data["functions"]}
    _check(stack, python, architecture)
    stores = tuple(way for way in plan.transport_rule.transports if way != "payload")
    main = data["entry"].removeprefix(f"{data['stack']}-")
    calls = _calls(plan)
    file = directory / DEFINITION
    functions = []
    for part, entry in parts.items():
        functions.append(
            StackFunction(
                part=part,
                name=f"{stack}-{part}",
                package=Path(entry["package"]),
                handler=entry["handler"],
                memory_mb=_memory(part, entry["memory_mb"]),
                timeout_s=entry["timeout_s"],
                packaging=(packaging or {}).get(part, entry.get("packaging", "zip")),
                calls=calls.get(part, ()),
                puts=bool(stores),
                gets=bool(stores),
                deletes=bool(stores) and part == main,
                weights=_weights(directory / entry["package"]),
            )
        )
    return Stack(
        name=stack,
        model=plan.model.name,
        python=python,
        architecture=architecture,
        functions=tuple(functions),
        transports=stores,
        tags={"slicewise:stack": stack, **(tags or {})},
        entry=main,
        definition=file.read_text() if plan.orchestration == "stepfunctions" else "",
        encryption=plan.encryption,
    )


def _calls(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Which parts each part invokes."""
    ordered = [part.name for stage in plan.stages for part in stage]
    match plan.orchestration:
        case "chain":
            return {part: (after,) for part, after in itertools.pairwise(ordered)}
        case "stepfunctions":
            return {}
        case _:
            return {COORDINATOR: tuple(part.name for part in plan.slices)}


def environment(stack: Stack, function: StackFunction, place: Place) -> dict[str, str]:
    """What the runtime in the function's package reads (runtime/store.py, runtime/coordinator.py).

    A deployment adds SLICEWISE_VERSIONS to the coordinator's once the slices' versions are known.
    """
    found = dict(ONE_THREAD)
    if "s3" in stack.transports or function.packaging == "s3-weights":
        found["SLICEWISE_BUCKET"] = stack.bucket(place)
    if "s3express" in stack.transports:
        found["SLICEWISE_EXPRESS_BUCKET"] = stack.express_bucket(place)
    if function.part == stack.entry:
        found["SLICEWISE_STACK"] = stack.name
    if function.weights:  # nobody reads it: it tells which weights a version needs
        found[WEIGHTS_VARIABLE] = function.weights
    if function.packaging == "image":  # one image holds all parts
        found["SLICEWISE_PART"] = function.part
    return found


def policy(stack: Stack, function: StackFunction, place: Place, *, xray: bool = False) -> Any:
    """What the function may do, as an IAM policy document: exact resources, nothing else."""
    bucket = f"arn:{place.partition}:s3:::{stack.bucket(place)}"
    statements = [
        _allow(
            "Logs",
            ["logs:CreateLogStream", "logs:PutLogEvents"],
            [place.arn("logs", f"log-group:{function.log_group}:*")],
        )
    ]
    if function.calls:
        # Of every version: the coordinator names the ones that it was deployed with.
        called = [place.arn("lambda", f"function:{stack.name}-{part}:*") for part in function.calls]
        statements.append(_allow("Slices", ["lambda:InvokeFunction"], called))
    actions = [
        action
        for action, wanted in (
            ("s3:PutObject", function.puts),
            ("s3:GetObject", function.gets),
            ("s3:DeleteObject", function.deletes),
        )
        if wanted
    ]
    if actions and "s3" in stack.transports:
        statements.append(_allow("Tensors", actions, [f"{bucket}/{REQUESTS}*"]))
    if actions and "s3express" in stack.transports:  # sessions know no prefixes
        session = [place.arn("s3express", f"bucket/{stack.express_bucket(place)}")]
        statements.append(_allow("ExpressTensors", ["s3express:CreateSession"], session))
    if function.packaging == "s3-weights":
        statements.append(_allow("Weights", ["s3:GetObject"], [f"{bucket}/{WEIGHTS}*"]))
    if stack.encryption is not None and stack.encryption.key_id:
        statements.append(_allow("Key", ["kms:Decrypt"], [stack.encryption.key_id]))
    if xray:  # these actions know no resources
        traces = ["xray:PutTraceSegments", "xray:PutTelemetryRecords"]
        statements.append(_allow("Traces", traces, ["*"]))
    return {"Version": "2012-10-17", "Statement": statements}


def roles(stack: Stack, place: Place, *, xray: bool = False) -> tuple[Role, ...]:
    """The role of every function, and of the state machine where one drives them."""
    found = [
        Role(
            name=role_name(function, place),
            service=LAMBDA,
            policy=policy(stack, function, place, xray=xray),
        )
        for function in stack.functions
    ]
    if stack.definition:
        # Of every version, as a coordinator's: the definition names the ones that it calls.
        called = [place.arn("lambda", f"function:{each.name}:*") for each in stack.functions]
        statements = [_allow("Functions", ["lambda:InvokeFunction"], called)]
        document = {"Version": "2012-10-17", "Statement": statements}
        found.append(Role(name=machine_role(stack, place), service=STATES, policy=document))
    return tuple(found)


def trust_policy(service: str = LAMBDA) -> Any:
    """Who may take a role: a service of AWS."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": service},
                "Action": "sts:AssumeRole",
            }
        ],
    }


def repository_policy(stack: Stack, place: Place) -> Any:
    """Lambda may load the image for the functions of this stack."""
    functions = place.arn("lambda", f"function:{stack.name}-*")
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "Functions",
                "Effect": "Allow",
                "Principal": {"Service": LAMBDA},
                "Action": ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
                "Condition": {"StringLike": {"aws:sourceArn": functions}},
            }
        ],
    }


def bucket_policy(stack: Stack, place: Place) -> Any:
    """Nothing without TLS."""
    bucket = f"arn:{place.partition}:s3:::{stack.bucket(place)}"
    return _only_tls("s3:*", [bucket, f"{bucket}/*"])


def express_bucket_policy(stack: Stack, place: Place) -> Any:
    """No session without TLS; without a session there is no access to a directory bucket's objects.

    Unlike in other buckets, S3 itself needs a permission to delete what has expired.
    """
    bucket = place.arn("s3express", f"bucket/{stack.express_bucket(place)}")
    document = _only_tls("s3express:CreateSession", [bucket])
    expiry = {
        **_allow("Expiry", ["s3express:CreateSession"], [bucket]),
        "Principal": {"Service": "lifecycle.s3.amazonaws.com"},
        "Condition": {"StringEquals": {"s3express:SessionMode": "ReadWrite"}},
    }
    return {**document, "Statement": [*document["Statement"], expiry]}


def role_name(function: StackFunction, place: Place) -> str:
    """Roles belong to an account, functions to a region of it."""
    return f"{function.name}-{place.region}"


def machine_role(stack: Stack, place: Place) -> str:
    """The name of the role of the state machine."""
    return f"{stack.name}-states-{place.region}"


def repository_name(stack: str) -> str:
    """The repository of a stack's container image."""
    return f"{stack}-image"


def express_prefix(stack: str, place: Place) -> str:
    """How the names of a stack's directory buckets begin, whatever their zone."""
    return f"{stack}-{place.account}--"


def _only_tls(action: str, resources: list[str]) -> Any:
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "OnlyTls",
                "Effect": "Deny",
                "Principal": "*",
                "Action": action,
                "Resource": resources,
                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            }
        ],
    }


def _allow(sid: str, actions: list[str], resources: list[str]) -> dict[str, Any]:
    return {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}


def _check(stack: str, python: str, architecture: str) -> None:
    if not _STACK_NAME.fullmatch(stack) or len(stack) > STACK_NAME_MAX:
        raise TargetError(
            f"the stack name {stack!r} cannot be used: at most {STACK_NAME_MAX} lower-case letters, "
            "digits and hyphens, the first a letter, the last no hyphen."
        )
    for what, value, known in (
        ("python", python, PYTHONS),
        ("architecture", architecture, ARCHITECTURES),
    ):
        if value not in known:
            raise TargetError(f"{what}={value!r} is not known; choose {' or '.join(known)}.")


def _weights(package: Path) -> str:
    """The SHA-256 in the weights.json that a package has which streams its weights."""
    file = package / "weights.json"
    return str(json.loads(file.read_text())["sha256"]) if file.is_file() else ""


def _memory(part: str, memory_mb: int) -> int:
    """Refuses what cfn-lint and botocore let pass: 32,768 MB, of managed instances only."""
    if not 128 <= memory_mb <= 10_240:
        raise TargetError(
            f"{part} has {memory_mb} MB of memory; Lambda's standard functions have 128 to 10,240 MB. "
            "Compile again with Limits(memory_mb=10240) or less."
        )
    return memory_mb
