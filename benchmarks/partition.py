"""The partitioner against four baselines on public and generated graphs, in one table.

    python benchmarks/partition.py [--quick] [--seconds 60] [--only NAME ...]

Baselines, all measured in the same run: `fill` fills each slice until full, `equal` cuts equal numbers
of nodes with the fewest slices that fit, `order` is the best cut along the graph's own order, `cp-sat`
is a plain model (one monotone variable per node and boundary, one per tensor and receiving slice)
without reductions and hints, which is given the number of slices of the partitioner's answer.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from slicewise.graph import Op, OpGraph, Tensor, Weight
from slicewise.limits import MB, Limits, Overheads
from slicewise.passes import partition
from slicewise.passes.partitioning.ground import ground
from slicewise.passes.partitioning.order import cut_order
from slicewise.passes.partitioning.problem import Problem, cost, fits
from slicewise.passes.partitioning.recompute import relaxation

KB = 1024
WORKLOADS = Path(__file__).resolve().parents[1].parent / "shared" / "workloads"
PUBLIC = {
    "bert24": "LayerGraphs-bert24_inference.json",
    "resnet50": "LayerGraphs-resnet50_inference.json",
    "inceptionv3": "LayerGraphs-inceptionv3_inference.json",
    "bert-l3": "OperatorGraphs-bert_l-3_inference.json",
    "bert-l6": "OperatorGraphs-bert_l-6_inference.json",
}
Case = tuple[OpGraph, int]  # a graph and the most bytes of weights in a slice


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


def read_workload(name: str) -> Case:
    path = WORKLOADS / PUBLIC[name]
    if not path.exists():
        sys.exit(f"{path} is missing. The public graphs belong in {WORKLOADS}; see its README.md.")
    data = json.loads(path.read_text())
    size: dict[int, int] = {}
    before: dict[int, list[int]] = {node["id"]: [] for node in data["nodes"]}
    for edge in data["edges"]:
        size[edge["sourceId"]] = max(size.get(edge["sourceId"], 0), int(edge["size"]))
        before[edge["destId"]].append(edge["sourceId"])
    build = Builder(name)
    weight = {node["id"]: int(node["size"]) for node in data["nodes"]}
    made: dict[int, str] = {}
    while len(made) < len(before):
        for node, inputs in before.items():
            if node not in made and all(source in made for source in inputs):
                reads = [made[source] for source in inputs]
                made[node] = build.op(reads, size.get(node, 0), weight[node])
    return build.done(), int(data["maxSizePerFPGA"])


class Builder:
    """Ops one after the other, each with one output and at most one weight."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ops: list[Op] = []
        self.tensors: list[Tensor] = []
        self.weights: list[Weight] = []

    def op(self, inputs: Iterable[str], size: int, weight: int = 0) -> str:
        name = f"op{len(self.ops)}"
        self.tensors.append(Tensor(name=name, producer=name, bytes=size, max_bytes=size))
        if weight:
            self.weights.append(Weight(name=f"{name}.w", bytes=weight, memory_bytes=weight))
        self.ops.append(
            Op(
                name=name,
                inputs=tuple(dict.fromkeys(inputs)),
                outputs=(name,),
                weights=(f"{name}.w",) if weight else (),
            )
        )
        return name

    def size(self, name: str) -> int:
        return self.tensors[int(name[2:])].bytes

    def done(self) -> OpGraph:
        read = {name for op in self.ops for name in op.inputs}
        return OpGraph(
            name=self.name,
            ops=tuple(self.ops),
            tensors=tuple(self.tensors),
            weights=tuple(self.weights),
            outputs=tuple(op.name for op in self.ops if op.name not in read),
        )

    def cut_in(self, slices: float) -> Case:
        """The graph, and a limit on weights that takes about this many slices."""
        graph = self.done()
        return graph, max(max(w.bytes for w in self.weights), int(graph.weight_bytes / slices))


def layered(layers: int, width: int, seed: int) -> Case:
    pick, build = random.Random(seed), Builder(f"layered {layers}x{width}")
    last: list[str] = []
    for _ in range(layers):
        last = [
            build.op(
                pick.sample(last, min(2, len(last))),
                pick.randint(1, 64) * KB,
                pick.randint(1, 8) * MB,
            )
            for _ in range(width)
        ]
    return build.cut_in(5.5)


def inception(branches: int, blocks: int, seed: int = 0) -> Case:
    pick, build = random.Random(seed), Builder(f"inception-like {branches}x{blocks}")
    x = build.op([], 256 * KB, MB)
    for _ in range(blocks):
        ends = []
        for _ in range(branches):
            y = x
            for _ in range(pick.randint(1, 3)):
                y = build.op([y], pick.randint(4, 32) * KB, pick.randint(64, 1024) * KB)
                y = build.op([y], build.size(y))
            ends.append(y)
        x = build.op(ends, sum(map(build.size, ends)))
    return build.cut_in(5)


def unet(skips: int = 8) -> Case:
    build, side, channels = Builder(f"u-net, {skips} skips"), 512, 3

    def conv(x: str, read: int, made: int) -> str:
        x = build.op([x], made * side * side * 4, read * made * 36)
        return build.op([x], made * side * side * 4)

    x = build.op([], channels * side * side * 4)
    kept = []
    for depth in range(skips):
        wide = min(16 * 2**depth, 1024)
        x = conv(conv(x, channels, wide), wide, wide)
        kept.append((x, wide))
        channels, side = wide, side // 2
        x = build.op([x], channels * side * side * 4)
    x = conv(x, channels, channels)
    for skip, wide in reversed(kept):
        side *= 2
        x = build.op([x], wide * side * side * 4, channels * wide * 16)
        x = build.op([x, skip], 2 * wide * side * side * 4)
        x = conv(conv(x, 2 * wide, wide), wide, wide)
        channels = wide
    return build.cut_in(6)


def encoder_decoder(layers: int = 24, wide: int = 1024, read: int = 128, made: int = 64) -> Case:
    build, heads = Builder(f"encoder-decoder, {layers} layers"), 16

    def attend(q: str, kv: str, rows: int, columns: int, mask: str) -> str:
        def project(x: str, n: int) -> str:
            return build.op([build.op([x], n * wide * 4, wide * wide * 4)], n * wide * 4)

        query, key, value = project(q, rows), project(kv, columns), project(kv, columns)
        scores = build.op([query, key], heads * rows * columns * 4)
        scores = build.op([scores, mask], heads * rows * columns * 4)
        scores = build.op([scores], heads * rows * columns * 4)
        return project(build.op([scores, value], rows * wide * 4), rows)

    def add(x: str, y: str, n: int) -> str:
        return build.op([build.op([x, y], n * wide * 4)], n * wide * 4, wide * 8)

    def feed(x: str, n: int) -> str:
        y = build.op([build.op([x], n * wide * 16, wide * wide * 16)], n * wide * 16)
        return build.op([y], n * wide * 4, wide * wide * 16)

    masks = [build.op([], rows * columns * 4) for rows, columns in ((read, read), (made, made))]
    masks.append(build.op([], made * read * 4))
    x = build.op([], read * wide * 4, 64 * MB)
    for _ in range(layers):
        x = add(x, attend(x, x, read, read, masks[0]), read)
        x = add(x, feed(x, read), read)
    y = build.op([], made * wide * 4, 64 * MB)
    for _ in range(layers):
        y = add(y, attend(y, y, made, made, masks[1]), made)
        y = add(y, attend(y, x, made, read, masks[2]), made)
        y = add(y, feed(y, made), made)
    build.op([y], made * 32 * KB * 4, 64 * MB)
    return build.cut_in(5.5)


def experts(layers: int = 8, count: int = 16, wide: int = 1024, rows: int = 128) -> Case:
    build, size = Builder(f"mixture of experts {layers}x{count}"), rows * wide * 4
    x = build.op([], size, 64 * MB)
    for _ in range(layers):
        q, k, v = (build.op([x], size, wide * wide * 4) for _ in range(3))
        scores = build.op([build.op([q, k], 16 * rows * rows * 4)], 16 * rows * rows * 4)
        mixed = build.op([build.op([scores, v], size)], size, wide * wide * 4)
        x = build.op([build.op([x, mixed], size)], size, wide * 8)
        gate = build.op([build.op([x], rows * count * 4, wide * count * 4)], rows * count * 4)
        ends = []
        for _ in range(count):
            rows_in = build.op([x, gate], size // 4)
            hidden = build.op([rows_in], size // 2, wide * wide * 8)
            ends.append(build.op([build.op([hidden], size // 2)], size // 4, wide * wide * 8))
        x = build.op([build.op([x, build.op([*ends, gate], size)], size)], size, wide * 8)
    return build.cut_in(5.5)


def chain(count: int, seed: int = 0) -> Case:
    pick, build = random.Random(seed), Builder(f"chain with skips, {count} ops")
    made = [build.op([], 64 * KB, 64 * KB)]
    for index in range(1, count):
        reads = [made[-1]]
        if pick.random() < 0.1:
            reads.append(made[max(0, index - pick.randint(2, 50))])
        made.append(build.op(reads, pick.randint(16, 128) * KB, pick.randint(0, 64) * KB))
    return build.cut_in(12)


def blocks(count: int, seed: int = 0) -> Case:
    pick, build = random.Random(seed), Builder(f"branching blocks, {count} ops")
    x = build.op([], 64 * KB, 64 * KB)
    while len(build.ops) < count:
        ends = []
        for _ in range(4):
            y = x
            for _ in range(pick.randint(1, 5)):
                y = build.op([y], pick.randint(16, 64) * KB, pick.randint(16, 64) * KB)
            ends.append(y)
        x = build.op([x, *ends], 128 * KB)
    return build.cut_in(12)


CASES: dict[str, Callable[[], Case]] = {
    **{name: partial(read_workload, name) for name in PUBLIC},
    "layered-4": lambda: layered(12, 4, seed=1),
    "layered-16": lambda: layered(40, 16, seed=2),
    "inception-64": lambda: inception(64, 3),
    "u-net": unet,
    "encoder-decoder": encoder_decoder,
    "experts": experts,
    "chain-1000": lambda: chain(1_000),
    "chain-100000": lambda: chain(100_000),
    "blocks-100000": lambda: blocks(100_000),
}
# The most MiB each public graph may take and the status it must have (shared/PRIOR_ART.md).
CLAIMED = {
    "bert24": (8.0, "optimal"),
    "resnet50": (2621.5, "optimal"),
    "inceptionv3": (1814.7, ""),
    "bert-l3": (372.665, "optimal"),
    "bert-l6": (381.73, "optimal"),
}
SLOW = {"chain-100000", "blocks-100000", "layered-16", "inception-64"}


def fill(problem: Problem) -> list[int]:
    slice_of: list[int] = []
    ((amounts, cap),) = problem.resources
    held = index = 0
    for node in range(problem.size):
        amount = sum(amounts[load] for load in problem.held[node])
        if held + amount > cap:
            held, index = 0, index + 1
        held += amount
        slice_of.append(index)
    return slice_of


def equal(problem: Problem) -> list[int]:
    for count in range(1, problem.size + 1):
        slice_of = [node * count // problem.size for node in range(problem.size)]
        if fits(problem, slice_of):
            return slice_of
    raise AssertionError("one node a slice must fit")


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

    graph, cap = CASES[name]()
    found = partition(graph, Limits(weight_bytes=cap), time_limit_s=seconds, workers=2)
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


def compare(name: str, graph: OpGraph, cap: int, seconds: float) -> list[Row]:
    """The baselines' rows, plain CP-SAT's last, and then the partitioner's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        ours = pool.submit(solve, name, seconds).result()
    assert ours.slices is not None
    problem = relaxation(ground(graph, Limits(weight_bytes=cap), Overheads()))
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
        graph, cap = CASES[name]()
        found[name] = compare(name, graph, cap, seconds)
        for row in found[name]:
            print(show(f"{name} ({len(graph.ops)} ops)", row), flush=True)
    print("\n" + "\n".join(claims(found)))
    print(f"\n{len(found)} graphs in {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
