"""Why a graph cannot be partitioned: the op, its bytes, the limit, the smallest that works."""

from __future__ import annotations

import time
from dataclasses import replace

from slicewise.errors import InfeasibleError
from slicewise.limits import MB
from slicewise.passes.partitioning.ground import Ground, measure

_FEW_OPS = 200  # ops up to which the smallest memory that works is searched for
_TRYING = 3.0  # seconds for that


def refuse_impossible(base: Ground) -> None:
    """Raise `InfeasibleError` if some op cannot be in any slice, whatever else is in it."""
    _refuse_overheads(base)
    cap = base.weight_cap
    if cap is not None and base.uses:
        held = [sum(base.weight_bytes[w] for w in weights) for weights in base.uses]
        worst = max(range(len(held)), key=held.__getitem__)
        if held[worst] > cap:
            raise _too_heavy(base, worst, held[worst], cap)
    memory_cap = base.memory_cap
    if memory_cap is not None and base.uses:
        needs = [_least_memory(base, op) for op in range(len(base.uses))]
        worst = max(range(len(needs)), key=needs.__getitem__)
        if needs[worst] > memory_cap:
            raise _too_large(base, worst, needs[worst])


def _least_memory(base: Ground, op: int) -> int:
    """What the op takes in any slice: its weights, scratch, and what it reads and makes."""
    weights = sum(base.weight_memory[w] for w in base.uses[op])
    roots = {base.root[t] for t in (*base.reads[op], *base.makes[op])}
    # A view of a tensor from elsewhere may be smaller than its root; count what is read at least.
    held = {root: base.size[root] for root in roots}
    for t in base.reads[op]:
        root = base.root[t]
        held[root] = min(held[root], base.size[t])
    return weights + base.scratch[op] + sum(held.values())


def _refuse_overheads(base: Ground) -> None:
    overheads, limits = base.overheads, base.limits
    if limits.package_mb is not None and overheads.package_bytes > limits.package_mb * MB:
        smallest = -(-overheads.package_bytes // MB)
        raise InfeasibleError(
            f"The function's runtime alone takes {_mb(overheads.package_bytes)} of the package, "
            f"more than the limit of {limits.package_mb:g} MB. Raise package_mb above {smallest}.",
            limit_name="package_mb",
            needed=smallest,
            limit=int(limits.package_mb),
            smallest_limit=smallest,
        )
    if limits.memory_mb is not None and overheads.memory_bytes > limits.memory_mb * MB:
        smallest = -(-overheads.memory_bytes // MB)
        raise InfeasibleError(
            f"The function alone takes {_mb(overheads.memory_bytes)} of memory, more than the "
            f"limit of {limits.memory_mb} MB. Raise memory_mb above {smallest} MB.",
            limit_name="memory_mb",
            needed=smallest,
            limit=limits.memory_mb,
            smallest_limit=smallest,
        )


def _too_heavy(base: Ground, op: int, held: int, cap: int) -> InfeasibleError:
    name = base.graph.ops[op].name
    limits, package = base.limits, base.overheads.package_bytes
    if limits.weight_bytes is not None and held > limits.weight_bytes:
        return InfeasibleError(
            f"Op {name!r} has {_mb(held)} of weights, more than the {_mb(limits.weight_bytes)} "
            f"that one slice may hold. Raise weight_bytes to at least {held}, or split the op.",
            op=name,
            limit_name="weight_bytes",
            needed=held,
            limit=limits.weight_bytes,
            smallest_limit=held,
        )
    assert limits.package_mb is not None
    smallest = -(-(held + package) // MB)
    return InfeasibleError(
        f"Op {name!r} has {_mb(held)} of weights; with {_mb(package)} of runtime its package is "
        f"{_mb(held + package)}, more than the limit of {limits.package_mb:g} MB, which leaves "
        f"{_mb(cap)} for weights. Raise package_mb to at least {smallest}, allow another "
        "packaging, or split the op into smaller ones.",
        op=name,
        limit_name="package_mb",
        needed=smallest,
        limit=int(limits.package_mb),
        smallest_limit=smallest,
    )


def _too_large(base: Ground, op: int, need: int) -> InfeasibleError:
    name = base.graph.ops[op].name
    assert base.limits.memory_mb is not None
    needed = -(-(need + base.overheads.memory_bytes) // MB)
    smallest, says = _smallest_memory_mb(base)
    return InfeasibleError(
        f"Op {name!r} needs {_mb(need)} of memory for its weights, inputs, outputs and scratch; "
        f"with {_mb(base.overheads.memory_bytes)} of overhead that is more than the limit of "
        f"{base.limits.memory_mb} MB. Raise memory_mb to {says}, or split the op.",
        op=name,
        limit_name="memory_mb",
        needed=needed,
        limit=base.limits.memory_mb,
        smallest_limit=smallest,
    )


def _smallest_memory_mb(base: Ground) -> tuple[int, str]:
    """A memory limit that works, and how to say so: "N" if none below does, else "N at most".

    With a slice for every op, the largest op decides. Ops in one slice may take less, for they send
    each other nothing: that is tried where graphs are small.
    """
    most = max(measure(base, [op]).memory for op in range(len(base.uses)))
    least = max(_least_memory(base, op) for op in range(len(base.uses)))
    high = -(-(most + base.overheads.memory_bytes) // MB)
    low = -(-(least + base.overheads.memory_bytes) // MB)
    slices = base.limits.max_slices
    if slices is not None and slices < len(base.uses):
        return high, f"about {high}"  # more, if so few slices must hold the ops
    if len(base.uses) <= _FEW_OPS:
        low, high = _narrow(base, low, high)
    return high, f"{high}" if low >= high else f"{high} at most"


def _narrow(base: Ground, low: int, high: int) -> tuple[int, int]:
    """The same limits nearer to each other: the lower ones do not work, the upper one does."""
    from slicewise.passes.partitioning.search import search

    until = time.monotonic() + _TRYING
    while low < high:
        middle = (low + high) // 2
        tried = replace(base, limits=replace(base.limits, memory_mb=middle))
        found = search(tried, deadline=until, workers=1, seed=0)
        if found.layout is not None:
            high = middle
        elif found.closed:
            low = middle + 1
        else:
            break
    return low, high


def too_few_slices(base: Ground, enough: int, smallest: bool) -> InfeasibleError:
    """`max_slices` cannot hold; `enough` do, and fewer do not if that is the `smallest` number."""
    most = base.limits.max_slices
    assert most is not None
    weights = sum(base.weight_bytes[w] for w in {w for ws in base.uses for w in ws})
    cap = base.weight_cap
    why = f"The weights are {_mb(weights)} in all"
    if cap is not None:
        why += f", one slice holds at most {_mb(cap)} of them"
    if base.limits.memory_mb is not None:
        why += f", a function has {base.limits.memory_mb} MB of memory"
    return InfeasibleError(
        f"No partition into {most} slice{'s' if most > 1 else ''} keeps the limits. {why}; "
        f"{enough} slices work{'' if smallest else ', perhaps fewer'}. "
        f"Raise max_slices to {enough}, or raise the limit on one slice.",
        limit_name="max_slices",
        needed=enough,
        limit=most,
        smallest_limit=enough,
    )


def unplaceable(base: Ground, *, proven: bool) -> InfeasibleError:
    """No partition keeps the memory or edge limits although every op alone might."""
    alone = [measure(base, [op]) for op in range(len(base.uses))]
    memory_cap, edge_cap = base.memory_cap, base.overheads.max_edge_bytes
    start = (
        "No partition keeps the limits" if proven else "No partition was found in the time given"
    )
    if memory_cap is not None:
        worst = max(range(len(alone)), key=lambda op: alone[op].memory)
        if alone[worst].memory > memory_cap:
            smallest, says = _smallest_memory_mb(base)
            name = base.graph.ops[worst].name
            return InfeasibleError(
                f"{start}: op {name!r} in a slice of its own takes {_mb(alone[worst].memory)} "
                f"besides {_mb(base.overheads.memory_bytes)} of overhead, and the limit is "
                f"{base.limits.memory_mb} MB. Raise memory_mb to {says}.",
                op=name,
                limit_name="memory_mb",
                needed=smallest,
                limit=base.limits.memory_mb,
                smallest_limit=smallest,
            )
    if edge_cap is not None:
        worst = max(range(len(alone)), key=lambda op: max(alone[op].received, alone[op].sent))
        most = max(alone[worst].received, alone[worst].sent)
        if most > edge_cap:
            name = base.graph.ops[worst].name
            return InfeasibleError(
                f"{start}: op {name!r} reads or makes {_mb(most)}, and a slice may receive or send "
                f"at most {_mb(edge_cap)} in one payload. Allow a transport through storage.",
                op=name,
                limit_name="payload_bytes",
                needed=most,
                limit=edge_cap,
                smallest_limit=most,
            )
    return InfeasibleError(f"{start}. Give it more time (time_limit_s) or looser limits.")


def _mb(amount: int) -> str:
    return f"{amount / MB:,.1f} MB" if amount >= MB / 10 else f"{amount:,} bytes"
