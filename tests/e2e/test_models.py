"""Real architectures: compiled into three or more slices, served, and equal to eager PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch.utils import _pytree as pytree

import slicewise


def call(function: Any, inputs: tuple[Any, ...] | dict[str, Any]) -> Any:
    return function(**inputs) if isinstance(inputs, dict) else function(*inputs)


def assert_equal(found: Any, expected: Any) -> None:
    """Same structure, same types, values within 1e-4 of the largest magnitude."""
    found_leaves, found_spec = pytree.tree_flatten(found)
    expected_leaves, expected_spec = pytree.tree_flatten(expected)

    assert expected_spec == found_spec
    for one, other in zip(found_leaves, expected_leaves, strict=True):
        assert other.dtype == one.dtype
        if one.is_floating_point():
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(other.abs().max()))
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", zoo.CASES)
def test_served_slices_equal_the_model(name: str, tmp_path: Path) -> None:
    case = zoo.CASES[name]()
    before = {key: value.clone() for key, value in case.model.state_dict().items()}

    compiled = slicewise.compile(
        case.model, case.inputs, dynamic_shapes=case.dynamic_shapes, limits=case.limits
    )
    bundle = compiled.save(tmp_path / "bundle")

    assert len(bundle.plan.slices) >= 3
    assert bundle.plan.certificate.status == "optimal"
    assert slicewise.load(tmp_path / "bundle").plan == compiled.plan
    with torch.no_grad():
        expected = call(case.model, case.inputs)
    assert_equal(call(compiled.run, case.inputs), expected)
    with bundle.serve() as endpoint:
        assert_equal(call(endpoint, case.inputs), expected)
    after = case.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_dynamic_batch_of_1_to_8_is_served_and_9_is_refused(tmp_path: Path) -> None:
    case = zoo.vit()
    compiled = slicewise.compile(
        case.model, case.inputs, dynamic_shapes=case.dynamic_shapes, limits=case.limits
    )
    with compiled.save(tmp_path / "bundle").serve() as endpoint:
        for size in range(1, 9):
            images = torch.randn(size, 3, 32, 32)
            with torch.no_grad():
                expected = case.model(images)
            assert_equal(endpoint(pixel_values=images), expected)
        with pytest.raises(slicewise.RequestError, match="batch is 9") as refusal:
            endpoint(pixel_values=torch.randn(9, 3, 32, 32))
    assert refusal.value.field == "pixel_values"


def test_a_tied_weight_is_stored_once_in_each_slice_that_needs_it(tmp_path: Path) -> None:
    case = zoo.tied()
    bundle = slicewise.compile(case.model, case.inputs, limits=case.limits).save(tmp_path / "b")

    total = sum(part.weight_bytes for part in bundle.plan.slices)
    assert total == bundle.plan.model.weight_bytes + 200 * 32 * 4
    for part in bundle.plan.slices:
        data = tmp_path / "b" / "functions" / part.name / "model.data"
        # ONNX keeps tensors under 256 bytes inside the model, and aligns the others.
        assert part.weight_bytes - 2_000 <= data.stat().st_size <= part.weight_bytes + 8_192


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_keep_their_types(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (torch.nn.Linear(64, 64), torch.nn.GELU())]
    model = torch.nn.Sequential(*layers, torch.nn.LayerNorm(64)).eval().to(dtype)
    x = torch.randn(2, 64).to(dtype)
    compiled = slicewise.compile(model, (x,), limits=slicewise.Limits(weight_bytes=10_000))
    assert len(compiled.plan.slices) >= 3
    assert all(edge.dtype == str(dtype).removeprefix("torch.") for edge in compiled.plan.edges)

    with compiled.save(tmp_path / "bundle").serve() as endpoint, torch.no_grad():
        found, expected = endpoint(x), model(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
