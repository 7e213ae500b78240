"""Calibrating the local platform finds the waits and the bandwidth of the network that it emulates."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

calibration = importlib.import_module("slicewise.targets.lambda.calibrate")
fits = importlib.import_module("slicewise.targets.lambda.calibrate_fit")
measuring = importlib.import_module("slicewise.targets.lambda.calibrate_measure")
rows = importlib.import_module("slicewise.targets.lambda.calibrate_rows")
profiles = importlib.import_module("slicewise.targets.lambda.profile")
sites = importlib.import_module("slicewise.targets.lambda.calibrate_site")
DEFAULT = profiles.default_profile()
PLATFORM_MS = 1.5  # a call or an object without a network: `calibrate local` finds 0.5 to 1.4


def emulated(bytes_s: float, **p50_ms: float) -> Any:
    """The default profile with other waits, by their names with `_` for the dot; they vary little."""
    parts: dict[str, dict[str, Any]] = {}
    for name, p50 in p50_ms.items():
        section, _, key = name.partition("_")
        parts.setdefault(section, {})[key] = profiles.Spread(p50=p50, p99=1.2 * p50)
    update = {
        section: getattr(DEFAULT, section).model_copy(update=values)
        for section, values in parts.items()
    }
    network = DEFAULT.network.model_copy(update={"bytes_s": bytes_s})
    return DEFAULT.model_copy(update={**update, "network": network})


def test_the_emulated_network_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits unlike the default's, so long that this machine's own time is a small part of them."""
    for name, few in {"SMALL_COUNT": 10, "COUNT": 2, "COLD_ROUNDS": 1}.items():
        monkeypatch.setattr(measuring, name, few)
    monkeypatch.setattr(measuring, "OBJECT_BYTES", (8_000, 1_000_000))
    monkeypatch.setattr(measuring, "PAYLOAD_BYTES", (8_000, 800_000))
    profile = emulated(1.6e6, call_wait_ms=120, s3_put_ms=150, s3_get_ms=110)
    with sites.local_site(profile, network="aws", memories_mb=[1769]) as site:
        site = replace(site, buckets={"s3": site.buckets["s3"]})
        measured = rows.paired(measuring.measure(site, profile, seconds=0.0))
        found = fits.fit(measured, profile.cpu.period_ms).numbers

    for name, truth in {
        "call.wait_ms": 120,
        "s3.put_ms": 150,
        "s3.get_ms": 110,
        "network.byte_ns": 625,
    }.items():
        assert found[name].p50 == pytest.approx(truth, rel=0.15), name
        assert not found[name].problem
    assert not any(name.startswith("s3express") for name in found)


@pytest.mark.slow
def test_the_default_profiles_network_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As surely as it says: of waits that vary as much as S3's, a minute tells the median to some 6 %.
    Not S3 Express: this machine needs about as long as it waits.
    """
    if os.getloadavg()[0] > (os.cpu_count() or 1):
        pytest.skip("this machine is busy: what it adds to the waits would be measured, too")
    made: list[Any] = []

    def fit(*arguments: Any) -> Any:
        made.append(fits.fit(*arguments))
        return made[-1]

    monkeypatch.setattr(calibration, "fit", fit)
    text = calibration.calibrate("local", tmp_path / "p.toml", DEFAULT, network="aws")
    found = made[0].numbers

    for name, truth in {
        "s3.put_ms": DEFAULT.s3.put_ms.p50,
        "s3.get_ms": DEFAULT.s3.get_ms.p50,
        "call.wait_ms": DEFAULT.call.wait_ms.p50,
        "network.byte_ns": 1e9 / DEFAULT.network.bytes_s,
    }.items():
        number = found[name]
        own = PLATFORM_MS if name.endswith("_ms") else 0.1 * truth
        assert abs(number.p50 - truth) <= 3 * number.error + own, number
        assert number.error < 0.15 * truth, number
    assert "payload up to" in text
    assert "emulated network aws (seed 0)" in (tmp_path / "p.toml").read_text()
