"""Targets: where a bundle runs. `load(name)` is the only way in."""

from __future__ import annotations

import importlib
from pathlib import Path

from slicewise.errors import TargetError
from slicewise.target import Target

_MODULES = {"lambda": "slicewise.targets.lambda.target"}


def load(name: str, profile: str | Path | None = None) -> Target:
    """The target of this name, with the numbers of a profile file where one is given.

    Raises `TargetError` for an unknown target and for a file that is no profile.
    """
    if name not in _MODULES:
        raise TargetError(f"unknown target {name!r}; known targets: {', '.join(_MODULES)}.")
    target: Target = importlib.import_module(_MODULES[name]).TARGET
    return target if profile is None else target.with_profile(Path(profile))
