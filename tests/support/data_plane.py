"""Lambda's data plane for an account in moto, which runs no code: the local platform runs it.

For every version of a coordinator that is invoked there is a platform whose functions are the unpacked
zip files that lie in moto's bucket, with the settings and variables that moto has of these versions.
"""

from __future__ import annotations

import base64
import importlib
import io
import zipfile
from pathlib import Path
from typing import Any

from cloud import Cloud

endpoint = importlib.import_module("slicewise.targets.lambda.endpoint")
functions = importlib.import_module("slicewise.targets.lambda.functions")


class DataPlane:
    """Takes the place of `Clients.invoke`; `served` tells which versions were run, oldest first."""

    def __init__(self, cloud: Cloud, work: Path) -> None:
        self.served: list[dict[str, str]] = []
        self._cloud = cloud
        self._work = work
        self._platforms: dict[str, Any] = {}

    def invoke(self, *, FunctionName: str, Payload: bytes) -> Any:  # noqa: N803 - boto3's names
        """Run a coordinator's version or alias, as boto3 and Lambda would."""
        name, _, qualifier = FunctionName.partition(":")
        live = self._cloud.client("lambda").get_function(FunctionName=name, Qualifier=qualifier)
        arn = live["Configuration"]["FunctionArn"]
        if arn not in self._platforms:
            self._platforms[arn] = self._serve(live["Configuration"])
        client = self._platforms[arn].client("lambda")
        return client.invoke(FunctionName=name, Payload=Payload)

    def close(self) -> None:
        """Stop all platforms."""
        for platform in self._platforms.values():
            platform.stop()

    def _serve(self, coordinator: Any) -> Any:
        stack = coordinator["FunctionName"].removesuffix("-coordinator")
        pairs = coordinator["Environment"]["Variables"]["SLICEWISE_VERSIONS"].split(",")
        versions = dict(pair.split("=") for pair in pairs)
        lambdas = self._cloud.client("lambda")
        found = [coordinator] + [
            lambdas.get_function_configuration(FunctionName=f"{stack}-{part}", Qualifier=number)
            for part, number in versions.items()
        ]
        self.served.append({**versions, "coordinator": coordinator["Version"]})
        platform = endpoint.local_platform(
            [self._function(each, coordinator) for each in found],
            network=None,
            s3_endpoint_url=self._cloud.url,
            credentials=("testing", "testing"),
        )
        platform.start()
        return platform

    def _function(self, version: Any, coordinator: Any) -> Any:
        digest = base64.b64decode(version["CodeSha256"]).hex()
        bucket = coordinator["Environment"]["Variables"]["SLICEWISE_BUCKET"]
        package = self._work / f"{version['FunctionName']}-{digest[:12]}"
        if not package.exists():
            stored = self._cloud.client("s3").get_object(
                Bucket=bucket, Key=f"packages/{digest}.zip"
            )
            with zipfile.ZipFile(io.BytesIO(stored["Body"].read())) as archive:
                archive.extractall(package)
        return functions.Function(
            name=version["FunctionName"],
            package=package,
            handler=version["Handler"],
            memory_mb=version["MemorySize"],
            timeout_s=version["Timeout"],
            environment=version["Environment"]["Variables"],
        )
