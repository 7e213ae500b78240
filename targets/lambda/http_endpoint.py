"""HTTP for a bundle on this machine: what the coordinator's function URL answers, here on loopback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .batching import batching_call
from .bundle import readers
from .client import Client
from .local.function_url import FunctionUrl, Invoke, Unanswered


def open_http(
    port: int,
    function: str,
    platform: Any,
    client: Client,
    directory: Path,
    batch_wait_ms: float | None,
) -> FunctionUrl:
    """Start to answer. With `batch_wait_ms` requests of the Open Inference Protocol are answered here,
    several together; all others, and without it all, are the coordinator's. Raises `TargetError`.
    """
    invoke = _invoking(platform.client("lambda"), function)
    if batch_wait_ms is not None:
        manifest = directory / "functions" / readers(client.plan)[0] / "manifest.json"
        invoke = _batching(invoke, json.loads(manifest.read_text()), client, batch_wait_ms)
    return FunctionUrl(invoke, port)


def _invoking(functions: Any, function: str) -> Invoke:
    from botocore.exceptions import BotoCoreError, ClientError

    def invoke(event: dict[str, Any]) -> bytes:
        try:
            answer = functions.invoke(FunctionName=function, Payload=json.dumps(event).encode())
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            raise Unanswered(status if status in (413, 429) else 502, str(error)) from None
        except BotoCoreError as error:
            raise Unanswered(502, str(error)) from None
        payload: bytes = answer["Payload"].read()
        if "FunctionError" in answer:  # AWS says no more than "Internal Server Error"
            raise Unanswered(502, f"{function} failed: {payload[:500].decode(errors='replace')}")
        return payload

    return invoke


def _batching(
    invoke: Invoke, manifest: dict[str, Any], client: Client, batch_wait_ms: float
) -> Invoke:
    from .runtime import inference_protocol
    from .runtime.url import as_event, http_request

    call = batching_call(client, manifest, batch_wait_ms / 1e3)

    def answer(event: dict[str, Any]) -> bytes:
        request = http_request(event)
        if not inference_protocol.is_ours(request.path):
            return invoke(event)
        return as_event(inference_protocol.answer(request, manifest, call))

    return answer
