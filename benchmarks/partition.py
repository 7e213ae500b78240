"""The partitioner against four baselines on public and generated graphs, in one table.

    python benchmarks/partition.py [--quick] [--seconds 60] [--only NAME ...]

Baselines, all measured in the same run: `fill` fills each slice until full, `equal` cuts equal numbers
of nodes with the fewest slices that fit, `order` is the best cut along the graph's own order, `cp-sat`
is a plain model (one monotone variable per node and boundary, one per tensor and receiving slice)
without reductions and hints, which is given the number of slices of the partitioner's answer.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from graphs import CASES

from slicewise.graph import OpGraph
from slicewise.limits import MB, Limits, Overheads
from slicewise.passes import partition
from slicewise.passes.partitioning.ground import ground
from slicewise.passes.partitioning.order import cut_order
from slicewise.passes.partitioning.problem import Problem, cost, fits
from slicewise.passes.partitioning.recompute import relaxation


@dataclass(frozen=True, slots=True)
class Row:
    """What one method reached on one graph; None where it has no such thing."""

    method: str
    slices: int | None = None
    bytes: int | None = None
    bound: int | None = None
    status: str = ""
    seconds: float = 0.0
    memory_mb: float | None = None


# The most MiB each public graph may take and the status it must have (shared/PRIOR_ART.md).
CLAIMED = {
    "bert24": (8.0, "optimal"),
    "resnet50": (2621.5, "optimal"),
    "inceptionv3": (1814.7, ""),
    "inceptionv3-9": (1814.7, ""),
    "bert-l3": (372.665, "optimal"),
    "bert-l6": (381.73, "optimal"),
}
SLOW = {"layered-16", "inception-64", *(name for name in CASES if name[-5:].isdigit())}


def fill(problem: Problem) -> list[int] | None:
    slice_of: list[int] = []
    ((amounts, cap),) = problem.resources
    held = index = 0
    for node in range(problem.size):
        amount = sum(amounts[load] for load in problem.held[node])
        if held + amount > cap:
            held, index = 0, index + 1
        held += amount
        slice_of.append(index)
    return slice_of if fits(problem, slice_of) else None


def equal(problem: Problem) -> list[int] | None:
    for count in range(1, problem.size + 1):
        slice_of = [node * count // problem.size for node in range(problem.size)]
        if fits(problem, slice_of):
            return slice_of
    return None


def plain_cp_sat(problem: Problem, slices: int, seconds: float) -> Row:
    from ortools.sat.python import cp_model

    started = time.perf_counter()
    model = cp_model.CpModel()
    nodes, last = range(problem.size), slices - 1
    upto = [[model.new_bool_var("") for _ in range(last)] + [1] for _ in nodes]
    runs = [[upto[v][k] - (upto[v][k - 1] if k else 0) for k in range(slices)] for v in nodes]
    for v in nodes:
        for k in range(last - 1):
            model.add_implication(upto[v][k], upto[v][k + 1])
        for other in problem.succs[v]:
            for k in range(last):
                model.add_implication(upto[other][k], upto[v][k])
    ((amounts, cap),) = problem.resources
    for k in range(slices):
        model.add(sum(amounts[load] * runs[v][k] for v in nodes for load in problem.held[v]) <= cap)
    total = []
    for net in problem.nets:
        for k in range(1, slices):
            received = model.new_bool_var("")
            for v in net.readers:
                model.add(received >= runs[v][k] - runs[net.producer][k])
            total.append(net.bytes * received)
    model.minimize(sum(total))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = 2
    status = solver.solve(model)
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    return Row(
        "cp-sat",
        slices if found else None,
        round(solver.objective_value) if found else None,
        max(0, math.ceil(solver.best_objective_bound - 1e-6)),
        solver.status_name(status).lower(),
        time.perf_counter() - started,
    )


def timed(method: str, problem: Problem, run: Callable[[], list[int] | None]) -> Row:
    started = time.perf_counter()
    slice_of = run()
    seconds = time.perf_counter() - started
    if slice_of is None:
        return Row(method, status="none", seconds=seconds)
    return Row(method, max(slice_of) + 1, cost(problem, slice_of), seconds=seconds)


def solve(name: str, seconds: float) -> Row:
    """The partitioner's row; meant for a process of its own, whose peak memory it reports."""
    from ortools.sat.python import cp_model  # noqa: F401 - imported before the clock starts, as theirs

    graph, limits = CASES[name]()
    found = partition(graph, limits, time_limit_s=seconds, workers=2)
    proof = found.certificate
    return Row(
        "slicewise",
        len(found.slices),
        found.cross_slice_bytes,
        proof.lower_bound,
        proof.status,
        proof.seconds,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def compare(name: str, graph: OpGraph, limits: Limits, seconds: float) -> list[Row]:
    """The baselines' rows, plain CP-SAT's last, and then the partitioner's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        ours = pool.submit(solve, name, seconds).result()
    assert ours.slices is not None
    problem = relaxation(ground(graph, limits, Overheads()))
    rows = [
        timed("fill", problem, lambda: fill(problem)),
        timed("equal", problem, lambda: equal(problem)),
        timed("order", problem, lambda: cut_order(problem, range(problem.size))),
    ]
    if problem.size * ours.slices <= 50_000:
        rows.append(plain_cp_sat(problem, ours.slices, seconds))
    else:
        rows.append(Row("cp-sat", status="too large"))
    return [*rows, ours]


def show_mib(amount: int | None) -> str:
    return "-" if amount is None else f"{amount / MB:,.3f}"


def show(name: str, row: Row) -> str:
    slices = "-" if row.slices is None else str(row.slices)
    cells = f"{slices:>6} {show_mib(row.bytes):>11} {show_mib(row.bound):>11} {row.status:>10}"
    memory = "" if row.memory_mb is None else f" {row.memory_mb:>7,.0f}"
    return f"{name:<34} {row.method:<9} {cells} {row.seconds:>8.2f}{memory}"


def claims(found: dict[str, list[Row]]) -> list[str]:
    """What the project claims of these graphs, and whether it held in this run."""
    lines = []
    for name, (most, status) in CLAIMED.items():
        if name not in found:
            continue
        ours = found[name][-1]
        assert ours.bytes is not None and ours.bound is not None
        gap = (ours.bytes - ours.bound) / ours.bytes if ours.bytes else 0.0
        held = ours.bytes <= most * MB and (not status or ours.status == status)
        wanted = f"{name}: at most {most:,.2f} MiB" + (", proven within 10 s" if status else "")
        held = held and (not status or ours.seconds <= 10)
        lines.append(_claim(wanted, held, f"{show_mib(ours.bytes)} MiB, gap {gap:.1%}", ours))
    for name in [name for name in found if name.endswith("-100000")]:
        ours = found[name][-1]
        assert ours.bytes and ours.bound is not None and ours.memory_mb is not None
        gap = (ours.bytes - ours.bound) / ours.bytes
        held = gap <= 0.05 and ours.seconds <= 62 and ours.memory_mb <= 2048
        wanted = f"{name}: gap at most 5 % in 60 s and 2 GB"
        lines.append(_claim(wanted, held, f"gap {gap:.1%}, {ours.memory_mb:,.0f} MB", ours))
    worse = [
        f"{name}: {row.method} by {1 - row.bytes / ours.bytes:.1%}"
        for name, (*baselines, ours) in found.items()
        for row in baselines
        if row.bytes is not None and ours.bytes is not None and row.bytes < ours.bytes
    ]
    lines.append(_claim("never above a baseline", not worse, ", ".join(worse) or "on none"))
    ratios = [
        plain.seconds / ours.seconds
        for *_, plain, ours in found.values()
        if ours.status == "optimal" and plain.bound is not None
    ]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        detail = (
            f"{mean:.1f} times as fast, geometric mean of {len(ratios)} graphs proven here; "
            "where CP-SAT ran out of time, its time limit counts"
        )
        lines.append(_claim("faster to proof than plain CP-SAT", mean > 1, detail))
    return lines


def _claim(wanted: str, held: bool, detail: str, row: Row | None = None) -> str:
    seconds = "" if row is None else f", {row.seconds:.1f} s"
    return f"{'held' if held else 'FAILED':<7} {wanted} ({detail}{seconds})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small graphs, 10 seconds each")
    parser.add_argument("--seconds", type=float, default=None, help="per solver and graph")
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=None)
    options = parser.parse_args()
    seconds = options.seconds or (10.0 if options.quick else 60.0)
    names = options.only or [name for name in CASES if not (options.quick and name in SLOW)]

    header = f"{'slices':>6} {'MiB':>11} {'bound':>11} {'status':>10} {'seconds':>8} {'MB':>7}"
    print(f"{'graph':<34} {'method':<9} {header}")
    began = time.perf_counter()
    found: dict[str, list[Row]] = {}
    for name in names:
        graph, limits = CASES[name]()
        found[name] = compare(name, graph, limits, seconds)
        for row in found[name]:
            print(show(f"{name} ({len(graph.ops)} ops)", row), flush=True)
    print("\n" + "\n".join(claims(found)))
    print(f"\n{len(found)} graphs in {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
