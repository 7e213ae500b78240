"""The published systems as baselines: their cut, their threshold, and their encoder.

The cut: consecutive layers with compute as equal as the limits allow, in the fewest slices. Gillis
merges branches so that its graph is a chain, so boundaries that one tensor crosses are preferred; a
block whose weights fit no function is cut inside, which is better than no baseline. A boundary whose
tensors exceed the payload is none; `moved` tells which these are.

The encoder: every element by `struct.pack`, its decoder by `struct.unpack_from`, and messages read and
written by `json` at every hop, as appendices to the runtime that a bundle ships. What goes to S3 goes as
raw bytes, and the coordinator checks the request as it does for every row: both favour the baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from slicewise.errors import InfeasibleError
from slicewise.limits import Overheads
from slicewise.passes import Partition
from slicewise.passes.partitioning.ground import Ground, breaks, ground, measure
from slicewise.passes.partitioning.partitioner import describe
from slicewise.pipeline import Work
from slicewise.plan import Certificate

THRESHOLD_BYTES = 800_000  # a tensor of so many bytes goes to S3
LAYERS = ("conv", "linear", "addmm", "mm", "pool")  # other ops stay with the layer before them

WIRE = """

import base64
import struct

import numpy as np


def inline(record, raw):
    packed = b"".join(struct.pack("<f", value) for value in np.frombuffer(raw, "<f4"))
    return {**record, "data": base64.b64encode(packed).decode()}


def decode_inline(field, record):
    raw = base64.b64decode(record["data"])
    values = [struct.unpack_from("<f", raw, at)[0] for at in range(0, len(raw), 4)]
    return np.array(values, "<f4").tobytes()
"""

MESSAGES = """

def lift(raw, field):
    return json.loads(bytes(raw) or b"{}")


def join(message, field, records):
    texts = {
        name: {**record, "data": bytes(record["data"]).decode()}
        if isinstance(record.get("data"), (bytes, memoryview)) else record
        for name, record in records.items()
    }
    return json.dumps({**message, field: texts}).encode()
"""


def equal_compute(work: Work, overheads: Overheads) -> Partition:
    """The published cut, under all limits of `work` and of `overheads` (the payload's is there).

    Raises `InfeasibleError` when no boundaries between layers keep them.
    """
    base = ground(work.graph, work.limits, overheads)
    points = _points(base)
    chosen = cut(base, points)
    if chosen is None:
        raise InfeasibleError("no cut between layers keeps the limits", limit_name="payload_bytes")
    layout = [set(range(a, b)) for a, b in pairwise(chosen)]
    crossing, parts = describe(base, layout)
    nothing = Certificate(
        status="bounded", lower_bound=0.0, gap=1.0, method="equal compute", seconds=0.0
    )
    return Partition(slices=parts, cross_slice_bytes=crossing, certificate=nothing)


def moved(work: Work, overheads: Overheads) -> str:
    """What the payload's limit changes in the published cut, in words; "" if nothing."""
    base = ground(work.graph, work.limits, overheads)
    points = _points(base)
    bound = cut(base, points)
    free = cut(replace(base, overheads=replace(overheads, max_edge_bytes=None)), points)
    if bound == free or bound is None or free is None:
        return ""

    def names(boundaries: Sequence[int]) -> str:
        return ", ".join(
            f"{work.graph.ops[at].name} ({sum(base.cost[t] for t in _crossing(base, at)):,} bytes)"
            for at in boundaries
        )

    gone = [at for at in free if at not in bound]
    new = [at for at in bound if at not in free]
    return f"for the payload, boundaries before {names(gone)} moved to {names(new)}"


def use_published_encoder(bundle: Path) -> None:
    """Give every function of a written bundle the published way to encode and to pass on."""
    for runtime in sorted(bundle.glob("functions/*/slicewise_runtime")):
        _append(runtime / "messages.py", MESSAGES)
        if runtime.parent.name != "coordinator":
            _append(runtime / "wire.py", WIRE)


def _append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


def _points(base: Ground) -> list[int]:
    """Numbers of ops that may begin a slice, and the end."""
    ops = base.graph.ops
    inner = [i for i in range(1, len(ops)) if any(kind in ops[i].kind for kind in LAYERS)]
    return [0, *inner, len(ops)]


def _crossing(base: Ground, at: int) -> list[int]:
    """Tensors that ops before `at` make and others read."""
    return [
        t
        for t, maker in enumerate(base.producer)
        if 0 <= maker < at and any(reader >= at for reader in base.readers[t])
    ]


def cut(base: Ground, points: Sequence[int]) -> list[int] | None:
    """Where slices begin, and the end: the fewest slices, then the fewest boundaries that several
    tensors cross, then the least compute in the largest slice; by dynamic programming, exactly.
    """
    last = len(points) - 1
    times = [op.time for op in base.graph.ops]
    branched = [len(_crossing(base, at)) > 1 for at in points]
    steps = [
        (i, j, sum(times[points[i] : points[j]]))
        for j in range(1, last + 1)
        for i in range(j)
        if not breaks(base, measure(base, range(points[i], points[j])))
    ]
    reached: dict[int, tuple[int, float, list[int]]] = {0: (0, 0.0, [0])}
    for _ in range(last):
        following: dict[int, tuple[int, float, list[int]]] = {}
        for i, j, ms in steps:
            if i in reached:
                crossed, most, path = reached[i]
                new = (crossed + branched[j], max(most, ms), [*path, points[j]])
                if j not in following or new < following[j]:
                    following[j] = new
        if last in following:
            return following[last][2]
        reached = following
    return None
