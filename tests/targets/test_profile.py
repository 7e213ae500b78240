"""The profile: what ships is valid, a user's file changes what it names, nonsense is refused."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from slicewise.errors import TargetError

profiles: Any = importlib.import_module("slicewise.targets.lambda.profile")


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "profile.toml"
    path.write_text(text)
    return path


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    changed = profiles.read_profile(own(tmp_path, "[s3]\nput_ms = {p50 = 20, p99 = 30}\n"))
    default = profiles.default_profile()

    assert (changed.s3.put_ms.p50, changed.s3.put_ms.p99) == (20, 30)
    assert changed.s3.get_ms == default.s3.get_ms
    assert changed.model_copy(update={"s3": default.s3}) == default


def test_prices_follow_region_and_architecture(tmp_path: Path) -> None:
    assert profiles.default_profile().gb_s_usd == 0.0000166667
    arm = profiles.read_profile(own(tmp_path, 'architecture = "arm64"'))
    assert arm.gb_s_usd == 0.0000133334
    dear = profiles.read_profile(own(tmp_path, 'region = "af-south-1"'))
    assert dear.gb_s_usd == 0.0000221
    plain = profiles.read_profile(own(tmp_path, 'region = "eu-central-1"'))
    assert plain.gb_s_usd == 0.0000166667


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[cpu]\nmb_per_vcpu = -1", "cpu.mb_per_vcpu: Input should be greater than 0"),
        ("[cpu]\nvcpu = 1", "cpu.vcpu: Extra inputs"),
        ('architecture = "sparc"', "architecture: "),
        ("schema = 2", "schema: Input should be 1"),
        ("[call]\nwait_ms = {p50 = 20, p99 = 10}", r"p99 \(10\) is below p50 \(20\)"),
        ("[s3]\nput_usd = nan", "s3.put_usd: "),
        ("[s3", "cannot be read"),
    ],
)
def test_nonsense_is_refused_by_name(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(TargetError, match=found):
        profiles.read_profile(own(tmp_path, text))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot be read"):
        profiles.read_profile(tmp_path / "none.toml")


def test_a_spread_meets_its_percentiles() -> None:
    spread = profiles.Spread(p50=15, p99=50)
    import math

    assert math.isclose(15 * math.exp(2.3263478740408408 * spread.sigma), 50)
    assert 15 < spread.mean < 50
