"""The state machine of a bundle, in Amazon States Language (https://states-language.net/spec.html).

A state per slice, a Parallel state per stage of several; the state data holds references to tensors and
never their bytes, as it may have 256 KiB. Functions are named by substitutions, ${slice0}, which the
template or the local platform fills in; so is the partition. The definition is the same for Standard and
Express state machines.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from slicewise.errors import TargetError
from slicewise.plan import Plan, Slice

from .functions import COORDINATOR

DEFINITION = "statemachine.asl.json"
DATA_BYTES_MAX = 262_144
RECORD_BYTES, TRACE_BYTES = 600, 1500  # of state data, per tensor and per slice, at most about
EXPRESS_MAX_S = 300

# Faults of the service, after which a slice is called again: its objects then hold the same bytes. What
# a slice itself says of its input would be the same the next time.
_RETRY = [
    {
        "ErrorEquals": [
            "Lambda.TooManyRequestsException",
            "Lambda.ServiceException",
            "Lambda.AWSLambdaException",
            "Lambda.SdkClientException",
        ],
        "IntervalSeconds": 1,
        "MaxAttempts": 4,
        "BackoffRate": 2.0,
        "MaxDelaySeconds": 8,
        "JitterStrategy": "FULL",
    }
]


def definition(plan: Plan, plan_id: str, timeout_s: int) -> dict[str, Any]:
    """The state machine of a plan. Raises `TargetError` when its references exceed the state data."""
    _check_size(plan)
    arriving = [*(spec.name for spec in plan.inputs), *(cut.tensor for cut in plan.input_cuts)]
    where = {name: f"$.begin.tensors['{name}']" for name in arriving}
    # What begins replaces the caller's input: nothing that a caller sends is taken for a state's result.
    begin = _task(COORDINATOR, {"step": "begin", "input.$": "$"}, timeout_s)
    states: dict[str, Any] = {
        "begin": {**begin, "ResultSelector": {"begin.$": "$.Payload"}, "Catch": _catch("$")}
    }
    results = []
    for index, stage in enumerate(plan.stages):
        tasks = {part.name: _slice(part, plan_id, where, timeout_s) for part in stage}
        if len(stage) == 1:
            name = stage[0].name
            states[name] = {**tasks[name], "ResultPath": f"$.{name}", "Catch": _catch("$.error")}
            found = [f"$.{name}"]
        else:
            name = f"stage{index}"
            states[name] = _parallel(name, tasks)
            found = [f"$.{name}.{part.name}" for part in stage]
        results += found
        for part, result in zip(stage, found, strict=True):
            where |= {tensor: f"{result}.tensors['{tensor}']" for tensor in part.outputs}
    ending = {
        "step": "end",
        "begin.$": "$.begin",
        "tensors.$": _array(f"{result}.tensors" for result in results),
        "slices.$": _array(f"{result}.trace" for result in results),
    }
    end = _task(COORDINATOR, ending, timeout_s)
    states["end"] = {**end, "OutputPath": "$.Payload", "Catch": _catch("$.error")}
    names = list(states)
    for name, following in itertools.pairwise(names):
        states[name]["Next"] = following
    states["end"]["End"] = True
    failed = _task(COORDINATOR, {"step": "failed", "data.$": "$"}, timeout_s)
    states["failed"] = {**failed, "OutputPath": "$.Payload", "Next": "refused"}
    states["refused"] = {"Type": "Fail", "ErrorPath": "$.error", "CausePath": "$.cause"}
    comment = f"{plan.model.name}: {len(plan.slices)} slices. Written by slicewise; do not edit."
    return {"Comment": comment, "StartAt": "begin", "States": states}


def definition_text(plan: Plan, plan_id: str, timeout_s: int) -> str:
    """The same as JSON."""
    return json.dumps(definition(plan, plan_id, timeout_s), indent=1)


def filled_in(text: str, names: Mapping[str, str]) -> str:
    """The definition with its substitutions made, as CloudFormation does it."""
    return re.sub(r"\$\{([\w-]+)\}", lambda match: names[match[1]], text)


def _task(function: str, payload: Mapping[str, Any], timeout_s: int) -> dict[str, Any]:
    return {
        "Type": "Task",
        "Resource": "arn:${partition}:states:::lambda:invoke",
        "Parameters": {"FunctionName": f"${{{function}}}", "Payload": dict(payload)},
        "TimeoutSeconds": timeout_s + 5,
        "Retry": _RETRY,
    }


def _slice(part: Slice, plan_id: str, where: Mapping[str, str], timeout_s: int) -> dict[str, Any]:
    tensors = {f"{name}.$": where[name] for name in part.inputs}
    payload = {
        "request_id.$": "$.begin.request_id",
        "until_ms.$": "$.begin.until_ms",
        "plan": plan_id,
        "tensors": tensors,
    }
    result = {"tensors.$": "$.Payload.tensors", "trace.$": "$.Payload.trace"}
    return {**_task(part.name, payload, timeout_s), "ResultSelector": result}


def _parallel(name: str, tasks: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "Type": "Parallel",
        "Branches": [
            {"StartAt": part, "States": {part: {**task, "End": True}}}
            for part, task in tasks.items()
        ],
        "ResultSelector": {f"{part}.$": f"$[{index}]" for index, part in enumerate(tasks)},
        "ResultPath": f"$.{name}",
        "Catch": _catch("$.error"),
    }


def _catch(path: str) -> list[dict[str, Any]]:
    return [{"ErrorEquals": ["States.ALL"], "ResultPath": path, "Next": "failed"}]


def _array(paths: Iterable[str]) -> str:
    return f"States.Array({', '.join(paths)})"


def _check_size(plan: Plan) -> None:
    tensors = len({edge.tensor for edge in plan.edges})
    needed = tensors * RECORD_BYTES + len(plan.slices) * TRACE_BYTES
    if needed > DATA_BYTES_MAX:
        raise TargetError(
            f"{len(plan.slices)} slices and references to {tensors} tensors take up to {needed:,} "
            f"bytes of state data; Step Functions holds {DATA_BYTES_MAX:,}. Compile with "
            'orchestration="coordinator", or into fewer slices.'
        )
