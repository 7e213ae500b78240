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
    """Expected latency against cost, a numbered point per plan, and the functions of each."""
    check_plotting()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    latency = [plan.prediction.latency_ms or 0.0 for plan in plans]
    cost = [plan.prediction.cost_per_million_usd or 0.0 for plan in plans]
    axes.plot(latency, cost, color="tab:blue", marker="o", linewidth=1)
    for number, place in enumerate(zip(latency, cost, strict=True), 1):
        axes.annotate(str(number), place, textcoords="offset points", xytext=(5, 4), fontsize=8)
    told = [f"{number}  {_functions(plan)}" for number, plan in enumerate(plans, 1)]
    # A frontier falls, steeply at first: nothing is drawn up there.
    axes.text(
        0.98, 0.97, "\n".join(told), transform=axes.transAxes, ha="right", va="top", fontsize=8,
        linespacing=1.4, family="monospace",
    )  # fmt: skip
    axes.set_xlabel("expected latency of a warm request, ms")
    axes.set_ylabel("US dollars per million requests")
    axes.set_title(f"{plans[0].model.name}: plans that no other is both faster and cheaper than")
    axes.grid(alpha=0.3)
    axes.margins(0.15)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _functions(plan: Plan) -> str:
    count = len(plan.slices)
    sizes = f"{count} slice{'s' * (count != 1)} of {max(s.memory_mb for s in plan.slices):,} MB"
    return f"{sizes}, coordinator {plan.coordinator_memory_mb:,} MB"
