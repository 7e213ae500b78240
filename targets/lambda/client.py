"""The client of a deployed or locally served bundle: the model's arguments in, its output out."""

from __future__ import annotations

import contextvars
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, TypeVar

import numpy as np

from slicewise.errors import RequestError, SliceFailure
from slicewise.plan import Plan
from slicewise.structure import bind, build

from .runtime.deadline import with_remaining
from .runtime.messages import join, lift
from .runtime.repeat import Budget, Passing, may_pass, repeated
from .runtime.rule import Rule
from .runtime.seal import SealError
from .runtime.store import Object, Store, StoreError, objects_of
from .runtime.transport import receive, send
from .runtime.wire import WireError
from .spans import record

LONGEST_S = 900.0  # of any function
T = TypeVar("T")
_LOG = logging.getLogger(__name__)


class Client:
    """Calls the coordinator function of one bundle through boto3.

    Takes torch tensors or numpy arrays and answers in kind. `last_trace` tells where the time of the
    latest call went (milliseconds). `deadline_s` is the time that a request gets, tensors' way to and
    from S3 included; None for all that its functions have.
    """

    def __init__(self, plan: Plan, function: str, lambda_client: Any, store: Store) -> None:
        self.plan = plan
        self.function = function
        self.last_trace: dict[str, Any] = {}
        self.deadline_s: float | None = None
        self._lambda = lambda_client
        self._store = store
        self._rule = Rule(plan.transport_rule.transports, plan.transport_rule.payload_bytes)
        self._choices = {edge.tensor: edge.choices for edge in plan.edges}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output. Raises `RequestError` or `SliceFailure`."""
        given = bind(self.plan.input_structure, args, kwargs)
        return build(self.plan.output_structure, self.run(given))

    def run(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name for inputs by name. Raises `RequestError` or `SliceFailure`, the latter at the
        latest when `deadline_s` is over.
        """
        request_id = str(uuid.uuid4())
        if self.deadline_s is None:
            return self._run(given, request_id, math.inf)
        deadline = time.monotonic() + self.deadline_s
        try:
            return _within(self.deadline_s, partial(self._run, given, request_id, deadline))
        except _NotInTime:
            raise SliceFailure(
                f"there was no answer within deadline_s = {self.deadline_s:g} s (request "
                f"{request_id}); give requests more time",
                request_id=request_id,
                kind="DeadlineExceeded",
            ) from None

    def _run(self, given: Mapping[str, Any], request_id: str, deadline: float) -> dict[str, Any]:
        """`run`; the deadline is in time.monotonic() seconds."""
        use_torch = any(type(value).__module__.startswith("torch") for value in given.values())
        dtypes = {spec.name: spec.dtype for spec in self.plan.inputs}
        arrays = {name: _to_numpy(name, value, dtypes[name]) for name, value in given.items()}
        wire_dtypes = {name: _wire_dtype(array, dtypes[name]) for name, array in arrays.items()}
        try:
            records = send(
                arrays, wire_dtypes, request_id, self._choices, self._rule, self._store, arrays
            )
        except (StoreError, SealError) as error:
            raise SliceFailure(
                f"no slice was called: {error}", request_id=request_id, kind=type(error).__name__
            ) from error
        try:
            head: dict[str, Any] = {"request_id": request_id, "trace": True}
            reply = self._traced(request_id, join(head, "inputs", records), deadline)
        finally:
            self._delete(objects_of(records))
        return self._outputs(reply, use_torch)

    def _traced(self, request_id: str, request: bytes, deadline: float) -> dict[str, Any]:
        """`_invoke`, which OpenTelemetry is told of."""
        told = partial(record, self.plan.model.name, request_id, time.time_ns())
        try:
            reply = self._invoke(request, request_id, deadline)
        except Exception as error:
            told(time.time_ns(), {}, error)
            raise
        told(time.time_ns(), reply.get("trace", {}))
        return reply

    def _invoke(self, request: bytes, request_id: str, deadline: float) -> dict[str, Any]:
        """Send a request in the wire format and return the reply of status 200."""
        from botocore.exceptions import BotoCoreError, ClientError

        def call() -> tuple[Any, bytes]:
            message = timed(request, deadline)
            try:
                answer = self._lambda.invoke(FunctionName=self.function, Payload=message)
                return answer, answer["Payload"].read()
            except (ClientError, BotoCoreError) as error:
                if may_pass(error):  # the request's id makes a second call the same one
                    raise Passing(error) from None
                raise

        try:
            last_start = min(deadline, time.monotonic() + LONGEST_S)
            (answer, raw), _ = repeated(call, last_start, Budget())
            reply = lift(raw, "outputs")
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            raise RequestError(f"the request was refused: {error}", status=status) from error
        except (BotoCoreError, ValueError) as error:
            raise SliceFailure(
                f"the coordinator gave no answer: {error} (request {request_id})",
                slice="coordinator",
                request_id=request_id,
                kind=type(error).__name__,
            ) from error
        if "FunctionError" in answer:
            raise SliceFailure(
                f"the coordinator failed: {reply.get('errorMessage', reply)}",
                slice="coordinator",
                request_id=request_id,
                kind=reply.get("errorType"),
            )
        return self._checked(reply)

    def _checked(self, reply: dict[str, Any]) -> dict[str, Any]:
        """The reply of status 200; of any other the error that it tells."""
        if reply["status"] == 200:
            self.last_trace = reply.get("trace", {})
            return dict(reply)
        problem = reply["error"]
        if reply["status"] < 500:
            raise RequestError(
                problem["message"], status=reply["status"], field=problem.get("field")
            )
        raise SliceFailure(
            f"{problem['message']} (request {reply['request_id']})",
            slice=problem.get("slice"),
            request_id=reply["request_id"],
            kind=problem.get("type"),
        )

    def _outputs(self, reply: dict[str, Any], use_torch: bool) -> dict[str, Any]:
        tensor_of = {spec.name: spec.tensor for spec in self.plan.outputs}
        records = {tensor_of[name]: record for name, record in reply["outputs"].items()}
        try:
            arrays = receive(dict(records), reply["request_id"], self._store)
        except (WireError, StoreError, SealError) as error:
            raise SliceFailure(
                f"the answer did not arrive: {error} (request {reply['request_id']})",
                request_id=reply["request_id"],
                kind=type(error).__name__,
            ) from error
        finally:
            self._delete(objects_of(records))
        outputs: dict[str, Any] = {name: arrays[tensor_of[name]] for name in reply["outputs"]}
        if use_torch:
            import torch

            for name, array in outputs.items():
                tensor = torch.from_numpy(np.array(array))
                if reply["outputs"][name]["dtype"] == "bfloat16":
                    tensor = tensor.bfloat16()
                outputs[name] = tensor
        return outputs

    def _delete(self, places: list[Object]) -> None:
        """What fails is no reason to keep the answer back: `slicewise gc` deletes it later."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._store.delete(places)
        except (ClientError, BotoCoreError, StoreError) as error:
            _LOG.warning("objects are left in the bucket: %s", error)


def timed(request: bytes, deadline: float) -> bytes:
    """The request, which also tells how much time is left to it; a repeated one has less."""
    if math.isinf(deadline):
        return request
    return with_remaining(request, deadline - time.monotonic())


class _NotInTime(Exception):  # noqa: N818 - never seen outside
    """The work has not ended yet."""


def _within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises; `_NotInTime` when that takes longer.

    The work has a thread of its own: when nobody waits any more it still ends, and deletes its objects.
    """
    done: Future[T] = Future()
    context = contextvars.copy_context()  # OpenTelemetry's current span

    def run() -> None:
        try:
            done.set_result(context.run(work))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="slicewise-request", daemon=True).start()
    if not wait([done], seconds).done:
        raise _NotInTime
    return done.result()


def _to_numpy(name: str, value: Any, dtype: str) -> np.ndarray:
    if type(value).__module__.startswith("torch"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float() if dtype == "bfloat16" else value
        return np.asarray(value.numpy())
    try:
        return np.asarray(value)
    except ValueError as error:
        raise RequestError(f"{name!r} is not a tensor: {error}", field=name) from error


def _wire_dtype(array: np.ndarray, planned: str) -> str:
    """What the array is called on the wire; the coordinator refuses one that is not the plan's."""
    return planned if planned == "bfloat16" and array.dtype == np.float32 else str(array.dtype)
