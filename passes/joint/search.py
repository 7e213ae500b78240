"""The cheapest way through the pairs: dynamic programming over states, memory sizes chosen per slice.

A slice of memory m waits w ms and computes x ms at one vCPU. Up to one vCPU (M MB), and if x is more
than its quota m P / M of one period P, it takes w + x + (1 + r) (x - m P / M) (M / m - 1) (see
`slicewise.cost`) and costs q m per ms, and the caller costs c per ms all the while. With X = (1 + r) x
and P for (1 + r) P, for a price of time a and of money b

    (a + b c + b q m) (w - r x - P + X M / m + m P / M)

is least where its derivative is zero, a cubic in 1 / m with one positive root; more memory than makes x
the quota gains nothing. So there is no grid. Above one vCPU only whole ones are worth looking at, for a
thread gains nothing from a part.

Memory that a slice needs is bounded below for all pairs at once; what it really takes (liveness) is
measured only for the slices that the search would take, until it takes none that was not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slicewise.cost import CostModel
from slicewise.limits import MB
from slicewise.passes.joint.groups import Arcs
from slicewise.passes.joint.pairs import Pairs
from slicewise.passes.joint.traffic import JOINED, WHOLE

NEWTON = 6  # steps, from at most twice the root
Array = NDArray[Any]
Needs = Callable[
    [int, int], float
]  # bytes that a slice between two prefixes takes; inf if it may not


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What is minimised: `ms` per expected millisecond plus `usd` per US dollar of one request."""

    ms: float
    usd: float


@dataclass(frozen=True, slots=True)
class Step:
    """A single slice (number of its pair), a group (of its arc), or a join (of its state)."""

    kind: Literal["slice", "group", "join"]
    index: int


@dataclass(frozen=True, slots=True)
class Path:
    """The steps of the cheapest way, in order, the memory of the slices of each (MB), and its value."""

    steps: list[Step]
    memory_mb: list[int]
    value: float


@dataclass(frozen=True, slots=True)
class _Columns:
    """What slices take, for one caller: `all_` sums of `count` slices are paid for, the others pass,
    `length` times one after the other.
    """

    wait: Array
    cpu: Array
    compute: Array
    all_wait: Array
    all_cpu: Array
    all_compute: Array
    count: Array
    caller_wait: Array
    caller_cpu: Array
    usd: Array
    length: Array


class Search:
    """The pairs of one problem, searched for any prices; measured needs are kept."""

    def __init__(
        self, pairs: Pairs, model: CostModel, needs: Needs, *, cap_mb: int, parallel: float,
        most_slices: int | None = None, arcs: Arcs | None = None,
        shard_needs: Callable[[int], float] = lambda _: 0.0,
    ) -> None:  # fmt: skip
        """`needs` measures single slices, `shard_needs` groups by number."""
        self.pairs, self.model, self.needs, self.arcs = pairs, model, needs, arcs
        self.cap_mb, self.parallel, self.most_slices = cap_mb, parallel, most_slices
        self.need = pairs.need.copy()
        self.measured = np.zeros(len(self.need), dtype=bool)
        self._known: dict[tuple[int, int], float] = {}
        self.shard_needs = shard_needs
        self._shards: dict[int, float] = {}

    def one_by_one(self) -> Search:
        """The same without groups; what was measured is shared."""
        found = copy(self)
        found.arcs = None
        return found

    def best(self, prices: Prices, *, caller_mb: int, measure: bool = True) -> Path | None:
        """The cheapest way, or None; without `measure` a lower bound for every way."""
        while True:
            path = _Walk(self, prices, caller_mb, measure).path()
            if path is None or not measure or not self._grew(path):
                return path

    def _grew(self, path: Path) -> bool:
        """Whether shards of the path need more memory than it gives them, now that they are measured."""
        arcs, grew = self.arcs, False
        for step, memory in zip(path.steps, path.memory_mb, strict=True):
            if step.kind == "group" and arcs is not None:
                group = int(arcs.group[step.index])
                if group not in self._shards:
                    self._shards[group] = self.shard_needs(group)
                    same = arcs.group == group
                    need = arcs.values["need"]
                    need[same] = np.maximum(need[same], self._shards[group])
                    grew = grew or self._shards[group] > memory * MB
        return grew

    def price(self, part: slice | Array, prices: Prices, caller_mb: int) -> tuple[Array, Array]:
        """Value and memory (MB) of pairs at their best memory; infinite where they need too much."""
        return self._price(self._pairs(part), self.need[part], prices, caller_mb)

    def price_arcs(self, prices: Prices, caller_mb: int) -> tuple[Array, Array]:
        """The same of groups; all slices of one have one size."""
        assert self.arcs is not None
        values = self.arcs.values
        return self._price(_columns(values), values["need"], prices, caller_mb)

    def price_joins(self, prices: Prices, caller_mb: int) -> tuple[Array, Array]:
        """The same of joins, by state."""
        assert self.arcs is not None
        values = self.arcs.joins
        return self._price(_columns(values), values["need"], prices, caller_mb)

    def _pairs(self, part: slice | Array) -> _Columns:
        pairs = self.pairs
        wait, cpu, compute = pairs.wait[part], pairs.cpu[part], pairs.compute[part]
        caller = pairs.caller_wait[part], pairs.caller_cpu[part]
        count = np.ones_like(wait)
        usd = pairs.usd[part]
        return _Columns(wait, cpu, compute, wait, cpu, compute, count, *caller, usd, count)

    def _price(
        self, found: _Columns, need_bytes: Array, prices: Prices, caller_mb: int
    ) -> tuple[Array, Array]:
        model = self.model
        whole = model.mb_per_vcpu
        need = np.maximum(np.ceil(need_bytes / MB), model.memory_mb_min)
        caller_usd = model.gb_ms_usd(caller_mb)
        slice_usd = model.gb_ms_usd(1)  # per MB and ms
        per_ms = prices.ms + prices.usd * caller_usd
        caller_ms = found.caller_wait + self._elapsed(found.caller_cpu, caller_mb)
        caller_ms = found.length * caller_ms
        fixed = per_ms * caller_ms + prices.usd * found.usd

        def value_at(memory: Array, threaded: float = 1.0) -> Array:
            passed = found.wait + self._elapsed(found.cpu + found.compute / threaded, memory)
            each = (found.all_cpu + found.all_compute / threaded) / found.count
            paid = found.all_wait + found.count * self._elapsed(each, memory)
            value: Array = fixed + per_ms * found.length * passed
            value += prices.usd * slice_usd * memory * paid
            return value

        ideal = self._ideal(found, per_ms, prices.usd * slice_usd)
        most = min(self.cap_mb, whole)
        best = np.full(len(need), np.inf)
        memory = np.maximum(need, 1.0)
        for rounding in (np.floor, np.ceil):
            tried = np.clip(rounding(ideal), np.minimum(need, most), most)
            tried = np.maximum(tried, need)
            value = value_at(tried)
            better = value < best
            best[better], memory[better] = value[better], tried[better]
        for threads in range(2, self.cap_mb // whole + 1):
            # More threads only at whole vCPUs; a larger need gets the threads that come with it.
            tried = np.maximum(need, threads * whole)
            value = value_at(tried, model.speed(threads * whole, self.parallel))
            better = value < best
            best[better], memory[better] = value[better], tried[better]
        best[need > self.cap_mb] = np.inf
        return best, memory

    def _elapsed(self, cpu: Array, memory: Array | int) -> Array:
        """`CostModel.elapsed` of many bursts."""
        share = np.minimum(memory / self.model.mb_per_vcpu, 1.0)
        quota = share * self.model.period_ms
        pauses = np.maximum(0.0, cpu - quota) * (1.0 / share - 1.0)
        found: Array = cpu + (1.0 + self.model.resume_factor) * pauses
        return found

    def _ideal(self, found: _Columns, per_ms: float, per_mb_ms: float) -> Array:
        """The best memory of slices up to one vCPU, MB, whatever they need."""
        whole, period = self.model.mb_per_vcpu, self.model.period_ms
        resume = 1.0 + self.model.resume_factor
        own = found.cpu + found.compute
        work, quotas = resume * own, resume * found.count * period
        # x = 1 / m solves x**3 + p x + q = 0; q <= 0, so the positive root is the last one.
        with np.errstate(divide="ignore", invalid="ignore"):
            waits = found.all_wait - (work - own) * found.count - quotas
            p = per_mb_ms * waits + per_ms * resume * period / whole
            p = -p / (work * per_ms * whole)
            q = -2 * per_mb_ms * quotas / (per_ms * whole**2 * work)
            x = np.sqrt(np.maximum(-p, 0.0)) + np.cbrt(-q)
            x = np.where(p > 0, np.minimum(x, -q / p), x)
            for _ in range(NEWTON):  # from above, where the cubic is convex: never past the root
                x = x - (x**3 + p * x + q) / (3 * x**2 + p)
            enough = own * whole / period if period else np.inf
            ideal: Array = np.fmin(np.fmin(1 / x, enough), whole)  # x is nan where all is equal
        return np.where(work > 0, ideal, 0.0)

    def _of(self, step: Step) -> tuple[_Columns, Array]:
        """One step as columns of one row, and its need."""
        one = np.array([step.index])
        if step.kind == "slice":
            return self._pairs(one), self.need[one]
        assert self.arcs is not None
        values = self.arcs.values if step.kind == "group" else self.arcs.joins
        return _columns({name: v[one] for name, v in values.items()}), values["need"][one]

    def resized(self, path: Path, prices: Prices, caller_mb: int) -> Path:
        """The same steps with their best memory for other prices."""
        found = [self._price(*self._of(step), prices, caller_mb) for step in path.steps]
        value = sum(float(value[0]) for value, _ in found)
        return Path(path.steps, [int(memory[0]) for _, memory in found], value)

    def totals(self, path: Path, caller_mb: int) -> tuple[float, float]:
        """Expected ms and US dollars of a path with its memory sizes."""
        ms = usd = 0.0
        for step, memory in zip(path.steps, path.memory_mb, strict=True):
            step_ms, step_usd = self.taken(step, memory, caller_mb)
            ms, usd = ms + step_ms, usd + step_usd
        return float(ms), float(usd + ms * self.model.gb_ms_usd(caller_mb))

    def taken(self, step: Step, memory: int, caller_mb: int) -> tuple[float, float]:
        """Expected ms of one step, and US dollars without the caller's time."""
        model = self.model
        found, _ = self._of(step)
        threaded = max(1.0, model.speed(memory, self.parallel))
        passed = found.wait[0] + model.elapsed(found.cpu[0] + found.compute[0] / threaded, memory)
        count = found.count[0]
        each = (found.all_cpu[0] + found.all_compute[0] / threaded) / count
        paid = found.all_wait[0] + count * model.elapsed(each, memory)
        caller = found.caller_wait[0] + model.elapsed(found.caller_cpu[0], caller_mb)
        ms = found.length[0] * (passed + caller)
        return float(ms), float(found.usd[0] + paid * model.gb_ms_usd(memory))

    def measure(self, pair: int) -> None:
        """Put what the slice really needs in the place of its lower bound."""
        pairs = self.pairs
        ends = (
            int(pairs.state_prefix[pairs.source[pair]]),
            int(pairs.state_prefix[pairs.target[pair]]),
        )
        if ends not in self._known:
            self._known[ends] = self.needs(*ends)
        self.need[pair] = max(self.need[pair], self._known[ends])
        self.measured[pair] = True


class _Walk:
    """Dynamic programming over the states, for one price and caller.

    `reached[row, k, s]` is the least value of state s whose tensor lies in parts k: WHOLE after a slice
    or branches, JOINED after shards for a slice that puts it together, others for other shards (see
    `slicewise.passes.joint.groups`). `whole[row, s]` is the least when it is whole, perhaps by a join.
    A row is a number of slices, if that is limited.
    """

    def __init__(self, search: Search, prices: Prices, caller_mb: int, measure: bool) -> None:
        self.search, self.prices, self.caller_mb, self.is_exact = search, prices, caller_mb, measure
        self.value, self.memory = search.price(slice(None), prices, caller_mb)
        states = len(search.pairs.state_prefix)
        self.limited = search.most_slices is not None
        self.rows = (search.most_slices or 0) + 1
        kinds = search.arcs.kinds if search.arcs is not None else 1
        self.reached = np.full((self.rows, kinds, states), np.inf)
        self.whole = np.full((self.rows, states), np.inf)
        self.origin = np.full((self.rows, kinds, states), -1, dtype=np.int64)
        self.reached[0, 0, 0] = self.whole[0, 0] = 0.0
        if search.arcs is not None:
            self.arc_value, self.arc_memory = search.price_arcs(prices, caller_mb)
            self.join_value, self.join_memory = search.price_joins(prices, caller_mb)

    def path(self) -> Path | None:
        """The cheapest way to the last state."""
        states = len(self.search.pairs.state_prefix)
        for state in range(1, states):
            for row in range(self.limited, self.rows):
                self._slice_into(state, row)
                self._group_into(state, row)
            for row in range(self.rows):
                self.whole[row, state] = min(self._ways_to_whole(state, row))
        row = int(self.whole[:, -1].argmin())
        if not np.isfinite(self.whole[row, -1]):
            return None
        return self._back(row, states - 1)

    def _ways_to_whole(self, state: int, row: int) -> tuple[float, float]:
        """As it is, and by a join after shards."""
        before = row - self.limited
        if self.search.arcs is None or before < 0:
            return float(self.reached[row, WHOLE, state]), np.inf
        joined = self.reached[before, JOINED, state] + self.join_value[state]
        return float(self.reached[row, WHOLE, state]), float(joined)

    def _slice_into(self, state: int, row: int) -> None:
        search, begin = self.search, self.search.pairs.begin
        part = slice(int(begin[state]), int(begin[state + 1]))
        if part.start == part.stop:
            return
        before = self.reached[row - self.limited, : JOINED + 1, search.pairs.source[part]].min(
            axis=1
        )
        ways = before + self.value[part]
        while True:
            choice = int(ways.argmin())
            if not np.isfinite(ways[choice]):
                return
            pair = part.start + choice
            if not self.is_exact or search.measured[pair]:
                self.reached[row, WHOLE, state] = ways[choice]
                self.origin[row, WHOLE, state] = pair
                return
            search.measure(pair)
            old = self.value[pair]
            one = slice(pair, pair + 1)
            self.value[one], self.memory[one] = search.price(one, self.prices, self.caller_mb)
            ways[choice] += self.value[pair] - old if np.isfinite(self.value[pair]) else np.inf

    def _group_into(self, state: int, row: int) -> None:
        arcs = self.search.arcs
        if arcs is None:
            return
        for kind in range(arcs.kinds):
            place = state * arcs.kinds + kind
            part = slice(int(arcs.begin[place]), int(arcs.begin[place + 1]))
            if part.start == part.stop:
                continue
            have, source = arcs.have[part], arcs.source[part]
            before = row - arcs.width[part] if self.limited else np.full(len(source), row)
            is_whole = have == WHOLE
            found = np.where(
                is_whole, self.whole[before, source], self.reached[before, have, source]
            )
            ways = np.where(before >= 0, found + self.arc_value[part], np.inf)
            choice = int(ways.argmin())
            if ways[choice] < self.reached[row, kind, state]:
                self.reached[row, kind, state] = ways[choice]
                self.origin[row, kind, state] = -2 - (part.start + choice)

    def _back(self, row: int, state: int) -> Path:
        """The steps that led here."""
        search, arcs, total = self.search, self.search.arcs, float(self.whole[row, state])
        steps: list[Step] = []
        memory: list[int] = []
        kind = WHOLE  # in which parts the state's tensor must lie; at the end, in none
        any_kind = False
        while state:
            if any_kind:
                kind = int(self.reached[row, : JOINED + 1, state].argmin())
            elif kind == WHOLE:
                as_it_is, joined = self._ways_to_whole(state, row)
                if joined < as_it_is:
                    steps.append(Step("join", state))
                    memory.append(int(self.join_memory[state]))
                    row -= self.limited
                    kind = JOINED
            origin = int(self.origin[row, kind, state])
            if origin >= 0:
                steps.append(Step("slice", origin))
                memory.append(int(self.memory[origin]))
                state, any_kind = int(search.pairs.source[origin]), True
                row -= self.limited
            else:
                assert arcs is not None
                arc = -2 - origin
                steps.append(Step("group", arc))
                memory.append(int(self.arc_memory[arc]))
                state, kind, any_kind = int(arcs.source[arc]), int(arcs.have[arc]), False
                row -= int(arcs.width[arc]) if self.limited else 0
        return Path(steps[::-1], memory[::-1], total)


def _columns(values: dict[str, Array]) -> _Columns:
    return _Columns(**{name: values[name] for name in _Columns.__slots__})
