"""Targets: where a bundle runs. `load(name)` is the only way in."""

from __future__ import annotations

import importlib

from slicewise.errors import TargetError
from slicewise.target import Target

_MODULES = {"lambda": "slicewise.targets.lambda.target"}


def load(name: str) -> Target:
    """The target of this name. Raises `TargetError` for an unknown one."""
    if name not in _MODULES:
        raise TargetError(f"unknown target {name!r}; known targets: {', '.join(_MODULES)}.")
    target: Target = importlib.import_module(_MODULES[name]).TARGET
    return target
