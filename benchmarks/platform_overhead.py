"""What the local platform adds to a function's own time, and what a cold start consists of.

    .venv/bin/python benchmarks/platform_overhead.py [--quick]

Everything goes through unmodified boto3 clients, whose own work (1.5 ms or more a call) is part of
each number. "own" is measured inside the handler, "runtime" is awslambdaric (JSON, HTTP) between
the platform's sending of the event and the response.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

local = importlib.import_module("slicewise.targets.lambda.local")
Function = importlib.import_module("slicewise.targets.lambda.functions").Function

KIB, MIB = 1024, 1024 * 1024
SIZES = {"1 KB": KIB, "100 KB": 100 * KIB, "1 MB": MIB, "5 MB": 5 * MIB}

ECHO = """
import time
def handler(event, context):
    began = time.perf_counter()
    reply = {"data": event["data"] if event.get("echo") else None}
    reply["own_ms"] = (time.perf_counter() - began) * 1000
    return reply
"""
IMPORTS = {
    "nothing": "",
    "numpy": "import numpy",
    "numpy, onnxruntime": "import numpy, onnxruntime",
    "+ boto3, two clients": "import numpy, onnxruntime, boto3\nboto3.client('s3')\n"
    "boto3.client('lambda')",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the repetitions")
    scale = 10 if parser.parse_args().quick else 1
    with tempfile.TemporaryDirectory() as directory:
        functions = list(write_functions(Path(directory)))
        began = time.perf_counter()
        platform = local.Platform(functions, buckets=["spill"])
        with platform:
            start_ms = (time.perf_counter() - began) * 1000
            client = platform.client("lambda")
            client.invoke(FunctionName="echo", Payload=b'{"data": 0}')
            print(f"{platform.enforcement}\nload {os.getloadavg()[0]:.1f}, start {start_ms:.0f} ms")
            print_calls(platform, client, scale)
            print_concurrency(platform, scale)
            print_cold_starts(platform, client, max(2, 10 // scale))
            print_s3(platform.client("s3"), scale)
            began = time.perf_counter()
        print(f"\nstop {(time.perf_counter() - began) * 1000:.0f} ms")


def write_functions(directory: Path) -> Iterator[Any]:
    """One function that echoes, and one for each set of imports."""
    sources = {"echo": ECHO}
    sources |= {f"imports-{i}": f"{code}\n{ECHO}" for i, code in enumerate(IMPORTS.values())}
    for name, source in sources.items():
        package = directory / name
        package.mkdir()
        (package / "function.py").write_text(source)
        yield Function(
            name=name, package=package, handler="function.handler", memory_mb=1769, timeout_s=60
        )


def print_calls(platform: Any, client: Any, scale: int) -> None:
    """Warm calls, one after the other."""
    print("\nwarm call minus the handler's own time, ms")
    print(f"{'payload':>10} {'direction':>10} {'median':>8} {'p90':>8} {'runtime':>8} {'calls':>6}")
    for name, size in SIZES.items():
        for echo in (False, True):
            count = max(10, (500 if size <= 100 * KIB else 60) // scale)
            event = json.dumps({"echo": echo, "data": "x" * (size - 30)}).encode()
            times, runtime = [], []
            for _ in range(count):
                began = time.perf_counter()
                payload = client.invoke(FunctionName="echo", Payload=event)["Payload"].read()
                elapsed = (time.perf_counter() - began) * 1000
                own = json.loads(payload)["own_ms"]
                times.append(elapsed - own)
                runtime.append(platform.reports[-1].duration_ms - own)
            direction = "in and out" if echo else "in"
            print(f"{name:>10} {direction:>10} {summary(times)} {median(runtime)} {count:6}")


def print_concurrency(platform: Any, scale: int) -> None:
    """Warm calls from several threads of this process at once."""
    from concurrent.futures import ThreadPoolExecutor

    client = platform.client("lambda")
    event = json.dumps({"data": "x" * KIB}).encode()
    print("\nconcurrent callers, 1 KB (client, platform and instances share this machine's cores)")
    print(f"{'callers':>10} {'calls/s':>8} {'median':>8} {'p90':>8}")
    for callers in (1, 4, 16):
        count = max(160, 1600 // scale)
        platform.warm("echo", callers)
        with ThreadPoolExecutor(callers) as pool:
            began = time.perf_counter()
            times = list(
                pool.map(
                    lambda _: timed(
                        lambda: client.invoke(FunctionName="echo", Payload=event)["Payload"].read()
                    ),
                    range(count),
                )
            )
            elapsed = time.perf_counter() - began
        print(f"{callers:10} {count / elapsed:8.0f} {summary(times)}")


def print_cold_starts(platform: Any, client: Any, repeats: int) -> None:
    """The init phase for what a handler may import."""
    print("\ncold start, ms")
    print(f"{'the handler imports':>26} {'init':>8} {'p90':>8} {'first call':>11} {'MB':>5}")
    for number, name in enumerate(IMPORTS):
        inits, calls = [], []
        for _ in range(repeats):
            calls.append(
                timed(
                    lambda number=number: client.invoke(
                        FunctionName=f"imports-{number}", Payload=b'{"data": 0}'
                    )
                )
            )
            report = platform.reports[-1]
            inits.append(report.init_ms)
            platform.discard_idle()
        print(f"{name:>26} {summary(inits)} {median(calls):>11} {report.max_memory_mb:5.0f}")


def print_s3(client: Any, scale: int) -> None:
    """PUT and GET through boto3."""
    print("\nS3, ms")
    print(f"{'object':>10} {'PUT':>8} {'p90':>8} {'GET':>8} {'p90':>8}")
    for name, size in (*list(SIZES.items())[:3], ("10 MB", 10 * MIB)):
        body = os.urandom(size)
        count = max(5, (200 if size <= MIB else 20) // scale)
        puts = [
            timed(lambda body=body: client.put_object(Bucket="spill", Key="object", Body=body))
            for _ in range(count)
        ]
        gets = [
            timed(lambda: client.get_object(Bucket="spill", Key="object")["Body"].read())
            for _ in range(count)
        ]
        print(f"{name:>10} {summary(puts)} {summary(gets)}")


def timed(call: Callable[[], object]) -> float:
    """How long a call takes, ms."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def median(values: list[float]) -> str:
    return f"{statistics.median(values):8.2f}"


def summary(values: list[float]) -> str:
    """Median and 90th percentile."""
    return f"{median(values)} {sorted(values)[int(len(values) * 0.9)]:8.2f}"


if __name__ == "__main__":
    main()
