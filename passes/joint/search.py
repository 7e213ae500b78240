"""The cheapest way through the pairs: dynamic programming over states, memory sizes chosen per slice.

A slice of memory m waits w ms and computes x ms at one vCPU. Up to one vCPU (M MB), and if x is more
than its quota m P / M of one period P, it takes w + x M / m - P (1 - m / M) (see `slicewise.cost`) and
costs q m per ms, and the caller costs c per ms all the while. For a price of time a and of money b

    (a + b c + b q m) (w - P + x M / m + m P / M)

is least where its derivative is zero, a cubic in 1 / m with one positive root; more memory than makes x
the quota gains nothing. So there is no grid. Above one vCPU only whole ones are worth looking at, for a
thread gains nothing from a part.

Memory that a slice needs is bounded below for all pairs at once; what it really takes (liveness) is
measured only for the slices that the search would take, until it takes none that was not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slicewise.cost import CostModel
from slicewise.limits import MB
from slicewise.passes.joint.pairs import Pairs

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
class Path:
    """The pairs of the cheapest way, in order, the memory of each (MB), and its value."""

    pairs: list[int]
    memory_mb: list[int]
    value: float


class Search:
    """The pairs of one problem, searched for any prices; measured needs are kept."""

    def __init__(
        self, pairs: Pairs, model: CostModel, needs: Needs, *, cap_mb: int, parallel: float,
        most_slices: int | None = None,
    ) -> None:  # fmt: skip
        self.pairs, self.model, self.needs = pairs, model, needs
        self.cap_mb, self.parallel, self.most_slices = cap_mb, parallel, most_slices
        self.need = pairs.need.copy()
        self.measured = np.zeros(len(self.need), dtype=bool)
        self._known: dict[tuple[int, int], float] = {}

    def best(self, prices: Prices, *, caller_mb: int, measure: bool = True) -> Path | None:
        """The cheapest way, or None; without `measure` a lower bound for every way."""
        value, memory = self.price(slice(None), prices, caller_mb)
        states = len(self.pairs.state_prefix)
        layers = self.most_slices or 1
        reached = np.full((layers + 1, states), np.inf)
        origin = np.full((layers + 1, states), -1, dtype=np.int64)
        reached[0, 0] = 0.0
        begin, source = self.pairs.begin, self.pairs.source
        for state in range(1, states):
            part = slice(int(begin[state]), int(begin[state + 1]))
            if part.start == part.stop:
                continue
            before = source[part]
            for layer in range(1, layers + 1):
                if self.most_slices is None:
                    ways = reached[0, before] + value[part]
                else:
                    ways = reached[layer - 1, before] + value[part]
                while True:
                    choice = int(ways.argmin())
                    if not np.isfinite(ways[choice]):
                        break
                    pair = part.start + choice
                    if not measure or self.measured[pair]:
                        row = 0 if self.most_slices is None else layer
                        reached[row, state] = ways[choice]
                        origin[row, state] = pair
                        break
                    self._measure(pair)
                    old = value[pair]
                    one = slice(pair, pair + 1)
                    value[one], memory[one] = self.price(one, prices, caller_mb)
                    ways[choice] += value[pair] - old if np.isfinite(value[pair]) else np.inf
        layer = int(reached[:, -1].argmin())
        if not np.isfinite(reached[layer, -1]):
            return None
        total = float(reached[layer, -1])
        path, state = [], states - 1
        while state:
            pair = int(origin[layer, state])
            path.append(pair)
            state = int(source[pair])
            layer -= self.most_slices is not None
        path.reverse()
        return Path(path, [int(memory[pair]) for pair in path], total)

    def price(self, part: slice | Array, prices: Prices, caller_mb: int) -> tuple[Array, Array]:
        """Value and memory (MB) of pairs at their best memory; infinite where they need too much."""
        pairs, model = self.pairs, self.model
        whole = model.mb_per_vcpu
        need = np.maximum(np.ceil(self.need[part] / MB), model.memory_mb_min)
        caller_usd = model.gb_ms_usd(caller_mb)
        slice_usd = model.gb_ms_usd(1)  # per MB and ms
        per_ms = prices.ms + prices.usd * caller_usd
        caller_ms = pairs.caller_wait[part] + self._elapsed(pairs.caller_cpu[part], caller_mb)
        fixed = per_ms * caller_ms + prices.usd * pairs.usd[part]
        wait = pairs.wait[part]

        def value_at(memory: Array, threaded: float = 1.0) -> Array:
            work = pairs.cpu[part] + pairs.compute[part] / threaded
            billed = wait + self._elapsed(work, memory)
            found: Array = fixed + billed * (per_ms + prices.usd * slice_usd * memory)
            return found

        work = pairs.cpu[part] + pairs.compute[part]
        ideal = self._ideal(wait, work, per_ms, prices.usd * slice_usd)
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
        found: Array = cpu + np.maximum(0.0, cpu - quota) * (1.0 / share - 1.0)
        return found

    def _ideal(self, wait: Array, work: Array, per_ms: float, per_mb_ms: float) -> Array:
        """The best memory of slices up to one vCPU, MB, whatever they need."""
        whole, period = self.model.mb_per_vcpu, self.model.period_ms
        # x = 1 / m solves x**3 + p x + q = 0; q <= 0, so the positive root is the last one.
        with np.errstate(divide="ignore", invalid="ignore"):
            p = -(per_mb_ms * (wait - period) / work + per_ms * period / whole / work) / (
                per_ms * whole
            )
            q = -2 * per_mb_ms * period / (per_ms * whole**2 * work)
            x = np.sqrt(np.maximum(-p, 0.0)) + np.cbrt(-q)
            x = np.where(p > 0, np.minimum(x, -q / p), x)
            for _ in range(NEWTON):  # from above, where the cubic is convex: never past the root
                x = x - (x**3 + p * x + q) / (3 * x**2 + p)
            enough = work * whole / period if period else np.inf
            found: Array = np.fmin(
                np.fmin(1 / x, enough), whole
            )  # x is not known where all is equal
        return np.where(work > 0, found, 0.0)

    def resized(self, path: Path, prices: Prices, caller_mb: int) -> Path:
        """The same pairs with their best memory for other prices."""
        value, memory = self.price(np.array(path.pairs), prices, caller_mb)
        return Path(path.pairs, [int(size) for size in memory], float(value.sum()))

    def totals(self, path: Path, caller_mb: int) -> tuple[float, float]:
        """Expected ms and US dollars of a path with its memory sizes."""
        pairs, model = self.pairs, self.model
        ms = usd = 0.0
        for pair, memory in zip(path.pairs, path.memory_mb, strict=True):
            threaded = max(1.0, model.speed(memory, self.parallel))
            work = pairs.cpu[pair] + pairs.compute[pair] / threaded
            billed = pairs.wait[pair] + model.elapsed(work, memory)
            caller = pairs.caller_wait[pair] + model.elapsed(pairs.caller_cpu[pair], caller_mb)
            ms += billed + caller
            usd += pairs.usd[pair] + billed * model.gb_ms_usd(memory)
        return float(ms), float(usd + ms * model.gb_ms_usd(caller_mb))

    def _measure(self, pair: int) -> None:
        pairs = self.pairs
        ends = (
            int(pairs.state_prefix[pairs.source[pair]]),
            int(pairs.state_prefix[pairs.target[pair]]),
        )
        if ends not in self._known:
            self._known[ends] = self.needs(*ends)
        self.need[pair] = max(self.need[pair], self._known[ends])
        self.measured[pair] = True
