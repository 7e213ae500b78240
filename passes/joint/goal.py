"""Bounds on latency and cost as prices: Lagrangian search, with the proof that it brings.

Minimise f with g <= B. For any price p >= 0 the least f + p (g - B) of all plans is a lower bound of f,
and the plan that has it is on the convex hull of the cost-latency frontier. Bisection finds the price
at which g passes B; on either side the memory sizes of the plan are then tuned until it meets B. What
lies between hull and frontier is the gap that the certificate states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from slicewise.passes.joint.optimise import Choice, Optimiser, infeasible_goal
from slicewise.passes.joint.problem import CALLER_MB
from slicewise.passes.joint.search import Prices

_TINY = 1e-9  # the weight of what is not the objective: it only decides among equals
_STEPS = 24  # of the bisection for prices
_TUNING = 40  # and of that for memory sizes
_CLOSE = 1e-6
_FACTORS = (0.2, 1.0, 5.0)  # of the price along the edge between the ends of a frontier

Objective = Literal["latency", "cost"]
USD_PER_MILLION = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Upper bounds: expected ms, and US dollars per request; None for none."""

    ms: float | None = None
    usd: float | None = None


def optimum(optimiser: Optimiser, objective: Objective, bounds: Bounds) -> Choice:
    """The best plan for the objective within the bounds; its value and bound in the objective's unit.

    Raises `InfeasibleError` with the nearest reachable value when no plan keeps a bound.
    """
    own, limit = (bounds.ms, bounds.usd) if objective == "latency" else (bounds.usd, bounds.ms)
    if limit is None:
        best = optimiser.best(prices_of(objective, 0.0))
        found, bound = best, min(_value(best, objective), best.lower_bound)
    else:
        found, bound = _within(optimiser, objective, limit)
    if own is not None and _value(found, objective) > own * (1 + _CLOSE):
        raise _unreachable(objective, own, _value(found, objective))
    return replace(found, value=_value(found, objective), lower_bound=bound)


def frontier(optimiser: Optimiser, points: int) -> list[Choice]:
    """Plans that no other is both faster and cheaper than, fastest first; both ends, and at most
    `points` in all: the best ones for some prices, with every size of the caller.
    """
    found = []
    for caller_mb in CALLER_MB:
        callers = (caller_mb,)
        fastest = optimiser.best(prices_of("latency", 0.0), callers)
        cheapest = optimiser.best(prices_of("cost", 0.0), callers)
        found += [fastest, cheapest]
        if cheapest.ms > fastest.ms and cheapest.usd < fastest.usd:
            edge = (cheapest.ms - fastest.ms) / (fastest.usd - cheapest.usd)
            found += [
                optimiser.best(Prices(ms=1.0, usd=edge * factor), callers) for factor in _FACTORS
            ]
    found.sort(key=lambda choice: (choice.ms, choice.usd))
    kept: list[Choice] = []
    for choice in found:
        if not kept or choice.usd < kept[-1].usd * (1 - _CLOSE):
            kept.append(choice)
    while len(kept) > points:
        gaps = [
            math.log(after.ms / before.ms) + math.log(before.usd / after.usd)
            for before, after in zip(kept[:-2], kept[2:], strict=True)
        ]
        del kept[1 + gaps.index(min(gaps))]  # the one that its neighbours stand for best
    return kept


def prices_of(objective: Objective, price: float) -> Prices:
    """The objective and `price` times the other one."""
    if objective == "latency":
        return Prices(ms=1.0, usd=max(price, _TINY))
    return Prices(ms=max(price, _TINY * 1e-9), usd=1.0)


def _within(optimiser: Optimiser, objective: Objective, limit: float) -> tuple[Choice, float]:
    """The best plan found whose other value is at most `limit`, and a lower bound for all such plans.

    One size of the caller after the other: between these the frontier jumps, within one its memory
    sizes make it almost continuous, and the hull is near.
    """
    opposite: Objective = "cost" if objective == "latency" else "latency"
    best: Choice | None = None
    bound = nearest_reach = math.inf
    for caller_mb in CALLER_MB:
        low = optimiser.best(prices_of(objective, 0.0), (caller_mb,))
        high = low if _fits(low, objective, limit) else None
        if high is None:
            high = optimiser.best(prices_of(opposite, 0.0), (caller_mb,))
            nearest_reach = min(nearest_reach, _other(high, objective))
            if not _fits(high, objective, limit):
                continue
        if best is not None and low.lower_bound >= _value(best, objective):
            continue  # no plan with this caller is better
        found, least = _along_hull(optimiser, objective, limit, low, high)
        bound = min(bound, least)
        if best is None or _value(found, objective) < _value(best, objective):
            best = found
    if best is None:
        raise _unreachable(opposite, limit, nearest_reach)
    return best, min(bound, _value(best, objective))


def _along_hull(
    optimiser: Optimiser, objective: Objective, limit: float, low: Choice, high: Choice
) -> tuple[Choice, float]:
    """As `_within` for one size of the caller; `low` is the best plan, `high` one within the limit."""
    callers = (high.caller_mb,)
    found, bound = high, min(low.lower_bound, _value(low, objective))
    if _fits(low, objective, limit):
        return low, bound
    for _ in range(_STEPS):
        # The price at which both ends of the hull's edge over the limit are worth the same.
        price = (_value(high, objective) - _value(low, objective)) / (
            _other(low, objective) - _other(high, objective)
        )
        choice = optimiser.best(prices_of(objective, price), callers)
        bound = max(bound, choice.lower_bound - price * limit)
        for end in (choice, low, high):
            tuned = _tuned(optimiser, end, objective, limit)
            if tuned is not None:
                found = min(found, tuned, key=lambda c: _value(c, objective))
        new, old = (_value(c, objective) + price * _other(c, objective) for c in (choice, low))
        if new >= old * (1 - _CLOSE):
            break
        if _other(choice, objective) > limit:
            low = choice
        else:
            high = choice
    return found, min(bound, _value(found, objective))


def _tuned(
    optimiser: Optimiser, choice: Choice, objective: Objective, limit: float
) -> Choice | None:
    """The same cut and transports with the memory sizes that just keep the limit."""

    def at(price: float) -> Choice:
        return optimiser.resized(choice, prices_of(objective, price))

    return _bisect(at, lambda found: _fits(found, objective, limit))


def _bisect(at: Callable[[float], Choice], fits: Callable[[Choice], bool]) -> Choice | None:
    """The choice at the lowest price that fits."""
    low, high = -9.0, 12.0  # powers of ten
    if not fits(at(10**high)):
        return None
    for _ in range(_TUNING):
        middle = (low + high) / 2
        if fits(at(10**middle)):
            high = middle
        else:
            low = middle
    return at(10**high)


def _fits(choice: Choice, objective: Objective, limit: float) -> bool:
    return _other(choice, objective) <= limit * (1 + _CLOSE)


def _value(choice: Choice, objective: Objective) -> float:
    return choice.ms if objective == "latency" else choice.usd


def _other(choice: Choice, objective: Objective) -> float:
    return choice.usd if objective == "latency" else choice.ms


def _unreachable(kind: Objective, bound: float, nearest: float) -> Exception:
    if kind == "latency":
        return infeasible_goal("latency_ms", bound, nearest)
    return infeasible_goal(
        "cost_per_million_usd", bound * USD_PER_MILLION, nearest * USD_PER_MILLION
    )
