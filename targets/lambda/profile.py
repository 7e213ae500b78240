"""The profile: Lambda's limits, speeds and prices as data (profile.toml), read into one checked value.

A user's file is laid over the one that ships with slicewise, so it needs only what differs.
"""

from __future__ import annotations

import json
import math
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic import ValidationError as Invalid

from slicewise.errors import TargetError

MB = 1024 * 1024
_P99 = 2.3263478740408408  # standard deviations from the median to the 99th percentile


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Spread(_Part):
    """A latency, ms, as a log-normal distribution through two percentiles."""

    p50: PositiveFloat
    p99: PositiveFloat

    @model_validator(mode="after")
    def _is_ordered(self) -> Spread:
        if self.p99 < self.p50:
            raise ValueError(f"p99 ({self.p99:g}) is below p50 ({self.p50:g})")
        return self

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm."""
        return math.log(self.p99 / self.p50) / _P99

    @property
    def mean(self) -> float:
        """Expected milliseconds."""
        return self.p50 * math.exp(self.sigma**2 / 2)


class LimitsPart(_Part):
    """What the platform allows, and what we assume that an account has."""

    memory_mb_min: PositiveInt
    memory_mb_max: PositiveInt
    memory_mb_default: PositiveInt
    package_mb_max: PositiveFloat
    image_mb_max: PositiveFloat
    payload_bytes_max: PositiveInt
    timeout_s: PositiveInt


class CpuPart(_Part):
    """CPU share = memory / mb_per_vcpu, as a quota of every period of the scheduler; what pauses take
    more than their time, as a share of it.
    """

    mb_per_vcpu: PositiveInt
    period_ms: PositiveFloat
    resume_factor: NonNegativeFloat


class NetworkPart(_Part):
    """Bytes per second of one execution environment, each way."""

    bytes_s: PositiveFloat


class RuntimePart(_Part):
    """What every function holds besides its slice."""

    package_mb: PositiveFloat
    memory_mb: PositiveFloat
    buffer_factor: PositiveFloat
    stream_factor: PositiveFloat


class EstimatePart(_Part):
    """Of what a function holds that the kernel cannot take back; estimate.py has the formula."""

    runtime_held_mb: PositiveFloat
    s3_client_mb: PositiveFloat
    weight_factor: PositiveFloat
    arena_gap_factor: PositiveFloat
    arena_gap_mb: PositiveFloat
    kept_factor: PositiveFloat
    receive_payload_factor: PositiveFloat
    receive_s3_factor: PositiveFloat
    send_payload_factor: PositiveFloat
    send_s3_factor: PositiveFloat


class CoordinatorPart(_Part):
    """The function that drives the slices."""

    memory_mb: PositiveInt


class CallPart(_Part):
    """A warm synchronous invocation of a small message; CPU at one vCPU."""

    wait_ms: Spread
    caller_cpu_ms: NonNegativeFloat
    cpu_ms: NonNegativeFloat


class PayloadPart(_Part):
    """CPU per raw byte, ns at one vCPU, of tensors within messages."""

    caller_send_cpu_ns: NonNegativeFloat
    caller_receive_cpu_ns: NonNegativeFloat
    send_cpu_ns: NonNegativeFloat
    receive_cpu_ns: NonNegativeFloat


class StorePart(_Part):
    """Time and price of objects: waiting, CPU at one vCPU, US dollars per request and per GB."""

    put_ms: Spread
    get_ms: Spread
    put_cpu_ms: NonNegativeFloat
    get_cpu_ms: NonNegativeFloat
    put_cpu_ns: NonNegativeFloat
    get_cpu_ns: NonNegativeFloat
    put_usd: NonNegativeFloat
    get_usd: NonNegativeFloat
    upload_gb_usd: NonNegativeFloat
    retrieval_gb_usd: NonNegativeFloat


class PricesPart(_Part):
    """US dollars per request, per GB-second by architecture and region, per month of a GB in S3 and of
    an alarm, and per GB of logs.
    """

    request_usd: NonNegativeFloat
    alarm_month_usd: NonNegativeFloat
    s3_gb_month_usd: NonNegativeFloat
    log_gb_usd: NonNegativeFloat
    gb_s_usd: dict[Literal["x86_64", "arm64"], dict[str, PositiveFloat]]


class ProvisionedPart(_Part):
    """Provisioned concurrency, US dollars per GB-second: for being there, and while it computes."""

    idle_gb_s_usd: dict[Literal["x86_64", "arm64"], PositiveFloat]
    gb_s_usd: dict[Literal["x86_64", "arm64"], PositiveFloat]


class SnapStartPart(_Part):
    """SnapStart, US dollars per GB of the function's memory: kept, and restored at a cold start."""

    cache_gb_s_usd: PositiveFloat
    cache_minimum_s: PositiveFloat
    restore_gb_usd: PositiveFloat
    restore_ms: PositiveFloat


class StepFunctionsPart(_Part):
    """A Standard state machine: what passes between two functions, and the price of a state."""

    gap_ms: Spread
    transition_usd: NonNegativeFloat


class ColdPart(_Part):
    """What a call takes longer when no environment is warm: until the function's own code runs, from a
    zip package or an image, and what that does then (boto3 and further clients only where needed).
    """

    placement_ms: NonNegativeFloat
    init_ms: dict[Literal["x86_64", "arm64"], Spread]
    image_init_ms: dict[Literal["x86_64", "arm64"], Spread]
    import_ms: NonNegativeFloat
    boto3_ms: NonNegativeFloat
    coordinator_ms: NonNegativeFloat
    coordinator_store_ms: NonNegativeFloat
    early_ms: NonNegativeFloat
    load_ns: NonNegativeFloat
    image_fetch_ns: NonNegativeFloat


class Profile(_Part):
    """The numbers of profile.toml; units are in the names."""

    schema_version: Literal[1] = Field(alias="schema")
    region: str
    architecture: Literal["x86_64", "arm64"]
    limits: LimitsPart
    cpu: CpuPart
    network: NetworkPart
    runtime: RuntimePart
    estimate: EstimatePart
    coordinator: CoordinatorPart
    call: CallPart
    payload: PayloadPart
    s3: StorePart
    s3express: StorePart
    prices: PricesPart
    stepfunctions: StepFunctionsPart
    cold: ColdPart
    provisioned: ProvisionedPart
    snapstart: SnapStartPart

    @property
    def gb_s_usd(self) -> float:
        """The price of a GB-second in the profile's region and architecture."""
        prices = self.prices.gb_s_usd[self.architecture]
        return prices.get(self.region, prices["default"])

    @property
    def region_factor(self) -> float:
        """How many times the usual price a GB-second costs in the profile's region."""
        return self.gb_s_usd / self.prices.gb_s_usd[self.architecture]["default"]


@cache
def default_profile() -> Profile:
    """The profile that ships with slicewise."""
    return _validated(_read(_DEFAULT), _DEFAULT)


def read_profile(path: str | Path) -> Profile:
    """The default profile with what the file says differently.

    Raises `TargetError` for a file that cannot be read, unknown names and impossible numbers.
    """
    path = Path(path)
    return _validated(_overlay(_read(_DEFAULT), _read(path)), path)


_DEFAULT = Path(__file__).with_name("profile.toml")


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:  # no text, no JSON, no TOML
        raise TargetError(f"the profile {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise TargetError(f"the profile {path} is no table of numbers")
    return found


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _overlay(old, value)
        else:
            merged[key] = value
    return merged


def _validated(data: dict[str, Any], path: Path) -> Profile:
    try:
        return Profile.model_validate(data)
    except Invalid as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        )
        raise TargetError(
            f"the profile {path} is not valid: {problems}. "
            f"Compare it with {_DEFAULT}, where every number is explained."
        ) from error
