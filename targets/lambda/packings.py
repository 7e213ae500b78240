"""Packings: the ways to pack a function, what each allows, and which one a slice gets.

zip          up to 250 MB with the runtime; what every plan uses unless the user allows another
image        up to 10,240 MB; starts a little slower
s3-weights   a zip package whose weights are streamed from S3 when the function starts, by their bytes
             slower. Only memory bounds them: while ONNX Runtime loads, it holds them three times (as
             they came, copied, and packed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from slicewise.cost import slice_cold_ms
from slicewise.errors import LimitsError
from slicewise.limits import Limits
from slicewise.target import Packed

from .costs import cost_model
from .profile import MB, Profile
from .resources import PACKAGINGS


def allowed_packagings(wanted: str | Sequence[str] | None) -> tuple[str, ...]:
    """The packagings that a user allows; None is zip alone. Raises `LimitsError`."""
    found = (wanted,) if isinstance(wanted, str) else tuple(wanted or ("zip",))
    unknown = [name for name in found if name not in PACKAGINGS]
    if unknown:
        raise LimitsError(
            f"packaging={wanted!r}: choose one or more of {', '.join(PACKAGINGS)}, or None for zip."
        )
    return found


def most_package_mb(packagings: Sequence[str], profile: Profile) -> float:
    """The platform's own limit of the largest package among these."""
    limits = profile.limits
    return limits.image_mb_max if "image" in packagings else limits.package_mb_max


def with_packagings(limits: Limits, packagings: Sequence[str], profile: Profile) -> Limits:
    """Limits to cut by. Where weights may be streamed, not the package but the memory bounds them."""
    package_mb = limits.package_mb or most_package_mb(packagings, profile)
    if "s3-weights" not in packagings:
        return replace(limits, package_mb=package_mb)
    assert limits.memory_mb is not None
    streamed = (limits.memory_mb - profile.runtime.memory_mb) / profile.runtime.stream_factor
    most = (
        streamed if len(packagings) == 1 else max(streamed, package_mb - profile.runtime.package_mb)
    )
    weight_bytes = min(limits.weight_bytes or int(most * MB), int(most * MB))
    return replace(limits, package_mb=None, weight_bytes=weight_bytes)


def pack(
    weight_bytes: int,
    packagings: Sequence[str],
    user: Limits | None,
    memory_mb: int,
    profile: Profile,
) -> Packed:
    """How a slice is packed: of what fits, what starts fastest. `memory_mb` is the most it may have."""
    runtime = profile.runtime
    own = int(runtime.package_mb * MB)
    fitting = []
    for name in packagings:
        streams = name == "s3-weights"
        package_bytes = own + (0 if streams else weight_bytes)
        needed = (
            int(runtime.memory_mb * MB + runtime.stream_factor * weight_bytes) if streams else 0
        )
        most_mb = (user and user.package_mb) or most_package_mb((name,), profile)
        if package_bytes <= most_mb * MB and needed <= memory_mb * MB:
            fitting.append(Packed(packaging=name, package_bytes=package_bytes, memory_bytes=needed))
    assert fitting  # the slices were cut by limits that one packaging at least allows
    model = cost_model(profile, profile.limits.payload_bytes_max)

    def cold_ms(packed: Packed) -> float:
        return slice_cold_ms(model, weight_bytes, uses_store=True, packaging=packed.packaging)

    return min(fitting, key=cold_ms)
