"""The public API. `compile` is the pipeline, one call a stage:

    limits     what one slice may take, completed by the target; refused before any work
    capture    torch.export -> a torch.fx program; never touches the model
    split      ops whose weights fit no slice are rewritten into pieces that do, or refused
    convert    one conversion of the whole program to ONNX, in core ops
    analyse    program -> OpGraph and the signature of a request; from here on no torch
    partition  OpGraph -> slices with the fewest crossing bytes, and the certificate of it
    place      slices -> stages, edges with their transports, memory sizes: the plan
    carve      the one ONNX model -> one model per slice
    verify     slices against the original model, on two inputs
    measure    each function's memory while it answers the largest request; too much, and it cuts again

Converting before cutting has a price: an infeasible request is refused only after the conversion,
unless one weight alone is why. It buys that the ops that are cut are exactly the ops that run, from one
decomposition instead of two.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slicewise import targets
from slicewise.errors import (
    BundleError,
    CaptureError,
    InfeasibleError,
    LimitsError,
    VerificationError,
)
from slicewise.graph import OpGraph
from slicewise.limits import MB, Limits, Overheads
from slicewise.plan import ModelInfo, Plan
from slicewise.progress import steps
from slicewise.structure import bind, build, leaves
from slicewise.target import Endpoint
from slicewise.verify import Difference, Runner, check, compare, largest_input, second_input

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from slicewise.capture import Captured
    from slicewise.passes.split import Split

MAX_CUTS = 4  # each round adds what was missing; a second one is rare


def compile(
    model: nn.Module | ExportedProgram,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    target: str = "lambda",
    objective: str = "bytes",
    limits: Limits | None = None,
    goal: None = None,
    dynamic_shapes: Any = None,
    transports: Sequence[str] | None = None,
    tolerance: float | None = None,
    verify: bool = True,
    time_limit_s: float = 60.0,
    progress: bool | None = None,
) -> Compiled:
    """Compile a trained model into slices that each fit one function of the target.

    `model` is an `nn.Module` in eval mode, an `ExportedProgram` or an `fx.GraphModule`.
    `example_inputs`: a tuple, a dict of keyword arguments, or None for the model's `dummy_inputs`.
    `limits` overrides the target's limits downwards. `dynamic_shapes` is torch.export's; a dimension
    without a maximum may not exceed the example's. `transports` restricts how tensors travel.
    `tolerance` is the largest difference to the original model, relative to the output's largest
    magnitude (default 1e-4 for float32). `time_limit_s` bounds the search for the best cut.

    Raises `CaptureError`, `LimitsError`, `InfeasibleError` or `VerificationError`.
    """
    chosen_target = targets.load(target)
    full_limits = chosen_target.resolve_limits(limits)
    rule = chosen_target.transport_rule(full_limits, tuple(transports) if transports else None)
    if objective != "bytes" or goal is not None:
        raise LimitsError(
            f"objective={objective!r}, goal={goal!r}: this version minimises 'bytes' only."
        )

    step = steps(progress)
    with step("loading PyTorch"):
        from slicewise.analyse import analyse
        from slicewise.capture import capture
        from slicewise.codegen.carve import carve
        from slicewise.codegen.convert import convert
        from slicewise.passes import partition
        from slicewise.passes.place import place
        from slicewise.passes.split import records
    with step("capturing the model"):
        captured = capture(model, example_inputs, dynamic_shapes=dynamic_shapes)
    overheads = chosen_target.overheads(rule)
    program, splits = _fitting(captured, full_limits, overheads)
    with step("converting to ONNX"):
        converted = convert(program)
    graph, signature = analyse(
        converted.program,
        name=captured.name,
        aliases=converted.aliases,
        dim_names=captured.dim_names,
    )
    for _ in range(MAX_CUTS):
        with step(f"choosing the cut of {len(graph.ops)} ops"):
            parts = partition(graph, full_limits, overheads=overheads, time_limit_s=time_limit_s)
        slices, edges = place(
            graph, parts, chosen_target, user_limits=limits, limits=full_limits, rule=rule
        )
        plan = Plan(
            model=_model_info(captured, graph),
            target=target,
            objective=objective,
            limits=full_limits,
            slices=slices,
            edges=edges,
            certificate=parts.certificate,
            transport_rule=rule,
            inputs=signature.inputs,
            outputs=signature.outputs,
            dims=signature.dims,
            input_structure=signature.input_structure,
            output_structure=signature.output_structure,
            splits=records(splits, graph),
        )
        workspace = tempfile.TemporaryDirectory(prefix="slicewise-")
        with step(f"writing {len(slices)} slices"):
            carve(converted, slices, Path(workspace.name))
        compiled = Compiled(
            plan=plan, graph=graph, notes=captured.notes, _captured=captured, _workspace=workspace
        )
        if not verify:
            return compiled
        with step("verifying against the original model"):
            check(compiled.verify(tolerance=tolerance))
        with step("measuring the memory of the largest request"):
            measured = _measured(compiled)
        excess = max(p.peak_memory_bytes - p.memory_mb * MB for p in measured.plan.slices)
        if excess <= 0:
            return measured
        overheads = replace(overheads, memory_bytes=overheads.memory_bytes + excess)
    worst = max(measured.plan.slices, key=lambda part: part.peak_memory_bytes)
    raise InfeasibleError(
        f"after {MAX_CUTS} cuts, {worst.name} still takes {worst.peak_memory_bytes / MB:.0f} MB for the "
        f"largest request in a function of {worst.memory_mb} MB. Raise memory_mb, or lower the "
        "maximum of a dynamic dimension.",
        limit_name="memory_mb",
        needed=-(-worst.peak_memory_bytes // MB),
        limit=worst.memory_mb,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Compiled:
    """A compiled model: the plan, the graph it was made from, and the slices' ONNX files.

    `notes` tell what the user should know, such as why a fallback was needed.
    """

    plan: Plan
    graph: OpGraph
    notes: tuple[str, ...] = ()
    _captured: Captured = field(repr=False)
    _workspace: tempfile.TemporaryDirectory[str] = field(repr=False)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The output of all slices, run one after the other in this process, for checking."""
        feeds = {
            name: _to_numpy(value)
            for name, value in bind(self.plan.input_structure, args, kwargs).items()
        }
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
        example = self._example()
        other = second_input(self.plan, example)
        dtypes = {tensor.dtype for tensor in self.graph.tensors}
        return compare(
            self.plan, self._runner(), self._original, [example, other], tolerance, dtypes
        )

    def save(self, directory: str | Path, *, overwrite: bool = True) -> Bundle:
        """Write the bundle: everything that deploys. Replaces an earlier bundle, but nothing else."""
        from slicewise.codegen.handlers import render

        destination = Path(directory).resolve()
        exists = destination.exists()
        if exists and not (destination.is_dir() and _is_replaceable(destination, overwrite)):
            what = "a bundle and overwrite=False" if _holds_bundle(destination) else "no bundle"
            raise BundleError(f"{destination} exists and is {what}; choose a new directory.")
        destination.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and moved in at the end: a failure leaves the old bundle whole.
        building = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
        try:
            targets.load(self.plan.target).write_bundle(
                self.plan, render(self.plan), Path(self._workspace.name), building
            )
            building.chmod(0o755)
            _replace(destination, building)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        return load(destination)

    def _example(self) -> dict[str, np.ndarray]:
        """The example inputs by name."""
        bound = bind(self.plan.input_structure, self._captured.args, self._captured.kwargs)
        return {name: _to_numpy(value) for name, value in bound.items()}

    def _runner(self) -> Runner:
        return Runner(self.plan, Path(self._workspace.name))

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
        return targets.load(self.plan.target).serve(self.directory, self.plan, **options)


def load(directory: str | Path) -> Bundle:
    """The bundle in a directory. Raises `BundleError`."""
    path = Path(directory)
    plan_file = path / "plan.json"
    if not plan_file.is_file():
        raise BundleError(f"{path} holds no plan.json; is it a bundle that Compiled.save() wrote?")
    return Bundle(directory=path.resolve(), plan=Plan.from_json(plan_file.read_text()))


def serve(directory: str | Path, **options: Any) -> Endpoint:
    """Run a bundle on this machine; the result is callable and a context manager.

    Options are the target's own, for Lambda: see `slicewise.targets.lambda.local.Platform`.
    """
    return load(directory).serve(**options)


def _fitting(
    captured: Captured, limits: Limits, overheads: Overheads
) -> tuple[ExportedProgram, tuple[Split, ...]]:
    """The captured program with every op that is too large for a slice in pieces, and which those are.

    Raises `InfeasibleError`.
    """
    from slicewise.analyse import analyse
    from slicewise.passes.split import split_oversized
    from slicewise.rewrite import apply_splits

    program = captured.program
    try:
        graph, _ = analyse(program, name=captured.name, aliases={}, dim_names=captured.dim_names)
    except CaptureError:
        return program, ()  # the conversion or the analysis after it will say it better
    splits = split_oversized(graph, limits, overheads)
    return apply_splits(program, splits), splits


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


def _measured(compiled: Compiled) -> Compiled:
    """With the peak memory that each slice really took; unchanged where it cannot be measured."""
    from slicewise.codegen.handlers import render

    plan = compiled.plan
    request = largest_input(plan, compiled._example())
    target = targets.load(plan.target)
    with tempfile.TemporaryDirectory(prefix="slicewise-") as scratch:
        directory = Path(scratch)
        target.write_bundle(plan, render(plan), Path(compiled._workspace.name), directory)
        peaks = target.measure_memory(directory, plan, request)
    if peaks is None:
        return compiled
    slices = tuple(replace(part, peak_memory_bytes=peaks[part.name]) for part in plan.slices)
    return replace(compiled, plan=replace(plan, slices=slices))


def _model_info(captured: Captured, graph: OpGraph) -> ModelInfo:
    program = captured.program
    return ModelInfo(
        name=captured.name,
        parameters=sum(parameter.numel() for parameter in program.parameters()),
        weight_bytes=graph.weight_bytes,
    )


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
