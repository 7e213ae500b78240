"""Compute time per op, at one thread and one full vCPU.

ONNX Runtime profiles the whole converted model once, with the example inputs (`slicewise.kernels`), and
the time of every kernel goes to the ops that it computes (`slicewise.attribution`). Kernels of no op
and the time between kernels are spread over all ops in proportion, so that the times add up to a run.
Where the model is not run, times are estimated (`slicewise.flops`).

That a slice takes the sum of its ops is an approximation: a cut can separate what was fused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slicewise.attribution import attribution, spread
from slicewise.graph import OpGraph
from slicewise.plan import Slice

if TYPE_CHECKING:
    import numpy as np

    from slicewise.codegen.convert import Converted

TIMEOUT_SECONDS = 300.0
FORMAT = 2  # of the cache's files
# Kernels are timed by the clock, runs in CPU time: more than this, and other processes had their part.
BUSY = 1.05
UNSTEADY = " while the machine was busy"
PARALLEL = 0.9  # when not measured; ResNet-50 has 0.92 at two threads (benchmarks/optimes.py)


@dataclass(frozen=True, kw_only=True)
class OpTimes:
    """Milliseconds of every op by name, at one thread and one full vCPU.

    `parallel` is the part of the time that threads divide (Amdahl's law). `source` says where the
    times are from: "measured on <processor>, onnxruntime <version>", or "estimated" and why.
    """

    ms: Mapping[str, float]
    parallel: float
    source: str


def op_times(
    converted: Converted,
    graph: OpGraph,
    feeds: Mapping[str, np.ndarray],
    *,
    run: bool = True,
    cache: bool = True,
) -> OpTimes:
    """The compute times of a graph's ops for the example inputs `feeds` (arrays by tensor name).

    `run=False` only estimates, and so does a run that fails. Measured times are kept in the user's
    cache directory unless `cache=False`, or unless the machine was too busy to trust them.
    """
    from slicewise.flops import estimated

    machine = _machine()
    file = _cache_file(converted, graph, feeds, machine)
    found = _cached(file, graph) if run and cache else None
    if found is not None:
        return found
    estimates = estimated(converted.program, graph)
    if not run:
        return OpTimes(ms=estimates, parallel=PARALLEL, source="estimated")
    try:
        found = _measured(converted, graph, feeds, estimates, machine)
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        source = f"estimated, because running the model failed: {_reason(error)}"
        return OpTimes(ms=estimates, parallel=PARALLEL, source=source)
    if cache and not found.source.endswith(UNSTEADY):
        _store(file, found)
    return found


def with_times(graph: OpGraph, times: OpTimes) -> OpGraph:
    """The graph with these times as its ops'."""
    return replace(graph, ops=tuple(replace(op, time=times.ms[op.name]) for op in graph.ops))


def _measured(
    converted: Converted,
    graph: OpGraph,
    feeds: Mapping[str, np.ndarray],
    estimates: Mapping[str, float],
    machine: Mapping[str, Any],
) -> OpTimes:
    import numpy as np
    import onnx_ir

    from slicewise import kernels
    from slicewise.codegen.carve import carve

    with tempfile.TemporaryDirectory(prefix="slicewise-") as scratch:
        folder = Path(scratch) / "whole"
        carve(converted, [_whole(graph)], Path(scratch))
        arrays: dict[str, Any] = {f"{kernels.FEED}{name}": feed for name, feed in feeds.items()}
        np.savez(folder / kernels.FEEDS_FILE, **arrays)
        # -P: the folder of the script holds modules that are none of its business.
        subprocess.run(
            [sys.executable, "-P", kernels.__file__, str(folder), str(machine["threads"])],
            check=True,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
        profile = json.loads((folder / kernels.KERNELS_FILE).read_text())
        optimised = onnx_ir.load(folder / kernels.OPTIMISED_FILE)
        computes = attribution(optimised.graph, converted, graph)
    total, parallel = profile["total_ms"], profile["parallel"]
    ms = spread(profile["kernels"], computes, estimates, total)
    source = f"measured on {machine['cpu']}, onnxruntime {machine['onnxruntime']}"
    if sum(profile["kernels"].values()) > BUSY * profile["profiled_ms"]:
        source += UNSTEADY
    return OpTimes(ms=ms, parallel=PARALLEL if parallel is None else parallel, source=source)


def _whole(graph: OpGraph) -> Slice:
    """All ops as one slice: what the exporter left over besides is not run, as in any slice."""
    return Slice(
        name="whole",
        stage=0,
        ops=tuple(op.name for op in graph.ops),
        weight_bytes=0,
        peak_memory_bytes=0,
        memory_mb=0,
        package_bytes=0,
        inputs=graph.inputs,
        outputs=graph.outputs,
        onnx="",
    )


def _machine() -> dict[str, Any]:
    """What the times depend on besides the model."""
    import onnxruntime

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "onnxruntime": onnxruntime.__version__,
        "threads": min(2, cores or 1),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _cache_file(
    converted: Converted,
    graph: OpGraph,
    feeds: Mapping[str, np.ndarray],
    machine: Mapping[str, Any],
) -> Path:
    """Where times of this graph on this machine are kept. The numbers in weights do not matter."""
    key = (
        FORMAT,
        [(op.name, op.kind, op.inputs, op.outputs, op.weights) for op in graph.ops],
        [asdict(tensor) for tensor in graph.tensors],
        [asdict(weight) for weight in graph.weights],
        [(n.op_type, [v and v.name for v in n.inputs]) for n in converted.model.graph],
        sorted((name, array.shape, str(array.dtype)) for name, array in feeds.items()),
        machine,
    )
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "slicewise" / "optimes" / f"{digest}.json"


def _cached(file: Path, graph: OpGraph) -> OpTimes | None:
    """What `_store` wrote, or None when there is nothing of use."""
    try:
        times = OpTimes(**json.loads(file.read_text()))
        numbers = [times.ms[op.name] for op in graph.ops] + [times.parallel]
        return times if all(0 <= number < float("inf") for number in numbers) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _store(file: Path, times: OpTimes) -> None:
    """Write at once or not at all; a cache that cannot be written is none."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, building = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "w") as stream:
            json.dump(asdict(times), stream)
        Path(building).replace(file)


def _reason(error: Exception) -> str:
    """What the other process said last, or how it ended."""
    said = str(getattr(error, "stderr", None) or "").strip().splitlines()
    return said[-1] if said else str(error)
