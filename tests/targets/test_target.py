"""The Lambda target: limits, transports, memory sizes, and its profile."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicewise import targets
from slicewise.cost import CostModel, Step
from slicewise.errors import InfeasibleError, LimitsError, TargetError
from slicewise.limits import MB, Limits
from slicewise.target import Sent

target: Any = targets.load("lambda")
MODEL = target.cost_model(target.resolve_limits(None))
# By the default profile the payload is faster for all that it holds; not where reading it takes so long.
SLOW = replace(
    MODEL,
    transports=tuple(
        replace(way, receive=Step(cpu_ns=40.0)) if way.name == "payload" else way
        for way in MODEL.transports
    ),
)


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
        (Limits(package_mb=76), "leaves nothing for a slice"),
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
    with pytest.raises(LimitsError, match="choose one or more of payload, s3, s3express"):
        target.transport_rule(target.resolve_limits(None), names)


def test_the_rule_takes_its_numbers_from_the_limits() -> None:
    limits = target.resolve_limits(Limits(payload_bytes=50_000))

    rule = target.transport_rule(limits, None)
    assert rule.transports == ("payload", "s3")
    assert rule.payload_bytes == 50_000
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


def message(
    sizes: dict[str, int], *, sender_mb: int = 1769, reader_mb: int = 1769, callers: str = ""
) -> list[Sent]:
    return [
        Sent(
            tensor=name,
            bytes=size,
            sender_mb=sender_mb,
            reader_mbs=() if name == callers else (reader_mb,),
            is_callers=name == callers,
        )
        for name, size in sizes.items()
    ]


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=8))
def test_what_the_bound_allows_fits_one_message(sizes: list[int]) -> None:
    limits = target.resolve_limits(Limits(payload_bytes=300_000))
    rule = target.transport_rule(limits, ("payload",))
    bound = target.overheads(rule).max_edge_bytes
    assert bound is not None
    if sum(sizes) <= bound:
        named = {f"t{index}": size for index, size in enumerate(sizes)}
        chosen = target.choose_transports(message(named), rule, MODEL)
        assert {sent.transport for sent in chosen.values()} == {"payload"}
        assert {sent.choices for sent in chosen.values()} == {(("payload", None),)}


def test_every_transport_has_a_reason_in_numbers() -> None:
    rule = target.transport_rule(target.resolve_limits(None), None)
    sizes = {"small": 1000, "middle": 1_000_000, "large": 5_000_000, "reply": 3_500_000}

    chosen = target.choose_transports(message(sizes, callers="reply"), rule, MODEL)

    ms = r"\d+\.\d ms"
    for name, transport, reason in (
        ("small", "payload", f"1,000 bytes, payload: {ms}, s3 would take {ms}"),
        ("middle", "payload", f"1,000,000 bytes, payload: {ms}, s3 would take {ms}"),
        ("large", "s3", f"5,000,000 bytes exceed the message; s3: {ms}"),
        ("reply", "payload", "3,500,000 bytes, fits the caller's message"),
    ):
        assert chosen[name].transport == transport
        assert re.fullmatch(reason, chosen[name].reason)
    (_, most), last = chosen["middle"].choices
    assert most == 4_717_438  # at a full vCPU the payload is faster for all that it may hold
    assert last == ("s3", None)


def test_small_functions_pass_less_inline() -> None:
    """Encoding takes CPU, of which they have little; waiting for S3 takes none."""
    rule = target.transport_rule(target.resolve_limits(None), None)

    def most(memory_mb: int, model: CostModel = SLOW) -> int:
        sent = message({"x": 1000}, sender_mb=memory_mb, reader_mb=memory_mb)
        choices: Any = target.choose_transports(sent, rule, model)["x"].choices
        return int(choices[0][1])

    assert most(128) < most(256) < most(512) < most(1769) == most(3008)
    assert most(128, MODEL) == most(3008, MODEL) == 4_717_438  # the most that it may be


def test_s3express_takes_over_early_where_it_is_allowed() -> None:
    rule = target.transport_rule(target.resolve_limits(None), ("payload", "s3", "s3express"))

    chosen = target.choose_transports(message({"small": 100, "large": 4_000_000}), rule, MODEL)

    assert (chosen["small"].transport, chosen["large"].transport) == ("payload", "s3express")
    assert [name for name, _ in chosen["small"].choices] == ["payload", "s3express"]


def test_dear_milliseconds_are_not_dear_requests() -> None:
    """By money alone a PUT and a GET must save more than they cost."""
    rule = target.transport_rule(target.resolve_limits(None), None)
    small = message({"x": 1000}, sender_mb=128, reader_mb=128)
    by_ms, by_usd = (
        target.choose_transports(small, rule, SLOW, weight)["x"].choices[0][1]
        for weight in (0.0, 1e12)
    )

    assert by_ms < by_usd


def test_a_full_message_sends_the_rest_through_s3() -> None:
    rule = target.transport_rule(target.resolve_limits(None), None)

    chosen = target.choose_transports(message({f"t{i}": 10**6 for i in range(6)}), rule, MODEL)

    assert [sent.transport for sent in chosen.values()].count("s3") == 2
    assert chosen["t5"].reason.endswith("but the message is full")


def test_a_tensor_without_a_way_is_infeasible() -> None:
    rule = target.transport_rule(target.resolve_limits(None), ("payload",))

    with pytest.raises(InfeasibleError, match=r"5,000,000 bytes.*Allow the transport 's3'"):
        target.choose_transports(message({"x": 5_000_000}), rule, MODEL)


def test_one_transport_is_its_own_reason() -> None:
    rule = target.transport_rule(target.resolve_limits(None), ("s3",))

    chosen = target.choose_transports(message({"x": 5}, callers="x"), rule, MODEL)["x"]

    assert (chosen.transport, chosen.reason) == ("s3", "s3 is the only transport allowed")
    assert chosen.choices == (("s3", None),)


def test_a_function_gets_the_users_memory_or_a_full_vcpu_or_what_it_needs() -> None:
    default = target.resolve_limits(None)

    assert target.memory_mb(Limits(memory_mb=192), default, 150 * MB) == 192
    assert target.memory_mb(None, default, 150 * MB) == 1769
    assert target.memory_mb(Limits(weight_bytes=5), default, 2000 * MB + 1) == 2001
    assert target.memory_mb(None, default, 4000 * MB) == 3008


def test_a_transport_that_was_chosen_with_the_cut_is_kept() -> None:
    rule = target.transport_rule(target.resolve_limits(None), None)
    sent = [replace(one, wanted="s3") for one in message({"x": 1_000_000})]

    chosen = target.choose_transports(sent, rule, MODEL)["x"]

    assert chosen.transport == "s3"
    assert chosen.choices == (("payload", 999_999), ("s3", None))
    assert "together it is better" in chosen.reason


def test_another_profile_makes_another_target(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[s3]\nput_ms = {p50 = 1, p99 = 2}\nget_ms = {p50 = 1, p99 = 2}\n")
    own = targets.load("lambda", path)
    limits = own.resolve_limits(None)
    rule = own.transport_rule(limits, None)

    assert targets.load("lambda") is target
    model = own.cost_model(limits)
    (_, most), _ = own.choose_transports(message({"x": 1000}), rule, model)["x"].choices
    assert most is not None and most < 1_000_000  # objects are near: they win early


def test_the_type_on_the_wire_is_one_that_the_runtime_knows() -> None:
    limits = target.resolve_limits(None)

    rule = target.transport_rule(limits, None, wire_dtype="float16", compress=True)
    assert (rule.wire_dtype, rule.compression) == ("float16", "zlib")
    rule = target.transport_rule(limits, None)
    assert (rule.wire_dtype, rule.compression) == (None, None)
    with pytest.raises(LimitsError, match="wire_dtype='bfloat16': float32 travels as it is"):
        target.transport_rule(limits, None, wire_dtype="bfloat16")


def test_readers_have_what_the_wire_makes_of_a_tensor() -> None:
    rule = target.transport_rule(target.resolve_limits(None), None, wire_dtype="float16")
    third = np.full((2, 1), 1 / 3, np.float32)

    found, travelled = target.delivered(third, "float32", rule)
    assert (travelled, found.dtype, found.shape) == ("float16", np.float32, (2, 1))
    np.testing.assert_array_equal(found, third.astype(np.float16).astype(np.float32))
    found, travelled = target.delivered(third * 1e6, "float32", rule)
    assert travelled == "float32"
    np.testing.assert_array_equal(found, third * np.float32(1e6))
