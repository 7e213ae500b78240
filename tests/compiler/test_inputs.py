"""Inputs of a call in this process: what does not match the plan is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slicewise import RequestError
from slicewise.inputs import check_inputs
from slicewise.plan import Dim, TensorSpec

PLAN: Any = SimpleNamespace(
    dims=(Dim(name="batch", min=1, max=8, example=2),),
    inputs=(
        TensorSpec(name="pairs", tensor="pairs", dtype="float32", shape=("2*batch", 3)),
        TensorSpec(name="x", tensor="x", dtype="float32", shape=("batch", 3)),
    ),
)


def zeros(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.zeros(shape, dtype)


def test_sizes_that_follow_from_each_other_pass() -> None:
    check_inputs(PLAN, {"pairs": zeros(10, 3), "x": zeros(5, 3)})


@pytest.mark.parametrize(
    ("pairs", "x", "field", "text"),
    [
        (zeros(4, 3), zeros(2, 4), "x", r"x: shape is \[2, 4\], expected \['batch', 3\]"),
        (zeros(4, 3), zeros(2), "x", r"x: shape is \[2\], expected \['batch', 3\]"),
        (zeros(5, 3), zeros(2, 3), "pairs", r"\[5, 3\], expected \['2\*batch', 3\] with batch = 2"),
        (
            zeros(4, 3),
            zeros(2, 3, dtype="int64"),
            "x",
            "x: dtype is int64, the model takes float32",
        ),
    ],
)
def test_what_does_not_match_is_named(
    pairs: np.ndarray, x: np.ndarray, field: str, text: str
) -> None:
    with pytest.raises(RequestError, match=text) as caught:
        check_inputs(PLAN, {"pairs": pairs, "x": x})

    assert caught.value.field == field
