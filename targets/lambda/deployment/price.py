"""Price: what a deployment costs a month."""

from __future__ import annotations

from slicewise.plan import Plan

from ..profile import Profile
from ..resources import Stack

LOG_BYTES = 400  # E: START, END and REPORT of one invocation
GB = 1024**3


def monthly_usd(
    plan: Plan, stack: Stack, profile: Profile, package_bytes: int, requests: int
) -> dict[str, float]:
    """US dollars a month for so many requests, by what they are for, at the profile's prices.

    `package_bytes` lie in the bucket. Tensors in the bucket live for milliseconds and cost only their
    requests, which are part of the prediction; Lambda keeps zip packages for nothing.
    """
    costs = {"packages in S3": package_bytes / GB * profile.prices.s3_gb_month_usd}
    per_million = plan.prediction.cost_per_million_usd
    if requests and per_million is not None:
        costs[f"{requests:,} requests (predicted, Lambda and S3)"] = per_million * requests / 1e6
    if requests:
        log_bytes = requests * len(stack.functions) * LOG_BYTES
        costs["logs"] = log_bytes / GB * profile.prices.log_gb_usd
    return costs
