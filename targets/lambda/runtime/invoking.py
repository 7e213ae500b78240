"""Lambda's Invoke by the parts of boto3's own client: its signer, its connections, its errors.

A client itself first reads what botocore knows of every service: 190 ms of CPU with the imports, more
than all else that a coordinator does before it can call. These parts take 75, and half of the CPU of a
call. What they cannot do, the client does: see `functions_client`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

INIT_S = 10.0  # a cold start comes before the function's own timeout
CONNECT_S = 5
_OTHER_ENDPOINTS = ("AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT")
_REGIONS = ("af-", "ap-", "ca-", "cn-", "eu-", "il-", "me-", "mx-", "sa-", "us-")
_ISOLATED = ("us-iso", "eu-iso")  # other domains


def functions_client(timeout_s: float, connections: int) -> Any:
    """What invokes functions that may run for so long, as boto3's client does. It repeats nothing:
    calls.py knows the request's deadline and budget.

    boto3's client itself where credentials are not in the environment (a restored snapshot has none
    there), or another endpoint than the region's plain one is asked for.
    """
    # Longer than any call, so that none is given up, and made again, that still runs.
    read_s = timeout_s + INIT_S + 5
    region = os.environ.get("AWS_REGION", "")
    is_plain = region.startswith(_REGIONS) and not region.startswith(_ISOLATED)
    if is_plain and "AWS_ACCESS_KEY_ID" in os.environ and not _asked(*_OTHER_ENDPOINTS):
        return Functions(region, read_s, connections)
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        read_timeout=read_s,
        connect_timeout=CONNECT_S,
        tcp_keepalive=True,
        max_pool_connections=connections,
        user_agent="slicewise",  # boto3's own is put together for every call, a fifth of its work
    )
    return boto3.client("lambda", config=config)


def endpoint_of(region: str) -> str:
    """The URL of Lambda, or what AWS_ENDPOINT_URL_LAMBDA or AWS_ENDPOINT_URL says instead."""
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    named = os.environ.get("AWS_ENDPOINT_URL_LAMBDA") or os.environ.get("AWS_ENDPOINT_URL")
    return named or f"https://lambda.{region}.{suffix}"


class Functions:
    """A client that threads may share. Credentials are those that Lambda puts into the environment."""

    def __init__(self, region: str, read_s: float, connections: int) -> None:
        from botocore.auth import SigV4Auth
        from botocore.credentials import Credentials
        from botocore.httpsession import URLLib3Session
        from botocore.utils import get_environ_proxies

        endpoint = endpoint_of(region)
        self._functions = f"{endpoint.rstrip('/')}/2015-03-31/functions/"
        keys = (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
        credentials = Credentials(*keys, os.environ.get("AWS_SESSION_TOKEN"))
        self._signer = SigV4Auth(credentials, "lambda", region)
        self._session = URLLib3Session(
            verify=os.environ.get("AWS_CA_BUNDLE") or True,
            proxies=get_environ_proxies(endpoint),
            timeout=(CONNECT_S, read_s),
            max_pool_connections=connections,
            socket_options=_keep_alive(),
        )

    def invoke(self, *, FunctionName: str, Payload: bytes) -> dict[str, Any]:  # noqa: N803 - boto3's
        """The parts of boto3's reply that calls need: "Payload", and "FunctionError" if it failed.

        Raises botocore's `ClientError` when Lambda refuses, and what its connections raise.
        """
        from botocore.awsrequest import AWSRequest
        from botocore.response import StreamingBody

        url = f"{self._functions}{quote(FunctionName, safe='')}/invocations"
        request = AWSRequest("POST", url, _headers(), Payload, stream_output=True)
        self._signer.add_auth(request)
        answer = self._session.send(request.prepare())
        if answer.status_code >= 300:
            raise _refusal(answer.status_code, answer.headers, answer.content)
        found = {"Payload": StreamingBody(answer.raw, answer.headers.get("content-length"))}
        if "x-amz-function-error" in answer.headers:
            found["FunctionError"] = answer.headers["x-amz-function-error"]
        return found


def _headers() -> dict[str, str]:
    """Lambda stops functions that call each other in circles by the trace that a call is part of."""
    trace = os.environ.get("_X_AMZN_TRACE_ID")
    return {"User-Agent": "slicewise", **({"X-Amzn-Trace-Id": trace} if trace else {})}


def _refusal(status: int, headers: Mapping[str, str], body: bytes) -> Exception:
    """As boto3 makes it of an error in JSON."""
    from botocore.exceptions import ClientError

    try:
        told = json.loads(body)
        message = str(told.get("message") or told.get("Message") or "")
    except (ValueError, AttributeError):
        message = ""
    code = headers.get("x-amzn-errortype", str(status)).partition(":")[0]
    told = {"Code": code, "Message": message}
    answer = {"Error": told, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: Exception = ClientError(answer, "Invoke")
    return error


def _keep_alive() -> list[tuple[int, int, int]]:
    """Connections of frozen environments end unseen; and a small message does not wait for another."""
    import socket

    return [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ]


def _asked(*names: str) -> bool:
    return any(os.environ.get(name, "").lower() == "true" for name in names)
