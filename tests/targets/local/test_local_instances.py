"""What functions see, how they fail, and how instances come and go."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from slicewise.errors import TargetError

Function = importlib.import_module("slicewise.targets.lambda.functions").Function


def test_a_warm_instance_is_used_again(lambdas: Any) -> None:
    lambdas()
    pids = {lambdas(do="context")["pid"] for _ in range(5)}

    assert len(pids) == 1
    assert all(report.init_ms is None for report in lambdas.platform.reports[-5:])


def test_concurrent_calls_make_instances_and_each_serves_one_at_a_time(
    lambdas: Any, tmp_path: Path
) -> None:
    event = {"do": "rendezvous", "directory": str(tmp_path), "count": 4}
    with ThreadPoolExecutor(4) as pool:
        pids = list(pool.map(lambda _: lambdas(**event), range(4)))
    last = lambdas.platform.reports[-1].instance

    assert len(set(pids)) == 4
    lambdas()
    assert lambdas.platform.reports[-1].instance == last  # last in, first out


def test_a_cold_start_is_reported_and_billed(start: Callable[..., Any]) -> None:
    lambdas = start()
    lambdas()
    report = lambdas.platform.reports[0]

    assert report.init_ms is not None
    assert report.billed_ms >= report.duration_ms + report.init_ms
    assert f"Init Duration: {report.init_ms:.2f} ms" in str(report)
    assert "init output" in lambdas.platform.logs("probe")


def test_warm_starts_instances_ahead_of_calls(start: Callable[..., Any]) -> None:
    lambdas = start()
    lambdas.platform.warm("probe", 2)
    lambdas()

    assert lambdas.platform.reports[0].init_ms is None


def test_warming_a_function_that_does_not_start_says_why(lambdas: Any) -> None:
    with pytest.raises(TargetError, match="No module named 'torch'"):
        lambdas.platform.warm("unimportable")


@pytest.mark.parametrize("module", ["torch", "onnx", "slicewise", "pip", "moto", "packaging"])
def test_packages_that_a_function_does_not_have_cannot_be_imported(
    lambdas: Any, module: str
) -> None:
    error = lambdas(do="import", module=module)

    assert error["errorType"] == "ModuleNotFoundError"


@pytest.mark.parametrize("module", ["numpy", "onnxruntime", "boto3", "awslambdaric", "dateutil"])
def test_the_layers_packages_can_be_imported(lambdas: Any, module: str) -> None:
    file = lambdas(do="import", module=module)

    assert f"/layer/{module}/" in file


def test_an_instance_sees_only_its_package_the_layer_and_the_standard_library(
    lambdas: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "1")
    lambdas.platform.discard_idle()
    context = lambdas(do="context")
    package, layer, *rest = context["path"]
    environment = context["environment"]

    assert package == context["cwd"] == environment["LAMBDA_TASK_ROOT"]
    assert layer.endswith("/layer")
    assert not any("site-packages" in path for path in rest)
    assert "SECRET_OF_THE_PARENT" not in environment
    assert environment["MINE"] == "yes"
    assert environment["AWS_LAMBDA_FUNCTION_NAME"] == "probe"
    assert environment["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "256"
    assert environment["AWS_ENDPOINT_URL_LAMBDA"] == lambdas.platform.endpoint_url
    assert environment["AWS_ENDPOINT_URL_S3"] == lambdas.platform.s3_endpoint_url
    assert environment["AWS_EXECUTION_ENV"].endswith(f"python3.{sys.version_info.minor}")
    assert not list(Path(package).glob("__pycache__"))


def test_an_exception_reaches_the_caller_and_the_instance_lives(lambdas: Any) -> None:
    before = lambdas(do="context")["pid"]
    error, response = lambdas.reply(do="raise")
    report = lambdas.platform.reports[-1]

    assert response["FunctionError"] == "Unhandled"
    assert (error["errorType"], error["errorMessage"]) == ("ValueError", "as asked")
    assert (report.status, report.error_type) == ("error", "ValueError")
    assert lambdas(do="context")["pid"] == before


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"do": "exit", "code": 3}, "Runtime exited with error: exit status 3"),
        ({"do": "exit", "code": 0}, "Runtime exited without providing a reason"),
        ({"do": "kill", "signal": signal.SIGKILL}, "Runtime exited with error: signal: killed"),
        (
            {"do": "kill", "signal": signal.SIGSEGV},
            "Runtime exited with error: signal: segmentation fault",
        ),
    ],
)
def test_a_crash_is_an_exit_error_and_the_next_call_works(
    lambdas: Any, event: dict[str, Any], message: str
) -> None:
    error, response = lambdas.reply(**event)
    request_id = response["ResponseMetadata"]["RequestId"]

    assert response["FunctionError"] == "Unhandled"
    assert error == {
        "errorType": "Runtime.ExitError",
        "errorMessage": f"RequestId: {request_id} Error: {message}",
    }
    assert lambdas(text="next") == {"text": "next"}
    assert lambdas.platform.reports[-1].init_ms is not None


def test_an_idle_instance_that_dies_is_replaced(lambdas: Any) -> None:
    pid = lambdas(do="context")["pid"]
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}").exists():  # until it has been reaped
        time.sleep(0.005)

    assert lambdas(do="context")["pid"] != pid


def test_a_timeout_ends_the_instance(lambdas: Any) -> None:
    error, response = lambdas.reply("hasty", do="sleep", seconds=20)
    report = lambdas.platform.reports[-1]

    assert response["FunctionError"] == "Unhandled"
    assert error["errorType"] == "Sandbox.Timedout"
    assert error["errorMessage"].endswith("Error: Task timed out after 1.00 seconds")
    assert (report.status, report.duration_ms) == ("timeout", 1000.0)
    assert "Task timed out after 1.00 seconds" in lambdas.platform.logs("hasty")
    assert lambdas("hasty", text="next") == {"text": "next"}
    assert lambdas.platform.reports[-1].instance != report.instance


@pytest.mark.parametrize(
    ("function", "error_type", "message"),
    [
        ("unimportable", "Runtime.ImportModuleError", "No module named 'torch'"),
        ("handlerless", "Runtime.HandlerNotFound", "Handler 'handler' missing on module 'probe'"),
        ("broken", "Runtime.UserCodeSyntaxError", "Syntax error in module 'probe'"),
        ("crashes", "Runtime.ExitError", "Runtime exited with error: exit status 7"),
    ],
)
def test_init_failures_are_reported(
    lambdas: Any, function: str, error_type: str, message: str
) -> None:
    for _ in range(2):
        error, response = lambdas.reply(function)

        assert response["FunctionError"] == "Unhandled"
        assert error["errorType"] == error_type
        assert message in error["errorMessage"]
        assert lambdas.platform.reports[-1].status == "error"


def test_an_init_that_takes_too_long_is_repeated_within_the_call(
    start: Callable[..., Any], make_function: Callable[..., Any], tmp_path: Path
) -> None:
    source = f"""
import pathlib, time
first = pathlib.Path({str(tmp_path / "first")!r})
if not first.exists():
    first.touch()
    time.sleep(30)
def handler(event, context):
    return "up"
"""
    lambdas = start(make_function("slow", source), init_timeout_s=1.0)

    assert lambdas("slow") == "up"
    assert lambdas.platform.reports[0].init_ms is None
    assert "Phase: init\tStatus: timeout" in lambdas.platform.logs("slow")


def test_functions_reach_s3_with_boto3s_defaults(lambdas: Any) -> None:
    assert lambdas(do="s3", bucket="spill-bucket") is True
    objects = lambdas.platform.client("s3").list_objects_v2(Bucket="spill-bucket")
    assert [each["Key"] for each in objects["Contents"]] == ["from/inside"]


def test_functions_call_functions(lambdas: Any) -> None:
    assert lambdas(do="call", function="hasty", event={"text": "hop"}) == {"text": "hop"}


def test_s3_is_new_on_every_platform(start: Callable[..., Any]) -> None:
    first, second = start(buckets=["only-here"]), start(buckets=["elsewhere"])
    names = [
        [bucket["Name"] for bucket in each.platform.client("s3").list_buckets()["Buckets"]]
        for each in (first, second)
    ]

    assert names == [["only-here"], ["elsewhere"]]


def test_another_s3_endpoint_can_be_named(start: Callable[..., Any]) -> None:
    s3 = start(buckets=["shared"]).platform
    user = start(s3_endpoint_url=s3.s3_endpoint_url, buckets=["shared", "added"])

    assert user.platform.s3_endpoint_url == s3.s3_endpoint_url
    assert user(do="s3", bucket="added") is True


def test_a_bucket_name_that_s3_refuses_is_an_error(start: Callable[..., Any]) -> None:
    platform = start(buckets=["No"]).platform
    with pytest.raises(TargetError, match="bucket is not valid"):
        platform.client("s3")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory_mb": 100}, "Lambda allows 128 to 10240"),
        ({"memory_mb": 32768}, "Lambda allows 128 to 10240"),
        ({"timeout_s": 901}, "Lambda allows 1 to 900"),
        ({"handler": "probe"}, "module.name"),
        ({"environment": {"AWS_REGION": "x"}}, "reserves .* AWS_REGION"),
        ({"environment": {"X": "x" * 5000}}, "Lambda allows 4096"),
        ({"name": "a b"}, "A-Z"),
    ],
)
def test_settings_that_lambda_refuses_are_refused(
    start: Callable[..., Any],
    make_function: Callable[..., Any],
    settings: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(TargetError, match=message):
        start(make_function(**settings))


def test_a_package_may_be_given_by_a_relative_path(
    start: Callable[..., Any], make_function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = make_function().package
    monkeypatch.chdir(package.parent)
    function = Function(
        name="f", package=Path(package.name), handler="probe.handler", memory_mb=256
    )

    assert start(function)("f", text="found") == {"text": "found"}


def test_two_functions_of_one_name_are_refused(
    start: Callable[..., Any], make_function: Callable[..., Any]
) -> None:
    with pytest.raises(TargetError, match="two functions are called 'probe'"):
        start(make_function(), make_function())


def test_the_package_limit_counts_package_and_runtime(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "weights").write_bytes(bytes(1000))
    function = Function(name="f", package=tmp_path, handler="a.b", memory_mb=128)

    start(function, package_limit_bytes=1500, runtime_package_bytes=500)
    with pytest.raises(TargetError, match="Unzipped size must be smaller than 1500 bytes") as error:
        start(function, package_limit_bytes=1500, runtime_package_bytes=501)
    assert "1000 bytes" in str(error.value)
    assert "501 bytes" in str(error.value)
