"""Early calls: functions called before there is a boto3 client.

A client takes 300 ms to import and make. Its signer and its connections, which it imports in any case,
are there after half of that; so slices start while the coordinator is still starting.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from urllib.parse import quote

CONNECT_S = 5


def early_invoke(timeout_s: float, most: int) -> Callable[[str, bytes], bytes]:
    """Calls a function, "name" or "name:version", and returns its reply; up to `most` calls at once.

    The call raises botocore's errors, or `RuntimeError` for a refusal. Region, endpoint and credentials
    are those that Lambda puts into the environment.
    """
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials
    from botocore.httpsession import URLLib3Session

    region = os.environ["AWS_REGION"]
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_LAMBDA") or f"https://lambda.{region}.{suffix}"
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    credentials = Credentials(*(os.environ.get(key) for key in keys))
    connections = URLLib3Session(
        timeout=(CONNECT_S, timeout_s),
        max_pool_connections=most,
        # As a client has it: head and body are two writes, and the second waited 40 ms for an answer.
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    )

    def invoke(function: str, payload: bytes) -> bytes:
        url = f"{endpoint}/2015-03-31/functions/{quote(function, safe='')}/invocations"
        request = AWSRequest(method="POST", url=url, data=payload)
        SigV4Auth(credentials, "lambda", region).add_auth(request)
        answer = connections.send(request.prepare())
        if answer.status_code != 200:
            raise RuntimeError(
                f"{function} was not called: {answer.status_code} {answer.text[:500]}"
            )
        reply: bytes = answer.content
        return reply

    return invoke
