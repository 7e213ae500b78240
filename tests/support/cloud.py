"""An AWS account on this machine: moto's server over HTTP, and what is in it."""

from __future__ import annotations

import importlib
import io
import json
import logging
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
READING = ("Get", "List", "Head", "Describe", "Filter", "Invoke")


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
                            "Runtime", "Handler", "Timeout",
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
                "tags": s3.get_bucket_tagging(Bucket=bucket)["TagSet"],
                "policy": s3.get_bucket_policy(Bucket=bucket)["Policy"],
                "lifecycle": s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"],
                "blocked": s3.get_public_access_block(Bucket=bucket)[
                    "PublicAccessBlockConfiguration"
                ],
            }
        return found

    def keys(self, bucket: str) -> list[str]:
        """The keys of a bucket's objects."""
        listed = self.client("s3").list_objects_v2(Bucket=bucket).get("Contents", ())
        return [each["Key"] for each in listed]

    def serving(self, stack: str) -> dict[str, str] | None:
        """The SHA-256 of the code of every part that the alias `live` leads to; None without it."""
        functions = self.client("lambda")
        name = f"{stack}-coordinator"
        try:
            alias = functions.get_alias(FunctionName=name, Name="live")
        except functions.exceptions.ResourceNotFoundException:
            return None
        live = functions.get_function_configuration(
            FunctionName=name, Qualifier=alias["FunctionVersion"]
        )
        found = {"coordinator": live["CodeSha256"]}
        for pair in live["Environment"]["Variables"]["SLICEWISE_VERSIONS"].split(","):
            part, number = pair.split("=")
            version = functions.get_function_configuration(
                FunctionName=f"{stack}-{part}", Qualifier=number
            )
            found[part] = version["CodeSha256"]
        return found


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
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        try:
            reset(url)
            clients = clients_module.connect(
                invoke_endpoint_url=invoke_endpoint_url, requests_s=10_000.0, wait_s=0.0
            )
            calls = Calls()
            calls.watch(clients.functions, clients.s3, clients.iam, clients.logs)
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


def reset(url: str) -> None:
    """Empty the account: moto keeps one for the whole process."""
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST")).close()
