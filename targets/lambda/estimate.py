"""Estimate: the peak memory of a slice's function, predicted before anything has run.

The figure is the one that the local platform measures: what the kernel cannot take back. A function
loads, receives, computes and sends, and what the computation took stays with ONNX Runtime, but what
was received is let go before anything is sent, but for blocks that the C library keeps:

    runtime + S3 client + copied weights + max(loading, receiving, computing, sending)

Loading needs more than what stays: a second copy of what a slice uses both as it is and transposed (a
head tied to its embedding), and three of each convolution in turn. Weights that are mapped from the
file do not count here; the limits that slices are cut by count them. The coefficients are in
profile.toml: `benchmarks/memory.py --probe` measures those of transports, and without options it
compares the estimate with what is served.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable, Sequence

from slicewise.graph import INPUT, OUTPUT, OpGraph
from slicewise.plan import Edge, TransportRule
from slicewise.target import SliceOps

from .profile import MB, Profile
from .runtime.rule import Rule, choose


def estimate(
    graph: OpGraph, part: SliceOps, edges: Sequence[Edge], profile: Profile, rule: TransportRule
) -> int:
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

    inline = _inline(graph, edges, rule)
    received_inline, received_s3 = _by_transport(graph, part.inputs, inline)
    sent_inline, sent_s3 = _by_transport(graph, part.outputs, inline)
    received = received_inline + received_s3
    within = known.receive_payload_factor * received_inline
    receiving = within + known.receive_s3_factor * received_s3
    activations = graph.peak_activation_bytes(part.ops)
    computing = activations + known.kept_factor * received_inline
    computing += min(known.arena_gap_factor * (activations - received), known.arena_gap_mb * MB)
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


def _inline(graph: OpGraph, edges: Sequence[Edge], rule: TransportRule) -> set[str]:
    """The tensors that go within messages when they are largest, as the functions then decide."""
    deciding = Rule(rule.transports, rule.payload_bytes)
    messages: dict[str, dict[str, Edge]] = {}
    for edge in edges:
        messages.setdefault(edge.producer, {})[edge.tensor] = edge
    found: set[str] = set()
    for producer, sent in messages.items():
        sizes = {name: graph.tensor[name].max_bytes for name in sent}
        choices = {name: edge.choices for name, edge in sent.items()}
        callers = {
            name for name, edge in sent.items() if producer == INPUT or edge.consumer == OUTPUT
        }
        with contextlib.suppress(ValueError):  # requests that large will be refused
            chosen = choose(sizes, choices, deciding, callers)
            found.update(name for name, way in chosen.items() if way == "payload")
    return found


def _by_transport(graph: OpGraph, names: Iterable[str], inline: Container[str]) -> tuple[int, int]:
    """Bytes within messages and bytes by S3."""
    sizes = {name: graph.tensor[name].max_bytes for name in names}
    within = sum(size for name, size in sizes.items() if name in inline)
    return within, sum(sizes.values()) - within
