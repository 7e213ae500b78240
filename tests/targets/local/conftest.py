"""A function that does what its event says, and platforms that run it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

local = importlib.import_module("slicewise.targets.lambda.local")
cgroup = importlib.import_module("slicewise.targets.lambda.local.cgroup")
Function = importlib.import_module("slicewise.targets.lambda.functions").Function

PROBE = '''
import json, os, sys, time

INIT = {"pid": os.getpid()}
print("init output")

def handler(event, context):
    action = event.get("do", "echo")
    return globals()["do_" + action](event, context)

def do_echo(event, context):
    return event

def do_context(event, context):
    client_context = context.client_context
    return {
        "pid": os.getpid(),
        "request_id": context.aws_request_id,
        "arn": context.invoked_function_arn,
        "remaining_ms": context.get_remaining_time_in_millis(),
        "custom": client_context.custom if client_context else None,
        "path": sys.path,
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
    }

def do_print(event, context):
    print(event["text"])

def do_raise(event, context):
    raise ValueError("as asked")

def do_exit(event, context):
    os._exit(event["code"])

def do_kill(event, context):
    os.kill(os.getpid(), event["signal"])

def do_sleep(event, context):
    time.sleep(event["seconds"])
    return os.getpid()

def do_rendezvous(event, context):
    """Returns when as many instances have come here as the event says."""
    open(os.path.join(event["directory"], str(os.getpid())), "w").close()
    while len(os.listdir(event["directory"])) < event["count"]:
        time.sleep(0.005)
    return os.getpid()

def do_allocate(event, context):
    block = b"x" * (event["mb"] << 20)
    time.sleep(event.get("seconds", 0))
    return len(block)

def do_burn(event, context):
    began, cpu = time.monotonic(), time.process_time()
    while time.process_time() - cpu < event["cpu_seconds"]:
        pass
    return (time.process_time() - cpu) / (time.monotonic() - began)

def do_reply(event, context):
    return "x" * (event["bytes"] - 2)

def do_import(event, context):
    module = __import__(event["module"])
    return module.__file__

def do_child(event, context):
    """Leaves a child process behind."""
    import subprocess
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"]).pid

def do_append(event, context):
    with open(event["file"], "a") as file:
        file.write("once\\n")
    if os.path.getsize(event["file"]) < event["until"]:
        raise ValueError("not yet")

def do_s3(event, context):
    import boto3
    client = boto3.client("s3")
    body = bytes(range(256)) * 16
    client.put_object(Bucket=event["bucket"], Key="from/inside", Body=body, IfNoneMatch="*")
    return client.get_object(Bucket=event["bucket"], Key="from/inside")["Body"].read() == body

def do_call(event, context):
    import boto3
    client = boto3.client("lambda")
    reply = client.invoke(FunctionName=event["function"], Payload=json.dumps(event["event"]))
    return json.load(reply["Payload"])
'''


def cgroups_work() -> bool:
    """Whether this machine lets us make cgroups."""
    try:
        limiter = cgroup.choose_limiter("auto", "slicewise-test-trial")
    except OSError:
        return False
    limiter.remove()
    return bool(limiter.enforcement.kind != "process limits")


ENFORCEMENTS = [
    pytest.param("auto", marks=pytest.mark.skipif(not cgroups_work(), reason="no cgroups here")),
    "process limits",
]


@dataclass(frozen=True)
class Caller:
    """A platform and a client of it."""

    platform: Any
    client: Any

    def __call__(self, function: str = "probe", /, **event: Any) -> Any:
        """Invoke; the reply, or the error as a dict."""
        return self.reply(function, **event)[0]

    def reply(self, function: str = "probe", /, **event: Any) -> tuple[Any, Any]:
        """Invoke; (payload, the whole response)."""
        response = self.client.invoke(
            FunctionName=function, Payload=json.dumps(event), LogType="Tail"
        )
        return json.loads(response["Payload"].read()), response


def write_package(directory: Path, source: str) -> Path:
    """A package with one module, `probe`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "probe.py").write_text(source)
    return directory


@pytest.fixture(scope="session")
def make_function(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Makes a `Function`, by default one that does what its event says."""

    def make(name: str = "probe", source: str = PROBE, **settings: Any) -> Any:
        package = write_package(tmp_path_factory.mktemp(name), source)
        settings = {"memory_mb": 256, "timeout_s": 30, "handler": "probe.handler"} | settings
        return Function(name=name, package=package, **settings)

    return make


@pytest.fixture(scope="module", params=ENFORCEMENTS)
def lambdas(request: pytest.FixtureRequest, make_function: Callable[..., Any]) -> Iterator[Caller]:
    """A running platform, once with cgroups and once without."""
    functions = [
        make_function(environment={"MINE": "yes"}),
        make_function("hasty", timeout_s=1),
        make_function("unimportable", "import torch\n"),
        make_function("crashes", "import os\nos._exit(7)\n"),
        make_function("handlerless", "x = 1\n"),
        make_function("broken", "def handler(:\n"),
    ]
    with local.Platform(
        functions,
        buckets=["spill-bucket"],
        cpu_scale=8.0,  # the tests are about behaviour, not about small shares
        enforcement=request.param,
        event_retry_s=(0.01,),
    ) as platform:
        yield Caller(platform, platform.client("lambda"))


@pytest.fixture
def start(make_function: Callable[..., Any]) -> Iterator[Callable[..., Caller]]:
    """Starts a platform of its own for one test."""
    running = []

    def start(*functions: Any, **options: Any) -> Caller:
        platform = local.Platform(functions or [make_function()], **options)
        platform.start()
        running.append(platform)
        return Caller(platform, platform.client("lambda"))

    yield start
    for platform in running:
        platform.stop()
