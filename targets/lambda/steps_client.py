"""The client of a bundle that a state machine drives: executions instead of invocations."""

from __future__ import annotations

import json
import time
from typing import Any

from slicewise.errors import RequestError, SliceFailure
from slicewise.plan import Plan

from .client import LONGEST_S, Client, timed
from .runtime.store import Store

FIRST_WAIT_S, LAST_WAIT_S = 0.02, 1.0  # between two looks at an execution


class StepsClient(Client):
    """Starts an execution of the state machine `arn` and waits for its end; tensors are objects.

    An Express state machine is asked with `StartSyncExecution`.
    """

    def __init__(
        self, plan: Plan, arn: str, states_client: Any, store: Store, *, is_express: bool = False
    ) -> None:
        super().__init__(plan, arn, None, store)
        self._states = states_client
        self._is_express = is_express

    def _invoke(self, request: bytes, request_id: str, deadline: float) -> dict[str, Any]:
        from botocore.exceptions import ClientError

        start = self._states.start_execution
        if self._is_express:
            start = self._states.start_sync_execution
        try:
            # Named after the request: Step Functions takes the same one twice for one.
            found = start(
                stateMachineArn=self.function,
                name=request_id,
                input=timed(request, deadline).decode(),
            )
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            raise RequestError(f"the request was refused: {error}", status=status) from error
        most_s = LONGEST_S * (len(self.plan.stages) + 2)  # and both its ends
        last, wait_s, execution = time.monotonic() + most_s, FIRST_WAIT_S, found["executionArn"]
        while found.get("status", "RUNNING") == "RUNNING":
            if time.monotonic() > last:
                raise SliceFailure(
                    f"{execution} still runs after {most_s:g} s", request_id=request_id
                )
            time.sleep(wait_s)
            wait_s = min(LAST_WAIT_S, 1.5 * wait_s)
            found = self._states.describe_execution(executionArn=execution)
        if found["status"] == "SUCCEEDED":
            reply: dict[str, Any] = json.loads(found["output"])
        else:
            reply = _failure(found)
        return self._checked(reply)


def _failure(execution: dict[str, Any]) -> dict[str, Any]:
    """What the state machine's last state says, or what ended the execution instead."""
    try:
        reply = json.loads(execution.get("cause") or "")
        _ = reply["status"], reply["request_id"], reply["error"]["message"]
    except (ValueError, KeyError, TypeError):
        kind = execution.get("error") or execution["status"]
        message = f"the state machine ended with {kind}: {execution.get('cause', 'no cause')}"
        reply = {"status": 502, "request_id": "", "error": {"type": kind, "message": message}}
    return dict(reply)
