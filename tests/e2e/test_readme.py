"""The README of a bundle, followed: its programs call the bundle on the local platform."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import slicewise


def blocks(bundle: slicewise.Bundle, language: str) -> list[str]:
    text = (bundle.directory / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def environment(wide: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the README's programs find the platform; an empty folder to run in."""
    for name, value in {
        "AWS_ENDPOINT_URL_LAMBDA": wide.url,
        "AWS_ENDPOINT_URL_S3": wide.platform.s3_endpoint_url,
        "AWS_ACCESS_KEY_ID": "AKIALOCALPLATFORM000",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
        "SLICEWISE_BUCKET": wide.buckets["s3"],
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("batch", [2, 80])
def test_the_python_program_gets_what_the_model_says(
    batch: int,
    environment: Path,
    wide_bundle: slicewise.Bundle,
    wide_model: nn.Module,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As it stands, and with a batch whose result comes by S3."""
    (program,) = blocks(wide_bundle, "python")
    changed = program.replace("(2, 8)", f"({batch}, 8)").replace("(2,)", f"({batch},)")
    found: dict[str, Any] = {}

    exec(changed, found)

    expected = wide_model(*(torch.from_numpy(found["inputs"][name]) for name in ("x", "mask")))
    outputs = found["reply"]["outputs"]
    assert ("s3" in outputs["wide"]) == (batch == 80)
    narrow = base64.b64decode(outputs["narrow"]["data"])
    array = np.frombuffer(narrow, np.float32).reshape(batch, 8)
    np.testing.assert_allclose(array, expected["narrow"].detach().numpy(), rtol=1e-4, atol=1e-5)
    last = np.frombuffer(found["raw"], np.float32).reshape(batch, 16384)
    np.testing.assert_allclose(last, expected["wide"].detach().numpy(), rtol=1e-4, atol=1e-5)
    printed = capsys.readouterr().out
    assert "narrow [[" in printed and "wide [[" in printed
    sent = json.loads((environment / "request.json").read_text())
    assert sent == found["request"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl_gets_a_reply(environment: Path, wide: Any, wide_bundle: slicewise.Bundle) -> None:
    """Signed as for AWS; only the address is another."""
    (command,) = (block for block in blocks(wide_bundle, "sh") if "curl" in block)
    assert "https://lambda.$REGION.amazonaws.com" in command
    local = command.replace("https://lambda.$REGION.amazonaws.com", wide.url)
    request = {"inputs": {"x": {"data": [[0.5] * 8] * 2}, "mask": {"data": [1, 0]}}}
    (environment / "request.json").write_text(json.dumps(request))

    ran = subprocess.run(
        ["bash", "-euc", f"REGION=us-east-1 AWS_SESSION_TOKEN=\n{local}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    reply = json.loads(ran.stdout)
    assert reply["status"] == 200
    assert set(reply["outputs"]) == {"narrow", "wide"}


def over_http(wide: Any, body: str, *, encoded: bool = False, method: str = "POST") -> Any:
    """What a function URL makes of an HTTP request, and the reply that it gets."""
    event = {
        "version": "2.0",
        "requestContext": {"http": {"method": method, "path": "/"}},
        "headers": {"content-type": "application/json"},
        "body": body,
        "isBase64Encoded": encoded,
    }
    client = wide.platform.client("lambda")
    answer = client.invoke(FunctionName=wide.function, Qualifier="live", Payload=json.dumps(event))
    assert "FunctionError" not in answer
    return json.loads(answer["Payload"].read())


def test_a_request_over_the_function_url_is_answered(wide: Any) -> None:
    """A reply without a statusCode is, for Lambda, the body of a response of status 200."""
    request = json.dumps({"inputs": {"x": {"data": [[0.5] * 8] * 2}, "mask": {"data": [1, 0]}}})
    direct = wide.platform.client("lambda").invoke(FunctionName=wide.function, Payload=request)
    expected = json.loads(direct["Payload"].read())["outputs"]

    for body, encoded in ((request, False), (base64.b64encode(request.encode()).decode(), True)):
        reply = over_http(wide, body, encoded=encoded)
        assert "statusCode" not in reply
        assert reply["status"] == 200
        assert reply["outputs"] == expected


@pytest.mark.parametrize(
    ("body", "method", "status", "message"),
    [
        ("{", "POST", 400, "the body is no JSON"),
        ("", "POST", 400, "the body is no JSON"),
        ("[" * 100_000, "POST", 400, "the body is no JSON"),
        ("", "GET", 405, "GET is not POST"),
        ('{"inputs": {}}', "POST", 400, "'x' is missing"),
    ],
)
def test_a_bad_request_over_the_function_url_has_its_http_status(
    wide: Any, body: str, method: str, status: int, message: str
) -> None:
    reply = over_http(wide, body, method=method)

    assert reply["statusCode"] == status
    assert reply["headers"] == {"content-type": "application/json"}
    inner = json.loads(reply["body"])
    assert inner["status"] == status
    assert message in inner["error"]["message"]
