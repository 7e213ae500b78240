"""Tensors between slices: what float16 and zlib keep, and which damaged records are refused."""

from __future__ import annotations

import hashlib
import importlib
import json
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as strategies

messages = importlib.import_module("slicewise.targets.lambda.runtime.messages")
arrays = importlib.import_module("slicewise.targets.lambda.runtime.arrays")
wire = importlib.import_module("slicewise.targets.lambda.runtime.wire")

DTYPES = sorted(set(wire.ITEM_BYTES) - {"bfloat16"})
SHAPES = strategies.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
F32 = np.float32
RELU = np.maximum(np.random.default_rng(0).standard_normal((20, 50)), 0).astype(F32)


def sent(array: np.ndarray, dtype: str, *packing: str | None) -> dict[str, Any]:
    raw, packed = arrays.pack(array, dtype, *packing)
    record = wire.inline(wire.describe(array, raw, dtype, packed), raw)
    as_json = json.loads(messages.join({}, "tensors", {"x": record}))["tensors"]["x"]
    return dict(as_json)


def received(record: dict[str, Any]) -> np.ndarray:
    wire.check_record("x", record)
    raw = wire.decode_inline("x", record)
    wire.check_bytes("x", record, raw)
    array: np.ndarray = arrays.unpack("x", record, raw)
    return array


@given(st.data())
def test_zlib_keeps_every_bit_of_every_type(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    repeated = data.draw(st.integers(1, 20))
    array = np.concatenate([data.draw(strategies.arrays(dtype, SHAPES)).reshape(-1)] * repeated)

    record = sent(array, dtype, None, "zlib")
    back = received(record)

    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert record["bytes"] <= array.nbytes
    assert ("compression" in record) == (record["bytes"] < array.nbytes)


@given(strategies.arrays(F32, SHAPES), st.sampled_from([None, "zlib"]))
def test_float16_changes_no_value_by_more_than_its_bound(
    array: np.ndarray, compression: str | None
) -> None:
    """By 2**-11 of the tensor's largest finite magnitude; what is not finite stays what it is."""
    back = received(sent(array, "float32", "float16", compression))

    finite = np.isfinite(array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(back[~finite], array[~finite])
    exact, rounded = array[finite].astype(np.float64), back[finite].astype(np.float64)
    assert np.all(np.abs(rounded - exact) <= 2**-11 * np.abs(exact).max(initial=0))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.floats(-2, 2, width=32))
def test_the_bound_holds_near_every_limit_of_float16(value: float, factor: float) -> None:
    for limit in (2.0**-25, 2.0**-24, 2.0**-14, 65504.0, 65520.0, value):
        with np.errstate(over="ignore"):
            array = np.array([limit, limit * factor], F32)
        assume(np.isfinite(array).all())
        for near in (array, np.nextafter(array, F32(0)), np.nextafter(array, F32(np.inf))):
            if np.isfinite(near).all():
                back = received(sent(near, "float32", "float16"))
                error = np.abs(back.astype(np.float64) - near.astype(np.float64))
                assert error.max() <= 2**-11 * np.abs(near.astype(np.float64)).max()


@pytest.mark.parametrize(
    ("values", "travels"),
    [
        ([1.0, -2.0], True),
        ([0.0, -0.0], True),
        ([], True),
        ([np.inf, -np.inf, np.nan, 1.0], True),
        ([np.nan], True),
        ([65504.0], True),
        ([65519.0], True),  # is rounded to 65504
        ([65520.0], False),  # would be rounded to infinity
        ([1.0, -3.4e38], False),  # as masks have it
        ([np.inf, np.nan, 1e5], False),
        ([2.0**-13, 1e-9], True),
        ([2.0**-15, 2.0**-15], False),
        ([1e-9], False),  # would be 0
        ([1e-9, np.inf], False),
        ([0.0, np.nan], True),
    ],
)
def test_what_float16_does_not_hold_travels_as_float32(values: list[float], travels: bool) -> None:
    array = np.array(values, F32)

    record = sent(array, "float32", "float16")

    assert ("wire_dtype" in record) == travels
    assert record["dtype"] == "float32"
    assert record["bytes"] == array.nbytes // (2 if travels else 1)
    np.testing.assert_array_equal(np.isinf(received(record)), np.isinf(array))


@pytest.mark.parametrize("dtype", [name for name in wire.ITEM_BYTES if name != "float32"])
def test_only_float32_is_rounded(dtype: str) -> None:
    array = np.ones(3, F32 if dtype == "bfloat16" else dtype)

    assert "wire_dtype" not in sent(array, dtype, "float16")


def test_what_does_not_shrink_travels_as_it_is() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 1000, np.uint8)

    assert sent(noise, "uint8", None, "zlib") == sent(noise, "uint8")
    assert sent(RELU, "float32", None, "zlib")["bytes"] < 0.7 * RELU.nbytes


BOTH = sent(RELU, "float32", "float16", "zlib")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"wire_dtype": "float8"}, "float32 cannot travel as wire_dtype 'float8'"),
        ({"wire_dtype": None}, "cannot travel as wire_dtype None"),
        ({"wire_dtype": ["float16"]}, "cannot travel as wire_dtype"),
        ({"dtype": "int32"}, "int32 cannot travel as wire_dtype 'float16'"),
        ({"compression": "gzip"}, "compression 'gzip' is not one of zlib"),
        ({"compression": None}, "compression None is not one of zlib"),
        ({"compression": {}}, "compression {} is not one of zlib"),
        ({"bytes": 2000}, "float32 as float16 and shape [20, 50] make less than 2000"),
        ({"bytes": 0}, "make less than 2000"),
        ({"bytes": True}, "make less than 2000"),
        ({"shape": [0]}, "make less than 0"),
    ],
)
def test_an_impossible_packing_is_refused_by_name(change: dict[str, Any], text: str) -> None:
    with pytest.raises(wire.WireError) as caught:
        received({**BOTH, **change})

    assert caught.value.field == "x"
    assert text in str(caught.value)


def test_a_record_without_its_packing_does_not_fit_its_shape() -> None:
    for missing in ("wire_dtype", "compression"):
        record = {key: value for key, value in BOTH.items() if key != missing}
        with pytest.raises(wire.WireError):
            received(record)


def compressed(raw: bytes, dtype: str, shape: list[int]) -> dict[str, Any]:
    """A record whose size and checksum are right, whatever `raw` is."""
    record = {"dtype": dtype, "compression": "zlib", "shape": shape, "bytes": len(raw)}
    return dict(wire.inline({**record, "sha256": hashlib.sha256(raw).hexdigest()}, raw))


ZEROS = zlib.compress(bytes(1000), 1)


@pytest.mark.parametrize(
    ("raw", "size", "text"),
    [
        (ZEROS, 999, "decompresses to more than 999 bytes"),
        (ZEROS, 1001, "1000 bytes arrived, 1001 were sent"),
        (ZEROS[:-1], 1000, "ends too early"),
        (ZEROS[:5], 1000, "ends too early"),
        (ZEROS + b"x", 1000, "goes on after its end"),
        (ZEROS + ZEROS, 2000, "goes on after its end"),
        (ZEROS[:-1] + b"x", 1000, "cannot be decompressed"),
        (b"?" * 9, 1000, "cannot be decompressed"),
    ],
)
def test_damaged_compressed_data_is_refused_by_name(raw: bytes, size: int, text: str) -> None:
    with pytest.raises(wire.WireError, match="x: ") as caught:
        received(compressed(raw, "uint8", [size]))

    assert text in str(caught.value)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_of_compressed_data_is_noticed(at: int, by: int) -> None:
    raw = bytearray(wire.decode_inline("x", BOTH))
    raw[at % len(raw)] ^= by

    with pytest.raises(wire.WireError, match="the checksum differs"):
        received({**BOTH, **wire.inline({}, bytes(raw)), "bytes": len(raw)})


def test_a_bomb_makes_no_more_than_its_record_says() -> None:
    bomb = compressed(zlib.compress(bytes(200_000_000), 9), "uint8", [1_000_000])
    tracemalloc.start()
    try:
        with pytest.raises(wire.WireError, match="more than 1000000 bytes"):
            received(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 5_000_000


def test_compressed_bool_tensors_hold_only_0_and_1() -> None:
    with pytest.raises(wire.WireError, match="neither 0 nor 1"):
        received(compressed(zlib.compress(b"\x02" * 1000), "bool", [1000]))
