"""The graphs that the partitioner is measured on: public ones, and generated ones of several shapes."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from slicewise.graph import Op, OpGraph, Tensor, Weight
from slicewise.limits import MB, Limits

KB = 1024
WORKLOADS = Path(__file__).resolve().parents[1].parent / "shared" / "workloads"
PUBLIC = {
    "bert24": "LayerGraphs-bert24_inference.json",
    "resnet50": "LayerGraphs-resnet50_inference.json",
    "inceptionv3": "LayerGraphs-inceptionv3_inference.json",
    "bert-l3": "OperatorGraphs-bert_l-3_inference.json",
    "bert-l6": "OperatorGraphs-bert_l-6_inference.json",
}
Case = tuple[OpGraph, Limits]


def read_workload(name: str, max_slices: int | None = None) -> Case:
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
    limits = Limits(weight_bytes=int(data["maxSizePerFPGA"]), max_slices=max_slices)
    return build.done(), limits


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
        heaviest = max(weight.bytes for weight in self.weights)
        return graph, Limits(weight_bytes=max(heaviest, int(graph.weight_bytes / slices)))


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


def series_parallel(count: int, seed: int = 0) -> Case:
    """Stretches in series, each of one to six branches, which are stretches again, or ops."""
    pick, build = random.Random(seed), Builder(f"series-parallel, {count} ops")

    def stretch(x: str, ops: int) -> str:
        while ops > 0:
            within = min(ops, pick.randint(1, max(1, ops // 3) + 4))
            ops -= within
            if within < 6:
                for _ in range(within):
                    x = build.op([x], pick.randint(4, 64) * KB, pick.randint(0, 512) * KB)
                continue
            ways = pick.randint(2, 6)
            ends = [stretch(x, (within - 1) // ways) for _ in range(ways)]
            x = build.op(ends, pick.randint(4, 64) * KB)
        return x

    x = build.op([], 64 * KB, 64 * KB)
    while len(build.ops) < count:
        x = stretch(x, count - len(build.ops))
    return build.cut_in(12)


CASES: dict[str, Callable[[], Case]] = {
    **{name: partial(read_workload, name) for name in PUBLIC},
    "inceptionv3-9": partial(read_workload, "inceptionv3", max_slices=9),
    "layered-4": lambda: layered(12, 4, seed=1),
    "layered-16": lambda: layered(40, 16, seed=2),
    "layered-25600": lambda: layered(400, 64, seed=3),
    "inception-64": lambda: inception(64, 3),
    "inception-10195": lambda: inception(64, 40),
    "u-net": unet,
    "encoder-decoder": encoder_decoder,
    "experts": experts,
    "experts-12961": lambda: experts(48, 64),
    "series-parallel-20000": lambda: series_parallel(20_000),
    "chain-1000": lambda: chain(1_000),
    "chain-100000": lambda: chain(100_000),
    "blocks-100000": lambda: blocks(100_000),
}
