"""Estimate: the peak memory of a slice's function, predicted before anything has run.

The figure is the one that the local platform measures: what the kernel cannot take back. A function
loads, receives, computes and sends, and what the computation took stays with ONNX Runtime, but what
was received is let go before anything is sent:

    runtime + S3 client + copied weights + max(loading, receiving, computing, sending)

Loading needs more than what stays: a second copy of what a slice uses both as it is and transposed (a
head tied to its embedding), and three of each convolution in turn. Weights that are mapped from the
file do not count here; the limits that slices are cut by count them. The coefficients are in
profile.toml: `benchmarks/memory.py --probe` measures those of transports, and without options it
compares the estimate with what is served.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from slicewise.crossover import choices
from slicewise.graph import OpGraph
from slicewise.plan import TransportRule
from slicewise.target import SliceOps

from .costs import cost_model
from .profile import MB, Profile


def estimate(graph: OpGraph, part: SliceOps, profile: Profile, rule: TransportRule) -> int:
    """Bytes that the function of `part` takes for the largest request, on one thread."""
    known = profile.estimate
    copying = graph.weights_of(op for op in part.ops if graph.op[op].copies_weights)
    reading = graph.weights_of(op for op in part.ops if not graph.op[op].copies_weights)
    weights = sum(graph.weight[name].memory_bytes for name in copying)
    # Not by a product of two dimensions (Gemm), which reads the weight as it is.
    transposing = graph.weights_of(
        op for op in part.ops if graph.op[op].copies_weights and _dimensions(graph, op) != 2
    )
    twice = sum(graph.weight[name].memory_bytes for name in {*transposing}.intersection(reading))
    loading = max(twice, _in_turn(graph, part) - weights)

    most = _most_inline(profile, rule)
    received_inline, received_s3 = _by_transport(graph, part.inputs, graph.inputs, most)
    sent_inline, sent_s3 = _by_transport(graph, part.outputs, graph.outputs, most)
    received = received_inline + received_s3
    receiving = (
        known.receive_payload_factor * received_inline + known.receive_s3_factor * received_s3
    )
    activations = graph.peak_activation_bytes(part.ops)
    computing = activations + min(
        known.arena_gap_factor * (activations - received), known.arena_gap_mb * MB
    )
    sending = computing - received
    sending += known.send_payload_factor * sent_inline + known.send_s3_factor * sent_s3
    client = known.s3_client_mb * MB if received_s3 + sent_s3 else 0
    running = max(receiving, computing, sending)
    held = known.runtime_held_mb * MB + client + known.weight_factor * weights
    return int(held + max(loading, running))


def _dimensions(graph: OpGraph, op: str) -> int:
    """Of what an op reads first; 0 if that is no tensor."""
    inputs = graph.op[op].inputs
    return len(graph.tensor[inputs[0]].shape) if inputs else 0


def _in_turn(graph: OpGraph, part: SliceOps) -> int:
    """Peak bytes of loading what needs more than it keeps: convolutions, one after the other."""
    members = set(part.ops)
    held = peak = 0
    seen: set[str] = set()
    for op in graph.ops:
        if op.name in members and op.loading_bytes:
            new = set(op.weights) - seen
            seen |= new
            held += sum(graph.weight[name].memory_bytes for name in new)
            peak = max(peak, held + op.loading_bytes)
    return peak


def _most_inline(profile: Profile, rule: TransportRule) -> tuple[float, float]:
    """The largest tensor, bytes, that goes within a message: of the caller's, and between slices."""
    if "payload" not in rule.transports:
        return 0.0, 0.0
    room = rule.payload_bytes * 3 / 4
    if set(rule.transports) == {"payload"}:
        return room, room
    model = cost_model(profile, rule.payload_bytes)
    full = model.mb_per_vcpu
    found = dict(choices(model, rule.transports, full, (full,))).get("payload", 0)
    return room, room if found is None else float(found)


def _by_transport(
    graph: OpGraph, names: Iterable[str], outside: Container[str], most: tuple[float, float]
) -> tuple[int, int]:
    """Bytes within messages and bytes by S3; tensors of the caller are `outside`."""
    inline = s3 = 0
    for name in names:
        size = graph.tensor[name].max_bytes
        if size <= most[0 if name in outside else 1]:
            inline += size
        else:
            s3 += size
    return inline, s3
