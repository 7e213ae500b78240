"""Arrays in files, and nested outputs as arrays by name: what the command line reads and shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from slicewise.errors import RequestError


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, or of a .json file with nested lists of numbers by name.

    JSON knows no types: fractions are float32, whole numbers int64. Raises `RequestError`.
    """
    try:
        if path.suffix == ".json":
            values = json.loads(path.read_text())
            return {name: _from_numbers(value) for name, value in values.items()}
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise RequestError(
            f"cannot read {path}: {error}. Expected one array per input, in .npz or .json."
        ) from error


def named_arrays(value: Any, path: str = "") -> dict[str, np.ndarray]:
    """Arrays of a nested output by their paths."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (tuple, list)):
        items = ((f"output_{i}" if not path else str(i), item) for i, item in enumerate(value))  # type: ignore[assignment]
    elif value is None:
        return {}
    else:
        return {path or "output": np.asarray(value)}
    found: dict[str, np.ndarray] = {}
    for key, item in items:
        found |= named_arrays(item, f"{path}.{key}" if path else str(key))
    return found


def _from_numbers(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float64 else array
