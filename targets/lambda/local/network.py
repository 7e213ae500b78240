"""Network emulation: a profile's latencies and bandwidth, added to calls and S3 operations.

Every operation has a *kind* and waits: its n-th operation takes the n-th draw of the kind's own
random sequence, so a run with the same seed and the same order waits the same. Its bytes pass the
*link* of an execution environment, one in each direction, which carries `bytes_s`: transfers of one
environment queue, those of different ones do not. The platform's own time is part of the emulated
time, so an operation sleeps only for the rest, and is counted as late when there is none.

Of a call, the bytes of the request pass the caller's link, then half of the wait goes by, then the
function has its event; the reply takes the same way back. The link of the called environment needs
no clock: it carries one call at a time, at the same speed. What the user's own clients send has no
link, so their S3 operations only wait; their calls still take the time of the called environment's.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

CALL = "call"
OFF = "off"


class Wait(NamedTuple):
    """A latency as a log-normal distribution: median, ms, and the sigma of its logarithm."""

    p50_ms: float
    sigma: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What a platform emulates. `waits` has the kinds `call` and, for the stores `s3` and
    `s3express`, `put` and `get` after the store's name; `bytes_s` is of one link.
    """

    name: str
    seed: int
    bytes_s: float
    waits: Mapping[str, Wait]

    def __str__(self) -> str:
        """What reports say."""
        return f"{self.name} (seed {self.seed})"

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))


def network_from_json(text: str) -> Network:
    """The inverse of `Network.to_json`."""
    data = json.loads(text)
    waits = {kind: Wait(*wait) for kind, wait in data.pop("waits").items()}
    return Network(**data, waits=waits)


class Count(NamedTuple):
    """Operations of one kind so far, and how many took this machine longer than emulated."""

    operations: int = 0
    late: int = 0


class Traffic:
    """An emulated network in use: the next draws, the links, the counts. Any thread may call it."""

    def __init__(self, network: Network) -> None:
        self._bytes_s = network.bytes_s
        self._waits = network.waits
        self._lock = threading.Lock()
        self._draws = {kind: random.Random(f"{network.seed}:{kind}") for kind in network.waits}
        self._busy_until: dict[tuple[str, str], float] = {}
        self._counts = dict.fromkeys(network.waits, Count())

    @property
    def counts(self) -> dict[str, Count]:
        """By kind."""
        with self._lock:
            return dict(self._counts)

    def draw_s(self, kind: str) -> float:
        """The wait of the next operation of a kind, seconds."""
        wait = self._waits[kind]
        with self._lock:
            return self._draws[kind].lognormvariate(math.log(wait.p50_ms), wait.sigma) / 1000

    def transfer(
        self, environment: str | None, way: Literal["in", "out"], size: int, start: float
    ) -> float:
        """When `size` bytes are through that could start at `start`, time.monotonic() seconds.

        None is a link of their own. The caller has to wait until then; nothing sleeps here.
        """
        took = size / self._bytes_s
        if environment is None:
            return start + took
        with self._lock:
            free = self._busy_until.get((environment, way), start)
            end = max(start, free) + took
            self._busy_until[environment, way] = end
        return end

    def finish(self, kind: str, due: float) -> None:
        """Sleep until the operation's emulated end and count it."""
        late = time.monotonic() > due
        with self._lock:
            count = self._counts[kind]
            self._counts[kind] = Count(count.operations + 1, count.late + late)
        sleep_until(due)


def sleep_until(due: float) -> None:
    """Return at `due`, time.monotonic() seconds, or up to 0.1 ms later, and never before it."""
    while (rest := due - time.monotonic()) > 0:
        time.sleep(rest)
