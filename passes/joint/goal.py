"""Bounds on latency and cost as prices: Lagrangian search, with the proof that it brings.

Minimise f with g <= B. For any price p >= 0 the least f + p (g - B) of all plans is a lower bound of f,
and the plan that has it is on the convex hull of the cost-latency frontier. Bisection finds the price
at which g passes B; on either side the memory sizes of the plan are then tuned until it meets B. What
lies between hull and frontier is the gap that the certificate states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from slicewise.passes.joint.optimise import Choice, Optimiser, infeasible_goal
from slicewise.passes.joint.search import Prices

_TINY = 1e-9  # the weight of what is not the objective: it only decides among equals
_STEPS = 24  # of the bisection for prices
_TUNING = 40  # and of that for memory sizes
_CLOSE = 1e-6

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
    best = optimiser.best(prices_of(objective, 0.0))
    own, other = (bounds.ms, bounds.usd) if objective == "latency" else (bounds.usd, bounds.ms)
    least, limit = _value(best, objective), _other(best, objective)
    if other is None or limit <= other * (1 + _CLOSE):
        found, bound = best, min(least, best.lower_bound)
    else:
        found, bound = _within(optimiser, objective, best, other)
    if own is not None and _value(found, objective) > own * (1 + _CLOSE):
        raise _unreachable(objective, own, _value(found, objective))
    return replace(found, value=_value(found, objective), lower_bound=bound)


def frontier(optimiser: Optimiser, points: int) -> list[Choice]:
    """Plans that no other is both faster and cheaper than, fastest first: the ends and, between them,
    the plans that are best for prices from one end to the other.
    """
    fastest = optimiser.best(prices_of("latency", 0.0))
    cheapest = optimiser.best(prices_of("cost", 0.0))
    found = [fastest, cheapest]
    if cheapest.ms > fastest.ms and cheapest.usd < fastest.usd:
        middle = (cheapest.ms - fastest.ms) / (fastest.usd - cheapest.usd)
        for step in range(1, points - 1):
            price = middle * 10 ** (4 * step / (points - 1) - 2)
            found.append(optimiser.best(Prices(ms=1.0, usd=price)))
    found.sort(key=lambda choice: (choice.ms, choice.usd))
    kept: list[Choice] = []
    for choice in found:
        if not kept or choice.usd < kept[-1].usd * (1 - _CLOSE):
            kept.append(choice)
    return kept


def prices_of(objective: Objective, price: float) -> Prices:
    """The objective and `price` times the other one."""
    if objective == "latency":
        return Prices(ms=1.0, usd=max(price, _TINY))
    return Prices(ms=max(price, _TINY * 1e-9), usd=1.0)


def _within(
    optimiser: Optimiser, objective: Objective, best: Choice, limit: float
) -> tuple[Choice, float]:
    """The best plan found whose other value is at most `limit`, and a lower bound for all such plans."""
    opposite: Objective = "cost" if objective == "latency" else "latency"
    nearest = optimiser.best(prices_of(opposite, 0.0))
    if _other(nearest, objective) > limit * (1 + _CLOSE):
        raise _unreachable(opposite, limit, _other(nearest, objective))
    low, high, found = best, nearest, nearest
    bound = min(best.lower_bound, _value(best, objective))
    for _ in range(_STEPS):
        # The price at which both ends of the hull's edge over the limit are worth the same.
        price = (_value(high, objective) - _value(low, objective)) / (
            _other(low, objective) - _other(high, objective)
        )
        choice = optimiser.best(prices_of(objective, price))
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
