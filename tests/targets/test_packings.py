"""Packings: what each allows, and that a slice gets the one that fits and starts fastest."""

from __future__ import annotations

import pytest

from slicewise import Limits, LimitsError, targets

MB = 2**20
target = targets.load("lambda")


def packed(weight_mb: float, *packagings: str, user: Limits | None = None) -> str:
    limits = target.resolve_limits(user, packagings)
    return target.pack(int(weight_mb * MB), packagings, user, limits).packaging


def test_zip_is_what_a_user_gets_who_says_nothing() -> None:
    assert target.packagings(None) == ("zip",)
    assert target.packagings("image") == ("image",)
    assert target.packagings(["zip", "s3-weights"]) == ("zip", "s3-weights")
    with pytest.raises(LimitsError, match="choose one or more of zip, image, s3-weights"):
        target.packagings("tar")


def test_limits_to_cut_by_follow_the_packagings() -> None:
    assert target.resolve_limits(None).package_mb == 250
    assert target.resolve_limits(None, ("image",)).package_mb == 10240
    assert target.resolve_limits(Limits(package_mb=300), ("image",)).package_mb == 300
    with pytest.raises(LimitsError, match="above Lambda's own limit of 250"):
        target.resolve_limits(Limits(package_mb=300), ("zip",))

    streamed = target.resolve_limits(None, ("s3-weights",))
    assert streamed.package_mb is None
    assert streamed.weight_bytes == int((3008 - 90) / 3.1 * MB)
    assert target.resolve_limits(Limits(weight_bytes=5), ("s3-weights",)).weight_bytes == 5
    small = target.resolve_limits(Limits(memory_mb=512), ("zip", "s3-weights"))
    assert small.weight_bytes == (250 - 76) * MB


@pytest.mark.parametrize(
    ("weight_mb", "packagings", "expected"),
    [
        (174, ("zip",), "zip"),
        (174, ("zip", "s3-weights"), "zip"),
        (175, ("zip", "s3-weights"), "s3-weights"),
        (175, ("zip", "image"), "image"),
        (1, ("s3-weights", "image"), "s3-weights"),  # 33 ms for the first byte against 70 ms
        (900, ("zip", "s3-weights", "image"), "image"),
        (5000, ("s3-weights", "image"), "image"),  # more than the memory
    ],
)
def test_a_slice_gets_what_fits_and_starts_fastest(
    weight_mb: float, packagings: tuple[str, ...], expected: str
) -> None:
    assert packed(weight_mb, *packagings) == expected


def test_a_users_limit_of_the_package_holds() -> None:
    user = Limits(package_mb=100)
    assert packed(24, "zip", "s3-weights", user=user) == "zip"
    assert packed(25, "zip", "s3-weights", user=user) == "s3-weights"


def test_streaming_needs_memory_and_no_package() -> None:
    limits = target.resolve_limits(None, ("s3-weights",))
    found = target.pack(100 * MB, ("s3-weights",), None, limits)

    assert found.package_bytes == 76 * MB
    assert found.memory_bytes == int((90 + 310) * MB)
