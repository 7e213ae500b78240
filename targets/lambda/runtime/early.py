"""Early calls: slices called to start before the coordinator has imported anything else.

botocore's signer and connections alone (invoking.py) take 75 ms of CPU to import, the coordinator's own
modules 15, the standard library's HTTP client 25. So this is Lambda's Invoke by a hash and a socket, in
15; the reply is read by the HTTP client, which is imported while the slices start.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from .functions import functions_of
from .invoking import endpoint_of
from .start import ON_DEMAND, initialization_type
from .warmup import WarmUp, start_slice

if TYPE_CHECKING:
    import ssl

CONNECT_S = 5
_ALGORITHM = "AWS4-HMAC-SHA256"


def start_slices(manifest: Path) -> WarmUp:
    """The calls that start all slices of a plan with a warm-up, under way, where this environment starts
    because a request waits for it; else a warm-up that has nothing to do.
    """
    plan = json.loads(manifest.read_text())
    if not plan["warm_up"] or initialization_type() != ON_DEMAND:
        return WarmUp(lambda _: {}, ())
    invoke = early_invoke(plan["timeout_s"] + 5)
    names = functions_of(plan)
    warm_up = WarmUp(partial(start_slice, invoke, names, plan["id"]), list(names))
    warm_up.begin()
    return warm_up


def early_invoke(timeout_s: float) -> Callable[[str, bytes], bytes]:
    """Calls a function, "name" or "name:version", and returns its reply; threads may share it.

    The call raises `OSError`, `http.client.HTTPException`, or `RuntimeError` for a refusal. Region,
    endpoint and credentials are those that Lambda puts into the environment.
    """
    region = os.environ["AWS_REGION"]
    place = urlsplit(endpoint_of(region))
    context = tls() if place.scheme == "https" else None
    address = place.hostname or "", place.port or (443 if context else 80)

    def connect() -> socket.socket:
        line = socket.create_connection(address, CONNECT_S)
        return context.wrap_socket(line, server_hostname=address[0]) if context else line

    def invoke(function: str, payload: bytes) -> bytes:
        path = f"/2015-03-31/functions/{quote(function, safe='')}/invocations"
        headers = signed(place.netloc, path, payload, region, time.gmtime())
        headers |= {"content-length": str(len(payload)), "connection": "close"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with connect() as line:
            line.settimeout(timeout_s)
            line.sendall(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + payload)
            from http.client import HTTPResponse

            with HTTPResponse(line, method="POST") as answer:
                answer.begin()
                reply = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{function} was not called: {answer.status} {reply[:500]!r}")
        return reply

    return invoke


def signed(
    host: str, path: str, payload: bytes, region: str, now: time.struct_time
) -> dict[str, str]:
    """The headers of a POST to Lambda by this function's credentials: AWS's Signature Version 4
    (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html).
    """
    date = time.strftime("%Y%m%d", now)
    headers = {"host": host, "x-amz-date": time.strftime("%Y%m%dT%H%M%SZ", now)}
    if token := os.environ.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = token
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    content = hashlib.sha256(payload).hexdigest()
    canonical = f"POST\n{quote(path, safe='/~')}\n\n{lines}\n{names}\n{content}"
    scope = f"{date}/{region}/lambda/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = ("AWS4" + os.environ["AWS_SECRET_ACCESS_KEY"]).encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"{_ALGORITHM}\n{headers['x-amz-date']}\n{scope}\n{digest}"
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    whose = f"{os.environ['AWS_ACCESS_KEY_ID']}/{scope}"
    authorization = f"{_ALGORITHM} Credential={whose}, SignedHeaders={names}, Signature={signature}"
    return {**headers, "authorization": authorization}


def tls() -> ssl.SSLContext:
    """What connections trust: the certificates that boto3 does."""
    import ssl  # the local platform has none
    from importlib.util import find_spec

    found = find_spec("botocore")  # which this does not import
    folders = (found.submodule_search_locations or ()) if found else ()
    bundles = [path for folder in folders if (path := Path(folder) / "cacert.pem").is_file()]
    return ssl.create_default_context(cafile=bundles[0] if bundles else None)
