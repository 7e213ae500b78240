"""Measure: what each function of a bundle really takes, on the local platform."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slicewise.errors import TargetError
from slicewise.plan import Plan

from .bundle import function_names
from .endpoint import serve
from .profile import MB, Profile

CALLS = 2  # the second meets a warm function, which still holds what the first one left


def measure_memory(
    directory: Path, plan: Plan, profile: Profile, request: Mapping[str, Any]
) -> Mapping[str, int] | None:
    """See `slicewise.target.Target.measure_memory`.

    The functions get at least the default memory, so that none dies while it is measured; up to that
    size ONNX Runtime uses one thread, and so the same memory.
    """
    try:
        endpoint = serve(
            directory, plan, profile, at_least_memory_mb=profile.limits.memory_mb_default
        )
    except TargetError:
        return None
    with endpoint:
        for _ in range(CALLS):
            endpoint.client.run(request)
        reports = endpoint.reports
    slice_of = {function: name for name, function in function_names(plan).items()}
    peaks = {part.name: 0 for part in plan.slices}
    for report in reports:
        name = slice_of[report.function]
        if name in peaks:
            peaks[name] = max(peaks[name], int(report.max_memory_mb * MB))
    return peaks
