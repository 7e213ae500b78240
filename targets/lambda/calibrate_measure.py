"""The measurements of `calibrate`: `Row`s of times, each with what the cost model says that it is made of.

A warm call goes from a function to a function, as the coordinator calls a slice: the caller of this
program may be far away. Calls and objects of all sizes and memories take turns in random order until
the time is over, so that what changes meanwhile (another load, another hour) touches all alike.
"""

from __future__ import annotations

import base64
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from slicewise.errors import TargetError

from .calibrate_probe import SMALL_BYTES
from .calibrate_site import FULL_MB, Site
from .costs import BASE64
from .profile import Profile
from .runtime.rule import ENVELOPE_BYTES, inline_bytes

OBJECT_BYTES = (8 * 1024, 512 * 1024, 2 * 2**20, 6 * 2**20)
PAYLOAD_BYTES = (8 * 1024, 256 * 1024, 1_500_000, 4_700_000)  # the last fills a message of 6 MB
SMALL_COUNT = 16  # per round, of the smallest size, whose times tell the percentiles of the wait
COUNT = 3  # of the other sizes
COLD_PART = 0.2  # of the time
COLD_ROUNDS = 2  # at least
_INIT = re.compile(r"Init Duration: ([\d.]+) ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Times of one kind, ms. Expected is the sum of number * value over `terms`, whose names are the
    profile's. `clock` is "wall" or "cpu"; `is_full` says that all functions had a full vCPU.
    """

    what: str
    clock: str
    bytes: int
    memory_mb: int
    terms: tuple[tuple[str, float], ...]
    is_full: bool
    ms: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the times."""
        return statistics.median(self.ms)


class _Rows:
    """Rows that grow."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], list[float]] = {}

    def add(
        self,
        what: str,
        clock: str,
        size: int,
        memory_mb: int,
        ms: float,
        is_full: bool = True,
        **terms: float,
    ) -> None:
        named = tuple((name.replace("__", "."), number) for name, number in terms.items())
        self._found.setdefault((what, clock, size, memory_mb, named, is_full), []).append(ms)

    def rows(self) -> tuple[Row, ...]:
        return tuple(
            Row(what=what, clock=clock, bytes=size, memory_mb=mb, terms=terms, is_full=is_full,
                ms=tuple(ms))
            for (what, clock, size, mb, terms, is_full), ms in self._found.items()
        )  # fmt: skip


def measure(
    site: Site,
    profile: Profile,
    *,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Row, ...]:
    """Measure for about `seconds`, but everything at least once. Raises `TargetError`."""
    started = time.monotonic()
    rows = _Rows()
    order = random.Random(0)
    progress("cold starts")
    rounds = 0
    while rounds < COLD_ROUNDS or time.monotonic() - started < COLD_PART * seconds:
        _cold(site, rows)
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
        # Nothing is fitted to the smaller ones, so they get less time.
        turn = full + (smaller if rounds == 0 else smaller[rounds % len(smaller) :][:1] if smaller else [])
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


def _calls(
    site: Site, profile: Profile, rows: _Rows, order: random.Random
) -> Iterator[Batch]:
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
        calls = [
            way
            for way in (order.sample(ways, len(ways)) if counts else (small, ways[len(sizes)], ways[-1]))
            for _ in range(2 if not (is_full and counts) else SMALL_COUNT if way == small else COUNT)
        ]
        event = {
            "do": "call", "function": site.probes[memory_mb], "calls": calls, "request_id": site.run,
        }  # fmt: skip
        found, _ = _invoke(site, site.probes[caller_mb], event)
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


def _add_call(
    rows: _Rows,
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
        what, "wall", size, mb, wall, own == theirs == 1.0,
        call__wait_ms=1.0,
        call__caller_cpu_ms=1 / own,
        call__cpu_ms=1 / theirs,
        network__byte_ns=BASE64 * (there + back),
        payload__caller_send_cpu_ns=there / own,
        payload__caller_receive_cpu_ns=back / own,
        payload__receive_cpu_ns=there / theirs,
        payload__send_cpu_ns=back / theirs,
    )  # fmt: skip
    rows.add(
        f"{what}: caller", "cpu", size, caller_mb, caller_cpu, own == 1.0,
        call__caller_cpu_ms=1.0,
        payload__caller_send_cpu_ns=there,
        payload__caller_receive_cpu_ns=back,
    )  # fmt: skip


def _add_work(
    rows: _Rows, profile: Profile, memory_mb: int, way: tuple[int, int], cpu: float
) -> None:
    there, back = (size * 1e-6 for size in way)
    what = f"call, {'request' if there >= back else 'reply'}: slice"
    rows.add(
        what, "cpu", max(way), memory_mb, cpu, _share(profile, memory_mb) == 1.0,
        call__cpu_ms=1.0,
        payload__receive_cpu_ns=there,
        payload__send_cpu_ns=back,
    )  # fmt: skip


def _objects(
    site: Site, profile: Profile, rows: _Rows, order: random.Random
) -> Iterator[Batch]:
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
        found, _ = _invoke(site, site.probes[memory_mb], event)
        if counts:
            for size, (put, put_cpu, get, get_cpu) in zip(sizes, found, strict=True):
                _add_object(rows, profile, way, "put", memory_mb, size, put, put_cpu)
                _add_object(rows, profile, way, "get", memory_mb, size, get, get_cpu)

    for way in site.buckets:
        for memory_mb in site.probes:
            yield Batch(is_full=memory_mb == FULL_MB, run=partial(batch, way, memory_mb))


def _add_object(
    rows: _Rows,
    profile: Profile,
    way: str,
    verb: str,
    memory_mb: int,
    size: int,
    wall: float,
    cpu: float,
) -> None:
    share, mega = _share(profile, memory_mb), size * 1e-6
    cpu_ms, cpu_ns = f"{way}__{verb}_cpu_ms", f"{way}__{verb}_cpu_ns"
    terms = {cpu_ms: 1 / share, cpu_ns: mega / share}
    terms |= {f"{way}__{verb}_ms": 1.0, "network__byte_ns": mega}
    what = f"{way} {verb}"
    rows.add(what, "wall", size, memory_mb, wall, share == 1.0, **terms)
    rows.add(what, "cpu", size, memory_mb, cpu, share == 1.0, **{cpu_ms: 1.0, cpu_ns: mega})


def _cold(site: Site, rows: _Rows) -> None:
    """Starts a function that loads next to nothing and the one with weights.

    Init Duration is the platform's; imports and loading are by the function's own clock, and the rest
    of it is the interpreter's. What the caller waits beyond that and a warm call is placement.
    """
    site.make_cold()
    for function in (site.probes[FULL_MB], site.loader):
        cold, parts, init = _timed_parts(site, function)
        warm = statistics.median(_timed_parts(site, function)[0] for _ in range(3))
        size = int(parts["bytes"])
        rows.add("cold, imports", "wall", 0, FULL_MB, parts["import_ms"], cold__import_ms=1.0)
        if init is not None:
            own = init - parts["import_ms"] - parts["load_ms"]
            rows.add("cold, init", "wall", 0, FULL_MB, own, cold__init_ms=1.0)
            rows.add("cold, placement", "wall", 0, FULL_MB, cold - init - warm, cold__placement_ms=1.0)
        terms = {"cold__load_ms": 1.0, "cold__load_ns": size * 1e-6}
        rows.add("cold, weights", "wall", size, FULL_MB, parts["load_ms"], **terms)


def _timed_parts(site: Site, function: str) -> tuple[float, dict[str, float], float | None]:
    """Milliseconds of a call from here, what the function says of its start, and its init (cold)."""
    began = time.perf_counter()
    parts, init = _invoke(site, function, {"do": "parts"})
    return (time.perf_counter() - began) * 1e3, parts, init


def _invoke(site: Site, function: str, event: dict[str, Any]) -> tuple[Any, float | None]:
    """The reply and, after a cold start, the Init Duration. Raises `TargetError`."""
    answer = site.functions.invoke(
        FunctionName=function, Payload=json.dumps(event).encode(), LogType="Tail"
    )
    reply = json.loads(answer["Payload"].read())
    log = base64.b64decode(answer.get("LogResult", "")).decode(errors="replace")
    if "FunctionError" in answer:
        raise TargetError(
            f"the probe {function} failed: {json.dumps(reply)[:1000]}\nIts log ends with:\n{log}"
        )
    found: Sequence[str] = _INIT.findall(log)
    return reply, float(found[-1]) if found else None


def _share(profile: Profile, memory_mb: int) -> float:
    return min(1.0, memory_mb / profile.cpu.mb_per_vcpu)
