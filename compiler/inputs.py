"""Inputs of a call in this process, checked against the plan before any slice runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from slicewise.errors import RequestError
from slicewise.plan import Plan


def check_inputs(plan: Plan, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise `RequestError` naming the input, what was found and what the plan expects.

    Fixed sizes must match, dynamic ones agree between the inputs and follow from each other as they
    did when the model was compiled. Their range is not checked: it is that of the functions' memory.
    """
    sizes: dict[str, int] = {}
    names = {dim.name for dim in plan.dims}
    for spec in plan.inputs:
        array = arrays[spec.name]
        wanted = "float32" if spec.dtype == "bfloat16" else spec.dtype
        if array.dtype.name != wanted:
            raise RequestError(
                f"{spec.name}: dtype is {array.dtype.name}, the model takes {spec.dtype}.",
                field=spec.name,
            )
        if array.ndim != len(spec.shape):
            raise _mismatch(spec.name, array.shape, spec.shape)
        for found, size in zip(array.shape, spec.shape, strict=True):
            if isinstance(size, str) and size in names:
                sizes.setdefault(size, found)
    for spec in plan.inputs:
        found_shape = arrays[spec.name].shape
        expected = tuple(_size(size, sizes) for size in spec.shape)
        if any(e not in (None, n) for e, n in zip(expected, found_shape, strict=True)):
            where = ", ".join(f"{name} = {size}" for name, size in sizes.items())
            raise _mismatch(spec.name, found_shape, spec.shape, where)


def _mismatch(
    name: str, found: tuple[int, ...], expected: tuple[int | str, ...], where: str = ""
) -> RequestError:
    given = f" with {where}" if where else ""
    return RequestError(
        f"{name}: shape is {list(found)}, expected {list(expected)}{given}.", field=name
    )


def _size(size: int | str, sizes: Mapping[str, int]) -> int | None:
    """A size of a plan's shape; None if it depends on a dimension that no input tells."""
    if isinstance(size, int):
        return size
    if size in sizes:
        return sizes[size]
    import sympy

    value = sympy.sympify(size, locals=dict(sizes))
    return int(value) if value.is_number else None
