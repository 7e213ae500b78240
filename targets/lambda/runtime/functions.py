"""The functions of a plan's slices."""

from __future__ import annotations

import os
from typing import Any


def functions_of(plan: dict[str, Any]) -> dict[str, str]:
    """The function of every slice, of one version where the deployment names versions: an update of
    the coordinator alone then moves all slices at once.
    """
    stack = os.environ.get("SLICEWISE_STACK") or plan["stack"]
    versions = os.environ.get("SLICEWISE_VERSIONS", "")
    version_of = dict(pair.split("=") for pair in versions.split(",") if pair)
    names = [part["name"] for stage in plan["stages"] for part in stage]
    return {
        name: f"{stack}-{name}" + (f":{version_of[name]}" if name in version_of else "")
        for name in names
    }
