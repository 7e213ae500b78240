"""Lambda's Invoke by boto3's parts: the same requests, replies and errors as its own client's."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

invoking = importlib.import_module("slicewise.targets.lambda.runtime.invoking")
Arrived = list[tuple[str, dict[str, str], bytes]]


class _Answers(BaseHTTPRequestHandler):
    """Answers as the name of the function in the path says; keeps what arrives."""

    protocol_version = "HTTP/1.1"
    arrived: Arrived

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.arrived.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        if "gone" in self.path:
            self.close_connection = True
            return
        time.sleep(1 if "slow" in self.path else 0)
        text, status = b'{"y": 1}', 200
        if "busy" in self.path:
            text, status = b'{"message": "too much", "Reason": "x"}', 429
        elif "broken" in self.path:
            text, status = b"<html>", 502
        self.send_response(status)
        if "busy" in self.path:
            self.send_header("x-amzn-ErrorType", "TooManyRequestsException:http://x")
        if "failed" in self.path:
            self.send_header("X-Amz-Function-Error", "Unhandled")
        self.send_header("Content-Length", str(len(text) + 5 * ("cut" in self.path)))
        self.end_headers()
        self.wfile.write(text)
        if "cut" in self.path:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def arrived(monkeypatch: pytest.MonkeyPatch) -> Iterator[Arrived]:
    found: Arrived = []
    handler = type("Answers", (_Answers,), {"arrived": found})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in {
            "AWS_ENDPOINT_URL_LAMBDA": f"http://127.0.0.1:{server.server_address[1]}",
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "AKIA",
            "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "token",
            "AWS_LAMBDA_FUNCTION_NAME": "f", "_X_AMZN_TRACE_ID": "Root=1-2-3",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield found
        server.shutdown()


def clients(read_s: float = 60.0) -> tuple[Any, Any]:
    """Ours, and boto3's."""
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1}, read_timeout=read_s,
        user_agent="slicewise",
    )  # fmt: skip
    return invoking.Functions("us-east-1", read_s, 4), boto3.Session().client(
        "lambda", config=config
    )


@pytest.mark.parametrize("function", ["stack-slice0", "stack-slice0:7", "failed"])
def test_a_call_is_the_one_that_the_client_makes(
    function: str, arrived: Arrived, monkeypatch: pytest.MonkeyPatch
) -> None:
    import botocore.auth

    now = botocore.auth.get_current_datetime()
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: now)
    replies = [
        client.invoke(FunctionName=function, Payload=b'{"x": 1}')
        for client in clients()
    ]  # fmt: skip

    (path, headers, body), (wanted_path, wanted, wanted_body) = arrived
    assert (path, body) == (wanted_path, wanted_body)
    kept = ("authorization", "x-amz-date", "x-amz-security-token", "x-amzn-trace-id", "host")
    assert {name: headers.get(name) for name in kept} == {name: wanted.get(name) for name in kept}
    assert headers["x-amzn-trace-id"]
    ours, theirs = replies
    assert ours["Payload"].read() == theirs["Payload"].read() == b'{"y": 1}'
    assert ours.get("FunctionError") == theirs.get("FunctionError")


@pytest.mark.parametrize("function", ["busy", "broken", "gone", "slow", "cut"])
def test_an_error_is_the_one_that_the_client_raises(function: str, arrived: Arrived) -> None:
    wanted: dict[str, Any] = {
        "busy": ClientError, "broken": ClientError, "gone": ConnectionClosedError,
        "slow": ReadTimeoutError, "cut": (IncompleteReadError, ResponseStreamingError),
    }  # fmt: skip
    raised = []
    for client in clients(0.3):
        with pytest.raises(wanted[function]) as caught:
            client.invoke(FunctionName=function, Payload=b"{}")["Payload"].read()
        raised.append(caught.value)

    ours, theirs = raised
    assert isinstance(theirs, type(ours))
    if isinstance(ours, ClientError):
        codes = [error.response["ResponseMetadata"]["HTTPStatusCode"] for error in raised]
        assert codes[0] == codes[1]
        assert ours.response["Error"]["Code"] == theirs.response["Error"]["Code"]
    assert arrived


def test_nobody_listens(arrived: Arrived, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", "http://127.0.0.1:1")

    for client in clients():
        with pytest.raises(EndpointConnectionError):
            client.invoke(FunctionName="f", Payload=b"{}")
    assert not arrived


@pytest.mark.parametrize(
    "changed",
    [
        {"AWS_USE_FIPS_ENDPOINT": "true"},
        {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
        {"AWS_REGION": "us-iso-east-1"},
        {"AWS_ACCESS_KEY_ID": None},
    ],
)
def test_what_the_parts_cannot_do_the_client_does(
    changed: dict[str, str | None], arrived: Arrived, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changed.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    client = invoking.functions_client(60, 4)

    assert not isinstance(client, invoking.Functions)
    assert client.meta.config.read_timeout > 60 + invoking.INIT_S  # else it gives up what goes on
    assert client.meta.config.retries["total_max_attempts"] == 1
    assert not arrived


def test_endpoints_are_the_regions_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for region in ("eu-west-1", "us-gov-west-1", "cn-north-1"):
        client = boto3.Session(region_name=region, aws_access_key_id="a", aws_secret_access_key="b")
        assert invoking.endpoint_of(region) == client.client("lambda").meta.endpoint_url
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://example.test")
    assert invoking.endpoint_of("eu-west-1") == "https://example.test"


def test_the_proxy_of_the_environment_is_used(
    arrived: Arrived, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", invoking.endpoint_of("us-east-1"))
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", "http://lambda.example.test")

    client = invoking.functions_client(60, 4)
    assert client.invoke(FunctionName="f", Payload=b"{}")["Payload"].read() == b'{"y": 1}'
    (path, headers, _), *_ = arrived
    assert path.startswith("http://lambda.example.test/")
    assert headers["host"] == "lambda.example.test"


def test_no_client_is_imported(arrived: Arrived) -> None:
    code = (
        "import importlib, sys\n"
        "m = importlib.import_module('slicewise.targets.lambda.runtime.invoking')\n"
        "m.functions_client(1, 1).invoke(FunctionName='f', Payload=b'{}')['Payload'].read()\n"
        "print([n for n in ('boto3', 'botocore.client', 'botocore.session') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
