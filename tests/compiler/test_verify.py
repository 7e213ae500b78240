"""Verification: what counts as a difference, and that a wrong slice never gets past it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny import tiny_model
from torch import nn

import slicewise
from slicewise import Compiled, VerificationError
from slicewise.plan import Dim, Plan, TensorSpec
from slicewise.verify import Difference, check, difference, second_input

INF = (np.inf, np.inf)
f32 = np.float32


def floats(*values: float) -> np.ndarray:
    return np.array(values, f32)


@pytest.mark.parametrize(
    ("expected", "found", "result"),
    [
        (floats(1, -4), floats(1, -4), (0, 0)),
        (floats(1, -4), floats(1.5, -4), (0.5, 0.125)),
        (floats(0, 0), floats(0, 0.25), (0.25, 0.25)),
        (floats(1, np.nan), floats(1, np.nan), (0, 0)),
        (floats(1, np.nan), floats(1, 2), INF),
        (floats(1, 2), floats(1, np.nan), INF),
        (floats(np.inf, 2), floats(np.inf, 2), (0, 0)),
        (floats(np.inf, 2), floats(-np.inf, 2), INF),
        (floats(np.inf, 2), floats(np.nan, 2), INF),
        (floats(np.nan, np.inf), floats(np.nan, np.inf), (0, 0)),
        (floats(1, 2), floats(1, 2).reshape(2, 1), INF),
        (floats(1), np.array(1, f32), INF),
        (floats(), floats(), (0, 0)),
        (np.array(2.0), np.array(1.0), (1, 0.5)),
        (np.array([2**53]), np.array([2**53 + 1]), INF),
        (np.array([1, 2]), np.array([1, 2]), (0, 0)),
        (np.array([True, False]), np.array([True, True]), INF),
        (np.array([True]), np.array([True]), (0, 0)),
        (np.array([60000], np.float16), np.array([-60000], np.float16), (120000, 2)),
    ],
)
def test_difference(expected: np.ndarray, found: np.ndarray, result: tuple[float, float]) -> None:
    assert difference(expected, found) == result


@given(arrays.arrays(f32, arrays.array_shapes(min_dims=0, min_side=0)), st.data())
def test_no_array_differs_from_itself(array: np.ndarray, data: st.DataObject) -> None:
    assert difference(array, array.copy()) == (0, 0)


def test_check_names_the_outputs_that_differ() -> None:
    good = Difference(output="good", absolute=1.0, relative=1e-5, tolerance=1e-4)
    bad = Difference(output="bad", absolute=1.0, relative=1e-3, tolerance=1e-4)
    nan = Difference(output="nan", absolute=np.nan, relative=np.nan, tolerance=1e-4)

    check([good])
    with pytest.raises(VerificationError, match=r"bad: relative 1\.00e-03") as caught:
        check([good, bad, nan])
    assert "good" not in str(caught.value).split("If the model")[0]
    assert "nan: relative nan" in str(caught.value)


def test_compile_verified_every_output(compiled: slicewise.Compiled) -> None:
    differences = compiled.verify()

    assert [d.output for d in differences] == ["output_0", "output_1"]
    assert all(d.within and d.tolerance == 1e-4 for d in differences)


def test_a_corrupted_weight_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight of the carved slice is off by far less than its own size."""
    from slicewise.codegen import carve

    save = carve._save

    def corrupted(model: object, directory: Path) -> None:
        save(model, directory)  # type: ignore[arg-type]
        path = directory / "model.onnx"
        proto = onnx.load(path)
        weight = next(w for w in proto.graph.initializer if w.name.endswith("weight"))
        values = onnx.numpy_helper.to_array(weight).copy()
        values[0, 0] += 0.01
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(proto, path)

    monkeypatch.setattr(carve, "_save", corrupted)
    with pytest.raises(VerificationError, match="output: relative"):
        slicewise.compile(nn.Linear(4, 4).eval(), (torch.ones(2, 4),))


def test_an_op_without_a_kernel_is_named() -> None:
    """ONNX Runtime has no Erf for float64."""
    model = tiny_model(lambda self, x: torch.erf(x) + 1)

    with pytest.raises(VerificationError, match=r"slice0 cannot be loaded.*Erf[\s\S]*Its ops: erf"):
        slicewise.compile(model, (torch.ones(2, dtype=torch.float64),))


def test_a_model_that_fails_on_the_second_input_is_told_so() -> None:
    def forward(self: nn.Module, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling() and rows.tolist() != [2, 0, 1]:
            raise IndexError("rows are no permutation")
        return x[rows] + 1

    with pytest.raises(VerificationError, match=r"rows are no permutation.*verify=False"):
        slicewise.compile(tiny_model(forward), (torch.ones(3, 2), torch.tensor([2, 0, 1])))


def test_the_tolerance_is_that_of_the_coarsest_type_on_the_way() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x.bfloat16().float() + 1

    compiled = slicewise.compile(tiny_model(forward), (torch.randn(4, 4),))

    assert [d.tolerance for d in compiled.verify()] == [5e-2]
    assert [d.tolerance for d in compiled.verify(tolerance=0.5)] == [0.5]


def plan_with(*specs: TensorSpec, dims: tuple[Dim, ...] = (), base: Plan) -> Plan:
    from dataclasses import replace

    return replace(base, inputs=specs, dims=dims)


def spec(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, tensor=name, dtype=dtype, shape=shape)


def test_the_second_input_differs_in_values_and_sizes(compiled: slicewise.Compiled) -> None:
    plan = plan_with(
        spec("x", "float32", "batch", 3),
        spec("ids", "int64", "batch"),
        spec("twice", "bool", "2*batch + 1"),
        spec("scalar", "float32"),
        spec("none", "float32", 0),
        dims=(Dim(name="batch", min=1, max=4, example=2),),
        base=compiled.plan,
    )
    example = {
        "x": np.ones((2, 3), f32),
        "ids": np.array([7, 9]),
        "twice": np.zeros(5, bool),
        "scalar": np.array(3.0, f32),
        "none": np.zeros(0, f32),
    }

    made = second_input(plan, example)

    assert {name: array.shape for name, array in made.items()} == {
        "x": (3, 3), "ids": (3,), "twice": (7,), "scalar": (), "none": (0,),
    }  # fmt: skip
    assert {name: array.dtype for name, array in made.items()} == {
        name: array.dtype for name, array in example.items()
    }
    assert set(made["ids"].tolist()) <= {7, 9}
    assert not np.array_equal(made["x"][:2], example["x"])


def test_a_dimension_at_its_bound_shrinks(compiled: slicewise.Compiled) -> None:
    for low, high, expected in ((1, 4, 3), (4, 4, 4)):
        dim = Dim(name="n", min=low, max=high, example=4)
        plan = plan_with(spec("x", "float32", "n"), dims=(dim,), base=compiled.plan)

        assert second_input(plan, {"x": np.ones(4, f32)})["x"].shape == (expected,)


class Chained(nn.Module):
    """Two layers of one slice each; `scale` is how large the tensor between them is."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
        for parameter in self.first.parameters():
            parameter.data *= scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.first(x))
        return y


def in_two(scale: float = 1.0, **options: Any) -> slicewise.Compiled:
    limits = slicewise.Limits(weight_bytes=17_000)
    return slicewise.compile(
        Chained(scale).eval(), (torch.randn(8, 64),), limits=limits, wire_dtype="float16", **options
    )


def test_what_float16_loses_between_slices_is_in_the_difference() -> None:
    compiled = in_two(compress=True)
    x = torch.randn(8, 64)
    with torch.no_grad():
        expected = Chained().eval()(x)

    (found,) = compiled.verify()

    assert compiled.plan.cross_slice_bytes == 8 * 64 * 2
    assert 1e-5 < found.relative < 1e-3
    assert found.tolerance == 5e-3
    assert 1e-5 < (compiled.run(x) - expected).abs().max() < 1e-3
    (note,) = compiled.notes
    assert f"output differs from the model's by {found.relative:.1e}" in note
    assert "float32 travels as float16, which its bytes count; zlib" in " ".join(
        str(compiled.plan).split()
    )


@pytest.mark.parametrize("scale", [1e6, 1e-6])
def test_what_float16_does_not_hold_arrives_unchanged_and_is_told(scale: float) -> None:
    compiled = in_two(scale)

    (found,) = compiled.verify()

    assert found.relative < 1e-5
    assert "float16 does not hold the values of linear (largest" in compiled.notes[1]


def test_the_tolerance_of_the_wire_does_not_hide_a_wrong_slice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The slices differ by less than float16 may, and by more than float32 may."""
    original = Compiled._original

    def off(self: Compiled, feeds: Any) -> dict[str, np.ndarray]:
        return {name: array * f32(1.0005) for name, array in original(self, feeds).items()}

    monkeypatch.setattr(Compiled, "_original", off)
    with pytest.raises(VerificationError, match="allowed 1e-04 relative"):
        in_two()


def test_a_whole_number_has_no_tolerance_whatever_travels() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(-1)

    compiled = slicewise.compile(tiny_model(forward), (torch.randn(4, 4),), wire_dtype="float16")

    assert [d.tolerance for d in compiled.verify()] == [0.0]
