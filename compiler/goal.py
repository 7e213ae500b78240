"""`Goal`: bounds on what a request may take and cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from slicewise.errors import LimitsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Upper bounds on the expected latency of a warm request (ms) and on US dollars per million.

    With one bound, the other figure is made as small as possible; with both, `objective` says which.
    Raises `LimitsError` for anything that is not a positive number, and when both are missing.
    """

    latency_ms: float | None = None
    cost_per_million_usd: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0 < value < math.inf:
                raise LimitsError(f"Goal({field.name}={value!r}): expected a positive number.")
        if self.latency_ms is None and self.cost_per_million_usd is None:
            raise LimitsError("Goal() sets no bound: give latency_ms or cost_per_million_usd.")


def objective_of(objective: str, goal: Goal | None) -> str:
    """What is minimised: with one bound and no objective of its own, the other figure.

    Raises `LimitsError` for unknown objectives, and for bytes with both bounds.
    """
    if objective not in ("bytes", "latency", "cost"):
        raise LimitsError(f"objective={objective!r}: choose 'bytes', 'latency' or 'cost'.")
    if goal is None or objective != "bytes":
        return objective
    if goal.latency_ms is None:
        return "latency"
    if goal.cost_per_million_usd is None:
        return "cost"
    raise LimitsError(
        "goal bounds both latency and cost: say with objective='latency' or 'cost' which of them "
        "to make as small as possible."
    )
