"""Where the lines of transports cross: the cost model's, and the edges of a benchmark's rows on them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from published import THRESHOLD_BYTES

from slicewise.cost import CostModel
from slicewise.crossover import choices, line
from slicewise.plan import Plan

TRANSPORTS = ("payload", "s3", "s3express")
MEMORY_MB = 1769


@dataclass(frozen=True)
class Edge:
    """A tensor between two slices as measured, ms; `published` is the encoder."""

    published: bool
    transport: str
    bytes: int
    ms: float


def edges_of(
    plan: Plan, model: CostModel, traces: Sequence[Mapping[str, Any]], *, published: bool
) -> list[Edge]:
    """Where one tensor is all that passes between two slices: medians of what it took.

    Sending and receiving are in the traces. What a call takes beyond the slice's own work and an empty
    call is shared out between the message and the reply by the bytes that are inline.
    """
    share = model.steady_share(model.caller_memory_mb)
    empty = model.call.wait_ms / np.exp(model.call.sigma**2 / 2)
    empty += model.call.cpu_ms / share + model.handle.cpu_ms
    inline, send, receive, extra = {}, {}, {}, {}
    for part in plan.slices:
        name = part.name
        calls = [c for trace in traces for c in trace["slices"] if c["slice"] == name]
        send[name] = statistics.median(call["send_ms"] for call in calls)
        receive[name] = statistics.median(call["receive_ms"] for call in calls)
        own = ("receive_ms", "compute_ms", "send_ms")
        beyond = [call["call_ms"] - sum(call[key] for key in own) for call in calls]
        extra[name] = statistics.median(beyond) - empty
        tensors = {e.tensor: e for e in plan.edges if name in (e.producer, e.consumer)}
        inline[name] = sum(e.bytes for e in tensors.values() if e.transport == "payload")
    found = []
    for edge in plan.edges:
        first, second = edge.producer, edge.consumer
        readers = [e for e in plan.edges if e.producer == first]
        sources = [e for e in plan.edges if e.consumer == second]
        if edge.crosses and len(readers) == len(sources) == 1:
            ms = send[first] + receive[second]
            if edge.transport == "payload":
                ms += sum(extra[end] * edge.bytes / inline[end] for end in (first, second))
            found.append(Edge(published, edge.transport, edge.bytes, ms))
    return found


def crossover(model: CostModel) -> None:
    for other in TRANSPORTS[1:]:
        found = choices(model, ("payload", other), MEMORY_MB, (MEMORY_MB,))
        ends = dict(found)
        text = "at no size" if len(found) == 1 else f"up to {ends['payload']:,} bytes"
        most = model.transport("payload").max_bytes
        print(f"The payload beats {other} {text} (it carries {most:,} at most).")


def plot(model: CostModel, edges: Sequence[Edge], path: Path) -> None:
    """Time of one tensor from slice to slice by its size: lines of the cost model, measured points."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for way, color in zip(TRANSPORTS, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        start, slope, most = line(model, model.transport(way), MEMORY_MB, (MEMORY_MB,))
        sizes = np.geomspace(8e3, min(most or 2e7, 2e7), 200)
        axes.plot(sizes / 1e6, start + slope * sizes, color=color, label=f"{way}, cost model")
        for published, marker, words in ((False, "o", "measured"), (True, "x", "per element")):
            points = [e for e in edges if e.transport == way and e.published == published]
            if points:
                axes.scatter(
                    [e.bytes / 1e6 for e in points], [e.ms for e in points],
                    color=color, marker=marker, s=24, label=f"{way}, {words}",
                )  # fmt: skip
    axes.axvline(THRESHOLD_BYTES / 1e6, color="gray", linestyle=":", label="published threshold")
    axes.set(xscale="log", yscale="log", xlabel="tensor, MB", ylabel="ms from slice to slice")
    axes.set_title(f"Functions of {MEMORY_MB:,} MB, network aws (emulated)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
