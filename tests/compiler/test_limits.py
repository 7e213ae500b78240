"""`Limits`: every value that is no positive number is refused by its name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from slicewise import Limits, LimitsError

NAMES = [field.name for field in fields(Limits)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value", [0, -1, True, "512", float("nan"), float("inf"), [1], b"1", 1j], ids=repr
)
def test_a_limit_is_a_positive_number(name: str, value: Any) -> None:
    with pytest.raises(LimitsError, match=rf"Limits\({name}=.*expected a positive"):
        Limits(**{name: value})


@pytest.mark.parametrize("name", [name for name in NAMES if name != "package_mb"])
def test_only_the_package_may_be_a_fraction(name: str) -> None:
    assert Limits(package_mb=0.5).package_mb == 0.5
    fraction: dict[str, Any] = {name: 1.5}
    with pytest.raises(LimitsError, match="whole number"):
        Limits(**fraction)


def test_nothing_is_bounded_by_default() -> None:
    assert all(getattr(Limits(), name) is None for name in NAMES)
