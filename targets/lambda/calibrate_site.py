"""Where `calibrate` measures: a `Site` has clients of Lambda and S3 and the probe functions on them."""

from __future__ import annotations

import platform as machine
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from slicewise.errors import TargetError

from .endpoint import BUCKETS, bucket_environment, emulated_network, local_platform
from .functions import Function
from .profile import Profile

FULL_MB = 1769  # one full vCPU
MEMORIES_MB = (256, 512, FULL_MB)
LOADED_MB = 64  # weights of the function that loads some; the others load next to nothing
TIMEOUT_S = 120
HANDLER = """import time
import uuid

started = time.perf_counter()

from pathlib import Path

from probe.calibrate_probe import probe_handler

handler = probe_handler(started=started, directory=Path(__file__).parent)
"""
Architecture = Literal["x86_64", "arm64"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A platform with the probes on it; `run` names this use of it, and `region` is None on this
    machine. `probes` are function names by memory, `loader` is the one
    with weights; `buckets` are by transport. `make_cold` ends all warm environments.
    """

    name: str
    run: str
    network: str
    region: str | None
    architecture: Architecture
    functions: Any
    probes: Mapping[int, str]
    loader: str
    buckets: Mapping[str, str]
    make_cold: Callable[[], None]


def write_probes(
    directory: Path, name: str, memories_mb: Sequence[int], environment: Mapping[str, str]
) -> tuple[Function, ...]:
    """One function per memory size, and last the one with weights."""
    own = Path(__file__).parent
    found: list[Function] = []
    for kind, layers, features in (("plain", 1, 32), ("weights", LOADED_MB // 4, 1024)):
        package = directory / kind
        runtime = package / "probe" / "runtime"
        runtime.mkdir(parents=True)
        for source in (own / "runtime").glob("*.py"):
            shutil.copyfile(source, runtime / source.name)
        shutil.copyfile(own / "calibrate_probe.py", package / "probe" / "calibrate_probe.py")
        (package / "probe" / "__init__.py").touch()
        (package / "handler.py").write_text(HANDLER)
        write_model(package, layers, features)
        found += [
            Function(
                name=f"{name}-{memory_mb if kind == 'plain' else kind}",
                package=package,
                handler="handler.handler",
                memory_mb=memory_mb,
                timeout_s=TIMEOUT_S,
                environment=environment,
            )
            for memory_mb in (memories_mb if kind == "plain" else (FULL_MB,))
        ]
    return tuple(found)


def write_model(package: Path, count: int, features: int) -> None:
    """Linear layers with the weights in model.data, as slices have them."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = [random.standard_normal((features, features), np.float32) for _ in range(count)]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(count)]
    graph = helper.make_graph(
        nodes,
        "weights",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1, features])],
        [helper.make_tensor_value_info(f"x{count}", TensorProto.FLOAT, [1, features])],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    onnx.save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        package / "model.onnx",
        save_as_external_data=True,
        location="model.data",
        size_threshold=0,
    )


def this_architecture() -> Architecture:
    """The machine's, in Lambda's words. Raises `TargetError` for one that Lambda does not have."""
    found = {"x86_64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}.get(machine.machine())
    if found is None:
        raise TargetError(f"Lambda has no {machine.machine()}; use a machine of x86_64 or arm64")
    return "arm64" if found == "arm64" else "x86_64"


@contextmanager
def local_site(
    profile: Profile,
    *,
    network: str | None = None,
    network_seed: int = 0,
    memories_mb: Sequence[int] = MEMORIES_MB,
) -> Iterator[Site]:
    """The local platform, with a network emulated as `profile` has it when `network` is "aws"."""
    emulated = emulated_network(network, profile, network_seed)
    environment = bucket_environment(BUCKETS)
    with TemporaryDirectory(prefix="slicewise-calibrate-") as directory:
        probes = write_probes(Path(directory), "probe", memories_mb, environment)
        with local_platform(
            probes,
            network=emulated,
            buckets=tuple(BUCKETS.values()),
        ) as platform:
            platform.client("s3")  # it takes a second to load
            yield Site(
                name=f"the local platform ({platform.enforcement.kind})",
                run=run_name(),
                network=platform.network,
                region=None,
                architecture=this_architecture(),
                functions=platform.client("lambda"),
                probes={probe.memory_mb: probe.name for probe in probes[:-1]},
                loader=probes[-1].name,
                buckets=BUCKETS,
                make_cold=platform.discard_idle,
            )


def run_name() -> str:
    """Of one run, for names on the site; no two at once have the same."""
    return f"calibrate-{time.strftime('%Y%m%d%H%M%S')}-{uuid.uuid4().hex[:6]}"
