"""`calibrate`: measures a platform with small probe functions and writes its profile.

calibrate_site, calibrate_aws     a platform with the probes on it
calibrate_measure, calibrate_cold -> rows of times (calibrate_probe runs in the functions)
calibrate_fit                     -> the numbers of the cost model that explain them
calibrate_report, calibrate_plot  -> profile.toml, tables, a picture
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slicewise.errors import TargetError

from .calibrate_fit import fit
from .calibrate_measure import measure
from .calibrate_plot import check_plot, write_plot
from .calibrate_report import entries, one_step, profile_text, report_text
from .calibrate_rows import paired
from .calibrate_site import Site, local_site
from .profile import Profile, read_profile

SECONDS = 90.0


def calibrate(
    where: str,
    output: Path,
    profile: Profile,
    *,
    plot: Path | None = None,
    seconds: float = SECONDS,
    progress: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> str:
    """Measure `where` ("local" or "aws") for about `seconds`, write a profile to `output` and a
    picture to `plot`, and return tables for people.

    Options are those of `local_site` or `aws_site`. Raises `TargetError`.
    """
    if plot:
        check_plot()  # before the time is spent
    for path in (output, plot):
        if path and not path.resolve().parent.is_dir():
            raise TargetError(f"{path} cannot be written: its folder does not exist; make it first")
    with _site(where, profile, **options) as site:
        progress(f"{site.name}, emulated network {site.network}")
        rows = paired(measure(site, profile, seconds=seconds, progress=progress))
    found = fit(rows, profile.cpu.period_ms)
    numbers = entries(found, profile, site.architecture)
    measured = _measured(site)
    output.write_text(
        profile_text(numbers, measured=measured, architecture=site.architecture, region=site.region)
    )
    calibrated = read_profile(output)
    points = one_step(rows)
    if plot:
        write_plot(plot, calibrated, points, title=measured)
    text = report_text(numbers, found, calibrated, list(points))
    if site.region is None and os.getloadavg()[0] > (os.cpu_count() or 1):
        text += f"\nThis machine was busy ({_load()}): times of CPU and waits are too long.\n"
    return text


def _site(where: str, profile: Profile, **options: Any) -> AbstractContextManager[Site]:
    if where == "local":
        return local_site(profile, **options)
    if where == "aws":
        from .calibrate_aws import aws_site

        return aws_site(**options)
    raise TargetError(f"there is no platform {where!r} to calibrate; it can be 'local' or 'aws'")


def _measured(site: Site) -> str:
    """When, where and on what."""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    load = f", {_load()}" if site.region is None else ""
    return (
        f"{when}, {site.name}, emulated network {site.network}, "
        f"slicewise {version('slicewise')}{load}"
    )


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
