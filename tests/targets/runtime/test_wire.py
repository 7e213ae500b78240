"""The wire format: every array survives it, and every damaged record is refused."""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as strategies

messages = importlib.import_module("slicewise.targets.lambda.runtime.messages")
arrays = importlib.import_module("slicewise.targets.lambda.runtime.arrays")
wire = importlib.import_module("slicewise.targets.lambda.runtime.wire")

DTYPES = sorted(wire.ITEM_BYTES)
SHAPES = strategies.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


def sent(array: np.ndarray, dtype: str) -> dict[str, Any]:
    raw = arrays.to_bytes(array, dtype)
    record = wire.inline(wire.describe(array, raw, dtype), raw)
    as_json: dict[str, Any] = json.loads(messages.join({}, "tensors", {"x": record}))["tensors"][
        "x"
    ]
    return as_json


def received(record: dict[str, Any]) -> np.ndarray:
    wire.check_record("x", record)
    raw = wire.decode_inline("x", record)
    wire.check_bytes("x", record, raw)
    array: np.ndarray = arrays.from_bytes(raw, record)
    return array


@given(st.data())
def test_every_array_comes_back_bit_for_bit(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([name for name in DTYPES if name != "bfloat16"]))
    array = data.draw(strategies.arrays(dtype, SHAPES))

    back = received(sent(array, dtype))

    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(strategies.arrays(np.float32, SHAPES))
def test_bfloat16_rounds_as_torch_does(array: np.ndarray) -> None:
    expected = torch.from_numpy(array.copy()).to(torch.bfloat16).float().numpy()

    back = received(sent(array, "bfloat16"))

    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, expected)


def test_a_bfloat16_record_counts_two_bytes_per_element() -> None:
    assert sent(np.ones((3, 2), np.float32), "bfloat16")["bytes"] == 12


def test_non_contiguous_arrays_travel_in_row_order() -> None:
    array = np.arange(12, dtype=np.int64).reshape(3, 4).T[::2]

    np.testing.assert_array_equal(received(sent(array, "int64")), array)


GOOD = sent(np.arange(6, dtype=np.float32).reshape(2, 3), "float32")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dtype": "float31"}, "dtype 'float31' is not one of"),
        ({"dtype": None}, "dtype None is not one of"),
        ({"dtype": ["float32"]}, "is not one of"),
        ({"dtype": "int64"}, "bytes is 24; dtype int64 and shape [2, 3] make 48"),
        ({"shape": [2, 2]}, "make 16"),
        ({"shape": "23"}, "is not a list"),
        ({"shape": [1] * 17}, "at most 16 sizes"),
        ({"shape": [2, -3]}, "something other than sizes"),
        ({"shape": [2, 3.0]}, "something other than sizes"),
        ({"shape": [2, True]}, "something other than sizes"),
        ({"shape": [2**41, 2**41]}, "something other than sizes"),
        ({"bytes": 23}, "bytes is 23"),
        ({"bytes": 24.0}, "bytes is 24.0"),
        ({"bytes": "24"}, "bytes is '24'"),
        ({"data": None}, "data is not 32 characters of base64 (found NoneType)"),
        ({"data": GOOD["data"][:-4]}, "data is not 32 characters of base64 (found 28)"),
        ({"data": "!" * 32}, "not valid base64"),
        ({"data": "=" * 32}, "not valid base64"),
        ({"data": "A" * 31 + "="}, "23 bytes arrived, 24 were sent"),
        ({"data": "é" * 32}, "not valid base64"),
        ({"data": "A" * 32}, "the checksum differs"),
        ({"sha256": "0" * 64}, "the checksum differs"),
        ({"sha256": None}, "the checksum differs"),
    ],
)
def test_a_damaged_record_is_refused_by_name(change: dict[str, Any], text: str) -> None:
    with pytest.raises(wire.WireError) as caught:
        received({**GOOD, **change})

    assert caught.value.field == "x"
    assert text in str(caught.value)


@pytest.mark.parametrize("record", [None, 3, "x", [], [GOOD]])
def test_a_record_is_an_object(record: Any) -> None:
    with pytest.raises(wire.WireError, match="a tensor is a JSON object"):
        wire.check_record("x", record)


def test_a_bool_tensor_holds_only_0_and_1() -> None:
    raw = b"\x00\x01\x02"
    record = wire.describe(np.frombuffer(raw, np.uint8), raw, "bool")

    with pytest.raises(wire.WireError, match="neither 0 nor 1"):
        wire.check_bytes("mask", record, raw)


def test_an_error_never_echoes_a_large_value() -> None:
    for record in ({**GOOD, "dtype": "A" * 10**6}, {**GOOD, "shape": list(range(10**5))}):
        with pytest.raises(wire.WireError) as caught:
            wire.check_record("x", record)

        assert len(str(caught.value)) < 500
