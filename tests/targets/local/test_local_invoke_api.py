"""The Invoke API through an unmodified boto3 client."""

from __future__ import annotations

import base64
import importlib
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from slicewise.errors import TargetError

ARN = "arn:aws:lambda:us-east-1:123456789012:function:probe"
REQUEST_LIMIT = 6_291_456
RESPONSE_LIMIT = 6_291_556


def test_a_call_returns_what_the_handler_returns(lambdas: Any) -> None:
    payload, response = lambdas.reply(do="echo", text="grüße", number=1.5, nothing=None)

    assert payload == {"do": "echo", "text": "grüße", "number": 1.5, "nothing": None}
    assert response["StatusCode"] == 200
    assert response["ExecutedVersion"] == "$LATEST"
    assert "FunctionError" not in response


def test_no_payload_is_an_empty_event(lambdas: Any) -> None:
    response = lambdas.client.invoke(FunctionName="probe")

    assert json.load(response["Payload"]) == {}


@pytest.mark.parametrize("name", ["probe", ARN, f"{ARN}:live", "123456789012:function:probe"])
def test_functions_are_found_by_name_and_by_arn(lambdas: Any, name: str) -> None:
    context = lambdas(name, do="context")

    assert context["arn"] == (f"{ARN}:live" if name.endswith("live") else ARN)


def test_the_qualifier_reaches_the_function(lambdas: Any) -> None:
    response = lambdas.client.invoke(
        FunctionName="probe", Qualifier="live", Payload=b'{"do": "context"}'
    )

    assert json.load(response["Payload"])["arn"] == f"{ARN}:live"


def test_the_context_holds_request_id_deadline_and_client_context(lambdas: Any) -> None:
    client_context = base64.b64encode(json.dumps({"custom": {"a": 1}}).encode()).decode()
    response = lambdas.client.invoke(
        FunctionName="probe", ClientContext=client_context, Payload=b'{"do": "context"}'
    )
    context = json.load(response["Payload"])

    assert context["request_id"] == response["ResponseMetadata"]["RequestId"]
    assert 0 < context["remaining_ms"] <= 30_000
    assert context["custom"] == {"a": 1}


def test_the_log_tail_and_the_report_say_what_happened(lambdas: Any) -> None:
    _, response = lambdas.reply(do="print", text="to be found")
    log = base64.b64decode(response["LogResult"]).decode()
    request_id = response["ResponseMetadata"]["RequestId"]
    report = lambdas.platform.reports[-1]

    assert f"START RequestId: {request_id} Version: $LATEST\n" in log
    assert "to be found\n" in log
    assert f"END RequestId: {request_id}\n" in log
    assert str(report) in log
    assert "\tMemory Size: 256 MB\tMax Memory Used: " in log
    assert log in lambdas.platform.logs("probe")
    assert (report.function, report.request_id) == ("probe", request_id)
    assert (report.status, report.memory_mb) == ("success", 256)
    assert 0 < report.max_memory_mb < 256
    assert report.billed_ms >= report.duration_ms > 0


def test_a_dry_run_runs_nothing(lambdas: Any) -> None:
    before = lambdas.platform.reports
    response = lambdas.client.invoke(FunctionName="probe", InvocationType="DryRun")

    assert response["StatusCode"] == 204
    assert lambdas.platform.reports == before


def test_an_event_is_accepted_and_tried_again(lambdas: Any, tmp_path: Path) -> None:
    file = tmp_path / "calls"
    event = json.dumps({"do": "append", "file": str(file), "until": 10})
    response = lambdas.client.invoke(FunctionName="probe", InvocationType="Event", Payload=event)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (not file.exists() or file.stat().st_size < 10):
        time.sleep(0.01)

    assert response["StatusCode"] == 202
    assert response["Payload"].read() == b""
    assert file.read_text() == "once\nonce\n"


@pytest.mark.parametrize("name", ["missing", ARN.replace("probe", "missing"),
                                  ARN.replace("us-east-1", "eu-west-1")])  # fmt: skip
def test_unknown_functions_are_not_found(lambdas: Any, name: str) -> None:
    with pytest.raises(lambdas.client.exceptions.ResourceNotFoundException) as error:
        lambdas(name)

    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404
    assert "Function not found: arn:aws:lambda:" in str(error.value)


@pytest.mark.parametrize("payload", [b"{", b"\xff\xfe", b"[NaN]", b"[" * 100_000])
def test_what_is_not_json_is_refused(lambdas: Any, payload: bytes) -> None:
    with pytest.raises(lambdas.client.exceptions.InvalidRequestContentException) as error:
        lambdas.client.invoke(FunctionName="probe", Payload=payload)

    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert lambdas(text="next") == {"text": "next"}


def test_a_client_context_that_is_not_json_is_refused(lambdas: Any) -> None:
    with pytest.raises(lambdas.client.exceptions.InvalidRequestContentException):
        lambdas.client.invoke(FunctionName="probe", ClientContext="bm8=")


def test_an_unknown_invocation_type_is_refused(lambdas: Any) -> None:
    with pytest.raises(lambdas.client.exceptions.InvalidParameterValueException):
        lambdas.client.invoke(FunctionName="probe", InvocationType="Later")


def test_requests_up_to_the_limit_pass(lambdas: Any) -> None:
    frame = len(json.dumps({"do": "context", "data": ""}))
    event = json.dumps({"do": "context", "data": "x" * (REQUEST_LIMIT - frame)})
    response = lambdas.client.invoke(FunctionName="probe", Payload=event)

    assert len(event) == REQUEST_LIMIT
    assert "FunctionError" not in response


@pytest.mark.parametrize("size", [REQUEST_LIMIT + 1, 5 * REQUEST_LIMIT])
def test_larger_requests_are_refused_and_the_connection_lives(lambdas: Any, size: int) -> None:
    with pytest.raises(lambdas.client.exceptions.RequestTooLargeException) as error:
        lambdas.client.invoke(FunctionName="probe", Payload=b" " * size)

    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413
    assert "must be smaller than 6291456 bytes" in str(error.value)
    assert lambdas(text="next") == {"text": "next"}


def test_events_have_a_smaller_limit(lambdas: Any) -> None:
    with pytest.raises(lambdas.client.exceptions.RequestTooLargeException):
        lambdas.client.invoke(
            FunctionName="probe", InvocationType="Event", Payload=b" " * (1024 * 1024 + 1)
        )


def test_responses_up_to_the_limit_pass(lambdas: Any) -> None:
    payload, response = lambdas.reply(do="reply", bytes=RESPONSE_LIMIT)

    assert len(payload) + 2 == RESPONSE_LIMIT
    assert "FunctionError" not in response


def test_larger_responses_are_a_function_error(lambdas: Any) -> None:
    payload, response = lambdas.reply(do="reply", bytes=RESPONSE_LIMIT + 1)

    assert response["FunctionError"] == "Unhandled"
    assert payload["errorType"] == "Function.ResponseSizeTooLarge"
    assert "exceeded maximum allowed payload size (6291556 bytes)" in payload["errorMessage"]
    assert lambdas(text="next") == {"text": "next"}


def test_above_the_concurrency_limit_calls_are_throttled(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    lambdas = start(concurrency_limit=1)
    event = {"do": "rendezvous", "directory": str(tmp_path), "count": 2}
    first = threading.Thread(target=lambdas, kwargs=event)
    first.start()
    while not list(tmp_path.iterdir()):
        time.sleep(0.005)
    with pytest.raises(lambdas.client.exceptions.TooManyRequestsException) as error:
        lambdas()
    (tmp_path / "second").touch()
    first.join()

    assert error.value.response["Reason"] == "ConcurrentInvocationLimitExceeded"
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 429
    assert lambdas(text="next") == {"text": "next"}


def test_calls_wait_for_their_turn(start: Callable[..., Any], tmp_path: Path) -> None:
    """The one that waits gets the environment that the first one has left."""
    lambdas = start(requests_at_once=1)
    event = {"do": "rendezvous", "directory": str(tmp_path), "count": 2}
    calls = [threading.Thread(target=lambdas, kwargs=each) for each in (event, {"text": "next"})]
    calls[0].start()
    while not list(tmp_path.iterdir()):
        time.sleep(0.005)
    calls[1].start()
    time.sleep(0.1)
    assert not lambdas.platform.reports
    (tmp_path / "second").touch()
    for call in calls:
        call.join()

    assert len(lambdas.platform.reports) == 2
    assert len({report.instance for report in lambdas.platform.reports}) == 1


@pytest.mark.parametrize("turns", [0, 4])
def test_turns_need_to_make_sense(start: Callable[..., Any], turns: int) -> None:
    network = importlib.import_module("slicewise.targets.lambda.local.network")
    options = (
        {"network": network.Network(name="slow", seed=0, bytes_s=1e6, waits={})} if turns else {}
    )
    with pytest.raises(TargetError, match=f"requests_at_once={turns} needs to be 1 or more"):
        start(requests_at_once=turns, **options)


def test_the_platforms_own_failures_are_service_exceptions(start: Callable[..., Any]) -> None:
    lambdas = start()
    keeper = lambdas.platform._keeper._keeper
    keeper.kill()
    keeper.wait()
    with pytest.raises(ClientError) as error:
        lambdas()

    assert error.value.response["Error"]["Code"] == "ServiceException"
    assert "keeper" in str(error.value)


def test_clients_ignore_what_this_machines_user_has_configured(
    lambdas: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\nendpoint_url = http://127.0.0.1:9\nregion = xx\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "missing")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    client = lambdas.platform.client("lambda")

    assert json.load(client.invoke(FunctionName="probe", Payload=b"{}")["Payload"]) == {}
    assert client.meta.config.retries["total_max_attempts"] == 1
    assert client.meta.region_name == "us-east-1"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /2015-03-31/functions/probe/invocations HTTP/1.1\r\n\r\n", b"405"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (
            b"POST /2015-03-31/functions/probe/invocations HTTP/1.1\r\nExpect: 100-continue\r\n"
            b"Content-Length: 2\r\n\r\n{}",
            b"100",
        ),
    ],
)
def test_requests_that_no_client_sends_get_an_answer(
    lambdas: Any, request_bytes: bytes, status: bytes
) -> None:
    url = urlsplit(lambdas.platform.endpoint_url)
    with socket.create_connection((url.hostname, url.port), timeout=20) as sock:
        sock.sendall(request_bytes)
        answer = sock.recv(4096)

    assert answer.startswith(b"HTTP/1.1 " + status)
