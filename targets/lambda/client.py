"""The client of a deployed or locally served bundle: the model's arguments in, its output out."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from slicewise.errors import RequestError, SliceFailure
from slicewise.plan import Plan
from slicewise.structure import bind, build

from .runtime.messages import join, lift
from .runtime.repeat import Budget, Passing, may_pass, repeated
from .runtime.rule import Rule
from .runtime.store import Object, Store, StoreError, objects_of
from .runtime.transport import receive, send
from .runtime.wire import WireError
from .spans import record

LONGEST_S = 900.0  # of any function
_LOG = logging.getLogger(__name__)


class Client:
    """Calls the coordinator function of one bundle through boto3.

    Takes torch tensors or numpy arrays and answers in kind. `last_trace` tells where the time of the
    latest call went (milliseconds). `deadline_s` is the time that a request gets, None for all that its
    functions have.
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
        """Outputs by name for inputs by name. Raises `RequestError` or `SliceFailure`."""
        use_torch = any(type(value).__module__.startswith("torch") for value in given.values())
        dtypes = {spec.name: spec.dtype for spec in self.plan.inputs}
        arrays = {name: _to_numpy(name, value, dtypes[name]) for name, value in given.items()}
        request_id = str(uuid.uuid4())
        wire_dtypes = {name: _wire_dtype(array, dtypes[name]) for name, array in arrays.items()}
        try:
            records = send(
                arrays, wire_dtypes, request_id, self._choices, self._rule, self._store, arrays
            )
        except StoreError as error:
            raise SliceFailure(f"no slice was called: {error}", request_id=request_id) from error
        try:
            head: dict[str, Any] = {"request_id": request_id, "trace": True}
            if self.deadline_s is not None:
                head["remaining_ms"] = self.deadline_s * 1e3
            reply = self._traced(request_id, join(head, "inputs", records))
        finally:
            self._delete(objects_of(records))
        return self._outputs(reply, use_torch)

    def _traced(self, request_id: str, request: bytes) -> dict[str, Any]:
        """`_invoke`, which OpenTelemetry is told of."""
        told = partial(record, self.plan.model.name, request_id, time.time_ns())
        try:
            reply = self._invoke(request, request_id)
        except Exception as error:
            told(time.time_ns(), {}, error)
            raise
        told(time.time_ns(), reply.get("trace", {}))
        return reply

    def _invoke(self, request: bytes, request_id: str) -> dict[str, Any]:
        """Send a request in the wire format and return the reply of status 200."""
        from botocore.exceptions import BotoCoreError, ClientError

        deadline = time.monotonic() + (self.deadline_s or LONGEST_S)

        def call() -> tuple[Any, bytes]:
            try:
                answer = self._lambda.invoke(FunctionName=self.function, Payload=request)
                return answer, answer["Payload"].read()
            except (ClientError, BotoCoreError) as error:
                if may_pass(error):  # the request's id makes a second call the same one
                    raise Passing(error) from None
                raise

        try:
            (answer, raw), _ = repeated(call, deadline, Budget())
            reply = lift(raw, "outputs")
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            raise RequestError(f"the request was refused: {error}", status=status) from error
        except (BotoCoreError, ValueError) as error:
            raise SliceFailure(
                f"the coordinator gave no answer: {error} (request {request_id})",
                slice="coordinator",
                request_id=request_id,
            ) from error
        if "FunctionError" in answer:
            raise SliceFailure(
                f"the coordinator failed: {reply.get('errorMessage', reply)}",
                slice="coordinator",
                request_id=answer["ResponseMetadata"].get("RequestId"),
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
        )

    def _outputs(self, reply: dict[str, Any], use_torch: bool) -> dict[str, Any]:
        tensor_of = {spec.name: spec.tensor for spec in self.plan.outputs}
        records = {tensor_of[name]: record for name, record in reply["outputs"].items()}
        try:
            arrays = receive(dict(records), reply["request_id"], self._store)
        except (WireError, StoreError) as error:
            raise SliceFailure(
                f"the answer did not arrive: {error} (request {reply['request_id']})",
                request_id=reply["request_id"],
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
