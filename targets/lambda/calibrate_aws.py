"""AWS as a `Site` of `calibrate`: the probes are created, and deleted whatever happens.

Lambda brings boto3; numpy, onnxruntime and pybase64 come from this environment as a layer. So this
machine must be Linux, and functions run with its architecture and its Python.
"""

from __future__ import annotations

import itertools
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slicewise.errors import TargetError

from .calibrate_site import MEMORIES_MB, TIMEOUT_S, Site, run_name, this_architecture, write_probes
from .functions import Function
from .runtime.store import BUCKET_VARIABLES

LAYER = ("numpy", "onnxruntime", "pybase64")
COLD_VARIABLE = "SLICEWISE_COLD"  # another value, another environment


@contextmanager
def aws_site(
    *,
    role: str,
    bucket: str,
    express_bucket: str | None = None,
    region: str | None = None,
    memories_mb: Sequence[int] = MEMORIES_MB,
) -> Iterator[Site]:
    """Lambda and S3 with this machine's credentials.

    `role` is the ARN of the functions' role: it may invoke functions named slicewise-calibrate-*, and
    put and get objects in the buckets. `bucket` also holds the packages. Raises `TargetError`.
    """
    if sys.platform != "linux":
        raise TargetError("calibrating AWS needs Linux: the functions get this machine's packages")
    try:
        import boto3.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise TargetError(
            f"AWS needs {error.name}; install it with: pip install 'slicewise[local]'"
        ) from error
    session = boto3.session.Session(region_name=region)
    run = run_name()
    name = f"slicewise-{run}"
    buckets = {"s3": bucket} | ({"s3express": express_bucket} if express_bucket else {})
    environment = {BUCKET_VARIABLES[way]: each for way, each in buckets.items()}
    try:
        with ExitStack() as stack:
            lambdas, objects = session.client("lambda"), session.client("s3")
            work = Path(stack.enter_context(TemporaryDirectory(prefix="slicewise-calibrate-")))
            probes = write_probes(work, name, memories_mb, environment)
            for each in buckets.values():
                stack.callback(_delete_objects, objects, each, f"requests/{run}/")
            stack.callback(_delete_objects, objects, bucket, f"{name}/")
            layer = _publish_layer(stack, lambdas, objects, bucket, name, work)
            for probe in probes:
                _create(stack, lambdas, objects, bucket, name, probe, role, layer, work)
            for probe in probes:
                lambdas.get_waiter("function_active_v2").wait(FunctionName=probe.name)
            # A repeated invocation would be measured with the first one's time.
            config = Config(
                retries={"mode": "standard", "total_max_attempts": 1}, read_timeout=TIMEOUT_S + 5
            )
            yield Site(
                name=f"AWS Lambda in {session.region_name}",
                run=run,
                network="off",
                region=session.region_name,
                architecture=this_architecture(),
                functions=session.client("lambda", config=config),
                probes={probe.memory_mb: probe.name for probe in probes[:-1]},
                loader=probes[-1].name,
                buckets=buckets,
                make_cold=_cooler(lambdas, probes),
            )
    except (ClientError, BotoCoreError) as error:
        raise TargetError(
            f"AWS could not be calibrated: {error}. What could not be deleted is called {name}*."
        ) from error


def _create(
    stack: ExitStack,
    lambdas: Any,
    objects: Any,
    bucket: str,
    name: str,
    probe: Function,
    role: str,
    layer: str,
    work: Path,
) -> None:
    key = f"{name}/{probe.package.name}.zip"
    archive = work / f"{probe.package.name}.zip"
    if not archive.exists():
        files = (path for path in sorted(probe.package.rglob("*")) if path.is_file())
        _zip(archive, ((path, str(path.relative_to(probe.package))) for path in files))
        objects.upload_file(str(archive), bucket, key)
    lambdas.create_function(
        FunctionName=probe.name,
        Runtime=_python(),
        Role=role,
        Handler=probe.handler,
        Code={"S3Bucket": bucket, "S3Key": key},
        MemorySize=probe.memory_mb,
        Timeout=probe.timeout_s,
        Environment={"Variables": dict(probe.environment)},
        Architectures=[this_architecture()],
        Layers=[layer],
    )
    stack.callback(lambdas.delete_function, FunctionName=probe.name)


def _publish_layer(
    stack: ExitStack, lambdas: Any, objects: Any, bucket: str, name: str, work: Path
) -> str:
    """The ARN of a layer with this environment's numpy, onnxruntime and pybase64."""
    from .local.layer import recorded_files

    files = (
        (Path(str(found.locate_file(path))), f"python/{path}")
        for found in map(distribution, LAYER)
        for path in recorded_files(found)
        if "/tests/" not in path and not path.endswith((".pyc", ".pyi"))
    )
    archive = work / "layer.zip"
    _zip(archive, files)
    objects.upload_file(str(archive), bucket, f"{name}/layer.zip")
    published = lambdas.publish_layer_version(
        LayerName=name,
        Content={"S3Bucket": bucket, "S3Key": f"{name}/layer.zip"},
        CompatibleRuntimes=[_python()],
    )
    stack.callback(lambdas.delete_layer_version, LayerName=name, VersionNumber=published["Version"])
    return str(published["LayerVersionArn"])


def _zip(archive: Path, files: Iterator[tuple[Path, str]]) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as into:
        for path, inside in files:
            if path.is_file():
                into.write(path, inside)


def _python() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def _cooler(lambdas: Any, probes: Sequence[Function]) -> Callable[[], None]:
    """Ends all environments: a function whose variables have changed starts anew."""
    numbers = itertools.count(1)

    def make_cold() -> None:
        number = f"{os.getpid()}-{next(numbers)}"
        for probe in probes:
            lambdas.update_function_configuration(
                FunctionName=probe.name,
                Environment={"Variables": {**probe.environment, COLD_VARIABLE: number}},
            )
        for probe in probes:
            lambdas.get_waiter("function_updated_v2").wait(FunctionName=probe.name)

    return make_cold


def _delete_objects(objects: Any, bucket: str, prefix: str) -> None:
    """Prefixes end with a slash: directory buckets list no others."""
    for page in objects.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        keys = [{"Key": each["Key"]} for each in page.get("Contents", ())]
        if keys:
            objects.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
