"""The transport rule: what goes inline and what through S3."""

from __future__ import annotations

import importlib
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

messages = importlib.import_module("slicewise.targets.lambda.runtime.messages")
rule = importlib.import_module("slicewise.targets.lambda.runtime.rule")
arrays = importlib.import_module("slicewise.targets.lambda.runtime.arrays")
wire = importlib.import_module("slicewise.targets.lambda.runtime.wire")
Rule, choose = rule.Rule, rule.choose

TRANSPORTS = ("payload", "s3", "s3express")
BOTH = Rule(("payload", "s3"), 10_000)
UP_TO_1000 = (("payload", 1000), ("s3", None))


def drawn_choices(
    draw: random.Random, allowed: tuple[str, ...]
) -> tuple[tuple[str, int | None], ...]:
    """As a plan has them: other transports above growing sizes, the last for any."""
    names = draw.sample(allowed, draw.randint(1, len(allowed)))
    ends = sorted(draw.sample(range(20_000), len(names) - 1))
    return (*zip(names[:-1], ends, strict=True), (names[-1], None))


@pytest.mark.parametrize("block", range(10))
def test_no_request_takes_a_transport_that_its_limit_forbids(block: int) -> None:
    """Ten thousand requests of all kinds."""
    for seed in range(block * 1000, block * 1000 + 1000):
        check_request(random.Random(seed))


def check_request(draw: random.Random) -> None:
    most = draw.choice([10, 2000, 20_000])
    sizes = {f"t{i}": draw.randint(0, most) for i in range(draw.randint(0, 8))}
    allowed = tuple(draw.sample(TRANSPORTS, draw.randint(1, 3)))
    planned = {name: drawn_choices(draw, allowed) for name in sizes}
    first = {name for name in sizes if draw.random() < 0.3}
    payload = draw.randint(1, 50_000)
    room = payload - rule.ENVELOPE_BYTES
    try:
        chosen = choose(sizes, planned, Rule(allowed, payload), first)
    except ValueError:
        assert allowed == ("payload",)
        assert sum(map(rule.inline_bytes, sizes.values())) > room
        return

    assert chosen.keys() == sizes.keys()
    inline = {name for name, way in chosen.items() if way == "payload"}
    assert not inline or sum(rule.inline_bytes(sizes[name]) for name in inline) <= room
    for name, way in chosen.items():
        assert way in allowed
        admitted = [w for w, most in planned[name] if most is None or sizes[name] <= most]
        if way == "payload":
            assert way in admitted or name in first or set(allowed) == {"payload"}
            continue
        assert way in admitted or set(admitted) == {"payload"}
        if "payload" in allowed and (name in first or admitted[0] == "payload"):  # it was full
            before = [other for other in inline if sizes[other] <= sizes[name]]
            used = sum(rule.inline_bytes(sizes[other]) for other in before)
            assert used + rule.inline_bytes(sizes[name]) > room
        else:
            assert way == admitted[0]


def test_the_choices_hold_up_to_their_sizes() -> None:
    three = (("s3express", 10), ("payload", 1000), ("s3", None))
    rule_of_three = Rule(TRANSPORTS, 10_000)
    sizes = {"at10": 10, "above10": 11, "at1000": 1000, "above1000": 1001}

    chosen = choose(sizes, dict.fromkeys(sizes, three), rule_of_three)

    assert list(chosen.values()) == ["s3express", "payload", "payload", "s3"]


def test_tensors_of_the_caller_go_inline_above_their_choices() -> None:
    sizes = {"mine": 3000, "other": 3000}

    chosen = choose(sizes, dict.fromkeys(sizes, UP_TO_1000), BOTH, inline_first={"mine"})

    assert chosen == {"mine": "payload", "other": "s3"}


def test_the_smallest_tensors_get_the_payload() -> None:
    sizes = {f"t{i}": 1000 - i for i in range(10)}

    chosen = choose(sizes, dict.fromkeys(sizes, UP_TO_1000), BOTH)

    assert [name for name, way in chosen.items() if way == "s3"] == [
        "t5", "t4", "t3", "t2", "t1", "t0"
    ]  # fmt: skip


def test_a_full_message_falls_to_the_next_choice() -> None:
    plan = {"x": (("payload", 9000), ("s3express", None))}

    assert choose({"x": 8000}, plan, Rule(TRANSPORTS, 10_000)) == {"x": "s3express"}


def test_a_tensor_without_choices_takes_what_the_rule_allows() -> None:
    assert choose({"x": 10, "y": 9000}, {}, BOTH) == {"x": "payload", "y": "s3"}


def test_s3_alone_sends_everything_there() -> None:
    only = Rule(("s3",), 10_000)

    assert choose({"a": 1}, {"a": (("s3", None),)}, only, inline_first={"a"}) == {"a": "s3"}


@given(st.integers(0, 5000), st.integers(0, 8))
def test_an_inline_record_takes_no_more_json_than_claimed(elements: int, ones: int) -> None:
    array = np.zeros(elements, np.float32).reshape([1] * ones + [elements])
    raw = arrays.to_bytes(array, "float32")
    record = wire.inline(wire.describe(array, raw, "float32"), raw)

    empty = len(messages.join({"plan": "x"}, "tensors", {}))
    one = messages.join({"plan": "x"}, "tensors", {"scaled_dot_product_attention_12_" * 3: record})
    assert len(one) - empty <= rule.inline_bytes(len(raw))
