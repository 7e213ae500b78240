"""The transport rule: what goes inline and what through S3."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

rule = importlib.import_module("slicewise.targets.lambda.runtime.rule")
wire = importlib.import_module("slicewise.targets.lambda.runtime.wire")
Rule, choose = rule.Rule, rule.choose

BOTH = Rule(("payload", "s3"), 1000, 10_000)
SIZES = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(0, 20_000))


@given(SIZES, st.integers(0, 5000), st.integers(1, 50_000), st.booleans())
def test_a_message_never_exceeds_the_payload(
    sizes: dict[str, int], threshold: int, payload: int, waived: bool
) -> None:
    chosen = choose(sizes, Rule(("payload", "s3"), threshold, payload), sizes if waived else ())

    assert chosen.keys() == sizes.keys()
    inline = [size for name, size in sizes.items() if chosen[name] == "payload"]
    if inline:
        assert rule.ENVELOPE_BYTES + sum(map(rule.inline_bytes, inline)) <= payload
    if not waived:
        assert all(size <= threshold for size in inline)


@given(SIZES, st.integers(1, 50_000))
def test_without_s3_everything_is_inline_or_refused(sizes: dict[str, int], payload: int) -> None:
    only = Rule(("payload",), 0, payload)
    fits = rule.ENVELOPE_BYTES + sum(map(rule.inline_bytes, sizes.values())) <= payload
    if fits or not sizes:
        assert set(choose(sizes, only).values()) <= {"payload"}
    else:
        with pytest.raises(ValueError, match="does not fit the payload"):
            choose(sizes, only)


def test_the_threshold_is_the_largest_inline_tensor() -> None:
    assert choose({"at": 1000, "above": 1001}, BOTH) == {"at": "payload", "above": "s3"}


def test_the_threshold_does_not_hold_for_tensors_of_the_caller() -> None:
    chosen = choose({"mine": 3000, "other": 3000}, BOTH, inline_first={"mine"})

    assert chosen == {"mine": "payload", "other": "s3"}


def test_the_smallest_tensors_get_the_payload() -> None:
    chosen = choose({f"t{i}": 1000 - i for i in range(10)}, BOTH)

    assert [name for name, way in chosen.items() if way == "s3"] == [
        "t5", "t4", "t3", "t2", "t1", "t0"
    ]  # fmt: skip


def test_s3_alone_sends_everything_there() -> None:
    assert choose({"a": 1}, Rule(("s3",), 1000, 10_000), inline_first={"a"}) == {"a": "s3"}


@given(st.integers(0, 5000), st.integers(0, 8))
def test_an_inline_record_takes_no_more_json_than_claimed(elements: int, ones: int) -> None:
    array = np.zeros(elements, np.float32).reshape([1] * ones + [elements])
    raw = wire.to_bytes(array, "float32")
    record = wire.inline(wire.describe(array, raw, "float32"), raw)

    entry = json.dumps({"scaled_dot_product_attention_12_" * 3: record})
    assert len(entry) <= rule.inline_bytes(len(raw))
