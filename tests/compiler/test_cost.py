"""The cost model: sums, percentiles and the lower envelope of lines."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slicewise import targets
from slicewise.cost import (
    CostModel,
    Imports,
    Moved,
    Start,
    Step,
    Transport,
    caller_cold_ms,
    entry_time,
    percentile,
    slice_cold_ms,
    slice_time,
)
from slicewise.crossover import choices, envelope, line, pinned

LAMBDA = targets.load("lambda")
NOTHING = Step()
MODEL = CostModel(
    mb_per_vcpu=1769, memory_mb_min=128, memory_mb_max=10240, caller_memory_mb=1769,
    call=Step(wait_ms=10), handle=Step(cpu_ms=1), load_ns=0,
    starts=(Start(packaging="zip", begin=NOTHING),), imports=Imports(),
    gb_s_usd=1.0, request_usd=0.25,
    transports=(
        Transport(name="near", send=Step(cpu_ns=1000), collect=Step(wait_ns=2000),
                  pass_on=Step(wait_ns=3000), receive=Step(cpu_ns=4000)),
        Transport(name="far", send=Step(wait_ms=50, wait_ns=10), collect=NOTHING, pass_on=NOTHING,
                  receive=Step(wait_ms=20, wait_ns=10), send_usd=2.0, receive_usd=1.0),
    ),
)  # fmt: skip


def test_a_slice_without_tensors_takes_its_call_and_its_compute() -> None:
    found = slice_time(MODEL, 1769, 100.0, [], [])

    assert found.total_ms == 10 + 1 + 100
    assert found.billed_ms == 101
    assert math.isclose(found.usd, 0.25 + 0.101 * 1769 / 1024)


def test_half_a_vcpu_takes_twice_as_long_but_for_its_first_quota_and_waits_no_longer() -> None:
    model = replace(MODEL, mb_per_vcpu=2000, caller_memory_mb=2000, period_ms=20)
    found = slice_time(model, 1000, 99.0, [Moved(transport="far", bytes=0)], [])

    assert found.handle_ms == 1  # within the first 10 ms, which are at full speed
    assert found.compute_ms == 9 + 2 * 90
    assert found.receive_ms == 20


def test_pauses_take_longer_than_they_last() -> None:
    """For the caches are cold after each."""
    model = replace(MODEL, mb_per_vcpu=2000, caller_memory_mb=2000, period_ms=20, resume_factor=0.1)

    assert model.elapsed(100.0, 1000) == pytest.approx(100 + 90 * 1.1)
    assert model.elapsed(10.0, 1000) == 10  # no pause
    assert model.elapsed(100.0, 2000) == 100


@settings(max_examples=60)
@given(share=st.floats(0.05, 1.0), steps=st.lists(st.floats(0.0, 80.0), min_size=3, max_size=3))
def test_a_burst_takes_what_the_scheduler_gives_it(share: float, steps: list[float]) -> None:
    """Simulated: a whole quota at first, and one with every period, which begins with the burst."""
    model = replace(MODEL, mb_per_vcpu=1000, memory_mb_min=1, period_ms=20)
    memory_mb = max(1, round(1000 * share))
    quota = 20 * memory_mb / 1000
    for cpu_ms in steps:
        periods = max(0, math.ceil(cpu_ms / quota) - 1)
        simulated = periods * 20 + cpu_ms - periods * quota
        # It begins anywhere in a period; at its worst the formula is off by what is left of one.
        assert abs(model.elapsed(cpu_ms, memory_mb) - simulated) <= 20 - quota + 1e-6
        assert model.elapsed(cpu_ms, memory_mb) >= cpu_ms


def test_no_share_delays_the_short_bursts_of_a_call() -> None:
    """Measured: a coordinator of 512 MB that spends 2 ms on each of its calls is never throttled."""
    model = replace(MODEL, call=Step(wait_ms=10, cpu_ms=2), period_ms=20)
    small = replace(model, caller_memory_mb=177)

    assert slice_time(model, 1769, 0.0, [], []).caller_ms == 12
    assert slice_time(small, 177, 0.0, [], []).caller_ms == 12
    assert slice_time(small, 177, 0.0, [], []).handle_ms == 1
    assert entry_time(small, [], []).caller_ms == 12


def test_the_client_calls_as_the_caller_does_but_at_a_full_vcpu() -> None:
    step = Step(wait_ns=2000, cpu_ns=1000)
    near = replace(MODEL.transports[0], collect=step, pass_on=step)
    model = replace(MODEL, transports=(near,), caller_memory_mb=177)
    moved = [Moved(transport="near", bytes=1_000)]

    assert entry_time(model, moved, []).caller_ms == pytest.approx(10 + 2 + 1)
    assert entry_time(model, [], moved).caller_ms == pytest.approx(10 + 2 + 1)


def test_every_step_of_a_tensor_counts_where_it_happens() -> None:
    near = Moved(transport="near", bytes=1_000)
    received = slice_time(MODEL, 1769, 0.0, [near], [])
    sent = slice_time(MODEL, 1769, 0.0, [], [near])

    assert received.receive_ms == pytest.approx(4.0)
    assert received.caller_ms == pytest.approx(10 + 3.0)
    assert sent.send_ms == pytest.approx(1.0)
    assert sent.caller_ms == pytest.approx(10 + 2.0)


def test_objects_are_fetched_together() -> None:
    two = [Moved(transport="far", bytes=1_000_000), Moved(transport="far", bytes=2_000_000)]
    found = slice_time(MODEL, 1769, 0.0, two, two)

    assert found.receive_ms == pytest.approx(20 + 30)
    assert found.send_ms == pytest.approx(50 + 30)
    assert found.usd == pytest.approx(0.25 + 2 * 2 + 2 * 1 + found.billed_ms * 1769 / 1024 * 1e-3)


COLD = replace(
    MODEL,
    load_ns=2.0,
    imports=Imports(slice_ms=100, store_ms=300, caller_ms=250, caller_store_ms=40),
    starts=(
        Start(packaging="zip", begin=Step(wait_ms=1000)),
        Start(packaging="image", begin=Step(wait_ms=2000), fetch_ns=1.0),
        Start(packaging="streamed", begin=Step(wait_ms=1000), fetch_ns=10.0, by_store=True),
    ),
)


@pytest.mark.parametrize(
    ("megabytes", "uses_store", "packaging", "ms"),
    [
        (0, False, None, 1000 + 100),
        (50, False, None, 1000 + 100 + 100),
        (50, True, None, 1000 + 100 + 300),  # imported while the weights are loaded
        (200, True, "zip", 1000 + 100 + 400),
        (50, False, "image", 2000 + 100 + 150),
        (50, False, "streamed", 1000 + 100 + 300 + 600),  # imported before they can be got
        (50, True, "streamed", 1000 + 100 + 300 + 600),
    ],
)
def test_a_cold_start_depends_on_weights_objects_and_packaging(
    megabytes: int, uses_store: bool, packaging: str | None, ms: float
) -> None:
    size = megabytes * 1_000_000
    found = slice_cold_ms(COLD, size, uses_store=uses_store, packaging=packaging)

    assert found == pytest.approx(ms)


def test_the_callers_cold_start_has_no_weights() -> None:
    assert caller_cold_ms(COLD, uses_store=False) == 1000 + 250
    assert caller_cold_ms(COLD, uses_store=True, packaging="image") == 2000 + 250 + 40


def test_threads_speed_up_what_is_parallel() -> None:
    assert MODEL.speed(1769, 1.0) == 1
    assert MODEL.speed(3537, 1.0) == 1
    assert MODEL.speed(3538, 1.0) == 2
    assert MODEL.speed(3538, 0.5) == pytest.approx(4 / 3)
    assert MODEL.speed(885, 1.0) == 885 / 1769


def test_the_sum_of_waits_has_the_percentiles_of_a_simulation() -> None:
    steps = [Step(wait_ms=15 * math.exp(0.5**2 / 2), sigma=0.5)] * 5
    mean = 100 + sum(step.wait_ms for step in steps)
    variance = sum(step.variance for step in steps)
    pick = random.Random(1)
    runs = sorted(100 + sum(15 * pick.lognormvariate(0, 0.5) for _ in steps) for _ in range(20_000))

    assert percentile(mean, variance, 0) == pytest.approx(runs[10_000], rel=0.02)
    assert percentile(mean, variance, 2.3263) == pytest.approx(runs[19_800], rel=0.05)


LINE = st.tuples(st.integers(0, 50), st.integers(0, 20), st.one_of(st.none(), st.integers(1, 30)))


@given(st.dictionaries(st.sampled_from("abcd"), LINE, min_size=1))
def test_the_envelope_is_the_cheapest_line_everywhere(
    lines: dict[str, tuple[int, int, int | None]],
) -> None:
    found = envelope(lines)
    for size in range(1, 40):
        allowed = {n: line for n, line in lines.items() if line[2] is None or size <= line[2]}
        chosen = next((n for n, end in found if end is None or size <= end), None)
        if not allowed:
            assert chosen is None
            continue
        assert chosen is not None and chosen in allowed
        least = min(start + slope * size for start, slope, _ in allowed.values())
        assert lines[chosen][0] + lines[chosen][1] * size == least


def test_on_lambda_payloads_beat_objects_until_megabytes() -> None:
    target = targets.load("lambda")
    model = target.cost_model(target.resolve_limits(None))

    assert [found.name for found in model.transports] == ["payload", "s3", "s3express"]
    small = [slice_time(model, 1769, 0, [Moved(transport=n, bytes=10_000)], []).total_ms
             for n in ("payload", "s3")]  # fmt: skip
    assert small[0] < small[1]


@given(
    st.sets(st.sampled_from(["payload", "s3", "s3express"]), min_size=1),
    st.sampled_from([None, 128, 512, 1769, 3008]),
    st.lists(st.sampled_from([128, 512, 1769, 3008]), max_size=3),
    st.sampled_from([0.0, 1e3, 1e6, 1e9]),
    st.integers(0, 12_000_000),
)
def test_a_choice_is_the_cheapest_way_at_its_size(
    allowed: set[str], sender: int | None, readers: list[int], weight: float, size: int
) -> None:
    model = LAMBDA.cost_model(LAMBDA.resolve_limits(None))
    found = choices(model, sorted(allowed), sender, readers, weight)

    assert found[-1][1] is None
    name = next(name for name, most in found if most is None or size <= most)
    lines = {way: line(model, model.transport(way), sender, readers, weight) for way in allowed}
    able = [v for _, v in lines.items() if v[2] is None or size <= v[2]]
    if able:
        start, slope, _ = lines[name]
        assert start + slope * size <= min(a + b * size for a, b, _ in able) * (1 + 1e-12)


def test_a_line_counts_as_the_time_of_a_call_does() -> None:
    """One tensor from a slice into one other: what `slice_time` says of both, less what they do else."""
    model = LAMBDA.cost_model(LAMBDA.resolve_limits(None))
    model = replace(model, caller_memory_mb=model.mb_per_vcpu)
    size, sender_mb, reader_mb, weight = 1_000_000, 512, 1024, 1e5
    for transport in model.transports:
        moved = [Moved(transport=transport.name, bytes=size)]
        value = 0.0
        for memory_mb, received, sent in ((sender_mb, [], moved), (reader_mb, moved, [])):
            with_it = slice_time(model, memory_mb, 100.0, received, sent)
            without = slice_time(model, memory_mb, 100.0, [], [])
            ms = with_it.total_ms - without.total_ms
            caller_usd = ms * model.gb_ms_usd(model.caller_memory_mb)
            value += ms + weight * (with_it.usd - without.usd + caller_usd)
        start, slope, _ = line(model, transport, sender_mb, [reader_mb], weight)
        assert start + slope * size == pytest.approx(value)


@given(
    st.sets(st.sampled_from(["payload", "s3", "s3express"]), min_size=1),
    st.integers(1, 12_000_000),
    st.data(),
)
def test_a_pinned_choice_holds_at_its_size_and_stays_in_order(
    allowed: set[str], size: int, data: st.DataObject
) -> None:
    model = LAMBDA.cost_model(LAMBDA.resolve_limits(None))
    order = [transport.name for transport in model.transports]
    wanted = data.draw(st.sampled_from(sorted(allowed)))
    found = pinned(choices(model, sorted(allowed), 1769, [1769]), order, size, wanted)

    assert next(n for n, most in found if most is None or size <= most) == wanted
    assert [n for n in order if n in dict(found)] == [n for n, _ in found]
    ends = [most for _, most in found if most is not None]
    assert found[-1][1] is None and len(ends) == len(found) - 1
    assert sorted(ends) == ends
