"""Load: many clients at once, right answers only, against what the machine's cores can compute at all.

    python benchmarks/load.py                              64 clients, 2,000 requests, BERT-base
    python benchmarks/load.py --model minilm --rows 4 --tokens 32
    python benchmarks/load.py --clients 8 --requests 100 --model tiny

A call takes some ms of CPU whatever its slice computes: so the share that is left to the slices depends
on the model. BERT-base, which fits no function, computes 125 ms in each of two slices; MiniLM, which
does and is cut in two here, 33 in one.

The limit is measured in the same run, in turn with the load: the slices' ONNX sessions in this machine's
processes, one process per core, each computing whole requests one after the other, with nothing in
between. The served bundle runs on the same cores. Valid only while nothing else runs on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from models import bert_base

import slicewise

SAMPLE_S = 0.5
ROUNDS = 5
LIMIT_S = 4.0  # seconds that the slices alone are measured each time
TOLERANCE = 1e-4
LEAST_SHARE = 0.85  # of what the slices alone reach
GROWTH = 1.05  # of memory from the first to the last quarter, at most
Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Loaded:
    """What one load run found: requests a second of each round, of the slices alone before and after
    each, MiB of the platform and of the coordinators over time, and the CPU seconds of this process and
    of the functions, by name.
    """

    rates: list[float]
    limits: list[float]
    latencies_ms: list[float]
    wrong: int
    failed: list[str]
    memory: list[tuple[float, float]]
    cpu_s: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--model", choices=["bert", "minilm", "tiny"], default="bert")
    parser.add_argument("--rows", type=int, default=1, help="Rows (sentences) of a request.")
    parser.add_argument("--tokens", type=int, default=128, help="Tokens of a sentence.")
    parser.add_argument("--at-once", type=int, default=len(os.sched_getaffinity(0)) + 1,
                        help="Requests that run at a time, 0 for all.")  # fmt: skip
    parser.add_argument("--orchestration", default="coordinator")
    arguments = parser.parse_args()

    compiled, model = _compile(arguments)
    examples = [_example(arguments, seed) for seed in range(8)]
    expected = [_eager(model, example) for example in examples]
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        bundle = compiled.save(Path(folder) / "bundle")
        with alone(bundle.directory, examples, len(cores)) as limit:
            loaded = load(bundle, examples, expected, arguments, limit)
    report(arguments, compiled, len(cores), loaded)


@contextlib.contextmanager
def alone(directory: Path, examples: list[Inputs], cores: int) -> Iterator[Callable[[], float]]:
    """Measures how many requests a second all cores compute when they do nothing but run the slices: one
    process for each core, which does nothing in between.
    """
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(cores)]
    for _, theirs in pipes:
        context.Process(target=_compute, args=(directory, examples, theirs), daemon=True).start()
    ours = [mine for mine, _ in pipes]
    for pipe in ours:
        pipe.recv()  # it is ready

    def limit() -> float:
        for pipe in ours:
            pipe.send(LIMIT_S)
        return float(sum(pipe.recv() for pipe in ours))

    yield limit


def _compute(directory: Path, examples: list[Inputs], pipe: Any) -> None:
    """One core's work, with the sessions and options of functions: as long as asked, for ever."""
    import importlib

    runtime = importlib.import_module("slicewise.targets.lambda.runtime.slice")
    plan = slicewise.load(directory).plan
    parts = [part for stage in plan.stages for part in stage]
    sessions = {
        part.name: runtime.open_session(directory / "functions" / part.name / "model.onnx", 1769)
        for part in parts
    }

    def request(inputs: Inputs) -> None:
        held = dict(inputs)
        for part in parts:
            wanted = {name: held[name] for name in part.inputs}
            held.update(runtime.run_session(sessions[part.name], wanted, part.outputs))

    request(examples[0])
    pipe.send(True)
    with contextlib.suppress(EOFError):  # nobody asks any more
        while True:
            seconds, count, started = pipe.recv(), 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                request(examples[count % len(examples)])
                count += 1
            pipe.send(count / (time.perf_counter() - started))


def load(
    bundle: slicewise.Bundle,
    examples: list[Inputs],
    expected: list[dict[str, np.ndarray]],
    arguments: argparse.Namespace,
    limit: Callable[[], float],
) -> Loaded:
    """So many clients, each a thread; every answer is compared with the model's. `limit` is measured
    before and after every round, for the host of this machine is faster and slower for minutes.
    """
    clients, share = arguments.clients, arguments.requests // ROUNDS
    served: Any = bundle.serve(
        cpu_scale=16.0,  # the cores are the limit, not a share
        concurrency_limit=clients * (len(bundle.plan.slices) + 1) + 10,
        requests_at_once=arguments.at_once or None,
    )
    with served as endpoint:
        numbers: Iterator[int] = iter(())
        lock, stop = threading.Lock(), threading.Event()
        latencies: list[float] = []
        failed: list[str] = []
        wrong = 0
        memory: list[tuple[float, float]] = []

        def client() -> None:
            nonlocal wrong
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                which = number % len(examples)
                began = time.perf_counter()
                try:
                    found = endpoint.client.run(examples[which])
                except slicewise.SlicewiseError as error:
                    with lock:
                        failed.append(f"{type(error).__name__}: {error}")
                    continue
                took = (time.perf_counter() - began) * 1e3
                right = all(_is_close(found[k], v) for k, v in expected[which].items())
                with lock:
                    latencies.append(took)
                    wrong += not right

        def sample() -> None:
            while not stop.wait(SAMPLE_S):
                memory.append((_rss_mb(os.getpid()), _largest(endpoint, endpoint.function)))

        _together(lambda: endpoint.client.run(examples[0]), clients)  # every instance has started
        sampler = threading.Thread(target=sample)
        sampler.start()
        limits, rates, cpu_s = [limit()], [], defaultdict[str, float](float)
        for _ in range(ROUNDS):
            numbers, before = iter(range(share)), cpu_seconds()
            started = time.perf_counter()
            _together(client, clients)
            rates.append(share / (time.perf_counter() - started))
            for name, spent in cpu_seconds().items():
                cpu_s[name] += spent - before.get(name, 0.0)
            limits.append(limit())
        stop.set()
        sampler.join()
    return Loaded(rates, limits, latencies, wrong, failed, memory, dict(cpu_s))


def cpu_seconds() -> dict[str, float]:
    """CPU seconds so far of this process, and of the processes that it has started by function."""
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            fields = stat.read_text().rpartition(")")[2].split()
            pid = int(stat.parent.name)
            parents[pid] = int(fields[1])
            spent[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found: dict[str, float] = {}
    for pid, seconds in spent.items():
        line = pid
        while line not in (os.getpid(), 0):
            line = parents.get(line, 0)
        if line == os.getpid():
            name = "clients and platform" if pid == line else _function(pid)
            found[name] = found.get(name, 0.0) + seconds
    return found


def _function(pid: int) -> str:
    with contextlib.suppress(OSError):
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"AWS_LAMBDA_FUNCTION_NAME="):
                return variable.partition(b"=")[2].decode()
    return "other processes"


def report(
    arguments: argparse.Namespace,
    compiled: slicewise.Compiled,
    cores: int,
    loaded: Loaded,
) -> None:
    plan = compiled.plan
    right = len(loaded.latencies_ms) - loaded.wrong
    pairs = list(itertools.pairwise(loaded.limits))
    shares = [rate / np.mean(pair) for rate, pair in zip(loaded.rates, pairs, strict=True)]
    print(
        f"{plan.model.name} in {len(plan.slices)} slices, {plan.orchestration}; "
        f"{arguments.clients} clients, {arguments.requests} requests of {arguments.rows} x "
        f"{arguments.tokens}, {arguments.at_once or 'all'} at a time, {cores} cores"
    )
    print(f"right {right}, wrong {loaded.wrong}, failed {len(loaded.failed)}")
    for text in sorted(set(loaded.failed))[:5]:
        print(f"  {loaded.failed.count(text)} x {text[:160]}")
    print("the slices alone, before and after each round: " + _shown(loaded.limits) + " requests/s")
    print("the served bundle: " + _shown(loaded.rates) + " requests/s")
    percent = ", ".join(f"{share:.0%}" for share in shares)
    print(f"of the slices alone: {percent}; median {np.median(shares):.0%}")
    if loaded.latencies_ms:
        low, high = np.percentile(loaded.latencies_ms, [50, 99])
        print(f"latency p50 {low:.0f} ms, p99 {high:.0f} ms")
    for name, spent in sorted(loaded.cpu_s.items()):
        print(f"CPU of {name}: {spent / arguments.requests * 1e3:.2f} ms per request")
    each_ms = cores / np.mean(loaded.limits) * 1e3
    print(f"CPU of the slices alone: {each_ms:.2f} ms per request")
    for name, column in (("this process with the platform", 0), ("the largest coordinator", 1)):
        values = [row[column] for row in loaded.memory]
        if len(values) >= 4:
            quarter = len(values) // 4
            first, last = np.median(values[:quarter]), np.median(values[-quarter:])
            print(f"memory of {name}: first quarter {first:.0f} MiB, last quarter {last:.0f} MiB")
            verdict(last <= GROWTH * first, f"memory of {name} does not grow")
    verdict(right == arguments.requests, "right answers only")
    share = float(np.median(shares))
    verdict(share >= LEAST_SHARE, f"{share:.0%} of the slices alone, at least {LEAST_SHARE:.0%}")


def verdict(held: bool, text: str) -> None:
    print(f"{'held' if held else 'FAILED':7}{text}")


def _shown(rates: list[float]) -> str:
    return ", ".join(f"{rate:.1f}" for rate in rates)


def _largest(endpoint: Any, function: str) -> float:
    """MiB of the largest instance of a function that has answered so far, by the latest reports."""
    found = [r.max_memory_mb for r in endpoint.reports[-500:] if r.function == function]
    return max(found, default=0.0)


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _together(work: Callable[[], Any], count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _is_close(found: np.ndarray, right: np.ndarray) -> bool:
    return found.shape == right.shape and bool(
        np.abs(found - right).max() <= TOLERANCE * max(1.0, float(np.abs(right).max()))
    )


def _compile(arguments: argparse.Namespace) -> tuple[slicewise.Compiled, Any]:
    import torch

    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1, max=max(2, arguments.rows))
    options: dict[str, Any] = {"orchestration": arguments.orchestration, "progress": True}
    if arguments.model == "tiny":
        layers = [torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 64)]
        model = torch.nn.Sequential(*layers).eval()
        compiled = slicewise.compile(
            model,
            (torch.zeros(2, 64),),
            dynamic_shapes=({0: batch},),
            limits=slicewise.Limits(weight_bytes=140_000),
            **options,
        )
        return compiled, model
    if arguments.model == "bert":
        model, (ids,) = bert_base(arguments.tokens)
        model.eval()
        return slicewise.compile(model, (ids.repeat(arguments.rows, 1),), **options), model
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import sentence_embeddings

    model, _ = sentence_embeddings.load()
    ids = torch.randint(1000, 30_000, (2, arguments.tokens))
    compiled = slicewise.compile(
        model,
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        dynamic_shapes={"input_ids": {0: batch}, "attention_mask": {0: batch}},
        limits=slicewise.Limits(weight_bytes=50_000_000),
        **options,
    )
    return compiled, model


def _example(arguments: argparse.Namespace, seed: int) -> Inputs:
    random = np.random.default_rng(seed)
    if arguments.model == "tiny":
        return {"input": random.normal(size=(arguments.rows, 64)).astype(np.float32)}
    ids = random.integers(1000, 30_000, (arguments.rows, arguments.tokens))
    if arguments.model == "bert":
        return {"input_ids": ids}
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _eager(model: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    import torch

    with torch.no_grad():
        output = model(*(torch.from_numpy(array) for array in inputs.values()))
    named = {"output": output} if isinstance(output, torch.Tensor) else output
    return {name: value.numpy() for name, value in named.items()}


if __name__ == "__main__":
    main()
