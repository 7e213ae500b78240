"""Lambda's Invoke by the standard library.

boto3 with a client takes 240 ms of CPU to import and make, more than all else that a coordinator does
before it can call its slices; this takes 45. It repeats nothing: calls.py does.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import io
import json
import os
import select
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

CONNECT_S = 5
INIT_S = 10.0  # a cold start comes before the function's own timeout
_ALGORITHM = "AWS4-HMAC-SHA256"


class InvokeError(RuntimeError):
    """Lambda answered, but did not call the function; `status` is HTTP's, `code` AWS's name of it."""

    def __init__(self, function: str, status: int, code: str, message: str) -> None:
        super().__init__(f"{function} was not called: {status} {code}: {message}")
        self.status = status
        self.code = code


def functions_client(timeout_s: float) -> Any:
    """What calls functions that run for so long at most, as boto3's client does: `Functions`, or boto3's
    own where credentials are not in the environment (a restored snapshot has none there).
    """
    # Longer than any call, so that none is given up, and made again, that still runs.
    read_s = timeout_s + INIT_S + 5
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return Functions(read_s)
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        read_timeout=read_s,
        connect_timeout=CONNECT_S,
        tcp_keepalive=True,
        max_pool_connections=64,
    )
    return boto3.client("lambda", config=config)


class Functions:
    """A client that threads may share. Region, endpoint and credentials are those that Lambda puts into
    the environment.
    """

    def __init__(self, read_s: float) -> None:
        self._region = os.environ["AWS_REGION"]
        suffix = "amazonaws.com.cn" if self._region.startswith("cn-") else "amazonaws.com"
        own = f"https://lambda.{self._region}.{suffix}"
        place = urlsplit(os.environ.get("AWS_ENDPOINT_URL_LAMBDA") or own)
        self._host = place.netloc
        self._connection = _connecting(place.scheme, place.netloc)
        self._read_s = read_s
        self._idle: list[http.client.HTTPConnection] = []

    def invoke(self, *, FunctionName: str, Payload: bytes) -> dict[str, Any]:  # noqa: N803 - boto3's
        """Call a function, "name" or "name:version", and wait for its reply, in boto3's form.

        Raises `InvokeError`, `TimeoutError` when it has not answered in time, and other `OSError`s or
        `http.client.HTTPException` where there is no connection or it broke.
        """
        path = f"/2015-03-31/functions/{quote(FunctionName, safe='')}/invocations"
        headers = signed(self._host, path, Payload, self._region, time.gmtime())
        if trace := os.environ.get("_X_AMZN_TRACE_ID"):
            headers["x-amzn-trace-id"] = trace
        connection = self._connected()
        try:
            connection.request("POST", path, Payload, headers)
            answer = connection.getresponse()
            reply = answer.read()
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        if answer.status != 200:
            code = answer.getheader("x-amzn-ErrorType", "").partition(":")[0]
            raise InvokeError(FunctionName, answer.status, code, _message(reply))
        found: dict[str, Any] = {"Payload": io.BytesIO(reply)}
        if failed := answer.getheader("X-Amz-Function-Error"):
            found["FunctionError"] = failed
        return found

    def _connected(self) -> http.client.HTTPConnection:
        """A connection that nobody uses and the other side has not closed, or a new one."""
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread has it
                break
            if connection.sock is not None and not _is_readable(connection.sock):
                return connection
            connection.close()
        connection = self._connection()
        try:
            connection.connect()
        except TimeoutError as error:
            raise ConnectionError(f"no connection to {self._host} in {CONNECT_S} s") from error
        connection.sock.settimeout(self._read_s)
        return connection


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


def _connecting(scheme: str, netloc: str) -> Callable[[], http.client.HTTPConnection]:
    """Makes connections, with the certificates that boto3 trusts."""
    if scheme == "http":  # the local platform
        return partial(http.client.HTTPConnection, netloc, timeout=CONNECT_S)
    import ssl
    from importlib.util import find_spec

    found = find_spec("botocore")  # which this does not import
    folders = (found.submodule_search_locations or ()) if found else ()
    bundles = [path for folder in folders if (path := Path(folder) / "cacert.pem").is_file()]
    context = ssl.create_default_context(cafile=bundles[0] if bundles else None)
    return partial(http.client.HTTPSConnection, netloc, timeout=CONNECT_S, context=context)


def _is_readable(sock: Any) -> bool:
    """An idle connection is, once the other side has closed it."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _message(reply: bytes) -> str:
    """Lambda's words, which it writes in either case."""
    try:
        told = json.loads(reply)
        return str(told.get("Message") or told["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return reply[:500].decode(errors="replace")
