"""Pictures of plans; they need matplotlib, the extra "plot"."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from slicewise.errors import SlicewiseError
from slicewise.plan import Plan


def check_plotting() -> None:
    """Raise `SlicewiseError` when matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SlicewiseError(
            "plots need matplotlib; install it with: pip install 'slicewise[plot]'"
        )


def plot_frontier(plans: Sequence[Plan], path: Path) -> None:
    """Expected latency against cost, a point per plan with its number of slices."""
    check_plotting()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    latency = [plan.prediction.latency_ms or 0.0 for plan in plans]
    cost = [plan.prediction.cost_per_million_usd or 0.0 for plan in plans]
    axes.plot(latency, cost, color="tab:blue", marker="o", linewidth=1)
    for plan, x, y in zip(plans, latency, cost, strict=True):
        count = len(plan.slices)
        axes.annotate(
            f"{count} slice{'s' * (count != 1)}, {max(s.memory_mb for s in plan.slices):,} MB",
            (x, y), textcoords="offset points", xytext=(7, 5), fontsize=8,
        )  # fmt: skip
    axes.set_xlabel("expected latency of a warm request, ms")
    axes.set_ylabel("US dollars per million requests")
    axes.set_title(f"{plans[0].model.name}: plans that no other is both faster and cheaper than")
    axes.grid(alpha=0.3)
    axes.margins(0.15)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
