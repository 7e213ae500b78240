"""Verify: the slices, run one after the other in this process, against the original model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slicewise.errors import VerificationError
from slicewise.plan import Plan, Slice

# Largest difference allowed, relative to the largest magnitude of the output. The exporter and ONNX
# Runtime reorder sums, so each is some hundred times the type's rounding error.
TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
# The same where float32 travels as this type between slices: ten times its rounding error of 2**-11. Of
# the models in tests/support/zoo.py and MiniLM none differs by more than 1.1e-3.
WIRE_TOLERANCE = {"float16": 5e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Largest difference of one output to the original model over all inputs that were tried.

    `relative` is the absolute one divided by the output's largest magnitude.
    """

    output: str
    absolute: float
    relative: float
    tolerance: float

    @property
    def within(self) -> bool:
        """Whether it is small enough."""
        return self.relative <= self.tolerance


Deliver = Callable[[np.ndarray, str], tuple[np.ndarray, str]]


class Runner:
    """All slices of a plan as ONNX Runtime sessions in this process.

    `deliver` makes of a tensor and its type what arrives in another slice, and tells as which type it
    travelled; without it tensors arrive as they are. `unrounded` has the largest magnitude of tensors
    that did not travel as the plan's `wire_dtype`, because it does not hold their values.

    Slices that have the file `prefer` are loaded from it instead of the plain model. Raises
    `VerificationError` naming a slice that ONNX Runtime refuses.
    """

    def __init__(
        self,
        plan: Plan,
        directory: Path,
        deliver: Deliver | None = None,
        prefer: str = "model.onnx",
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Each session runs a few times; packing its weights would take longer than it saves.
        options.add_session_config_entry("session.disable_prepacking", "1")
        self._plan = plan
        self._deliver = deliver
        internal = plan.internal
        self._dtypes = {edge.tensor: edge.dtype for edge in plan.edges if edge.tensor in internal}
        self.unrounded: dict[str, float] = {}
        self._sessions = {}
        for part in plan.slices:
            preferred = directory / part.name / prefer
            model = preferred if preferred.exists() else preferred.with_name("model.onnx")
            try:
                self._sessions[part.name] = onnxruntime.InferenceSession(
                    str(model), options, ["CPUExecutionProvider"]
                )
            except Exception as error:
                raise VerificationError(
                    f"{part.name} cannot be loaded by ONNX Runtime: {error}\n{_ops_of(part)} "
                    "Its CPU kernels lack some types (float64, uint8); convert to float32 or int64 "
                    "before that op."
                ) from error

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Output tensors by name for input tensors by name. Raises `VerificationError`."""
        held = dict(feeds)
        for cut in self._plan.input_cuts:
            indices = [slice(None)] * feeds[cut.source].ndim
            for dim, start, end in cut.ranges:
                indices[dim] = slice(start, end)
            held[cut.tensor] = np.ascontiguousarray(feeds[cut.source][tuple(indices)])
        for part in self._plan.slices:
            session = self._sessions[part.name]
            try:
                results = session.run(
                    list(part.outputs), {name: held[name] for name in part.inputs}
                )
            except Exception as error:
                raise VerificationError(
                    f"{part.name} does not run in ONNX Runtime: {error}\n{_ops_of(part)}"
                ) from error
            held.update(zip(part.outputs, results, strict=True))
            for name in part.outputs:
                if self._deliver is not None and name in self._dtypes:
                    held[name] = self._delivered(name, held[name], self._deliver)
        return {spec.name: held[spec.tensor] for spec in self._plan.outputs}

    def _delivered(self, name: str, array: np.ndarray, deliver: Deliver) -> np.ndarray:
        dtype, wanted = self._dtypes[name], self._plan.transport_rule.wire_dtype
        arrived, travelled = deliver(array, dtype)
        if wanted and dtype == "float32" and travelled != wanted:
            finite = np.abs(array[np.isfinite(array)])
            self.unrounded[name] = max(self.unrounded.get(name, 0.0), float(finite.max(initial=0)))
        return arrived


def compare(
    plan: Plan,
    runner: Runner,
    original: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    inputs: Sequence[Mapping[str, np.ndarray]],
    tolerance: float | None = None,
    dtypes: Collection[str] = (),
) -> tuple[Difference, ...]:
    """The largest difference per output over all `inputs`.

    Without `tolerance`, the coarsest of an output's type and `dtypes`, which the model computes in,
    decides: what was rounded to bfloat16 on the way is no better for being returned as float32. Where
    tensors travel as another type than they have, `WIRE_TOLERANCE` is allowed at least.
    `original` runs the model itself. NaN and infinity must stand in the same places, whole numbers
    and booleans must be equal; otherwise the difference is infinite.
    """
    worst: dict[str, Difference] = {}
    allowed = tolerances(plan, tolerance, dtypes)
    for feeds in inputs:
        expected, found = original(feeds), runner.run(feeds)
        for spec in plan.outputs:
            absolute, relative = difference(expected[spec.name], found[spec.name])
            before = worst.get(spec.name)
            if before is None or relative >= before.relative:
                worst[spec.name] = Difference(
                    output=spec.name,
                    absolute=absolute,
                    relative=relative,
                    tolerance=allowed[spec.name],
                )
    return tuple(worst.values())


def tolerances(
    plan: Plan, tolerance: float | None = None, dtypes: Collection[str] = ()
) -> dict[str, float]:
    """What `compare` allows each output."""
    found = {}
    for spec in plan.outputs:
        among = (spec.dtype, *dtypes) if spec.dtype in TOLERANCE else ()
        bounds = [TOLERANCE.get(dtype, 0.0) for dtype in among]
        bounds += [WIRE_TOLERANCE.get(plan.transport_rule.wire_dtype or "", 0.0)] * bool(among)
        found[spec.name] = max(bounds, default=0.0) if tolerance is None else tolerance
    return found


def difference(expected: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """(largest absolute, that relative to the largest expected magnitude) difference."""
    if expected.shape != found.shape:
        return np.inf, np.inf
    if expected.size == 0:
        return 0.0, 0.0
    if expected.dtype.kind in "biu":
        same = np.array_equal(expected, found)
        return (0.0, 0.0) if same else (np.inf, np.inf)
    a, b = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    ):
        return np.inf, np.inf
    if not finite.any():
        return 0.0, 0.0
    absolute = float(np.abs(a[finite] - b[finite]).max())
    scale = float(np.abs(a[finite]).max())
    return absolute, absolute / scale if scale > 0 else absolute


def check(differences: Sequence[Difference]) -> None:
    """Raise `VerificationError` naming the outputs that differ too much."""
    bad = [d for d in differences if not d.within]
    if bad:
        lines = "\n".join(
            f"  {d.output}: relative {d.relative:.2e}, absolute {d.absolute:.2e}, "
            f"allowed {d.tolerance:.0e} relative"
            for d in bad
        )
        raise VerificationError(
            f"the slices do not compute what the model computes:\n{lines}\n"
            "If the model is known to be this sensitive, compile with a larger tolerance=...; "
            "otherwise please report it with the model's graph (Compiled.graph.to_json())."
        )


def wire_notes(
    plan: Plan, differences: Sequence[Difference], unrounded: Mapping[str, float]
) -> tuple[str, ...]:
    """What a user should know who lets tensors travel as another type than they have."""
    wire_dtype = plan.transport_rule.wire_dtype
    if wire_dtype is None or not differences:
        return ()
    worst = max(differences, key=lambda found: found.relative)
    notes = [
        f"float32 travels as {wire_dtype} between slices: {worst.output} differs from the model's by "
        f"{worst.relative:.1e} of its largest magnitude (absolute {worst.absolute:.1e})"
    ]
    if unrounded:
        named = ", ".join(f"{name} (largest {most:.1e})" for name, most in unrounded.items())
        notes.append(
            f"{wire_dtype} does not hold the values of {named}: they travel as float32 then, although "
            "the plan counts half of their bytes"
        )
    return tuple(notes)


def second_input(
    plan: Plan, example: Mapping[str, np.ndarray], seed: int = 0
) -> dict[str, np.ndarray]:
    """Inputs that differ from the example in values and, where dimensions are dynamic, in sizes."""
    sizes = {
        dim.name: dim.example + 1 if dim.example < dim.max else max(dim.min, dim.example - 1)
        for dim in plan.dims
    }
    return _drawn(plan, example, sizes, seed)


def largest_input(plan: Plan, example: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs as the example's, with every dynamic dimension at its maximum."""
    return _drawn(plan, example, {dim.name: dim.max for dim in plan.dims}, seed=0)


def _drawn(
    plan: Plan, example: Mapping[str, np.ndarray], sizes: Mapping[str, int], seed: int
) -> dict[str, np.ndarray]:
    """Inputs of these sizes, drawn like the example's: normal with its mean and deviation, or its own
    values where they are whole numbers (indices and masks stay valid).
    """
    generator = np.random.default_rng(seed)
    made = {}
    for spec in plan.inputs:
        array = example[spec.name]
        shape = tuple(_size(size, sizes) for size in spec.shape)
        if array.dtype.kind == "f":
            values = array.astype(np.float64)
            made[spec.name] = generator.normal(
                values.mean() if values.size else 0.0,
                (values.std() if values.size else 0) + 0.1,
                shape,
            ).astype(array.dtype)
        elif array.size:
            made[spec.name] = generator.choice(array.reshape(-1), shape)
        else:
            made[spec.name] = np.zeros(shape, array.dtype)
    return made


def _size(size: int | str, sizes: Mapping[str, int]) -> int:
    """A size of a plan's shape: a number, a dimension's name, or an expression such as "2*batch"."""
    if isinstance(size, int) or size in sizes:
        return sizes[size] if isinstance(size, str) else size
    import sympy

    return int(sympy.sympify(size, locals=dict(sizes)))


def _ops_of(part: Slice) -> str:
    return f"Its ops: {', '.join(part.ops[:8])}{', ...' if len(part.ops) > 8 else ''}."
