"""The Lambda target: limits, transports, memory sizes, and its profile."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicewise import targets
from slicewise.errors import InfeasibleError, LimitsError, TargetError
from slicewise.limits import MB, Limits

target: Any = targets.load("lambda")


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(TargetError, match="unknown target 'azure'; known targets: lambda"):
        targets.load("azure")


def test_limits_default_to_what_every_account_has() -> None:
    limits = target.resolve_limits(None)

    assert (limits.memory_mb, limits.package_mb, limits.payload_bytes) == (3008, 250, 6291456)
    assert limits.weight_bytes is None
    assert limits.max_slices is None


def test_the_users_limits_stay() -> None:
    given_limits = Limits(
        memory_mb=512, package_mb=100, payload_bytes=20_000, weight_bytes=5, max_slices=3
    )

    assert target.resolve_limits(given_limits) == given_limits


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(memory_mb=10241), "above Lambda's own limit of 10,240"),
        (Limits(package_mb=250.5), "above Lambda's own limit of 250"),
        (Limits(payload_bytes=6291457), "above Lambda's own limit of 6,291,456"),
        (Limits(memory_mb=127), "below Lambda's smallest function, 128 MB"),
        (Limits(package_mb=74), "leaves nothing for a slice"),
        (Limits(package_mb=0.5), "leaves nothing for a slice"),
        (Limits(payload_bytes=1000), "Use at least"),
    ],
)
def test_limits_outside_the_platform_are_refused(limits: Limits, text: str) -> None:
    with pytest.raises(LimitsError, match=text):
        target.resolve_limits(limits)


def test_the_smallest_function_is_allowed() -> None:
    assert target.resolve_limits(Limits(memory_mb=128)).memory_mb == 128


@pytest.mark.parametrize("names", [("ftp",), ("payload", "sqs"), ()])
def test_unknown_transports_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(LimitsError, match="choose one or more of payload, s3"):
        target.transport_rule(target.resolve_limits(None), names)


def test_the_rule_takes_its_numbers_from_profile_and_limits() -> None:
    limits = target.resolve_limits(Limits(payload_bytes=50_000))

    rule = target.transport_rule(limits, None)
    assert rule.transports == ("payload", "s3")
    assert rule.payload_bytes == 50_000
    assert 30_000 < rule.threshold_bytes < 50_000  # all that a message holds
    whole = target.transport_rule(target.resolve_limits(None), None)
    assert 2_000_000 < whole.threshold_bytes < 4_600_000  # where both take as long
    assert target.transport_rule(limits, ("s3",)).transports == ("s3",)


def test_only_payload_plans_bound_what_a_slice_receives() -> None:
    limits = target.resolve_limits(None)

    both = target.overheads(target.transport_rule(limits, None))
    payload = target.overheads(target.transport_rule(limits, ("payload",)))
    assert both.max_edge_bytes is None
    assert payload.max_edge_bytes is not None
    assert 4_600_000 < payload.max_edge_bytes < 4_717_824
    assert both.memory_bytes > 50 * MB
    assert both.package_bytes > 50 * MB


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=8))
def test_what_the_bound_allows_fits_one_message(sizes: list[int]) -> None:
    limits = target.resolve_limits(Limits(payload_bytes=300_000))
    rule = target.transport_rule(limits, ("payload",))
    bound = target.overheads(rule).max_edge_bytes
    assert bound is not None
    if sum(sizes) <= bound:
        named = {f"t{index}": size for index, size in enumerate(sizes)}
        chosen = target.choose_transports(named, rule, frozenset())
        assert {transport for transport, _ in chosen.values()} == {"payload"}


def test_every_transport_has_a_reason_in_numbers() -> None:
    rule = target.transport_rule(target.resolve_limits(None), None)
    sizes = {"small": 1000, "large": 4_500_000, "reply": 4_400_000}
    most = f"{rule.threshold_bytes:,}"

    chosen = target.choose_transports(sizes, rule, frozenset({"reply"}))

    assert chosen["small"] == ("payload", f"1,000 bytes, within the threshold of {most} bytes")
    assert chosen["large"] == ("s3", f"4,500,000 bytes, above the threshold of {most} bytes")
    assert chosen["reply"] == ("payload", "4,400,000 bytes, fits the caller's message")


def test_a_full_message_sends_the_rest_through_s3() -> None:
    rule = target.transport_rule(target.resolve_limits(None), None)

    chosen = target.choose_transports({f"t{i}": 10**6 for i in range(6)}, rule, frozenset())

    assert [way for way, _ in chosen.values()].count("s3") == 2
    assert "do not fit the message beside" in chosen["t5"][1]


def test_a_tensor_without_a_way_is_infeasible() -> None:
    rule = target.transport_rule(target.resolve_limits(None), ("payload",))

    with pytest.raises(InfeasibleError, match=r"5,000,000 bytes.*Allow the transport 's3'"):
        target.choose_transports({"x": 5_000_000}, rule, frozenset())


def test_one_transport_is_its_own_reason() -> None:
    rule = target.transport_rule(target.resolve_limits(None), ("s3",))

    assert target.choose_transports({"x": 5}, rule, frozenset({"x"})) == {
        "x": ("s3", "s3 is the only transport allowed")
    }


def test_a_function_gets_the_users_memory_or_a_full_vcpu_or_what_it_needs() -> None:
    default = target.resolve_limits(None)

    assert target.memory_mb(Limits(memory_mb=192), default, 150 * MB) == 192
    assert target.memory_mb(None, default, 150 * MB) == 1769
    assert target.memory_mb(Limits(weight_bytes=5), default, 2000 * MB + 1) == 2001
    assert target.memory_mb(None, default, 4000 * MB) == 3008
