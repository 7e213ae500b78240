"""Estimate: the peak memory of a slice's function, predicted before anything has run.

The figure is the one that the local platform measures: what the kernel cannot take back. A function
first receives, then computes, then sends, and what the computation took stays with ONNX Runtime:

    runtime + copied weights + max(loading, S3 client + max(receiving, activations + sending))

Loading adds a second copy of what a slice uses both as it is and transposed (a head tied to its
embedding): it is transposed first and packed then. Weights that are mapped from the file do not count
here; the limits that slices are cut by count them. The coefficients are in profile.toml, compared
with what is served by `benchmarks/memory.py`.
"""

from __future__ import annotations

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
    twice = sum(graph.weight[name].memory_bytes for name in set(copying) & set(reading))
    received = [graph.tensor[name].max_bytes for name in part.inputs]
    # A reply to the caller is inline while it fits the payload; what goes on, up to the threshold.
    replies = {name for name in part.outputs if name in graph.outputs}
    model = cost_model(profile, rule.payload_bytes)
    full = model.mb_per_vcpu
    most_inline = dict(choices(model, rule.transports, full, (full,))).get("payload", 0)
    threshold = rule.payload_bytes if most_inline is None else most_inline
    sent_inline = sent_s3 = 0
    for name in part.outputs:
        size = graph.tensor[name].max_bytes
        room = rule.payload_bytes * 3 // 4 if name in replies else threshold
        if set(rule.transports) == {"payload"} or ("payload" in rule.transports and size <= room):
            sent_inline += size
        else:
            sent_s3 += size
    uses_s3 = set(rule.transports) != {"payload"} and (
        sent_s3 > 0 or any(size > threshold for size in received)
    )
    receiving = known.receive_factor * sum(received)
    activations = known.activation_factor * graph.peak_activation_bytes(part.ops)
    sending = known.send_payload_factor * sent_inline + known.send_s3_factor * sent_s3
    running = (known.s3_client_mb * MB if uses_s3 else 0) + max(receiving, activations + sending)
    return int(known.runtime_held_mb * MB + known.weight_factor * weights + max(twice, running))
