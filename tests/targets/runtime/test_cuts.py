"""Cuts: parts of a request's tensors are what numpy cuts, and checked as every record is."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

PACKAGE = "slicewise.targets.lambda.runtime"
arrays = importlib.import_module(f"{PACKAGE}.arrays")
cuts = importlib.import_module(f"{PACKAGE}.cuts")
wire = importlib.import_module(f"{PACKAGE}.wire")


class Objects:
    """A store that holds the bytes of one object."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def start_get(self, place: Any, size: int, etag: str | None) -> Any:
        assert (place, size, etag) == (("s3", "requests/r/x"), len(self.raw), "e")
        return lambda: self.raw


def record(array: np.ndarray) -> dict[str, Any]:
    raw = arrays.to_bytes(array, str(array.dtype))
    return {"tensor": "x", **wire.describe(array, raw, str(array.dtype))}


@given(st.data())
def test_a_part_is_what_numpy_cuts(data: st.DataObject) -> None:
    dtypes = st.sampled_from(["float32", "int64", "bool", "uint8", "float16"])
    shapes = arrays_of.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)
    array = data.draw(arrays_of.arrays(data.draw(dtypes), shapes))
    indices, ranges = [slice(None)] * array.ndim, []
    for dim in sorted(data.draw(st.sets(st.integers(0, array.ndim - 1), min_size=1, max_size=2))):
        ends = st.integers(0, array.shape[dim])
        start, end = sorted((data.draw(ends), data.draw(ends)))
        indices[dim] = slice(start, end)
        ranges.append([dim, start, end])
    held = {"x": wire.inline(record(array), arrays.to_bytes(array, str(array.dtype)))}

    cuts.cut_inputs(held, [{"tensor": "p", "source": "x", "ranges": ranges}], Objects(b""))

    wanted = array[tuple(indices)]
    wire.check_record("p", held["p"])
    raw = wire.decode_inline("p", held["p"])
    wire.check_bytes("p", held["p"], raw)
    np.testing.assert_array_equal(arrays.from_bytes(raw, held["p"]), wanted)
    assert held.keys() == {"x", "p"}


def test_an_object_is_read_once_and_checked() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    parts = [
        {"tensor": f"p{row}", "source": "x", "ranges": [[0, row, row + 1]]} for row in range(3)
    ]
    stored = {**record(array), "s3": "requests/r/x", "etag": "e"}
    held = {"x": stored}

    cuts.cut_inputs(held, parts, Objects(array.tobytes()))

    for row in range(3):
        raw = wire.decode_inline(f"p{row}", held[f"p{row}"])
        np.testing.assert_array_equal(np.frombuffer(raw, np.float32), array[row])
    with pytest.raises(wire.WireError, match="x: the checksum differs"):
        cuts.cut_inputs({"x": stored}, parts, Objects(bytes(48)))
