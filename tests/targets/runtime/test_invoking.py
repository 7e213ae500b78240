"""Lambda's Invoke by the standard library: what arrives is what a boto3 client sends, signed alike."""

from __future__ import annotations

import importlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import botocore
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

invoking = importlib.import_module("slicewise.targets.lambda.runtime.invoking")
repeat = importlib.import_module("slicewise.targets.lambda.runtime.repeat")
SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=AKIA/\d{8}/us-east-1/lambda/aws4_request, ")


@pytest.fixture
def arrived(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, dict[str, str], bytes]]]:
    """What a server gets that answers everything with `{}`, or 429 for the function "busy"; one called
    "crash" fails, and after "once" the connection is closed.
    """
    found: list[tuple[str, dict[str, str], bytes]] = []

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {k.lower(): v for k, v in self.headers.items()}
            found.append((self.path, {**headers, "from": str(self.client_address)}, body))
            answer = b'{"Type": "User", "Message": "slow down"}' if "busy" in self.path else b"{}"
            self.send_response(429 if "busy" in self.path else 200)
            if "busy" in self.path:
                self.send_header("x-amzn-ErrorType", "TooManyRequestsException:http://x/")
            if "crash" in self.path:
                self.send_header("X-Amz-Function-Error", "Unhandled")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
            self.close_connection = "once" in self.path

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        for name, value in {
            "AWS_ENDPOINT_URL_LAMBDA": url, "AWS_REGION": "us-east-1", "AWS_SESSION_TOKEN": "token",
            "AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "secret",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield found
        server.shutdown()


@pytest.mark.parametrize("function", ["stack-slice0", "stack-slice0:7"])
def test_a_call_is_the_one_that_a_client_makes(
    function: str,
    arrived: list[tuple[str, dict[str, str], bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("_X_AMZN_TRACE_ID", "Root=1-2-3")
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "caller")
    answer = invoking.functions_client(5).invoke(FunctionName=function, Payload=b'{"warm": "plan"}')
    assert answer["Payload"].read() == b"{}"
    assert "FunctionError" not in answer
    boto3.Session(region_name="us-east-1").client("lambda").invoke(
        FunctionName=function, Payload=b'{"warm": "plan"}'
    )

    (path, headers, body), (wanted_path, wanted, wanted_body) = arrived
    assert (path, body) == (wanted_path, wanted_body)
    assert SCOPE.match(headers["authorization"])
    assert SCOPE.match(wanted["authorization"])
    assert headers["x-amz-security-token"] == wanted["x-amz-security-token"] == "token"
    assert headers["x-amzn-trace-id"] == wanted["x-amzn-trace-id"] == "Root=1-2-3"
    assert headers["authorization"].endswith(f"Signature={botocores(headers, path, body)}")


def botocores(headers: dict[str, str], path: str, body: bytes) -> str:
    """The signature that botocore would have made at that time."""
    signer = SigV4Auth(Credentials("AKIA", "secret", "token"), "lambda", "us-east-1")
    url = f"http://{headers['host']}{path}"
    request = AWSRequest(method="POST", url=url, data=body)
    request.context["timestamp"] = request.headers["X-Amz-Date"] = headers["x-amz-date"]
    request.headers["X-Amz-Security-Token"] = "token"
    text = signer.string_to_sign(request, signer.canonical_request(request))
    return str(signer.signature(text, request))


def test_https_trusts_what_boto3_trusts() -> None:
    made = invoking._connecting("https", "lambda.us-east-1.amazonaws.com")()

    context = made._context
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    wanted = ssl.create_default_context(cafile=Path(botocore.__file__).with_name("cacert.pem"))
    assert context.cert_store_stats() == wanted.cert_store_stats()


def test_a_refusal_is_an_error_that_may_pass(arrived: list[Any]) -> None:
    with pytest.raises(invoking.InvokeError, match=r"busy was not called: 429 .*: slow down") as refusal:
        invoking.functions_client(5).invoke(FunctionName="busy", Payload=b"{}")

    assert refusal.value.code == "TooManyRequestsException"
    assert repeat.may_pass(refusal.value)
    assert isinstance(refusal.value, repeat.call_errors())


def test_a_function_that_failed_is_told_as_by_boto3(arrived: list[Any]) -> None:
    answer = invoking.functions_client(5).invoke(FunctionName="crash", Payload=b"{}")
    assert answer["FunctionError"] == "Unhandled"


def test_connections_are_used_again_while_they_are_open(arrived: list[Any]) -> None:
    functions = invoking.functions_client(5)
    for name in ("a", "b", "once", "c"):
        functions.invoke(FunctionName=name, Payload=b"{}")
        time.sleep(0.05)

    first, second, third, fourth = (headers["from"] for _, headers, _ in arrived)
    assert first == second == third != fourth


def test_no_connection_may_pass_and_no_answer_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", f"http://127.0.0.1:{port}")
        with pytest.raises(TimeoutError) as late:
            invoking.Functions(0.1).invoke(FunctionName="a", Payload=b"{}")
    with pytest.raises(ConnectionRefusedError) as nobody:
        invoking.Functions(0.1).invoke(FunctionName="a", Payload=b"{}")

    assert not repeat.may_pass(late.value)
    assert repeat.may_pass(nobody.value)


def test_a_restored_snapshot_has_its_credentials_by_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert invoking.functions_client(60).meta.config.read_timeout == 75
