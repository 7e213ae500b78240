"""`Compiled` and `Bundle`: a compiled model in memory and on disk."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slicewise import targets
from slicewise.errors import BundleError, VerificationError
from slicewise.graph import OpGraph
from slicewise.inputs import check_inputs
from slicewise.inspection.detail import FILE as DETAIL
from slicewise.inspection.detail import Detail, read_detail, write_detail
from slicewise.limits import MB
from slicewise.plan import Plan
from slicewise.smoke import Smoke, write_smoke
from slicewise.structure import bind, build, leaves
from slicewise.target import Deployment, Endpoint, Target
from slicewise.verify import (
    Difference,
    Runner,
    check,
    compare,
    largest_input,
    second_input,
    tolerances,
    wire_notes,
)

if TYPE_CHECKING:
    from slicewise.capture import Captured


@dataclass(frozen=True, eq=False, kw_only=True)
class Compiled:
    """A compiled model: the plan, the graph it was made from, and the slices' ONNX files.

    `notes` tell what the user should know, such as why a fallback was needed.
    """

    plan: Plan
    graph: OpGraph
    target: Target = field(repr=False)
    notes: tuple[str, ...] = ()
    _captured: Captured = field(repr=False)
    _workspace: tempfile.TemporaryDirectory[str] = field(repr=False)
    _tolerance: float | None = field(default=None, repr=False)
    _parallel: float = field(default=0.0, repr=False)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The output of all slices, run one after the other in this process, for checking.

        Raises `RequestError` for inputs of another type or size than the plan's.
        """
        feeds = {
            name: _to_numpy(value)
            for name, value in bind(self.plan.input_structure, args, kwargs).items()
        }
        check_inputs(self.plan, feeds)
        arrays = self._runner().run(feeds)
        dtypes = {spec.name: spec.dtype for spec in self.plan.outputs}
        return build(
            self.plan.output_structure,
            {name: _to_torch(array, dtypes[name]) for name, array in arrays.items()},
        )

    def verify(self, *, tolerance: float | None = None) -> tuple[Difference, ...]:
        """Compare the slices with the original model, per output.

        On the example input and on a second one of other values (and sizes, where dynamic).
        """
        return self._compared(self._runner(), tolerance)

    def verified(self, *, tolerance: float | None = None) -> Compiled:
        """With notes of what `verify` found. Raises `VerificationError` if it differs too much.

        What tensors lose on their way must not hide what slices compute wrongly: where they lose
        anything, the slices are compared without that first, at the tolerance of the model's own types.
        """
        rule = self.plan.transport_rule
        if rule.wire_dtype is not None:
            plan = replace(self.plan, transport_rule=replace(rule, wire_dtype=None))
            check(replace(self, plan=plan).verify(tolerance=tolerance))
        runner = self._runner()
        differences = self._compared(runner, tolerance)
        check(differences)
        found = wire_notes(self.plan, differences, runner.unrounded)
        return replace(self, notes=(*self.notes, *found), _tolerance=tolerance)

    def save(
        self, directory: str | Path, *, overwrite: bool = True, encrypt: str | None = None
    ) -> Bundle:
        """Write the bundle: everything that deploys. Replaces an earlier bundle, but nothing else.

        `encrypt` encrypts the models in it, and the objects of its requests: "env" with the key in the
        variable SLICEWISE_KEY, "kms:KEY" with one that this key of AWS KMS makes (docs/encryption.md).
        """
        from slicewise.codegen.handlers import render

        destination = check_destination(directory, overwrite=overwrite)
        destination.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and moved in at the end: a failure leaves the old bundle whole.
        building = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
        try:
            self.target.write_bundle(
                self.plan, render(self.plan), Path(self._workspace.name), building, encrypt
            )
            write_detail(building, self.detail)
            write_smoke(building, self._smoke())
            building.chmod(0o755)
            _replace(destination, building)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        return load(destination)

    def measured(self) -> Compiled:
        """With the peak memory that each slice takes for the largest request that the plan allows.

        Unchanged where the target's functions cannot be run.
        """
        from slicewise.codegen.handlers import render

        # A state machine calls the slices just as a coordinator does, and takes longer to start.
        stepped = self.plan.orchestration == "stepfunctions"
        plan = replace(self.plan, orchestration="coordinator") if stepped else self.plan
        request = largest_input(plan, self._example())
        with tempfile.TemporaryDirectory(prefix="slicewise-") as scratch:
            directory = Path(scratch)
            self.target.write_bundle(plan, render(plan), Path(self._workspace.name), directory)
            peaks = self.target.measure_memory(directory, plan, request)
        if peaks is None:
            return self
        slices = tuple(replace(part, peak_memory_bytes=peaks[part.name]) for part in plan.slices)
        return replace(self, plan=replace(self.plan, slices=slices))

    def preoptimised(self) -> Compiled:
        """With graphs that load at once, beside those of slices that have convolutions.

        They are for CPUs like this one: elsewhere, a function loads the plain one. Where both do not fit
        a package, `notes` says so. Raises `VerificationError` if they compute something else.
        """
        from slicewise.codegen.preoptimise import (
            PREOPTIMISED_FILE,
            preoptimise,
            remove_preoptimised,
        )

        plan, workspace = self.plan, Path(self._workspace.name)
        most = (plan.limits.package_mb or math.inf) * MB
        slices, notes = [], []
        for part in plan.slices:
            folder = workspace / part.name
            added = preoptimise(folder)
            if added and (part.packaging == "s3-weights" or part.package_bytes + added > most):
                remove_preoptimised(folder)
                added = 0
                notes.append(f"{part.name} is not preoptimised: its package cannot hold two models")
            slices.append(replace(part, package_bytes=part.package_bytes + added))
        found = replace(self, plan=replace(plan, slices=tuple(slices)), notes=(*self.notes, *notes))
        check(found._compared(found._runner(PREOPTIMISED_FILE), self._tolerance))
        return found

    @property
    def detail(self) -> Detail:
        """The ops and their times, as the bundle has them."""
        return Detail(graph=self.graph, parallel=self._parallel)

    def _smoke(self) -> Smoke:
        """The example and the original model's outputs, at the tolerance of `verified`."""
        example = self._example()
        return Smoke(
            inputs=example,
            outputs=self._original(example),
            tolerance=tolerances(self.plan, self._tolerance, self._dtypes()),
        )

    def _dtypes(self) -> set[str]:
        """The types that the model computes in."""
        return {tensor.dtype for tensor in self.graph.tensors}

    def _example(self) -> dict[str, np.ndarray]:
        """The example inputs by name."""
        return example_arrays(self.plan.input_structure, self._captured)

    def _runner(self, prefer: str = "model.onnx") -> Runner:
        target, rule = self.target, self.plan.transport_rule

        def deliver(array: np.ndarray, dtype: str) -> tuple[np.ndarray, str]:
            return target.delivered(array, dtype, rule)

        return Runner(self.plan, Path(self._workspace.name), deliver, prefer)

    def _compared(self, runner: Runner, tolerance: float | None) -> tuple[Difference, ...]:
        example = self._example()
        other = second_input(self.plan, example)
        inputs = [example, other]
        return compare(self.plan, runner, self._original, inputs, tolerance, self._dtypes())

    def _original(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The original model's outputs, by output name."""
        import torch

        from slicewise.capture import untouched

        structure = self.plan.input_structure
        dtypes = {spec.name: spec.dtype for spec in self.plan.inputs}
        tensors = {name: _to_torch(array, dtypes[name]) for name, array in feeds.items()}
        values = [build(child, tensors) for child in structure["children"]]
        captured = self._captured
        count = len(captured.args)
        kwargs = dict(zip(structure["keys"][count:], values[count:], strict=True))
        with untouched(captured.call), torch.no_grad():
            try:
                result = captured.call(*values[:count], **kwargs)
            except Exception as error:
                shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
                raise VerificationError(
                    f"the original model fails on an input made for verification ({shapes}): {error}. "
                    "Compile with verify=False and compare Compiled.run with the model yourself."
                ) from error
        names = leaves(self.plan.output_structure)
        flat = torch.utils._pytree.tree_leaves(result)
        return {
            leaf["tensor"]: _to_numpy(value)
            for leaf, value in zip(names, flat, strict=True)
            if "tensor" in leaf
        }


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on disk: what `Compiled.save` wrote and `load` read."""

    directory: Path
    plan: Plan

    def serve(self, **options: Any) -> Endpoint:
        """See `slicewise.serve`."""
        return self.target.serve(self.directory, self.plan, **options)

    def package(self, **options: Any) -> Any:
        """Make what is uploaded, in the bundle's folder dist/; printed, it is a table of sizes.

        Options are the target's own, for Lambda: `python` ("3.13"), `architecture` ("x86_64" or
        "arm64"; the profile's), `python_executable` and `wheels`. Raises `BundleError` and
        `TargetError`.
        """
        return self.target.package(self.directory, self.plan, **options)

    @property
    def detail(self) -> Detail:
        """The ops that the plan was cut from, and their times. Raises `BundleError`."""
        return read_detail(self.directory)

    @property
    def target(self) -> Target:
        """The target, with the numbers of the platform that the bundle was made with."""
        profile = self.directory / "profile.json"
        return targets.load(self.plan.target, profile if profile.exists() else None)

    def report(
        self,
        path: str | Path,
        *,
        trace: Mapping[str, Any] | None = None,
        frontier: Sequence[Plan] = (),
    ) -> None:
        """Write an HTML page of the plan, complete in itself. With `trace` (an endpoint's `last_trace`)
        it has measured times too, with `frontier` the other plans that `slicewise.frontier` found.
        """
        from slicewise.inspection.html_report import write_report

        folder = self.directory / "functions"
        files = {part.name: folder / part.name / "handler.py" for part in self.plan.slices}
        write_report(
            Path(path),
            self.plan,
            self.detail if (self.directory / DETAIL).exists() else None,
            handlers={name: file.read_text() for name, file in files.items() if file.exists()},
            trace=trace,
            frontier=frontier,
        )

    def deploy(self, **options: Any) -> Deployment:
        """See `slicewise.deploy`."""
        from slicewise.deployments import deploy

        return deploy(self, **options)


def load(directory: str | Path) -> Bundle:
    """The bundle in a directory. Raises `BundleError`."""
    path = Path(directory)
    plan_file = path / "plan.json"
    if not plan_file.is_file():
        raise BundleError(f"{path} holds no plan.json; is it a bundle that Compiled.save() wrote?")
    return Bundle(directory=path.resolve(), plan=Plan.from_json(plan_file.read_text()))


def check_destination(directory: str | Path, *, overwrite: bool = True) -> Path:
    """Where a bundle will be written, as an absolute path. Raises `BundleError` if it cannot be."""
    destination = Path(directory).resolve()
    exists = destination.exists()
    if exists and not (destination.is_dir() and _is_replaceable(destination, overwrite)):
        what = "a bundle and overwrite=False" if _holds_bundle(destination) else "no bundle"
        raise BundleError(f"{destination} exists and is {what}; choose a new directory.")
    above = next(path for path in destination.parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        what = "cannot be written to" if above.is_dir() else "is no directory"
        raise BundleError(f"{destination} cannot be made: {above} {what}; choose another place.")
    return destination


def _is_replaceable(directory: Path, overwrite: bool) -> bool:
    empty = not any(directory.iterdir())
    return empty or (overwrite and _holds_bundle(directory))


def _holds_bundle(directory: Path) -> bool:
    """Whether a bundle of any version is here: other programs call their files plan.json too."""
    try:
        plan = json.loads((directory / "plan.json").read_text())
        return (directory / "functions").is_dir() and {"schema", "slices"} <= plan.keys()
    except (OSError, ValueError, AttributeError):
        return False


def _replace(destination: Path, building: Path) -> None:
    """Move `building` to `destination`; what was there goes only when the move has succeeded."""
    old = building.with_name(f"{building.name}-old")
    if destination.exists():
        destination.rename(old)
    try:
        building.rename(destination)
    except BaseException:
        if old.exists():
            old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def example_arrays(input_structure: Any, captured: Captured) -> dict[str, np.ndarray]:
    """The example inputs by name."""
    bound = bind(input_structure, captured.args, captured.kwargs)
    return {name: _to_numpy(value) for name, value in bound.items()}


def _to_numpy(value: Any) -> np.ndarray:
    """A tensor as a numpy array; bfloat16, which numpy lacks, as float32."""
    if hasattr(value, "detach"):
        value = value.detach()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        return np.asarray(value.numpy())
    return np.asarray(value)


def _to_torch(array: np.ndarray, dtype: str) -> Any:
    import torch

    return torch.from_numpy(np.array(array)).to(getattr(torch, dtype))
