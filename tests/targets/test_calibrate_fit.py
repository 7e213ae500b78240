"""The fit of `calibrate`: least squares that are, and numbers that are not told when they cannot be."""

from __future__ import annotations

import importlib
import itertools
import random
from typing import Any

import numpy as np
import pytest

fits = importlib.import_module("slicewise.targets.lambda.calibrate_fit")
rows = importlib.import_module("slicewise.targets.lambda.calibrate_rows")


def row(
    what: str,
    ms: list[float],
    terms: dict[str, float],
    *,
    clock: str = "wall",
    slow: Any = (),
    size: int = 0,
) -> Any:
    return rows.Row(
        what=what,
        clock=clock,
        bytes=size,
        memory_mb=1769,
        terms=tuple(terms.items()),
        slow=slow,
        ms=tuple(ms),
    )


def put_rows(
    wait: Any, *, byte_ns: float = 12.8, cpu_ms: float = 3.0, cpu_ns: float = 2.0
) -> list[Any]:
    """Puts of four sizes, ten of each; `wait()` draws a wait."""
    found = []
    for mega in (0.01, 0.5, 2.0, 6.0):
        cpu = cpu_ms + cpu_ns * mega
        terms = {"s3.put_cpu_ms": 1.0, "s3.put_cpu_ns": mega}
        times = [wait() + byte_ns * mega + cpu for _ in range(40)]
        found.append(row("s3 put", times, {"s3.put_ms": 1.0, "network.byte_ns": mega, **terms}))
        found.append(row("s3 put", [cpu] * 10, terms, clock="cpu"))
    return found


def test_nnls_is_optimal_on_thousands_of_random_problems() -> None:
    """Against every choice of the entries that are 0: the best of those without negative ones."""
    random_numbers = np.random.default_rng(0)
    clamped = 0
    for _ in range(3000):
        count = int(random_numbers.integers(1, 5))
        matrix = random_numbers.standard_normal((int(random_numbers.integers(1, 7)), count))
        matrix *= 10.0 ** random_numbers.integers(-3, 4, count)
        right = random_numbers.standard_normal(len(matrix))
        best = float(np.linalg.norm(right))
        for size in range(1, count + 1):
            for chosen in map(list, itertools.combinations(range(count), size)):
                x = np.linalg.lstsq(matrix[:, chosen], right, rcond=None)[0]
                if (x >= 0).all():
                    best = min(best, float(np.linalg.norm(matrix[:, chosen] @ x - right)))
        found = fits.nnls(matrix, right)
        clamped += bool((found == 0).any())

        assert (found >= 0).all()
        assert np.linalg.norm(matrix @ found - right) <= best * (1 + 1e-9) + 1e-12
    assert 300 < clamped < 2900


def test_exact_measurements_give_the_exact_numbers() -> None:
    numbers = fits.fit(put_rows(lambda: 63.0), 20.0).numbers

    assert numbers["s3.put_ms"].p50 == pytest.approx(63.0)
    assert numbers["network.byte_ns"].p50 == pytest.approx(12.8)
    assert numbers["s3.put_cpu_ms"].p50 == pytest.approx(3.0)
    assert numbers["s3.put_cpu_ns"].p50 == pytest.approx(2.0)
    assert all(not each.problem and each.residual < 1e-9 for each in numbers.values())
    assert numbers["s3.put_ms"].count == 160
    assert numbers["s3.put_cpu_ms"].count == 200


def test_waits_that_vary_give_their_percentiles() -> None:
    draw = random.Random(1)
    found = fits.fit(put_rows(lambda: draw.lognormvariate(4.0, 0.2)), 20.0).numbers["s3.put_ms"]

    assert found.p50 == pytest.approx(54.6, rel=0.06)
    assert found.p99 == pytest.approx(54.6 * 1.593, rel=0.15)
    assert 0 < found.error < 0.1 * found.p50


def test_outliers_move_little() -> None:
    steady = put_rows(lambda: 63.0)
    wrong = row("s3 put", [5000.0] * 3, {"s3.put_ms": 1.0, "network.byte_ns": 2.0})
    numbers = fits.fit([*steady, wrong], 20.0).numbers

    assert numbers["s3.put_ms"].p50 == pytest.approx(63.0, rel=0.03)
    assert numbers["network.byte_ns"].p50 == pytest.approx(12.8, rel=0.05)


def test_a_small_share_is_predicted_and_not_fitted() -> None:
    slow = ((0.1, ("s3.put_cpu_ms",), 1),)
    check = row("s3 put", [1.0], {"s3.put_ms": 1.0, "s3.put_cpu_ms": 4.0}, slow=slow)
    fit = fits.fit([*put_rows(lambda: 63.0), check], 20.0)

    assert fit.numbers["s3.put_ms"].p50 == pytest.approx(63.0)
    assert fit.predicted[-1] == pytest.approx(63.0 + 2.0 + 10.0 / 0.1)  # of 12 ms, 2 are its quota


def test_what_cannot_be_told_says_so() -> None:
    together = row("one", [10.0], {"a": 1.0, "b": 1.0})
    below = row("two", [-1.0, -2.0], {"c": 1.0})
    noisy = row("three", [1.0, 9.0, 30.0], {"d": 1.0})
    numbers = fits.fit([together, below, noisy], 20.0).numbers
    problems = {name: number.problem for name, number in numbers.items()}

    # Of two that always come together the fit may leave one at 0; neither is told.
    assert problems["a"] == problems["b"] == "the measurements cannot tell it from others"
    assert problems["c"] == "came out as 0 or less"
    assert problems["d"].startswith("too uncertain, 9 ± ")


def test_few_measurements_have_no_99th_percentile() -> None:
    few = row("s3 put", [60.0, 63.0, 70.0] * 5, {"s3.put_ms": 1.0})

    assert fits.fit([few], 20.0).numbers["s3.put_ms"].p99 is None


def test_both_ways_are_added_but_those_of_the_smallest_size() -> None:
    measured = [
        row("s3 put", [5.0, 6.0], {"s3.put_ms": 1.0, "network.byte_ns": 0.1}, size=100),
        row("s3 get", [3.0, 4.0], {"s3.get_ms": 1.0, "network.byte_ns": 0.1}, size=100),
        row("s3 put", [50.0, 70.0], {"s3.put_ms": 1.0, "network.byte_ns": 4.0}, size=4000),
        row("s3 get", [30.0, 10.0], {"s3.get_ms": 1.0, "network.byte_ns": 4.0}, size=4000),
        row("s3 put", [9.0], {"s3.put_cpu_ms": 1.0}, clock="cpu", size=4000),
    ]
    found = rows.paired(measured)
    both = row(
        "s3, both ways",
        [80.0, 80.0],
        {"s3.put_ms": 1.0, "network.byte_ns": 8.0, "s3.get_ms": 1.0},
        size=4000,
    )

    assert found == (*measured[:2], both, measured[4])


def test_calls_of_one_memory_size_at_either_end_are_not_mixed() -> None:
    caller, called = ("call.caller_cpu_ms",), ("call.cpu_ms",)

    def call(way: str, ms: float, end: tuple[str, ...], size: int) -> Any:
        terms = {"call.caller_cpu_ms": 1.0, "call.cpu_ms": 1.0, "network.byte_ns": size * 1e-6}
        return row(f"call, {way}", [ms], terms, size=size, slow=((0.25, end, 1),))

    measured = [
        call("request", 1.0, called, 64),
        *(call("request", 10.0, end, 8000) for end in (caller, called)),
        *(call("reply", 20.0, end, 8000) for end in (called, caller)),
    ]
    found = rows.paired(measured)[1:]

    assert [each.slow for each in found] == [((0.25, caller, 2),), ((0.25, called, 2),)]
    assert [each.ms for each in found] == [(30.0,), (30.0,)]
