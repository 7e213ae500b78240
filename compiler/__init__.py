"""slicewise compiles a trained PyTorch model into slices that each fit an AWS Lambda function.

compiled = slicewise.compile(model, example_inputs, target="lambda")
print(compiled.plan)
compiled.save("bundle/")
with slicewise.serve("bundle/") as endpoint:
    y = endpoint(x)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from slicewise.errors import (
    BundleError,
    CaptureError,
    DeploymentError,
    GraphError,
    InfeasibleError,
    LimitsError,
    RequestError,
    SliceFailure,
    SlicewiseError,
    TargetError,
    VerificationError,
)

if TYPE_CHECKING:
    from slicewise.api import compile, frontier, serve
    from slicewise.compiled import Bundle, Compiled, load
    from slicewise.deployments import deploy, destroy
    from slicewise.goal import Goal
    from slicewise.graph import OpGraph
    from slicewise.limits import Limits
    from slicewise.plan import Certificate, Edge, Plan, Slice

# Imported at first use: torch alone takes seconds, and `slicewise --help` needs none of it.
_LAZY = {
    "Bundle": "slicewise.compiled",
    "Compiled": "slicewise.compiled",
    "compile": "slicewise.api",
    "deploy": "slicewise.deployments",
    "destroy": "slicewise.deployments",
    "frontier": "slicewise.api",
    "load": "slicewise.compiled",
    "serve": "slicewise.api",
    "Goal": "slicewise.goal",
    "OpGraph": "slicewise.graph",
    "Limits": "slicewise.limits",
    "Certificate": "slicewise.plan",
    "Edge": "slicewise.plan",
    "Plan": "slicewise.plan",
    "Slice": "slicewise.plan",
}

__all__ = [
    "Bundle",
    "BundleError",
    "CaptureError",
    "Certificate",
    "Compiled",
    "DeploymentError",
    "Edge",
    "Goal",
    "GraphError",
    "InfeasibleError",
    "Limits",
    "LimitsError",
    "OpGraph",
    "Plan",
    "RequestError",
    "Slice",
    "SliceFailure",
    "SlicewiseError",
    "TargetError",
    "VerificationError",
    "compile",
    "deploy",
    "destroy",
    "frontier",
    "load",
    "serve",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'slicewise' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
