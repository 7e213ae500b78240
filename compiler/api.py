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

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slicewise import targets
from slicewise.compiled import Compiled, load
from slicewise.errors import (
    CaptureError,
    InfeasibleError,
    LimitsError,
)
from slicewise.graph import OpGraph
from slicewise.limits import MB, Limits, Overheads
from slicewise.plan import ModelInfo, Plan, TransportRule
from slicewise.progress import steps
from slicewise.target import Endpoint

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
    wire_dtype: str | None = None,
    compress: bool = False,
    tolerance: float | None = None,
    verify: bool = True,
    time_limit_s: float = 60.0,
    progress: bool | None = None,
) -> Compiled:
    """Compile a trained model into slices that each fit one function of the target.

    `model` is an `nn.Module` in eval mode, an `ExportedProgram` or an `fx.GraphModule`.
    `example_inputs`: a tuple, a dict of keyword arguments, or None for the model's `dummy_inputs`.
    `limits` overrides the target's limits downwards. `dynamic_shapes` is torch.export's; a dimension
    without a maximum may not exceed the example's. `transports` restricts how tensors travel;
    `wire_dtype="float16"` lets float32 travel as float16 between slices, `compress=True` compresses
    what shrinks by it. `tolerance` is the largest difference to the original model, relative to the
    output's largest magnitude (default 1e-4 for float32, 5e-3 where it travels as float16).
    `time_limit_s` bounds the search for the best cut.

    Raises `CaptureError`, `LimitsError`, `InfeasibleError` or `VerificationError`.
    """
    chosen_target = targets.load(target)
    full_limits = chosen_target.resolve_limits(limits)
    rule = chosen_target.transport_rule(
        full_limits,
        tuple(transports) if transports is not None else None,
        wire_dtype=wire_dtype,
        compress=compress,
    )
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
        from slicewise.passes.wire import on_wire
    with step("capturing the model"):
        captured = capture(model, example_inputs, dynamic_shapes=dynamic_shapes)
    overheads = chosen_target.overheads(rule)
    program, splits = _fitting(captured, full_limits, overheads, rule)
    with step("converting to ONNX"):
        converted = convert(program)
    graph, signature = analyse(
        converted.program,
        name=captured.name,
        aliases=converted.aliases,
        dim_names=captured.dim_names,
    )
    crossing = on_wire(graph, rule)
    for _ in range(MAX_CUTS):
        with step(f"choosing the cut of {len(graph.ops)} ops"):
            parts = partition(crossing, full_limits, overheads=overheads, time_limit_s=time_limit_s)
        slices, edges = place(
            crossing, parts, chosen_target, user_limits=limits, limits=full_limits, rule=rule
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
            compiled = compiled.verified(tolerance=tolerance)
        with step("measuring the memory of the largest request"):
            measured = compiled.measured()
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


def serve(directory: str | Path, **options: Any) -> Endpoint:
    """Run a bundle on this machine; the result is callable and a context manager.

    Options are the target's own, for Lambda: see `slicewise.targets.lambda.local.Platform`.
    """
    return load(directory).serve(**options)


def _fitting(
    captured: Captured, limits: Limits, overheads: Overheads, rule: TransportRule
) -> tuple[ExportedProgram, tuple[Split, ...]]:
    """The captured program with every op that is too large for a slice in pieces, and which those are.

    Raises `InfeasibleError`.
    """
    from slicewise.analyse import analyse
    from slicewise.passes.split import split_oversized
    from slicewise.passes.wire import on_wire
    from slicewise.rewrite import apply_splits

    program = captured.program
    try:
        graph, _ = analyse(program, name=captured.name, aliases={}, dim_names=captured.dim_names)
    except CaptureError:
        return program, ()  # the conversion or the analysis after it will say it better
    splits = split_oversized(on_wire(graph, rule), limits, overheads)
    return apply_splits(program, splits), splits


def _model_info(captured: Captured, graph: OpGraph) -> ModelInfo:
    program = captured.program
    return ModelInfo(
        name=captured.name,
        parameters=sum(parameter.numel() for parameter in program.parameters()),
        weight_bytes=graph.weight_bytes,
    )
