"""The smoke test of a bundle: an example request and what the original model returned for it.

smoke.npz holds arrays named "inputs/<name>", "outputs/<name>" and, per output, the "tolerance/<name>"
that verify compared with. No pickle, in or out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slicewise.errors import BundleError
from slicewise.verify import Difference, difference

FILE = "smoke.npz"
_GROUPS = ("inputs", "outputs", "tolerance")


@dataclass(frozen=True, eq=False, kw_only=True)
class Smoke:
    """Arrays by name, bfloat16 as float32; tolerances relative to an output's largest magnitude."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    tolerance: Mapping[str, float]

    def compare(self, found: Mapping[str, np.ndarray]) -> tuple[Difference, ...]:
        """The difference of every output; one that is missing is infinitely different."""
        return tuple(
            _difference(name, expected, found.get(name), self.tolerance[name])
            for name, expected in self.outputs.items()
        )


def write_smoke(directory: Path, smoke: Smoke) -> None:
    """Write smoke.npz into a bundle; equal arrays give equal bytes."""
    groups = dict(zip(_GROUPS, (smoke.inputs, smoke.outputs, smoke.tolerance), strict=True))
    arrays = {
        f"{group}/{name}": np.asarray(value)
        for group, values in groups.items()
        for name, value in values.items()
    }
    np.savez(directory / FILE, **arrays)  # type: ignore[arg-type]  # its stub


def read_smoke(directory: Path) -> Smoke:
    """The smoke test of a bundle. Raises `BundleError`."""
    found: dict[str, dict[str, np.ndarray]] = {group: {} for group in _GROUPS}
    try:
        with np.load(directory / FILE, allow_pickle=False) as archive:
            for key in archive.files:
                group, _, name = key.partition("/")
                found[group][name] = archive[key]
        tolerance = {name: float(found["tolerance"][name]) for name in found["outputs"]}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{directory / FILE} holds no smoke test ({error!r}). Write the bundle again with "
            "Compiled.save(), or deploy without the smoke test."
        ) from error
    return Smoke(inputs=found["inputs"], outputs=found["outputs"], tolerance=tolerance)


def _difference(
    name: str, expected: np.ndarray, found: np.ndarray | None, tolerance: float
) -> Difference:
    absolute, relative = (np.inf, np.inf) if found is None else difference(expected, found)
    return Difference(output=name, absolute=absolute, relative=relative, tolerance=tolerance)
