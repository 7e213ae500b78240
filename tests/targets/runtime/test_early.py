"""Early calls: what arrives is what a boto3 client sends, signed by the same credentials."""

from __future__ import annotations

import importlib
import re
import ssl
import subprocess
import threading
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

early = importlib.import_module("slicewise.targets.lambda.runtime.early")
SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=AKIA/\d{8}/us-east-1/lambda/aws4_request, ")


@pytest.fixture
def arrived(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, dict[str, str], bytes]]]:
    """What a server gets that answers everything with `{}`, or 429 for the function "busy"."""
    found: list[tuple[str, dict[str, str], bytes]] = []

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(429 if "busy" in self.path else 200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

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
    function: str, arrived: list[tuple[str, dict[str, str], bytes]]
) -> None:
    assert early.early_invoke(5)(function, b'{"warm": "plan"}') == b"{}"
    boto3.Session(region_name="us-east-1").client("lambda").invoke(
        FunctionName=function, Payload=b'{"warm": "plan"}'
    )

    (path, headers, body), (wanted_path, wanted, wanted_body) = arrived
    assert (path, body) == (wanted_path, wanted_body)
    assert SCOPE.match(headers["authorization"])
    assert SCOPE.match(wanted["authorization"])
    assert headers["x-amz-security-token"] == wanted["x-amz-security-token"] == "token"
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
    context = early.tls()

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    wanted = ssl.create_default_context(cafile=Path(botocore.__file__).with_name("cacert.pem"))
    assert context.cert_store_stats() == wanted.cert_store_stats()


def test_a_refusal_is_an_error(arrived: list[Any]) -> None:
    with pytest.raises(RuntimeError, match="busy was not called: 429"):
        early.early_invoke(5)("busy", b"{}")


def test_a_call_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a certificate that only this test's context trusts, for this name alone."""
    for name, value in {
        "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "secret",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *subject],
        check=True, capture_output=True,
    )  # fmt: skip

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    trusting = ssl.create_default_context(cafile=certificate)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        own.load_cert_chain(certificate, key)
        server.socket = own.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", f"https://localhost:{server.server_port}")
        with pytest.raises(ssl.SSLCertVerificationError):
            early.early_invoke(5)("f", b"{}")
        monkeypatch.setattr(early, "tls", lambda: trusting)
        assert early.early_invoke(5)("f", b"{}") == b"{}"
        server.shutdown()
