"""A trace as a picture: every phase in its place, at any width, with and without colour."""

from __future__ import annotations

from typing import Any

import pytest

from slicewise.waterfall import rows, waterfall_text

WORK = {"receive_ms": 3.0, "fetch_ms": 2.0, "decode_ms": 1.0, "compute_ms": 10.0, "send_ms": 3.0,
        "encode_ms": 1.0, "put_ms": 2.0}  # fmt: skip
TRACE: dict[str, Any] = {
    "total_ms": 100.0,
    "cold": True,
    "slices": [
        {
            "slice": "slice0", "stage": 0, "began_ms": 0.0, "call_ms": 20.0, "warm_up_ms": 30.0,
            "cold": True, "init_ms": 500.0, **WORK,
            "received": {"x": {"bytes": 64, "transport": "payload"}},
            "sent": {"wide": {"bytes": 5_242_880, "transport": "s3"}},
        },
        {"slice": "a-slice-with-a-long-name", "stage": 1, "began_ms": 50.0, "call_ms": 50.0,
         "cold": True, "init_ms": 30.0, "peak_mb": 123.4, **WORK},
    ],
}  # fmt: skip


def test_phases_follow_each_other_and_fill_the_call() -> None:
    first, second = rows(TRACE)

    assert [(p.name, p.start_ms, p.end_ms) for p in first.phases if p.end_ms > p.start_ms] == [
        ("init", 0, 30), ("queue", 30, 32), ("fetch", 32, 34), ("decode", 34, 35),
        ("compute", 35, 45), ("encode", 45, 46), ("send", 46, 48), ("queue", 48, 50),
    ]  # fmt: skip
    assert (second.start_ms, second.end_ms) == (50, 100)
    assert (second.ms("init"), second.ms("queue"), second.ms("compute")) == (30, 4, 10)


def test_an_init_that_does_not_fit_the_call_is_not_drawn_beyond_it() -> None:
    part = {**TRACE["slices"][1], "init_ms": 9000.0}
    (row,) = rows({"slices": [part]})
    assert row.end_ms == 100
    assert row.ms("init") == 34


@pytest.mark.parametrize("width", [40, 60, 100, 140])
def test_the_picture_fits_its_width_and_says_all_without_colour(width: int) -> None:
    text = waterfall_text(TRACE, width=width)

    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    flat = " ".join(text.split())
    for words in ("100.0 ms in the coordinator (cold)", "compute 10.0", "queue 4.0", "123 MB in RAM",
                  "out wide 5.0 MB by s3", "in x 64 B by payload"):  # fmt: skip
        assert words in flat
    assert "█" in text.splitlines()[1]


def test_colour_adds_nothing_but_colour() -> None:
    import re

    plain = waterfall_text(TRACE, width=100)
    colored = waterfall_text(TRACE, width=100, color=True)
    assert "\x1b" in colored
    assert [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", colored).splitlines()] == [
        line.rstrip() for line in plain.splitlines()
    ]


def test_a_trace_without_slices_is_no_error() -> None:
    assert "warm" in waterfall_text({})
