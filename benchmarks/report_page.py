"""How long the HTML report takes to show, by the number of ops, in a real headless Chromium.

    python benchmarks/report_page.py

"first paint" and "ready" are the browser's own figures, from the start of the navigation to its first
contentful paint and to the end of the page's scripts; the median of RUNS loads. The baseline is the
same page of the same plan without its graph. The budget is 2 s until the first paint of 10,000 ops.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

import sample
from browser import chromium, opened

from slicewise.inspection.html_report import write_report
from slicewise.limits import Limits

RUNS = 5
BUDGET_MS = 2000
SLICES = 8


def main() -> None:
    table = Table(title=f"The report in Chromium, median of {RUNS} loads")
    for column in ("ops", "graph", "written in", "size", "first paint", "ready", "unfolding"):
        table.add_column(column, justify="left" if column == "graph" else "right")
    late = []
    with chromium() as browser, tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "report.html"
        for layers in (10, 100, 1000):
            graph = sample.stack(layers)
            weight_bytes = max(80_000, int(graph.weight_bytes / SLICES * 1.1))
            plan, detail = sample.planned(graph, Limits(weight_bytes=weight_bytes))
            for shown in (None, detail):
                started = time.perf_counter()
                write_report(file, plan, shown)
                written_ms = (time.perf_counter() - started) * 1e3
                loads = [load(browser, file) for _ in range(RUNS)]
                paint, ready, unfold = (
                    statistics.median(values) for values in zip(*loads, strict=True)
                )
                table.add_row(
                    f"{len(graph.ops):,}",
                    "yes" if shown else "no",
                    f"{written_ms:,.0f} ms",
                    f"{file.stat().st_size / 2**20:.1f} MB",
                    f"{paint:,.0f} ms",
                    f"{ready:,.0f} ms",
                    f"{unfold:,.0f} ms" if shown else "",
                )
                if paint > BUDGET_MS:
                    late.append(len(graph.ops))
    Console(width=100).print(table)
    print("over the budget of 2 s: " + (", ".join(map(str, late)) if late else "none"))


def load(browser: Any, file: Path) -> tuple[float, float, float]:
    """First contentful paint, end of scripts, and the time to unfold one module, ms."""
    window = opened(browser, file)
    window.page.wait_for_function(
        "() => performance.getEntriesByName('first-contentful-paint').length > 0"
    )
    found = window.page.evaluate(
        """() => {
            const paint = performance.getEntriesByName('first-contentful-paint')[0].startTime;
            const ready = performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd;
            const module = document.querySelector('.node[aria-expanded=false]');
            const started = performance.now();
            if (module) module.dispatchEvent(new MouseEvent('click'));
            return [paint, ready, performance.now() - started];
        }"""
    )
    window.page.close()
    return tuple(found)


if __name__ == "__main__":
    main()
