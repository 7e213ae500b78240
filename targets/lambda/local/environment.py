"""What a function may ask for, and the environment variables that its instances see."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from slicewise.errors import TargetError

from ..functions import Function
from .identity import ACCOUNT, REGION

VERSION = "$LATEST"

MIN_MEMORY_MB = 128
MAX_MEMORY_MB = 10240
MAX_TIMEOUT_S = 900
MAX_ENVIRONMENT_BYTES = 4096
# Lambda refuses functions that set these.
RESERVED = frozenset(
    {
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
        "AWS_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_DEFAULT_REGION",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_LAMBDA_RUNTIME_API",
        "AWS_REGION",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "LAMBDA_RUNTIME_DIR",
        "LAMBDA_TASK_ROOT",
    }
)


def function_arn(name: str) -> str:
    """The unqualified ARN of a function of this platform."""
    return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}"


def check_functions(
    functions: Sequence[Function], *, package_limit_bytes: int, runtime_package_bytes: int
) -> None:
    """Refuse what Lambda's CreateFunction would refuse.

    Raises TargetError that says what was found, what the limit is, and what to do.
    """
    names = [function.name for function in functions]
    for name in sorted({name for name in names if names.count(name) > 1}):
        raise TargetError(f"two functions are called {name!r}; give each its own name")
    for function in functions:
        check_settings(function)
        check_package(function, package_limit_bytes, runtime_package_bytes)


def check_settings(function: Function) -> None:
    """Check memory, timeout, handler and environment variables."""
    where = f"function {function.name!r}"
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", function.name):
        raise TargetError(f"{where}: a name has 1 to 64 of the characters A-Z, a-z, 0-9, _ and -")
    if not MIN_MEMORY_MB <= function.memory_mb <= MAX_MEMORY_MB:
        raise TargetError(
            f"{where}: memory_mb is {function.memory_mb}; "
            f"Lambda allows {MIN_MEMORY_MB} to {MAX_MEMORY_MB}"
        )
    if not 1 <= function.timeout_s <= MAX_TIMEOUT_S:
        raise TargetError(
            f"{where}: timeout_s is {function.timeout_s}; Lambda allows 1 to {MAX_TIMEOUT_S}"
        )
    if "." not in function.handler:
        raise TargetError(f"{where}: handler {function.handler!r} is not of the form module.name")
    reserved = sorted(RESERVED & function.environment.keys())
    if reserved:
        raise TargetError(
            f"{where}: Lambda reserves these environment variables, rename them: "
            + ", ".join(reserved)
        )
    size = sum(len(key) + len(value) for key, value in function.environment.items())
    if size > MAX_ENVIRONMENT_BYTES:
        raise TargetError(
            f"{where}: environment variables take {size} bytes; "
            f"Lambda allows {MAX_ENVIRONMENT_BYTES}, put the rest into a file of the package"
        )


def check_package(function: Function, limit_bytes: int, runtime_bytes: int) -> None:
    """Check the unzipped size of a package with the runtime packages it would ship."""
    if not function.package.is_dir():
        raise TargetError(
            f"function {function.name!r}: package {function.package} is not a directory"
        )
    own = directory_bytes(function.package)
    if own + runtime_bytes > limit_bytes:
        raise TargetError(
            f"Unzipped size must be smaller than {limit_bytes} bytes: function "
            f"{function.name!r} has {own} bytes in {function.package} and {runtime_bytes} bytes "
            "of runtime packages; cut the model into more slices or allow container images"
        )


def directory_bytes(directory: Path) -> int:
    """The bytes of all files in a directory, links not followed."""
    return sum(
        Path(root, name).lstat().st_size
        for root, _directories, names in os.walk(directory)
        for name in names
    )


def instance_environment(
    function: Function,
    *,
    instance_id: str,
    runtime_api: str,
    layer: Path,
    scratch: Path,
    credentials: tuple[str, str],
    endpoints: Mapping[str, str],
) -> dict[str, str]:
    """The environment variables of one instance: Lambda's own, the endpoints, the function's."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    variables = {
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
        "AWS_LAMBDA_FUNCTION_VERSION": VERSION,
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": f"[{VERSION}]{instance_id}",
        "AWS_LAMBDA_RUNTIME_API": runtime_api,
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{python}",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": credentials[0],
        "AWS_SECRET_ACCESS_KEY": credentials[1],
        "AWS_SESSION_TOKEN": "local",
        "_HANDLER": function.handler,
        "LAMBDA_TASK_ROOT": str(function.package),
        "LAMBDA_RUNTIME_DIR": str(layer),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",  # Lambda's en_US.UTF-8 is not installed everywhere
        "TZ": ":UTC",
        # Below: what makes this machine look like Lambda's.
        "PYTHONPATH": f"{function.package}:{layer}",
        "PYTHONDONTWRITEBYTECODE": "1",  # /var/task and /opt are read-only
        "TMPDIR": str(scratch),  # Lambda's /tmp belongs to the instance alone
        "AWS_CONFIG_FILE": os.devnull,  # ~/.aws of this machine's user is not the function's
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    if "LD_LIBRARY_PATH" in os.environ:  # some interpreters do not start without it
        variables["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return {**variables, **endpoints, **function.environment}
