"""The timeline: what slices of one request take together."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicewise.cost import SliceTime, Step
from slicewise.timeline import simulated_ms, slowest_extra_ms

TIME = SliceTime(
    begin_ms=1, call_ms=2, call_cpu_ms=2, wait_ms=0, end_ms=3, random_ms=0, receive_ms=4, compute_ms=50,
    send_ms=5, handle_ms=1, variance=0, usd=0,
)  # fmt: skip


def together(needs: dict[str, list[str]], share: float = 1.0, most: int = 9, **own: float) -> float:
    """Without random waits: what slices take, each with its own compute ms."""
    times = {name: replace(TIME, compute_ms=own.get(name, 50)) for name in needs}
    found = simulated_ms(list(needs), needs, times, share=share, most=most)
    assert found[0] == pytest.approx(found[-1])
    return found[0]


def test_one_after_the_other_they_add_up() -> None:
    assert together({"a": [], "b": ["a"], "c": ["a", "b"]}) == pytest.approx(3 * TIME.total_ms)


def test_at_the_same_time_the_caller_serves_one_after_the_other() -> None:
    """Two calls before the second computes; both replies come at the same time, one waits."""
    assert together({"a": [], "b": []}) == pytest.approx(TIME.total_ms + 3)


def test_a_short_slice_and_its_reader_run_beside_a_long_one() -> None:
    needs = {"a": [], "long": [], "b": ["a"], "c": ["b", "long"]}
    found = together(needs, a=10, b=10, long=100)
    assert found == pytest.approx(3 + 3 + 60 + 50 + 3 + TIME.total_ms)


def test_calls_at_once_share_the_callers_cpu() -> None:
    needs: dict[str, list[str]] = {name: [] for name in "abcd"}
    assert together(needs, share=0.25) - together(needs) == pytest.approx(3 * (2 / 0.25 - 2))
    assert together({"a": [], "b": ["a"]}, share=0.25) == pytest.approx(2 * TIME.total_ms)


def test_no_more_than_so_many_run_at_once() -> None:
    needs: dict[str, list[str]] = {name: [] for name in "abcd"}
    assert together(needs, most=1) == pytest.approx(4 * TIME.total_ms)
    assert together(needs, most=2) > 2 * TIME.total_ms


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=5, max_size=5),
       st.integers(1, 5))  # fmt: skip
def test_never_longer_than_one_after_the_other_nor_shorter_than_a_path(
    bits: list[list[bool]], most: int
) -> None:
    needs = {str(i): [str(j) for j in range(i) if bits[i][j]] for i in range(5)}
    depth: dict[str, int] = {}
    for name, before in needs.items():
        depth[name] = 1 + max((depth[other] for other in before), default=0)
    found = together(needs, most=most)
    longest = max(max(depth.values()), math.ceil(5 / most)) * TIME.total_ms
    assert longest - 1e-6 <= found <= 5 * TIME.total_ms + 1e-6


def test_the_slowest_of_several_waits_is_waited_for() -> None:
    step = Step(wait_ms=20, sigma=0.5)
    assert slowest_extra_ms(step, 1) == 0
    assert slowest_extra_ms(Step(wait_ms=20), 8) == 0
    two, eight = slowest_extra_ms(step, 2), slowest_extra_ms(step, 8)
    # Of two log-normal values of one mean m: m * (2 Phi(sigma / sqrt 2) - 1) = m erf(sigma / 2).
    assert two == pytest.approx(20 * math.erf(0.25), rel=0.05)
    assert eight > 2 * two

    waiting = replace(TIME, wait_ms=20, random_ms=20, variance=step.variance)
    slow = simulated_ms(["a", "b"], {"a": [], "b": []}, {"a": waiting, "b": waiting},
                        share=1.0, most=2)  # fmt: skip
    assert slow == sorted(slow)
    # Two that end at the same time wait for each other; here only those that do.
    extra = statistics.fmean(slow) - waiting.total_ms
    assert two < extra < two + 2 * 3
