"""`Function`: one Lambda function of a bundle, as the local platform and deployment see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# numpy's OpenBLAS would start a thread per visible core; only ONNX Runtime computes.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

COORDINATOR = "coordinator"  # the part of a bundle that is no slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function's package and settings, in the terms of Lambda's CreateFunction.

    `package` is the unpacked package directory, `handler` is "module.function" inside it.
    """

    name: str
    package: Path
    handler: str
    memory_mb: int
    timeout_s: int = 60
    environment: Mapping[str, str] = field(default_factory=dict)
