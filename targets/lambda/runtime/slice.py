"""The handler of a slice: tensors in, one ONNX Runtime session, tensors out."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .deadline import check_deadline, deadline_of
from .malloc import LOADING_BYTES, SERVING_BYTES, give_back
from .messages import join, lift_events
from .observe import Phases, TimedStore, peak_mb, told, ways
from .preoptimised import model_file
from .replies import Replies, key_of
from .rule import Choices, Rule
from .seal import read_seal
from .start import Start
from .store import Store
from .transport import receive, send
from .weights import in_memory, read_spec
from .wire import WireError, check_planned, check_record, content_bytes

Handler = Callable[[Any, Any], bytes]


@dataclass(frozen=True)
class Edge:
    """One tensor that a slice receives or sends, as the plan has it: `peer` is the other end (all
    readers of what it sends), `transport` holds for the example's size and `choices` for any, see
    `rule.choose`.
    """

    tensor: str
    dtype: str
    shape: tuple[int | str, ...]
    peer: str
    transport: str
    choices: Choices


def open_session(
    model: Path | bytes, memory_mb: int, weights: Mapping[str, mmap.mmap] | None = None
) -> onnxruntime.InferenceSession:
    """A session that behaves well on a fraction of a vCPU. `model` is a file or its content; `weights`
    are the contents of files that the model names and that are not there, needed until this returns.

    One thread per full vCPU (Lambda gives memory / 1769 of one) and no spinning: two spinning threads
    on a fraction of a core take 1.8 times as long as one.
    """
    give_back(LOADING_BYTES)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, memory_mb // 1769)
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # One block for all activations of a run would double the peak when sizes vary (101 to 178 MB for
    # half of MiniLM at 16 x 128 tokens) and saves no time; the arena alone is fast and steady.
    options.enable_mem_pattern = False
    # Memory is given back when a tensor dies. Kept for the next tensor of its size, as is the default,
    # it doubled the activations of transformers (42 to 21 MB for half of BERT-base) and saved no time.
    options.enable_mem_reuse = False
    options.log_severity_level = 3
    if weights:
        # ONNX Runtime copies them, and packs the copies: at its peak 2.5 times their bytes are held.
        options.add_external_initializers_from_files_in_memory(
            list(weights), list(weights.values()), [len(each) for each in weights.values()]
        )
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else os.fspath(model),
        options,
        providers=["CPUExecutionProvider"],
    )
    give_back(SERVING_BYTES)
    return session


def run_session(
    session: onnxruntime.InferenceSession,
    arrays: Mapping[str, np.ndarray],
    outputs: Sequence[str],
) -> dict[str, np.ndarray]:
    """Outputs by name. Half-precision inputs are widened where the session computes in float32."""
    feeds = {}
    for spec in session.get_inputs():
        array = arrays[spec.name]
        widen = spec.type == "tensor(float)" and array.dtype == np.float16
        feeds[spec.name] = array.astype(np.float32) if widen else array
    results = session.run(list(outputs), feeds)
    return dict(zip(outputs, (np.asarray(result) for result in results), strict=True))


def slice_handler(
    *,
    name: str,
    plan: str,
    directory: Path,
    inputs: Sequence[Edge],
    outputs: Sequence[Edge],
    rule: Rule,
) -> Handler:
    """The Lambda handler of a slice. The model is loaded here, in the init phase, which is not
    throttled to the function's CPU share. A call {"warm": plan} is answered at once: that it had to
    start the environment is all it is for.

    It returns JSON as bytes, which the runtime interface client passes on as they are; it would take
    several times as long to write a large message as the slice takes to encode its tensors.
    """
    start = Start()
    store = Store(seal=read_seal(directory))
    needs_store = any(edge.transport != "payload" for edge in (*inputs, *outputs))
    opening = store.start_opening() if needs_store else None
    memory_mb = int(os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1769"))
    spec = read_spec(directory)
    if spec is None and store.seal is None:
        session = open_session(model_file(directory), memory_mb)
    else:
        with in_memory(name, directory, spec, store) as (model, weights):
            session = open_session(model, memory_mb, weights)
    start.mark("load_ms")
    if opening is not None:
        opening.result()
        start.mark("clients_ms")
    dtypes = {edge.tensor: edge.dtype for edge in outputs}
    choices = {edge.tensor: edge.choices for edge in outputs}
    wanted = {edge.tensor: edge for edge in inputs}
    replies_before = Replies()
    produced = list(dtypes)
    replies = {edge.tensor for edge in outputs if edge.peer == "@output"}
    internal = {edge.tensor for edge in outputs if "@output" not in edge.peer.split(", ")}
    lift_events()
    start.ready()

    def handler(event: Any, context: Any) -> bytes:  # noqa: ARG001 - Lambda's signature
        request_id = str(event.get("request_id", "")) if isinstance(event, dict) else ""
        started_now = start.tell()
        try:
            _check_event(event, name, plan)
            if "warm" in event:
                return json.dumps({"trace": started_now}).encode()
            deadline = deadline_of(event)
            tensors = _wanted(event["tensors"], wanted, memory_mb)
            same_call = key_of(request_id, tensors)
            if known := replies_before.get(same_call):
                return known
            phases, timed = Phases(), TimedStore(store)
            received = ways(tensors)
            arrays = receive(tensors, request_id, timed)
            phases.end("receive_ms")
            check_deadline(deadline, f"the inputs of slice {name}")
            results = run_session(session, arrays, produced)
            arrays.clear()
            phases.end("compute_ms")
            check_deadline(deadline, f"the outputs of slice {name}")
            encoded = partial(phases.end, "encode_ms")
            records = send(
                results, dtypes, request_id, choices, rule, store, replies, internal, encoded
            )
            phases.end("put_ms")
        except Exception as error:
            problem = {
                "slice": name,
                "request_id": request_id,
                "type": type(error).__name__,
                "message": str(error) or repr(error),
            }
            told(name, request_id, 500, started_now, error=problem["message"])
            return json.dumps({"error": problem}).encode()
        trace = {
            **phases.ms,
            "fetch_ms": timed.waited_ms,
            "decode_ms": phases.ms["receive_ms"] - timed.waited_ms,
            "send_ms": phases.ms["encode_ms"] + phases.ms["put_ms"],
            "peak_mb": peak_mb(),
            **started_now,
        }
        told(name, request_id, 200, trace)
        trace |= {"received": received, "sent": ways(records)}
        head = {"slice": name, "plan": plan, "request_id": request_id, "trace": trace}
        reply = join(head, "tensors", records)
        replies_before.keep(same_call, reply)
        return reply

    return handler


def _wanted(records: dict[str, Any], edges: Mapping[str, Edge], memory_mb: int) -> dict[str, Any]:
    """The records of these edges as the plan has them, taken out of the message, so that nothing else
    holds them. Nothing is allocated for what is larger than the function's memory.
    """
    most = memory_mb * 2**20
    for tensor, edge in edges.items():
        if tensor not in records:
            raise WireError(tensor, "the tensor was not sent")
        check_record(tensor, records[tensor])
        check_planned(tensor, records[tensor], edge.dtype, edge.shape)
        if (size := content_bytes(records[tensor])) > most:
            raise WireError(tensor, f"{size} bytes are more than the function's {memory_mb} MB")
    return {tensor: records.pop(tensor) for tensor in edges}


def _check_event(event: Any, name: str, plan: str) -> None:
    if not isinstance(event, dict) or not (
        "warm" in event or isinstance(event.get("tensors"), dict)
    ):
        raise ValueError("a slice is called by its coordinator; this is no message of one")
    called = event["warm"] if "warm" in event else event.get("plan")
    if called != plan:
        raise ValueError(
            f"slice {name} belongs to plan {plan}, the call to plan {called!r}; "
            "deploy all functions of one bundle together"
        )
