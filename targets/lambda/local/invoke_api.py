"""The Lambda Invoke API on loopback, as an unmodified AWS client calls it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
import socket
import threading
import time
import uuid
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from slicewise.errors import TargetError

from ..functions import Function
from .dispatcher import Dispatcher, Outcome, Throttled
from .environment import VERSION, function_arn
from .faults import CALL_KINDS, Fault, Faults, is_skewed
from .identity import ACCOUNT, REGION, caller_of
from .instance import Invocation
from .network import CALL, Traffic, sleep_until
from .permissions import Roles, refusal
from .server import Answer, Server
from .wire import Connection, Disconnected, Head

MAX_REQUEST_BYTES = 6 * 1024 * 1024
MAX_EVENT_BYTES = 1024 * 1024  # of an asynchronous invocation
MAX_CLIENT_CONTEXT_BYTES = 3583
LOG_TAIL_BYTES = 4096
PATH = re.compile(r"/2015-03-31/functions/([^/]+)/invocations")
# name, name:qualifier, account:function:name, arn:aws:lambda:region:account:function:name:qualifier
REFERENCE = re.compile(
    r"(?:(?:arn:aws[\w-]*:lambda:(?P<region>[\w-]+):)?(?P<account>\d{12}):function:)?"
    r"(?P<name>[\w-]+)(?::(?P<qualifier>\$LATEST|[\w-]+))?"
)


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """An error reply of the Invoke API."""

    def __init__(self, status: int, code: str, message: str, **fields: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.fields = fields


class InvokeServer:
    """Listens on a loopback port (0: a free one) and serves each connection on its own thread.

    Raises `TargetError` when the port is taken.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        event_retry_s: tuple[float, ...],
        port: int = 0,
        traffic: Traffic | None = None,
        roles: Roles | None = None,
        faults: Faults | None = None,
        requests_at_once: int | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        # Only callers from outside wait: a function has its turn already, and its slices need none.
        self._turns = threading.Semaphore(requests_at_once) if requests_at_once else nullcontext()
        self._traffic = traffic
        self._roles = roles
        self._faults = faults
        self._event_retry_s = event_retry_s
        try:
            listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        except OSError as error:
            raise TargetError(
                f"port {port} cannot be used ({error.strerror}); choose another one, or 0 for any."
            ) from error
        host, port = listener.getsockname()[:2]
        self.url = f"http://{host}:{port}"
        self._server = Server(listener, self._answer)

    def stop(self) -> None:
        """Close the port and all connections."""
        self._server.stop()

    def _answer(self, connection: Connection, head: Head, arrived: float) -> Answer:
        request_id = str(uuid.uuid4())
        try:
            answer = self._handle(connection, head, arrived, request_id)
        except Refusal as refusal:
            answer = refused(refusal)
        except Throttled:
            reason = "ConcurrentInvocationLimitExceeded"
            answer = refused(
                Refusal(429, "TooManyRequestsException", "Rate Exceeded.", Reason=reason)
            )
        except (TargetError, OSError) as error:
            answer = refused(Refusal(500, "ServiceException", f"local platform: {error}"))
        return Answer(
            status=answer.status,
            headers=(("x-amzn-RequestId", request_id), *answer.headers),
            body=answer.body,
            close=answer.close,
        )

    def _handle(
        self, connection: Connection, head: Head, arrived: float, request_id: str
    ) -> Answer:
        url = urlsplit(head.target)
        match = PATH.fullmatch(url.path)
        if not match:
            raise Refusal(404, "UnknownOperationException", f"no such path: {url.path}")
        if head.method != "POST":
            raise Refusal(405, "UnknownOperationException", f"{head.method} is not POST")
        qualifiers = parse_qs(url.query).get("Qualifier", [None])
        function, qualifier = self._find(unquote(match[1]), qualifiers[0])
        self._check_permission(head, function, qualifier)
        if self._faults and is_skewed(head.headers.get("x-amz-date")):
            raise Refusal(403, "InvalidSignatureException", "Signature expired or not yet current")
        kind = head.headers.get("x-amz-invocation-type", "RequestResponse")
        if kind == "DryRun":
            return Answer(status=204)
        if kind not in ("RequestResponse", "Event"):
            message = f"X-Amz-Invocation-Type {kind!r} is not RequestResponse, Event or DryRun"
            raise Refusal(400, "InvalidParameterValueException", message)
        limit = MAX_REQUEST_BYTES if kind == "RequestResponse" else MAX_EVENT_BYTES
        if head.content_length > limit:
            message = f"Request must be smaller than {limit} bytes for the InvokeFunction operation"
            raise Refusal(413, "RequestTooLargeException", message)
        invocation = Invocation(
            request_id=request_id,
            event=checked_event(connection.read_body()),
            trace_id=head.headers.get("x-amzn-trace-id") or new_trace_id(),
            client_context=client_context(head.headers.get("x-amz-client-context")),
            qualifier=qualifier,
        )
        if kind == "Event":
            threading.Thread(
                target=self._run_event, args=(function, invocation), daemon=True
            ).start()
            return Answer(status=202)
        fault = self._faults.take(CALL_KINDS, function.name) if self._faults else None
        if fault:
            self._fail_before(fault, function, invocation)
        outcome = self._run(function, invocation, head, arrived)
        tail = head.headers.get("x-amz-log-type") == "Tail"
        answer = answered(outcome, qualifier, tail=tail)
        return _fail_after(fault, answer) if fault else answer

    def _fail_before(self, fault: Fault, function: Function, invocation: Invocation) -> None:
        """What an injected fault does instead of the call, or beside it."""
        match fault.kind:
            case "throttle":
                raise Throttled
            case "service error":
                raise Refusal(500, "ServiceException", "a fault was injected")
            case "lost call":
                raise Disconnected
            case "duplicate":
                threading.Thread(
                    target=self._run_event, args=(function, invocation), daemon=True
                ).start()

    def _check_permission(self, head: Head, function: Function, qualifier: str | None) -> None:
        """Raises `Refusal` for what the role of the calling instance does not allow."""
        if self._roles is None:
            return
        arn = function_arn(function.name) + (f":{qualifier}" if qualifier else "")
        caller = caller_of(head.headers.get("authorization"))
        why = refusal(self._roles, caller, "lambda:InvokeFunction", arn)
        if why:
            raise Refusal(403, "AccessDeniedException", why)

    def _find(self, reference: str, qualifier: str | None) -> tuple[Function, str | None]:
        """The function that a name or an ARN means, and the qualifier."""
        match = REFERENCE.fullmatch(reference)
        if not match:
            message = f"1 validation error detected: functionName {reference!r} is not valid"
            raise Refusal(400, "InvalidParameterValueException", message)
        if match["qualifier"] and qualifier and match["qualifier"] != qualifier:
            message = "The derived qualifier from the function name does not match the specified"
            raise Refusal(400, "InvalidParameterValueException", f"{message} qualifier.")
        function = self._dispatcher.functions.get(match["name"])
        elsewhere = (match["region"] or REGION, match["account"] or ACCOUNT) != (REGION, ACCOUNT)
        if function is None or elsewhere:
            arn = reference if reference.startswith("arn:") else function_arn(reference)
            raise Refusal(404, "ResourceNotFoundException", f"Function not found: {arn}")
        return function, match["qualifier"] or qualifier

    def _run(
        self, function: Function, invocation: Invocation, head: Head, arrived: float
    ) -> Outcome:
        """A synchronous invocation, in its turn, over the emulated network if there is one."""
        caller = caller_of(head.headers.get("authorization"))
        if self._traffic is None:
            with nullcontext() if caller else self._turns:
                return self._dispatcher.invoke(function, invocation)
        environment = caller.instance if caller else None
        half = self._traffic.draw_s(CALL) / 2
        delivered = half + self._traffic.transfer(environment, "out", head.content_length, arrived)
        sleep_until(delivered)
        outcome = self._dispatcher.invoke(function, invocation)
        replied = delivered + outcome.seconds  # the platform's own time in between does not count
        size = len(outcome.payload)
        self._traffic.finish(CALL, half + self._traffic.transfer(environment, "in", size, replied))
        return outcome

    def _run_event(self, function: Function, invocation: Invocation) -> None:
        """An asynchronous invocation: again after a failure, as Lambda does."""
        for delay in (*self._event_retry_s, None):
            with contextlib.suppress(Throttled, TargetError, OSError):
                if self._dispatcher.invoke(function, invocation).error_type is None:
                    return
            if delay is None or self._server.stopping.wait(delay):
                return


def _fail_after(fault: Fault, answer: Answer) -> Answer:
    """What an injected fault does to the answer."""
    if fault.kind == "lost reply":
        raise Disconnected
    if fault.kind == "cut reply":
        length = ("Content-Length", str(len(answer.body)))
        return replace(
            answer,
            headers=(*answer.headers, length),
            body=answer.body[: len(answer.body) // 2],
            close=True,
        )
    return answer


def checked_event(body: bytearray) -> bytes | bytearray:
    """The event, which must be JSON; no body at all means an empty object."""
    if not body:
        return b"{}"
    try:
        json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        message = f"Could not parse request body into json: {error}"
        raise Refusal(400, "InvalidRequestContentException", message) from None
    return body


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"Non-standard token '{name}'")


def client_context(header: str | None) -> str | None:
    """The client context as JSON text."""
    if not header:
        return None
    try:
        if len(header) > MAX_CLIENT_CONTEXT_BYTES:
            raise ValueError
        text = base64.b64decode(header, validate=True).decode()
        return json.dumps(json.loads(text))
    except (ValueError, binascii.Error):
        message = "Client context must be a valid Base64-encoded JSON object."
        raise Refusal(400, "InvalidRequestContentException", message) from None


def new_trace_id() -> str:
    """A trace header for a request that has none."""
    root = f"1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]}"
    return f"Root={root};Parent={uuid.uuid4().hex[:16]};Sampled=0"


def answered(outcome: Outcome, qualifier: str | None, *, tail: bool) -> Answer:
    """The reply to an invocation that took place, whether or not the function succeeded."""
    version = qualifier if qualifier and qualifier.isdigit() else VERSION
    headers = [("Content-Type", "application/json"), ("X-Amz-Executed-Version", version)]
    if outcome.error_type is not None:
        headers.append(("X-Amz-Function-Error", "Unhandled"))
    if tail:
        encoded = base64.b64encode(outcome.log[-LOG_TAIL_BYTES:]).decode()
        headers.append(("X-Amz-Log-Result", encoded))
    return Answer(status=200, headers=tuple(headers), body=outcome.payload)


def refused(refusal: Refusal) -> Answer:
    """The reply to a request that did not reach a function."""
    blame = "User" if refusal.status < 500 else "Service"
    content = {"Type": blame, "message": str(refusal), **refusal.fields}
    return Answer(
        status=refusal.status,
        headers=(("Content-Type", "application/json"), ("x-amzn-ErrorType", refusal.code)),
        body=json.dumps(content).encode(),
    )
