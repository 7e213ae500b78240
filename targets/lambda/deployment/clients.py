"""Clients: boto3's, paced and patient, and the place they work in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from slicewise.errors import DeploymentError

from ..resources import Place

REQUESTS_S = 15.0  # Lambda's control plane, all calls of an account together; PLATFORM quotas, 2026
ATTEMPTS = 10  # of one call that is throttled or does not arrive
PATIENCE = 60  # further tries while AWS is not ready for a call: roles take seconds to be known
_NOT_YET = (
    ("InvalidParameterValueException", "cannot be assumed"),
    ("ResourceConflictException", "cannot be performed at this time"),
    ("OperationAborted", ""),  # a bucket of this name was deleted a moment ago
    ("StateMachineDeleting", ""),
    ("AccessDeniedException", "authorized to assume the provided role"),  # a state machine's
)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Clients:
    """What a deployment talks to. `invoke` is Lambda's data plane, `functions` its control plane;
    `wait_s` passes between two looks at something that AWS is still working on.
    """

    place: Place
    functions: Any
    invoke: Any
    s3: Any
    iam: Any
    logs: Any
    ecr: Any
    states: Any
    wait_s: float = 1.0

    @property
    def waiter_config(self) -> dict[str, float | int]:
        """Settings of boto3's waiters: five minutes at one look a second."""
        return {"Delay": self.wait_s, "MaxAttempts": 300}

    def patiently(self, call: Callable[[], T]) -> T:
        """The result of a call, repeated while AWS says that it is too early for it."""
        from botocore.exceptions import ClientError

        for _ in range(PATIENCE):
            try:
                return call()
            except ClientError as error:
                if not _too_early(error):
                    raise
                time.sleep(self.wait_s)
        return call()


def connect(
    region: str | None = None,
    *,
    invoke_endpoint_url: str | None = None,
    requests_s: float = REQUESTS_S,
    wait_s: float = 1.0,
) -> Clients:
    """Clients with this machine's credentials, in a region (None: the configured one).

    Endpoints are boto3's own (AWS_ENDPOINT_URL and the like); `invoke_endpoint_url` is another one for
    invocations, which the local platform answers. `requests_s` bounds calls of Lambda's control plane.
    Raises `DeploymentError` without boto3, region or valid credentials.
    """
    try:
        import boto3.session
        from botocore.config import Config
    except ImportError as error:
        raise DeploymentError(
            f"deploying needs {error.name}; install it with: pip install 'slicewise[deploy]'"
        ) from error
    session = boto3.session.Session(region_name=region)
    if session.region_name is None:
        raise DeploymentError(
            "no AWS region is known: pass region=... (--region), or set AWS_DEFAULT_REGION."
        )
    patient = Config(retries={"mode": "standard", "total_max_attempts": ATTEMPTS})
    # Repeated, a request would run the whole model twice.
    once = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        read_timeout=905,  # Lambda's longest timeout, and a little
        tcp_keepalive=True,
    )
    with explained("asking who the credentials belong to"):
        caller = session.client("sts", config=patient).get_caller_identity()
        functions = session.client("lambda", config=patient)
        pace(functions, requests_s)
        return Clients(
            place=Place(
                partition=caller["Arn"].split(":")[1],
                region=session.region_name,
                account=caller["Account"],
            ),
            functions=functions,
            invoke=session.client("lambda", endpoint_url=invoke_endpoint_url, config=once),
            s3=session.client("s3", config=patient),
            iam=session.client("iam", config=patient),
            logs=session.client("logs", config=patient),
            ecr=session.client("ecr", config=patient),
            states=session.client("stepfunctions", config=patient),
            wait_s=wait_s,
        )


def pace(client: Any, requests_s: float) -> None:
    """Hold back the client's requests, repeated ones too, to so many a second (a token bucket that
    holds one second's).
    """
    lock = threading.Lock()
    tokens, filled = requests_s, time.monotonic()

    def take(**_: Any) -> None:
        nonlocal tokens, filled
        with lock:
            now = time.monotonic()
            tokens, filled = min(requests_s, tokens + (now - filled) * requests_s) - 1, now
            wait = -tokens / requests_s
        if wait > 0:
            time.sleep(wait)

    client.meta.events.register("before-send.lambda", take)


@contextmanager
def explained(doing: str, *, advice: str = "") -> Iterator[None]:
    """Turns boto3's errors into `DeploymentError`s that say what was being done and what helps."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        denied = error_code(error) in ("AccessDenied", "AccessDeniedException", "Forbidden", "403")
        what = "the credentials need this permission" if denied else advice
        raise DeploymentError(f"{doing}: {error}" + (f". {what}." if what else "")) from error
    except (BotoCoreError, Boto3Error) as error:
        raise DeploymentError(f"{doing}: {error}" + (f". {advice}." if advice else "")) from error


def error_code(error: Any) -> str:
    """AWS's code of a `ClientError`."""
    return str(error.response.get("Error", {}).get("Code", ""))


def found(call: Callable[[], T], *codes: str) -> T | None:
    """What a reading call returns, or None when it fails with one of these codes."""
    from botocore.exceptions import ClientError

    try:
        return call()
    except ClientError as error:
        if error_code(error) in codes:
            return None
        raise


def _too_early(error: Any) -> bool:
    message = str(error)
    return any(error_code(error) == code and words in message for code, words in _NOT_YET)
