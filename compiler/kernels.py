"""Kernels: how long ONNX Runtime takes for every kernel of a model, in a process of its own.

`python kernels.py FOLDER` reads `model.onnx` and `feeds.npz` there and writes `kernels.json` and the
model as ONNX Runtime has optimised it. The process gives its memory back, and a model that brings ONNX
Runtime down does not take the compiler with it. It imports nothing of slicewise.

One session is profiled first and timed then, without the profiler. Other processes must not count:
times of whole runs are CPU time of the one thread that computes. The profiler tells only wall time, of
which the median forgets interruptions. A function rests between requests, and so do the runs here: one
right after the other, ResNet-50 takes a tenth less than it will when it is called.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

OPTIMISED_FILE = "optimised.onnx"
KERNELS_FILE = "kernels.json"
FEEDS_FILE = "feeds.npz"
FEED = "feed."  # before every name: numpy.savez has a parameter of its own called `file`
RUNS = 7  # that were not interrupted, and more where they cost nothing
REST_SECONDS = 0.02  # before each
SHORT_SECONDS = 0.5
LONG_SECONDS = 3.0
MOST_RUNS = 200  # the profiler holds a million events
INTERRUPTED = 0.05  # of a run's wall time is not CPU time


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """As in targets/lambda/runtime/slice.py; a test compares them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False
    options.enable_mem_reuse = False
    options.log_severity_level = 4
    return options


def profile(folder: Path, threads: int) -> dict[str, Any]:
    """Times of the model in `folder`, ms: `total_ms` of a run, `profiled_ms` of one that is
    profiled, and `kernels` by name.

    `parallel` is the part of the CPU time that `threads` threads share evenly (None for one): what
    the helpers of the calling thread do, and as much again by that one. Unlike a quotient of wall
    times it holds on a busy machine, but waiting for each other is not in it.
    """
    with np.load(folder / FEEDS_FILE) as arrays:
        feeds = {name.removeprefix(FEED): array for name, array in arrays.items()}
    options = session_options(1)
    options.enable_profiling = True
    options.profile_file_prefix = os.fspath(folder / "profile")
    options.optimized_model_filepath = os.fspath(folder / OPTIMISED_FILE)
    # Weights that ONNX Runtime changed would not fit into the model's file beyond 2 GB.
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", "optimised.data"
    )
    session = _session(folder, options)
    run = _runner(session, feeds)
    run()
    profiled = run_times(run)
    events = json.loads(Path(session.end_profiling()).read_text())
    total = median(cpu for _, cpu in run_times(run))
    del session, run
    parallel = None
    if threads > 1:
        run = _runner(_session(folder, session_options(threads)), feeds)
        run()
        process, thread = time.process_time(), time.thread_time()
        run_times(run)
        process, thread = time.process_time() - process, time.thread_time() - thread
        parallel = min(1.0, (process - thread) / process * threads / (threads - 1))
    return {
        "total_ms": total * 1e3,
        "profiled_ms": median(cpu for _, cpu in profiled) * 1e3,
        "parallel": parallel,
        "kernels": _kernels(events, 1 + len(profiled)),
    }


def _session(folder: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        os.fspath(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )


def _runner(
    session: onnxruntime.InferenceSession, arrays: dict[str, np.ndarray]
) -> Callable[[], object]:
    feeds = {}
    for spec in session.get_inputs():
        array = arrays[spec.name]
        widen = spec.type == "tensor(float)" and array.dtype == np.float16
        feeds[spec.name] = array.astype(np.float32) if widen else array
    return lambda: session.run(None, feeds)


def run_times(run: Callable[[], object]) -> list[tuple[float, float]]:
    """(wall time, CPU time of this thread) of each run, seconds; this one rests before each."""
    found: list[tuple[float, float]] = []
    undisturbed = 0
    started = time.perf_counter()
    while len(found) < MOST_RUNS:
        elapsed = time.perf_counter() - started
        if elapsed > LONG_SECONDS or (elapsed > SHORT_SECONDS and undisturbed >= RUNS):
            break
        time.sleep(REST_SECONDS)
        wall, cpu = time.perf_counter(), time.thread_time()
        run()
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        found.append((wall, cpu))
        undisturbed += cpu > (1 - INTERRUPTED) * wall
    return found


def _kernels(events: list[dict[str, Any]], runs: int) -> dict[str, float]:
    """Milliseconds per run of every kernel: the median, times how often each of `runs` calls it."""
    durations: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            durations[event["name"].removesuffix("_kernel_time")].append(event["dur"] * 1e-3)
    return {name: median(each) * len(each) / runs for name, each in durations.items()}


if __name__ == "__main__":
    where = Path(sys.argv[1])
    (where / KERNELS_FILE).write_text(json.dumps(profile(where, int(sys.argv[2]))))
