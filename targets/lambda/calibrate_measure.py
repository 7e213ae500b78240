"""The measurements of `calibrate`: times, each with what the cost model says that it is made of.

A warm call goes from a function to a function, as the coordinator calls a slice: the caller of this
program may be far away. Calls and objects of all sizes and memories take turns in random order until
the time is over, so that what changes meanwhile (another load, another hour) touches all alike.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from .calibrate_cold import start_cold
from .calibrate_probe import SMALL_BYTES
from .calibrate_rows import Row, Rows, invoke
from .calibrate_site import FULL_MB, Site
from .costs import BASE64
from .profile import Profile
from .runtime.rule import ENVELOPE_BYTES, inline_bytes

OBJECT_BYTES = (8 * 1024, 512 * 1024, 2 * 2**20, 6 * 2**20)
PAYLOAD_BYTES = (8 * 1024, 256 * 1024, 1_500_000, 4_700_000)  # the last fills a message of 6 MB
SMALL_COUNT = 20  # per round, of the smallest size, whose times tell the percentiles of the wait
COUNT = 3  # of the other sizes
COLD_PART = 0.2  # of the time
COLD_ROUNDS = 2  # at least


def measure(
    site: Site,
    profile: Profile,
    *,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Row, ...]:
    """Measure for about `seconds`, but everything at least once. Raises `TargetError`."""
    started = time.monotonic()
    rows = Rows()
    order = random.Random(0)
    progress("cold starts")
    rounds = 0
    while rounds < COLD_ROUNDS or time.monotonic() - started < COLD_PART * seconds:
        start_cold(site, rows)
        rounds += 1
    batches = [*_calls(site, profile, rows, order), *_objects(site, profile, rows, order)]
    progress("first calls")
    for batch in batches:
        batch.run(False)  # connections, buffers and caches
    full = [batch for batch in batches if batch.is_full]
    smaller = [batch for batch in batches if not batch.is_full]
    rounds = 0
    while rounds == 0 or time.monotonic() - started < seconds:
        left = seconds - (time.monotonic() - started)
        progress(f"calls and objects, round {rounds + 1}, {max(0.0, left):.0f} s left")
        # Nothing is fitted to the smaller ones, so after the first round they take turns.
        turn = [*full, *(smaller if rounds == 0 else smaller[rounds % max(1, len(smaller)) :][:1])]
        for batch in order.sample(turn, len(turn)):
            if rounds == 0 or time.monotonic() - started < seconds:
                batch.run(True)
        rounds += 1
    return rows.rows()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some measurements by one function; `run(False)` only warms it up."""

    is_full: bool
    run: Callable[[bool], None]


def _calls(site: Site, profile: Profile, rows: Rows, order: random.Random) -> Iterator[Batch]:
    """From a full vCPU into every memory size, and from a coordinator's size into a full vCPU."""
    pairs = [(FULL_MB, memory_mb) for memory_mb in site.probes]
    if profile.coordinator.memory_mb in site.probes:
        pairs.append((profile.coordinator.memory_mb, FULL_MB))
    fits = profile.limits.payload_bytes_max - ENVELOPE_BYTES
    sizes = [size for size in PAYLOAD_BYTES if inline_bytes(size) <= fits]
    small = (SMALL_BYTES, SMALL_BYTES)
    ways = [small, *((s, SMALL_BYTES) for s in sizes), *((SMALL_BYTES, s) for s in sizes)]

    def batch(caller_mb: int, memory_mb: int, counts: bool) -> None:
        is_full = caller_mb == memory_mb == FULL_MB
        if counts:
            turn = order.sample(ways, len(ways))
            many, some = (SMALL_COUNT, COUNT) if is_full else (2, 2)
        else:
            turn, many, some = [small, ways[len(sizes)], ways[-1]], 1, 1
        calls = [way for way in turn for _ in range(many if way == small else some)]
        event = {
            "do": "call", "function": site.probes[memory_mb], "calls": calls, "request_id": site.run,
        }  # fmt: skip
        found, _ = invoke(site, site.probes[caller_mb], event)
        last = None
        for way, (wall, caller_cpu, cpu) in zip(calls, found, strict=True):
            if counts:
                _add_call(rows, profile, caller_mb, memory_mb, way, wall, caller_cpu)
                if way == last:  # else its clock has the reply of another size in it
                    _add_work(rows, profile, memory_mb, way, cpu)
            last = way

    for caller_mb, memory_mb in pairs:
        yield Batch(
            is_full=caller_mb == memory_mb == FULL_MB, run=partial(batch, caller_mb, memory_mb)
        )


_CALLER_CPU = (
    "call.caller_cpu_ms", "payload.caller_send_cpu_ns", "payload.caller_receive_cpu_ns",
)  # fmt: skip
_SLICE_CPU = ("call.cpu_ms", "payload.receive_cpu_ns", "payload.send_cpu_ns")


def _add_call(
    rows: Rows,
    profile: Profile,
    caller_mb: int,
    memory_mb: int,
    way: tuple[int, int],
    wall: float,
    caller_cpu: float,
) -> None:
    there, back = (size * 1e-6 for size in way)
    own, theirs = _share(profile, caller_mb), _share(profile, memory_mb)
    what = f"call, {'request' if there >= back else 'reply'}"
    size, mb = max(way), min(caller_mb, memory_mb)
    rows.add(
        what, "wall", size, mb, wall, {
        "call.wait_ms": 1.0,
        "call.caller_cpu_ms": 1.0,
        "call.cpu_ms": 1.0,
        "network.byte_ns": BASE64 * (there + back),
        "payload.caller_send_cpu_ns": there,
        "payload.caller_receive_cpu_ns": back,
        "payload.receive_cpu_ns": there,
        "payload.send_cpu_ns": back,
        },
        ((own, _CALLER_CPU, 1), (theirs, _SLICE_CPU, 1)),
    )  # fmt: skip
    rows.add(
        f"{what}: caller", "cpu", size, caller_mb, caller_cpu, {
        "call.caller_cpu_ms": 1.0,
        "payload.caller_send_cpu_ns": there,
        "payload.caller_receive_cpu_ns": back,
        },
        ((own, (), 1),),
    )  # fmt: skip


def _add_work(
    rows: Rows, profile: Profile, memory_mb: int, way: tuple[int, int], cpu: float
) -> None:
    there, back = (size * 1e-6 for size in way)
    what = f"call, {'request' if there >= back else 'reply'}: slice"
    rows.add(
        what, "cpu", max(way), memory_mb, cpu, {
        "call.cpu_ms": 1.0,
        "payload.receive_cpu_ns": there,
        "payload.send_cpu_ns": back,
        },
        ((_share(profile, memory_mb), (), 1),),
    )  # fmt: skip


def _objects(site: Site, profile: Profile, rows: Rows, order: random.Random) -> Iterator[Batch]:
    """Every transport that has a bucket, at every memory size."""
    numbers = iter(range(10**9))

    def batch(way: str, memory_mb: int, counts: bool) -> None:
        sizes = [OBJECT_BYTES[0], OBJECT_BYTES[-1]]
        if counts:
            many, some = (SMALL_COUNT, COUNT) if memory_mb == FULL_MB else (2, 1)
            sizes = [*OBJECT_BYTES[:1] * many, *OBJECT_BYTES[1:] * some]
        order.shuffle(sizes)
        request = f"{site.run}/{next(numbers)}"
        event = {"do": "objects", "transport": way, "sizes": sizes, "request_id": request}
        found, _ = invoke(site, site.probes[memory_mb], event)
        if counts:
            for size, (put, put_cpu, get, get_cpu) in zip(sizes, found, strict=True):
                _add_object(rows, profile, way, "put", memory_mb, size, put, put_cpu)
                _add_object(rows, profile, way, "get", memory_mb, size, get, get_cpu)

    for way in site.buckets:
        for memory_mb in site.probes:
            yield Batch(is_full=memory_mb == FULL_MB, run=partial(batch, way, memory_mb))


def _add_object(
    rows: Rows,
    profile: Profile,
    way: str,
    verb: str,
    memory_mb: int,
    size: int,
    wall: float,
    cpu: float,
) -> None:
    share, mega = _share(profile, memory_mb), size * 1e-6
    cpu_ms, cpu_ns = f"{way}.{verb}_cpu_ms", f"{way}.{verb}_cpu_ns"
    work = {cpu_ms: 1.0, cpu_ns: mega}
    terms = work | {f"{way}.{verb}_ms": 1.0, "network.byte_ns": mega}
    what = f"{way} {verb}"
    both = tuple(f"{way}.{each}_cpu_{unit}" for each in ("put", "get") for unit in ("ms", "ns"))
    rows.add(what, "wall", size, memory_mb, wall, terms, ((share, both, 1),))
    rows.add(what, "cpu", size, memory_mb, cpu, work, ((share, (), 1),))


def _share(profile: Profile, memory_mb: int) -> float:
    return min(1.0, memory_mb / profile.cpu.mb_per_vcpu)
