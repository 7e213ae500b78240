"""Standby: what it costs to have no cold starts, or shorter ones, and what remains of them.

on-demand      nothing is kept; a request that finds no environment starts all of them
provisioned    environments of every function are kept warm; only requests beyond them start cold
snapstart      a snapshot of every initialised function is kept; a cold start restores it

Both belong to published versions, which a deployment has of every function. A function has one or the
other, never both.
"""

from __future__ import annotations

from dataclasses import dataclass

from slicewise.errors import TargetError
from slicewise.plan import Plan

from .profile import Profile

MONTH_S = 730 * 3600.0  # as AWS's own calculator counts
MILLION = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Standby:
    """One way to be ready, US dollars: `usd_month` for being ready, `request_usd` is what each request
    costs more (less, if negative) and `cold_usd` each cold one. `cold_ms` is what a cold request still
    takes longer than a warm one, expected.
    """

    name: str
    usd_month: float
    request_usd: float
    cold_usd: float
    cold_ms: float

    def month_usd(self, requests: float, cold_requests: float) -> float:
        """What all of it comes to beyond the requests' own price."""
        return self.usd_month + requests * self.request_usd + cold_requests * self.cold_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class StandbyPrices:
    """US dollars per GB of a function's memory in the profile's region: for a month of being ready, and
    for a restore.
    """

    provisioned_gb_month_usd: float
    snapshot_gb_month_usd: float
    restore_gb_usd: float


def standby_prices(profile: Profile) -> StandbyPrices:
    """The profile's prices, in dearer regions by the ratio of their GB-seconds."""
    factor = profile.region_factor
    idle_usd = profile.provisioned.idle_gb_s_usd[profile.architecture]
    return StandbyPrices(
        provisioned_gb_month_usd=factor * idle_usd * MONTH_S,
        snapshot_gb_month_usd=factor * profile.snapstart.cache_gb_s_usd * MONTH_S,
        restore_gb_usd=factor * profile.snapstart.restore_gb_usd,
    )


def standby(
    plan: Plan, profile: Profile, *, environments: int = 1, versions: int = 1
) -> tuple[Standby, ...]:
    """All ways for a plan: provisioned with so many environments of each function (as many requests at
    once find them warm), snapshots of so many published versions.

    Prices and restore times are the profile's; all functions count, the coordinator too. Of a restored
    function `cold_ms` does not know how long the pages of its weights take at the first touch, which no
    source tells. Raises `TargetError` for a plan without a prediction, and for less than one of either.
    """
    if environments < 1 or versions < 1:
        raise TargetError(
            f"environments={environments}, versions={versions}: a function that is to be ready has at "
            "least one of each."
        )
    found = plan.prediction
    if found.cold_latency_ms is None or found.latency_ms is None:
        raise TargetError("the plan has no prediction. Compile the model again.")
    on_demand_ms = found.cold_latency_ms - found.latency_ms
    gb = (plan.coordinator_memory_mb + sum(part.memory_mb for part in plan.slices)) / 1024
    prices = standby_prices(profile)
    provisioned_usd = profile.provisioned.gb_s_usd[profile.architecture]
    saved = profile.gb_s_usd - profile.region_factor * provisioned_usd
    # The coordinator is restored, then all slices at once.
    restores = 2 if plan.warm_up else 1 + len(plan.stages)
    restore_ms = profile.cold.placement_ms + profile.snapstart.restore_ms
    return (
        Standby(
            name="on-demand", usd_month=0.0, request_usd=0.0, cold_usd=0.0, cold_ms=on_demand_ms
        ),
        Standby(
            name="provisioned",
            usd_month=gb * environments * prices.provisioned_gb_month_usd,
            request_usd=-saved * _gb_s(plan, profile),
            cold_usd=0.0,
            cold_ms=0.0,
        ),
        Standby(
            name="snapstart",
            usd_month=gb * versions * prices.snapshot_gb_month_usd,
            request_usd=0.0,
            cold_usd=gb * prices.restore_gb_usd,
            cold_ms=restores * restore_ms,
        ),
    )


def _gb_s(plan: Plan, profile: Profile) -> float:
    """GB-seconds of one warm request, of all its functions, by the prediction's own dollars."""
    found = plan.prediction
    billed = {part.name: part.billed_ms for part in found.slices}
    slices = sum(part.memory_mb / 1024 * billed[part.name] * 1e-3 for part in plan.slices)
    usd = found.cost_per_million_usd or 0.0
    caller_usd = (usd - sum(part.cost_per_million_usd for part in found.slices)) / MILLION
    return slices + (caller_usd - profile.prices.request_usd) / profile.gb_s_usd
