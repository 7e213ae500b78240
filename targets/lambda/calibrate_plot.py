"""The picture of `calibrate`: a tensor's way by every transport against its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from slicewise.crossover import choices, line
from slicewise.errors import TargetError

from .calibrate_site import FULL_MB
from .costs import cost_model
from .profile import Profile

COLORS = {"payload": "tab:blue", "s3": "tab:orange", "s3express": "tab:green"}
LEAST_BYTES = 4 * 1024
MOST_BYTES = 8 * 2**20


def check_plot() -> None:
    """Raise `TargetError` unless matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise TargetError(
            "the plot needs matplotlib; install it with: pip install 'slicewise[plot]', "
            "or leave out --plot"
        ) from error


def write_plot(
    path: Path,
    profile: Profile,
    points: Mapping[str, Sequence[tuple[int, float]]],
    *,
    title: str,
) -> None:
    """Write the picture: `points` are (bytes, ms) as measured, lines are the profile's medians."""
    check_plot()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    model = cost_model(_medians(profile), profile.limits.payload_bytes_max)
    model = replace(model, caller_memory_mb=FULL_MB)
    call = model.call.wait_ms + model.call.cpu_ms + model.handle.cpu_ms
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for way, measured in points.items():
        start, slope, most = line(model, model.transport(way), FULL_MB, (FULL_MB,))
        sizes = np.geomspace(LEAST_BYTES, most or MOST_BYTES, 200)
        axes.plot(sizes, call + start + slope * sizes, color=COLORS[way], label=f"{way}, fitted")
        axes.plot(*zip(*measured, strict=True), "o", color=COLORS[way], label=f"{way}, measured")
    for way in points if "payload" in points else ():
        if way == "payload":
            continue
        (first, size), *_ = choices(model, ("payload", way), FULL_MB, (FULL_MB,))
        start, slope, most = line(model, model.transport("payload"), FULL_MB, (FULL_MB,))
        if first != "payload" or size is None or size == most:
            continue  # no crossing: one is faster at all sizes that the payload can have
        axes.axvline(size, color=COLORS[way], linestyle=":", linewidth=1.2)
        axes.plot(size, call + start + slope * size, "D", color="black", markersize=6, zorder=5)
        axes.annotate(
            f"{way} is faster above {_bytes(size)}",
            (size, 0.02),
            xycoords=("data", "axes fraction"),
            # The lines may be close to each other: labels on either side of them.
            xytext=(3 if way == "s3" else -3, 0),
            textcoords="offset points",
            rotation=90,
            ha="left" if way == "s3" else "right",
            va="bottom",
            fontsize=9,
            color=COLORS[way],
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(LEAST_BYTES, MOST_BYTES)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _bytes(size)))
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, which="major", linewidth=0.4)
    axes.set_xlabel("bytes of the tensor")
    axes.set_ylabel("ms, median")
    axes.set_title(
        f"One call and one tensor from slice to slice, {FULL_MB:,} MB each\n{fill(title, 90)}",
        fontsize=9,
    )
    axes.legend(fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _medians(profile: Profile) -> Profile:
    """The profile with waits that do not vary, so that expected times are medians."""

    def steady(value: Any) -> Any:
        if isinstance(value, dict):
            value = {key: steady(each) for key, each in value.items()}
            if "p99" in value:
                value["p99"] = value["p50"]
        return value

    return Profile.model_validate(steady(profile.model_dump(by_alias=True)))


def _bytes(size: float) -> str:
    """In the unit that a reader expects, powers of 1,024."""
    if size < 1024:
        return f"{size:.0f} B"
    if size < 2**20:
        return f"{size / 1024:.3g} KiB"
    return f"{size / 2**20:.3g} MiB"
