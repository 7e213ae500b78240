"""`Limits`: what one slice may take, as a user states it; `Overheads`: what a function adds."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from slicewise.errors import LimitsError

MB = 1024 * 1024  # Lambda's MB is 1,024 KB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper bounds on every slice; None leaves the bound to the target (or absent without one).

    `memory_mb` bounds the running function, `package_mb` the unpacked package, `payload_bytes` one
    call's request or reply, `weight_bytes` the weights of one slice, `max_slices` their number,
    `max_parallel` how many run at the same time: for latency or cost None is 4.
    Raises `LimitsError` for anything that is not a positive number.
    """

    memory_mb: int | None = None
    package_mb: float | None = None
    payload_bytes: int | None = None
    weight_bytes: int | None = None
    max_slices: int | None = None
    max_parallel: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            whole = field.name != "package_mb"
            is_number = isinstance(value, int if whole else (int, float))
            if not is_number or isinstance(value, bool) or not 0 < value < math.inf:
                kind = "whole number" if whole else "number"
                raise LimitsError(
                    f"Limits({field.name}={value!r}): expected a positive {kind}. "
                    "Leave it out to use the target's own limit."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """What a target's function holds besides the slice itself; all zero without a target.

    `memory_bytes`: interpreter and libraries. `package_bytes`: runtime and handler in the package.
    `edge_factor`: bytes of buffers per byte of a tensor that the function receives or sends.
    `max_edge_bytes`: the most bytes that a slice may receive, and likewise send, in all (for plans
    whose only transport is the payload); None for no bound.
    """

    memory_bytes: int = 0
    package_bytes: int = 0
    edge_factor: float = 0.0
    max_edge_bytes: int | None = None
