"""An AWS account on this machine: moto's server over HTTP, and what is in it."""

from __future__ import annotations

import importlib
import io
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import boto3.session
import pytest
from botocore.awsrequest import AWSResponse, HeadersDict
from botocore.exceptions import ReadTimeoutError

REGION = "eu-west-1"
CLOSED = "http://127.0.0.1:9"  # nobody answers there
ACCOUNT = "123456789012"
EXPRESS = "--x-s3"
READING = ("Get", "List", "Head", "Describe", "Filter", "Invoke", "StartExecution")


@dataclass
class Calls:
    """What is called: the names of all calls that change something, and the faults that are put in.

    `before` and `after` get the name and the number of a call. `before` may return an answer instead of
    AWS's (`answer`); of operations that `loses` accepts, the call arrives and its answer does not.
    """

    changing: list[str] = field(default_factory=list)
    before: Callable[[str, int], Any] | None = None
    after: Callable[[str, int], None] | None = None
    loses: Callable[[str], bool] | None = None
    # The parts of a large upload are sent at once: a thread's answer is that of its own latest call.
    _sent: threading.local = field(default_factory=threading.local)

    def clear(self) -> None:
        """Forget the calls and put in no more faults."""
        self.changing, self.before, self.after, self.loses = [], None, None, None

    def watch(self, *clients: Any) -> None:
        """See the calls of these clients."""
        for client in clients:
            client.meta.events.register("before-send", partial(self._sending, client))
            client.meta.events.register("after-call", self._done)

    def _sending(self, client: Any, request: Any, event_name: str, **_: Any) -> Any:
        operation = event_name.rpartition(".")[2]
        if operation.startswith(READING):
            return None
        self.changing.append(operation)
        self._sent.number = number = len(self.changing)
        if self.loses is not None and self.loses(operation):
            client._endpoint.http_session.send(request)
            raise ReadTimeoutError(endpoint_url=request.url)
        return self.before(operation, number) if self.before is not None else None

    def _done(self, model: Any, **_: Any) -> None:
        if not model.name.startswith(READING) and self.after is not None:
            self.after(model.name, self._sent.number)


def answer(status: int, code: str, message: str) -> Any:
    """An error as Lambda answers."""
    body = json.dumps({"Type": "User", "Message": message, "message": message}).encode()
    headers = HeadersDict({"x-amzn-ErrorType": code, "Content-Type": "application/json"})
    return AWSResponse("", status, headers, _Raw(body))


class _Raw(io.BytesIO):
    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


@dataclass
class Cloud:
    """`clients` deploy to it; `calls` sees what they do."""

    url: str
    clients: Any
    calls: Calls

    def client(self, service: str) -> Any:
        """A client that nobody watches."""
        return boto3.session.Session(region_name=REGION).client(service, endpoint_url=self.url)

    def resources(self) -> dict[str, list[str]]:
        """The names of all that is there."""
        functions = self.client("lambda")
        machines = self.client("stepfunctions").list_state_machines()["stateMachines"]
        repositories = self.client("ecr").describe_repositories()["repositories"]
        s3, iam, logs = self.client("s3"), self.client("iam"), self.client("logs")
        return {
            "functions": sorted(
                each["FunctionName"] for each in functions.list_functions()["Functions"]
            ),
            "layers": sorted(each["LayerName"] for each in functions.list_layers()["Layers"]),
            "roles": sorted(each["RoleName"] for each in iam.list_roles()["Roles"]),
            "log groups": sorted(
                each["logGroupName"] for each in logs.describe_log_groups()["logGroups"]
            ),
            "buckets": sorted(each["Name"] for each in s3.list_buckets()["Buckets"]),
            "state machines": sorted(each["name"] for each in machines),
            "repositories": sorted(each["repositoryName"] for each in repositories),
        }

    def snapshot(self) -> dict[str, Any]:
        """All that is there with its settings, without what differs from time to time (ids, dates)."""
        functions, iam = self.client("lambda"), self.client("iam")
        s3, logs = self.client("s3"), self.client("logs")
        found: dict[str, Any] = {}
        names = self.resources()
        for name in names["functions"]:
            versions = functions.list_versions_by_function(FunctionName=name)["Versions"]
            aliases = functions.list_aliases(FunctionName=name)["Aliases"]
            arn = functions.get_function(FunctionName=name)["Configuration"]["FunctionArn"]
            found[name] = {
                "tags": functions.list_tags(Resource=arn)["Tags"],
                "versions": [
                    {
                        key: version.get(key)
                        for key in (
                            "Version", "CodeSha256", "MemorySize", "Environment", "Layers", "Role",
                            "Runtime", "Handler", "Timeout", "PackageType",
                        )
                    }
                    for version in versions
                ],
                "aliases": {each["Name"]: each["FunctionVersion"] for each in aliases},
            }  # fmt: skip
        for name in names["layers"]:
            listed = functions.list_layer_versions(LayerName=name)["LayerVersions"]
            found[name] = [each["Description"] for each in listed]
        for name in names["roles"]:
            policies = iam.list_role_policies(RoleName=name)["PolicyNames"]
            found[name] = {
                "tags": iam.list_role_tags(RoleName=name)["Tags"],
                "policies": {
                    each: iam.get_role_policy(RoleName=name, PolicyName=each)["PolicyDocument"]
                    for each in policies
                },
            }
        for group in logs.describe_log_groups()["logGroups"]:
            found[group["logGroupName"]] = group.get("retentionInDays")
        for bucket in names["buckets"]:
            found[bucket] = {
                "keys": self.keys(bucket),
                "policy": s3.get_bucket_policy(Bucket=bucket)["Policy"],
                "lifecycle": s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"],
            }
            if not bucket.endswith(EXPRESS):  # which has none of these
                blocked = s3.get_public_access_block(Bucket=bucket)
                found[bucket] |= {
                    "tags": s3.get_bucket_tagging(Bucket=bucket)["TagSet"],
                    "blocked": blocked["PublicAccessBlockConfiguration"],
                }
        for name in names["state machines"]:
            found[f"state machine {name}"] = self.machine(name)
        for name in names["repositories"]:
            ecr = self.client("ecr")
            found[f"repository {name}"] = {
                "policy": ecr.get_repository_policy(repositoryName=name)["policyText"],
                "images": sorted(
                    each["imageDigest"]
                    for each in ecr.describe_images(repositoryName=name)["imageDetails"]
                ),
            }
        return found

    def machine(self, name: str) -> dict[str, Any]:
        """A state machine: role, tags, the definition of every version by number, and aliases."""
        states = self.client("stepfunctions")
        arn = f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{name}"
        versions = states.list_state_machine_versions(stateMachineArn=arn)["stateMachineVersions"]
        aliases = states.list_state_machine_aliases(stateMachineArn=arn)["stateMachineAliases"]
        found: dict[str, Any] = {"versions": {}, "aliases": {}}
        for each in (version["stateMachineVersionArn"] for version in versions):
            number = int(each.rpartition(":")[2])
            described = states.describe_state_machine(stateMachineArn=each)
            found["versions"][number] = described["definition"]
        for each in (alias["stateMachineAliasArn"] for alias in aliases):
            route = states.describe_state_machine_alias(stateMachineAliasArn=each)
            (target,) = route["routingConfiguration"]
            found["aliases"][each.rpartition(":")[2]] = target["stateMachineVersionArn"]
        found["role"] = states.describe_state_machine(stateMachineArn=arn)["roleArn"]
        found["tags"] = states.list_tags_for_resource(resourceArn=arn)["tags"]
        return found

    def bucket(self, stack: str) -> str:
        """The stack's bucket."""
        return f"{stack}-{ACCOUNT}-{REGION}"

    def keys(self, bucket: str) -> list[str]:
        """The keys of a bucket's objects."""
        listed = self.client("s3").list_objects_v2(Bucket=bucket).get("Contents", ())
        return [each["Key"] for each in listed]

    def serving(self, stack: str, entry: str = "coordinator") -> dict[str, str] | None:
        """The SHA-256 of the code of every part that the alias `live` leads to, of the state machine
        where there is one; None without it.
        """
        functions, name = self.client("lambda"), f"{stack}-{entry}"
        if stack in self.resources()["state machines"]:
            machine = self.machine(stack)
            if not machine["aliases"]:
                return None
            number = int(machine["aliases"]["live"].rpartition(":")[2])
            called = dict(
                re.findall(rf":function:{stack}-([\w-]+):(\d+)", machine["versions"][number])
            )
            return {part: self._code(f"{stack}-{part}", each) for part, each in called.items()}
        try:
            alias = functions.get_alias(FunctionName=name, Name="live")
        except functions.exceptions.ResourceNotFoundException:
            return None
        live = functions.get_function_configuration(
            FunctionName=name, Qualifier=alias["FunctionVersion"]
        )
        found = {entry: str(live["CodeSha256"])}
        for pair in live["Environment"]["Variables"]["SLICEWISE_VERSIONS"].split(","):
            part, number = pair.split("=")
            found[part] = self._code(f"{stack}-{part}", number)
        return found

    def _code(self, name: str, number: str) -> str:
        version = self.client("lambda").get_function_configuration(
            FunctionName=name, Qualifier=number
        )
        return str(version["CodeSha256"])

    def push(self, name: str, tag: str, content: str) -> str:
        """What `docker push` does to a repository: an image under a tag. Its digest."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "c", "size": 7},
            "layers": [{"digest": f"sha256:{content:0>64}"}],
        }
        made = self.client("ecr").put_image(
            repositoryName=name, imageManifest=json.dumps(manifest), imageTag=tag
        )
        return str(made["image"]["imageId"]["imageDigest"])


@contextmanager
def cloud(invoke_endpoint_url: str = CLOSED) -> Iterator[Cloud]:
    """An empty account; invocations go to another address."""
    from moto.server import ThreadedMotoServer

    clients_module = importlib.import_module("slicewise.targets.lambda.deployment.clients")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            patch.setenv(name, "testing")
        patch.delenv("AWS_PROFILE", raising=False)
        # The policy rightly denies everything that comes over plain HTTP, as the loopback does.
        patch.setattr("moto.s3.models.FakeBucket.get_permission", _as_if_over_tls)
        _extend_moto(patch)
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        try:
            reset(url)
            clients = clients_module.connect(
                invoke_endpoint_url=invoke_endpoint_url, requests_s=10_000.0, wait_s=0.0
            )
            calls = Calls()
            calls.watch(
                clients.functions,
                clients.s3,
                clients.iam,
                clients.logs,
                clients.ecr,
                clients.states,
            )
            yield Cloud(url=url, clients=clients, calls=calls)
        finally:
            reset(url)
            server.stop()


def _as_if_over_tls(bucket: Any, action: str, resource: str) -> Any:
    """moto's own answer to a policy without the statement that holds for plain HTTP only."""
    from moto.iam.access_control import IAMPolicy, PermissionResult

    if bucket.policy is None:
        return PermissionResult.NEUTRAL
    policy = json.loads(bucket.policy.decode())
    plain_http = {"Bool": {"aws:SecureTransport": "false"}}
    statements = [each for each in policy["Statement"] if each.get("Condition") != plain_http]
    return IAMPolicy(json.dumps({**policy, "Statement": statements})).is_action_permitted(
        action, resource
    )


def _extend_moto(patch: pytest.MonkeyPatch) -> None:
    """What moto 5.2 lacks: it has versions of state machines but neither lists, deletes nor starts them,
    makes no directory buckets outside us-east-1, and no sessions of them; it asks its own ECR for images
    only when told to.
    """
    from moto.core.responses import ActionResult, EmptyResult
    from moto.s3.responses import S3Response
    from moto.stepfunctions.models import StepFunctionBackend
    from moto.stepfunctions.responses import StepFunctionResponse

    def list_versions(self: Any) -> Any:
        machine = self.stepfunction_backend.describe_state_machine(
            self._get_param("stateMachineArn")
        )
        arns = [each.arn for number, each in sorted(machine.versions.items(), reverse=True)]
        return ActionResult(
            {"stateMachineVersions": [{"stateMachineVersionArn": arn} for arn in arns]}
        )

    def delete_version(self: Any) -> Any:
        machine, _, number = self._get_param("stateMachineVersionArn").rpartition(":")
        found = self.stepfunction_backend.describe_state_machine(machine)
        arn = f"{machine}:{number}"
        for alias in found.aliases.values():  # as on AWS
            assert arn not in json.dumps(alias.routing_configuration)
        del found.versions[int(number)]
        return EmptyResult()

    start = StepFunctionBackend.start_execution

    def start_qualified(self: Any, arn: str, *more: Any) -> Any:
        machine = ":".join(arn.split(":")[:7])  # without version or alias
        return start(self, machine, *more)

    located = S3Response._get_location_constraint

    def constraint(self: Any) -> Any:
        is_express = b"<Type>Directory</Type>" in (self.body or b"")
        return self.region if is_express else located(self)

    patch.setattr(StepFunctionResponse, "list_state_machine_versions", list_versions, raising=False)
    patch.setattr(
        StepFunctionResponse, "delete_state_machine_version", delete_version, raising=False
    )
    patch.setattr(StepFunctionBackend, "start_execution", start_qualified)
    patch.setattr(S3Response, "_get_location_constraint", constraint)
    patch.setenv("AWS_S3_DISABLE_EXPRESS_SESSION_AUTH", "true")
    patch.setenv("MOTO_LAMBDA_STUB_ECR", "false")


def reset(url: str) -> None:
    """Empty the account: moto keeps one for the whole process."""
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST")).close()
