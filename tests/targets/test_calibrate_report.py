"""What `calibrate` writes: a profile that reads back, tables, a picture."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from slicewise.errors import TargetError

calibration = importlib.import_module("slicewise.targets.lambda.calibrate")
fits = importlib.import_module("slicewise.targets.lambda.calibrate_fit")
plots = importlib.import_module("slicewise.targets.lambda.calibrate_plot")
profiles = importlib.import_module("slicewise.targets.lambda.profile")
reports = importlib.import_module("slicewise.targets.lambda.calibrate_report")
DEFAULT = profiles.default_profile()


def number(name: str, p50: float, **fields: Any) -> Any:
    return fits.Number(
        name=name, p50=p50, **{"error": p50 / 20, "residual": 0.03, "count": 120, **fields}
    )


def fit_of(*numbers: Any) -> Any:
    return fits.Fit(numbers={each.name: each for each in numbers}, rows=(), predicted=())


def read_back(fit: Any, path: Path, region: str | None = None) -> tuple[Any, str]:
    found = reports.entries(fit, DEFAULT, "arm64")
    text = reports.profile_text(found, measured="now, here", architecture="arm64", region=region)
    path.write_text(text)
    return profiles.read_profile(path), text


def test_the_file_reads_back_and_changes_only_what_was_measured(tmp_path: Path) -> None:
    fit = fit_of(
        number("network.byte_ns", 20.0),
        number("call.wait_ms", 11.118, p99=31.0),
        number("payload.send_cpu_ns", 2.5),
        number("s3.get_ms", 54.0),
        number("cold.init_ms", 40.0),
        number("cold.load_ms", 3.0),
    )
    profile, text = read_back(fit, tmp_path / "profile.toml", "eu-south-1")

    assert profile.network.bytes_s == 50_000_000
    assert profile.call.wait_ms == profiles.Spread(p50=11.1, p99=31)
    assert profile.payload.send_cpu_ns == 2.5
    assert profile.s3.get_ms == profiles.Spread(p50=54, p99=226)  # the default's ratio
    assert profile.cold.init_ms["arm64"].p50 == 40
    assert (profile.architecture, profile.region) == ("arm64", "eu-south-1")
    same = {"network", "call", "payload", "s3", "cold", "architecture", "region"}
    assert profile.model_dump(exclude=same) == DEFAULT.model_dump(exclude=same)
    assert profile.call.cpu_ms == DEFAULT.call.cpu_ms
    assert profile.cold.init_ms["x86_64"] == DEFAULT.cold.init_ms["x86_64"]
    assert "# Measured by slicewise calibrate: now, here." in text


def test_every_number_has_a_comment_and_so_has_every_one_that_stays(tmp_path: Path) -> None:
    fit = fit_of(
        number("call.cpu_ms", 0.5), number("call.caller_cpu_ms", 0, problem="came out as 0")
    )
    _, text = read_back(fit, tmp_path / "profile.toml")
    lines = text.splitlines()

    assert "cpu_ms = 0.5  # the slice's clock; ± 5%, fit off by 3%, 120 times" in lines
    assert "# caller_cpu_ms stays 1.4: came out as 0" in lines
    assert "# bytes_s stays 78125000: not measured" in lines
    assert "# init_ms.arm64 stays { p50 = 81, p99 = 130 }: not measured" in lines
    assert all(
        "#" in line for line in lines if " = " in line and line[:6] not in ("schema", "archit")
    )
    assert tomllib.loads(text) == {
        "schema": 1, "architecture": "arm64", "call": {"cpu_ms": 0.5},
        "network": {}, "payload": {}, "s3": {}, "s3express": {}, "cold": {},
    }  # fmt: skip


def test_the_crossover_is_the_compilers_own() -> None:
    slow, slower = (
        DEFAULT.model_copy(
            update={"payload": DEFAULT.payload.model_copy(update={"receive_cpu_ns": cpu_ns})}
        )
        for cpu_ns in (40.0, 100.0)
    )
    for profile in (slow, slower):
        for _, choices in reports.crossovers(profile, ["payload", "s3"], [256, 1769]):
            assert [way for way, _ in choices] == ["payload", "s3"]
    at = [
        [
            choices[0][1]
            for _, choices in reports.crossovers(profile, ["payload", "s3"], [256, 1769])
        ]
        for profile in (slow, slower)
    ]
    assert at[0][0] < at[0][1]  # a small share encodes slowly
    assert at[1][0] < at[0][0]
    assert at[1][1] < at[0][1]


def points() -> dict[str, list[tuple[int, float]]]:
    return {
        "payload": [(8192, 19.0), (262_144, 26.0), (1_500_000, 58.0), (4_700_000, 160.0)],
        "s3": [(8192, 116.0), (524_288, 130.0), (2_097_152, 177.0), (6_291_456, 320.0)],
    }


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots.write_plot(tmp_path / "plot.png", DEFAULT, points(), title="a test")

    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(calibration, "measure", lambda *_, **__: pytest.fail("it measured"))

    with pytest.raises(TargetError, match=r"pip install 'slicewise\[plot\]'"):
        calibration.calibrate("local", tmp_path / "p.toml", DEFAULT, plot=tmp_path / "p.png")


def test_a_bad_place_or_platform_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="its folder does not exist"):
        calibration.calibrate("local", tmp_path / "nowhere" / "p.toml", DEFAULT)
    with pytest.raises(TargetError, match="no platform 'mars'"):
        calibration.calibrate("mars", tmp_path / "p.toml", DEFAULT)
    with pytest.raises(TargetError, match="'mars' is not known"):
        calibration.calibrate("local", tmp_path / "p.toml", DEFAULT, network="mars")


def test_report_tables_have_every_number() -> None:
    fit = fit_of(number("call.cpu_ms", 0.5))
    found = reports.entries(fit, DEFAULT, "x86_64")
    text = reports.report_text(found, fit, DEFAULT, ["payload", "s3"])

    for section, keys in reports.SECTIONS.items():
        for key in keys:
            assert f"{section}.{key}"[:24] in text
    assert text.count(" / s3 above") == 1
