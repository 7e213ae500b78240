"""The profile: Lambda's limits and speeds as data (profile.toml), read into one frozen value."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from slicewise.errors import TargetError

MB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The numbers of profile.toml; sizes in the unit that the name says."""

    memory_mb_min: int
    memory_mb_max: int
    memory_mb_default: int
    package_mb_max: float
    payload_bytes_max: int
    timeout_s: int
    mb_per_vcpu: int
    runtime_package_mb: float
    runtime_memory_mb: float
    buffer_factor: float
    runtime_held_mb: float
    s3_client_mb: float
    weight_factor: float
    activation_factor: float
    receive_factor: float
    send_payload_factor: float
    send_s3_factor: float
    coordinator_memory_mb: int
    payload_threshold_bytes: int


@cache
def default_profile() -> Profile:
    """The profile that ships with slicewise."""
    return read_profile(Path(__file__).with_name("profile.toml"))


def read_profile(path: Path) -> Profile:
    """A profile from a file. Raises `TargetError` when a number is missing or not positive."""
    data = tomllib.loads(path.read_text())
    try:
        limits = data["limits"]
        profile = Profile(
            memory_mb_min=limits["memory_mb_min"],
            memory_mb_max=limits["memory_mb_max"],
            memory_mb_default=limits["memory_mb_default"],
            package_mb_max=limits["package_mb_max"],
            payload_bytes_max=limits["payload_bytes_max"],
            timeout_s=limits["timeout_s"],
            mb_per_vcpu=data["cpu"]["mb_per_vcpu"],
            runtime_package_mb=data["runtime"]["package_mb"],
            runtime_memory_mb=data["runtime"]["memory_mb"],
            buffer_factor=data["runtime"]["buffer_factor"],
            **data["estimate"],
            coordinator_memory_mb=data["coordinator"]["memory_mb"],
            payload_threshold_bytes=data["transport"]["payload_threshold_bytes"],
        )
    except KeyError as error:
        raise TargetError(
            f"{path} lacks {error}; compare it with the profile of slicewise."
        ) from error
    for name in Profile.__dataclass_fields__:
        value = getattr(profile, name)
        if not isinstance(value, (int, float)) or value <= 0:
            raise TargetError(f"{path}: {name} is {value!r}; expected a positive number.")
    return profile
