"""Lambda's and Step Functions' data planes for an account in moto, which runs no code.

For every version of a whole that is invoked there is a local platform whose functions are the unpacked
zip files that lie in moto's bucket, with the settings and variables that moto has of these versions; a
state machine runs there by the definition that moto has of its version.
"""

from __future__ import annotations

import base64
import importlib
import io
import re
import zipfile
from pathlib import Path
from typing import Any

from cloud import REGION, Cloud

endpoint = importlib.import_module("slicewise.targets.lambda.endpoint")
HERE = importlib.import_module("slicewise.targets.lambda.local.identity").REGION
functions = importlib.import_module("slicewise.targets.lambda.functions")


class DataPlane:
    """Takes the place of `Clients.invoke`; `served` tells which versions were run, oldest first."""

    def __init__(self, cloud: Cloud, work: Path) -> None:
        self.served: list[dict[str, str]] = []
        self._cloud = cloud
        self._work = work
        self._platforms: dict[str, Any] = {}
        self._machines: dict[str, tuple[Any, str]] = {}

    def invoke(self, *, FunctionName: str, Payload: bytes) -> Any:  # noqa: N803 - boto3's names
        """Run a version or alias of an entry function, as boto3 and Lambda would."""
        name, _, qualifier = FunctionName.partition(":")
        client = self._platform(name, qualifier).client("lambda")
        return client.invoke(FunctionName=name, Payload=Payload)

    def start_execution(self, *, version: str, **call: Any) -> Any:
        """Run a version of a state machine."""
        if version not in self._machines:
            states = self._cloud.client("stepfunctions")
            definition = states.describe_state_machine(stateMachineArn=version)["definition"]
            name, number = re.search(r":function:([\w-]+-coordinator):(\d+)", definition).groups()  # type: ignore[union-attr]
            client = self._platform(name, number).client("stepfunctions")
            made = client.create_state_machine(
                name=f"version-{version.rpartition(':')[2]}",
                # The platform is in a region of its own.
                definition=definition.replace(f":lambda:{REGION}:", f":lambda:{HERE}:"),
                roleArn="arn:aws:iam::123456789012:role/states",
            )
            self._machines[version] = client, made["stateMachineArn"]
        client, arn = self._machines[version]
        return client.start_execution(stateMachineArn=arn, **call)

    def describe_execution(self, *, executionArn: str) -> Any:  # noqa: N803 - boto3's names
        """What became of it."""
        machine = executionArn.split(":")[-2]
        (client,) = {
            id(client): client
            for client, arn in self._machines.values()
            if arn.endswith(f":{machine}")
        }.values()
        return client.describe_execution(executionArn=executionArn)

    def close(self) -> None:
        """Stop all platforms."""
        for platform in self._platforms.values():
            platform.stop()

    def _platform(self, name: str, qualifier: str) -> Any:
        """The platform of a version or alias of an entry function."""
        live = self._cloud.client("lambda").get_function(FunctionName=name, Qualifier=qualifier)
        arn = live["Configuration"]["FunctionArn"]
        if arn not in self._platforms:
            self._platforms[arn] = self._serve(live["Configuration"])
        return self._platforms[arn]

    def _serve(self, entry: Any) -> Any:
        variables = entry["Environment"]["Variables"]
        stack = variables["SLICEWISE_STACK"]
        versions = dict(pair.split("=") for pair in variables["SLICEWISE_VERSIONS"].split(","))
        lambdas = self._cloud.client("lambda")
        found = [entry] + [
            lambdas.get_function_configuration(FunctionName=f"{stack}-{part}", Qualifier=number)
            for part, number in versions.items()
        ]
        part = entry["FunctionName"].removeprefix(f"{stack}-")
        self.served.append({**versions, part: entry["Version"]})
        made = [self._function(each, stack) for each in found]
        sealed = any((function.package / "seal.json").exists() for function in made)
        platform = endpoint.local_platform(
            made,
            # In the deployed layer it is, too: tests/targets/packaging/test_layer.py.
            more_packages=("cryptography",) if sealed else (),
            network=None,
            s3_endpoint_url=self._cloud.url,
            credentials=("testing", "testing"),
        )
        platform.start()
        return platform

    def _function(self, version: Any, stack: str) -> Any:
        digest = base64.b64decode(version["CodeSha256"]).hex()
        package = self._work / f"{version['FunctionName']}-{digest[:12]}"
        if not package.exists():
            stored = self._cloud.client("s3").get_object(
                Bucket=self._cloud.bucket(stack), Key=f"packages/{digest}.zip"
            )
            with zipfile.ZipFile(io.BytesIO(stored["Body"].read())) as archive:
                archive.extractall(package)
        return functions.Function(
            name=version["FunctionName"],
            package=package,
            handler=version["Handler"],
            memory_mb=version["MemorySize"],
            timeout_s=version["Timeout"],
            # moto knows no sessions of directory buckets.
            environment={
                **version["Environment"]["Variables"],
                "AWS_S3_DISABLE_EXPRESS_SESSION_AUTH": "true",
            },
        )


class Executions:
    """Step Functions' client, whose executions the data plane runs."""

    def __init__(self, states: Any, running: DataPlane) -> None:
        self._states = states
        self.describe_execution = running.describe_execution
        self._running = running

    def __getattr__(self, name: str) -> Any:
        return getattr(self._states, name)

    def start_execution(self, *, stateMachineArn: str, **call: Any) -> Any:  # noqa: N803
        """Start a version, or what an alias means."""
        version = stateMachineArn
        if not version.rpartition(":")[2].isnumeric():
            alias = self._states.describe_state_machine_alias(stateMachineAliasArn=version)
            version = alias["routingConfiguration"][0]["stateMachineVersionArn"]
        return self._running.start_execution(version=version, **call)
