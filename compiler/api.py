"""The public API. `compile` is the pipeline, one call a stage:

    limits     what one slice may take, completed by the target; refused before any work
    capture    torch.export -> a torch.fx program; never touches the model
    fold       batch norms disappear into the convolutions before them
    split      ops whose weights fit no slice are rewritten into pieces that do, or refused
    convert    one conversion of the whole program to ONNX, in core ops
    analyse    program -> OpGraph and the signature of a request; from here on no torch
    op_times   the compute time of every op, measured where times decide
    cut        OpGraph -> slices with the fewest crossing bytes, or (passes/joint) slices, transports and
               memory sizes of the least latency or cost; and the certificate of it
    shards     ops that several slices split between them become ops of each, converted once more
    place      slices -> stages, edges: the plan
    predict    latency and cost of a request
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slicewise import targets
from slicewise.compiled import Compiled, load
from slicewise.errors import (
    CaptureError,
    InfeasibleError,
    LimitsError,
)
from slicewise.goal import Goal, objective_of
from slicewise.graph import OpGraph
from slicewise.limits import MB, Limits, Overheads
from slicewise.plan import ORCHESTRATIONS, ModelInfo, Plan, TransportRule
from slicewise.predict import predict
from slicewise.progress import Steps, steps
from slicewise.target import Endpoint, Target

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from slicewise.capture import Captured
    from slicewise.codegen.convert import Converted
    from slicewise.optime import OpTimes
    from slicewise.passes import Partition
    from slicewise.passes.joint.decide import Choices
    from slicewise.passes.place import Settings
    from slicewise.passes.split import Split
    from slicewise.signature import Signature

MAX_CUTS = 4  # each round adds what was missing; a second one is rare


def compile(
    model: nn.Module | ExportedProgram,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    target: str = "lambda",
    objective: str = "bytes",
    limits: Limits | None = None,
    goal: Goal | None = None,
    dynamic_shapes: Any = None,
    transports: Sequence[str] | None = None,
    profile: str | Path | None = None,
    measure_times: bool | None = None,
    wire_dtype: str | None = None,
    compress: bool = False,
    packaging: str | Sequence[str] | None = None,
    tolerance: float | None = None,
    verify: bool = True,
    warm_up: bool = True,
    preoptimise: bool = False,
    hedge: float | None = None,
    orchestration: str = "coordinator",
    time_limit_s: float = 60.0,
    progress: bool | None = None,
) -> Compiled:
    """Compile a trained model into slices that each fit one function of the target.

    `model` is an `nn.Module` in eval mode, an `ExportedProgram` or an `fx.GraphModule`.
    `example_inputs`: a tuple, a dict of keyword arguments, or None for the model's `dummy_inputs`.
    `objective` is "bytes" (that cross between slices), "latency" (expected, of a warm request) or
    "cost" (US dollars per request); `goal` bounds the latter two. `limits` overrides the target's limits
    downwards. `dynamic_shapes` is torch.export's; a dimension without a maximum may not exceed the
    example's. `transports` restricts how tensors travel; `wire_dtype="float16"` lets float32 travel as
    float16 between slices, `compress=True` compresses what shrinks by it. `profile` is a file with other
    numbers of the platform, such as `slicewise calibrate` writes. `measure_times` says whether the model
    is run to know its ops' times (default: only where they decide). `tolerance` is the largest
    difference to the original model, relative to the output's largest magnitude (default 1e-4 for
    float32, 5e-3 where it travels as float16).
    `packaging`: how functions may be packed, for Lambda "zip" (the default), "image" or "s3-weights", or
    several of them, of which each slice gets the one that it fits and that starts fastest.
    `warm_up=False` lets every slice start when its turn comes, instead of all at once with the first
    request. `preoptimise=True` lets slices with convolutions start faster on CPUs like this machine's,
    with packages of twice the size. `hedge=0.95` calls a slice a second time when it takes longer than
    95 % of its latest calls, and takes the first answer. `orchestration` says who drives the slices
    (docs/orchestration.md): one function ("coordinator"), each slice the next one ("chain"), or a state
    machine ("stepfunctions"); only a coordinator warms up. `time_limit_s` bounds the search for the best
    cut.

    Raises `CaptureError`, `LimitsError`, `InfeasibleError` or `VerificationError`.
    """
    step = steps(progress)
    if orchestration not in ORCHESTRATIONS:
        raise LimitsError(
            f"orchestration={orchestration!r} is not known; choose {', '.join(ORCHESTRATIONS)}."
        )
    warm_up = warm_up and orchestration == "coordinator"
    chosen = objective_of(objective, goal)
    if hedge is not None and not 0 < hedge < 1:
        raise LimitsError(f"hedge={hedge!r}: expected a percentile between 0 and 1, such as 0.95.")
    work = _prepare(
        model, example_inputs, step, target=target, limits=limits, dynamic_shapes=dynamic_shapes,
        transports=transports, wire_dtype=wire_dtype, compress=compress, profile=profile,
        time_limit_s=time_limit_s, packaging=packaging, orchestration=orchestration,
        measure_times=chosen != "bytes" if measure_times is None else measure_times,
    )  # fmt: skip
    found = _fitted(
        work, chosen, goal, step, warm_up=warm_up, hedge=hedge, verify=verify, tolerance=tolerance
    )
    if not preoptimise:
        return found
    with step("optimising the slices' graphs"):
        return found.preoptimised()


def _fitted(
    work: _Work,
    chosen: str,
    goal: Goal | None,
    step: Steps,
    *,
    warm_up: bool,
    hedge: float | None,
    verify: bool,
    tolerance: float | None,
) -> Compiled:
    """Cut, written, verified and measured, until every function holds the largest request."""
    overheads = work.target.overheads(work.rule)
    for _ in range(MAX_CUTS):
        with step(f"choosing the cut of {len(work.graph.ops)} ops"):
            held, partition, settings = _cut_in_shards(work, chosen, goal, overheads)
        plan = replace(_plan(held, chosen, partition, settings, warm_up), hedge=hedge)
        compiled = _write(held, plan, step)
        if not verify:
            return compiled
        with step("verifying against the original model"):
            compiled = compiled.verified(tolerance=tolerance)
        with step("measuring the memory of the largest request"):
            measured = compiled.measured()
        slices = measured.plan.slices
        most = work.limits.memory_mb or 0
        excess = max(part.peak_memory_bytes - most * MB for part in slices)
        if excess <= 0:
            sizes = {p.name: max(p.memory_mb, -(-p.peak_memory_bytes // MB)) for p in slices}
            if all(sizes[part.name] == part.memory_mb for part in slices):
                return measured
            # More memory than was estimated, and allowed: the same cut with larger functions.
            grown = _plan(held, chosen, partition, replace(settings, memory_mb=sizes), warm_up)
            peaks = {part.name: part.peak_memory_bytes for part in slices}
            return replace(measured, plan=_with_peaks(replace(grown, hedge=hedge), peaks))
        overheads = replace(overheads, memory_bytes=overheads.memory_bytes + excess)
    worst = max(slices, key=lambda part: part.peak_memory_bytes)
    raise InfeasibleError(
        f"after {MAX_CUTS} cuts, {worst.name} still takes {worst.peak_memory_bytes / MB:.0f} MB for the "
        f"largest request in a function of {most} MB. Raise memory_mb, or lower the "
        "maximum of a dynamic dimension.",
        limit_name="memory_mb",
        needed=-(-worst.peak_memory_bytes // MB),
        limit=most,
    )


def frontier(
    model: nn.Module | ExportedProgram,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    points: int = 9,
    target: str = "lambda",
    limits: Limits | None = None,
    dynamic_shapes: Any = None,
    transports: Sequence[str] | None = None,
    profile: str | Path | None = None,
    measure_times: bool = True,
    time_limit_s: float = 60.0,
    progress: bool | None = None,
) -> tuple[Plan, ...]:
    """Plans of which none is both faster and cheaper than another, fastest first, at most `points`.

    The ends are the plans of the least latency and of the least cost; those between are on the convex
    hull. Nothing is written: compile with a `Goal` for the one that you like.
    """
    from slicewise.passes.joint.decide import decide_frontier

    if points < 2:
        raise LimitsError(f"points={points}: a frontier has at least its two ends.")
    step = steps(progress)
    work = _prepare(
        model, example_inputs, step, target=target, limits=limits, dynamic_shapes=dynamic_shapes,
        transports=transports, profile=profile, time_limit_s=time_limit_s,
        measure_times=measure_times,
    )  # fmt: skip
    with step("choosing cuts from the fastest to the cheapest"):
        decisions = decide_frontier(
            work.graph, work.limits, points, overheads=work.target.overheads(work.rule),
            model=work.target.cost_model(work.limits), rule=work.rule,
            parallel=work.times.parallel, time_limit_s=work.time_limit_s,
        )  # fmt: skip
    return tuple(_plan(work, "latency", *decision) for decision in decisions)


def serve(directory: str | Path, **options: Any) -> Endpoint:
    """Run a bundle on this machine; the result is callable and a context manager.

    Options are the target's own, for Lambda: see `slicewise.targets.lambda.local.Platform`.
    """
    return load(directory).serve(**options)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """All that is known before the cut; the tensors of `crossing` have the bytes that travel."""

    target: Target
    packagings: tuple[str, ...]
    user_limits: Limits | None
    limits: Limits
    rule: TransportRule
    captured: Captured
    splits: tuple[Split, ...]
    converted: Converted
    graph: OpGraph
    crossing: OpGraph
    signature: Signature
    times: OpTimes
    time_limit_s: float
    orchestration: str
    measure_times: bool = True


def _prepare(
    model: nn.Module | ExportedProgram,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None,
    step: Steps,
    *,
    target: str,
    limits: Limits | None,
    dynamic_shapes: Any,
    transports: Sequence[str] | None,
    profile: str | Path | None,
    measure_times: bool,
    time_limit_s: float,
    wire_dtype: str | None = None,
    compress: bool = False,
    packaging: str | Sequence[str] | None = None,
    orchestration: str = "coordinator",
) -> _Work:
    chosen_target = targets.load(target, profile)
    packagings = chosen_target.packagings(packaging)
    full_limits = chosen_target.resolve_limits(limits, packagings)
    rule = chosen_target.transport_rule(
        full_limits,
        tuple(transports) if transports is not None else None,
        wire_dtype=wire_dtype,
        compress=compress,
        orchestration=orchestration,
    )
    with step("loading PyTorch"):
        from slicewise.analyse import analyse
        from slicewise.batchnorm import fold_batch_norms
        from slicewise.capture import capture
        from slicewise.codegen.convert import convert
        from slicewise.compiled import example_arrays
        from slicewise.optime import op_times, with_times
        from slicewise.passes.wire import on_wire
    with step("capturing the model"):
        captured = capture(model, example_inputs, dynamic_shapes=dynamic_shapes)
    program = fold_batch_norms(captured.program)
    program, splits = _fitting(captured, program, full_limits, chosen_target.overheads(rule), rule)
    with step("converting to ONNX"):
        converted = convert(program)
    graph, signature = analyse(
        converted.program,
        name=captured.name,
        aliases=converted.aliases,
        dim_names=captured.dim_names,
    )
    with step("measuring the ops" if measure_times else "estimating the ops' times"):
        arrays = example_arrays(signature.input_structure, captured)
        feeds = {spec.tensor: arrays[spec.name] for spec in signature.inputs}
        times = op_times(converted, graph, feeds, run=measure_times)
        timed = with_times(graph, times)
    return _Work(
        target=chosen_target,
        packagings=packagings,
        user_limits=limits,
        limits=full_limits,
        rule=rule,
        captured=captured,
        splits=splits,
        converted=converted,
        graph=timed,
        crossing=on_wire(timed, rule),
        signature=signature,
        times=times,
        time_limit_s=time_limit_s,
        measure_times=measure_times,
        orchestration=orchestration,
    )


def _cut(
    work: _Work, objective: str, goal: Goal | None, overheads: Overheads
) -> tuple[Partition, Settings]:
    """The slices, and the settings of their functions."""
    from slicewise.passes import partition
    from slicewise.passes.joint.decide import decision
    from slicewise.passes.place import Settings

    target, limits = work.target, work.limits
    if objective != "bytes":
        found = _choices(work, objective, goal, overheads, shards=False)
        return min(
            (decision(found, choice) for choice in found.choices),
            key=lambda each: _predicted(work, objective, *each),
        )
    cut = partition(work.crossing, limits, overheads=overheads, time_limit_s=work.time_limit_s)
    memory_mb = {
        part.name: target.memory_mb(work.user_limits, limits, part.memory_bytes)
        for part in cut.slices
    }
    return cut, Settings(memory_mb=memory_mb, model=target.cost_model(limits))


def _choices(
    work: _Work, objective: str, goal: Goal | None, overheads: Overheads, *, shards: bool
) -> Choices:
    """What there is to choose from for latency or cost."""
    from slicewise.passes.joint.decide import choices

    limits = work.limits
    return choices(
        work.crossing, limits, "latency" if objective == "latency" else "cost", goal=goal,
        overheads=overheads, model=work.target.cost_model(limits), rule=work.rule,
        parallel=work.times.parallel, time_limit_s=work.time_limit_s,
        most=limits.max_parallel or 1, shards=shards,
    )  # fmt: skip


def _cut_in_shards(
    work: _Work, objective: str, goal: Goal | None, overheads: Overheads
) -> tuple[_Work, Partition, Settings]:
    """As `_cut`, and where shards are predicted better, with the program that has them."""
    from slicewise.passes.joint.decide import decision
    from slicewise.shards import Applying, with_shards

    if objective == "bytes" or (work.limits.max_parallel or 1) == 1:
        return work, *_cut(work, objective, goal, overheads)
    found = _choices(work, objective, goal, overheads, shards=True)
    options: list[tuple[_Work, Partition, Settings]] = []
    for choice in found.choices:
        if not choice.shardings:
            options.append((work, *decision(found, choice)))
            continue
        made = with_shards(
            Applying(captured=work.captured, converted=work.converted, crossing=work.crossing,
                     rule=work.rule, limits=work.limits, measure_times=work.measure_times),
            found, choice, overheads,
        )  # fmt: skip
        if made is not None:
            rewritten, partition, settings = made
            options.append((replace(work, **rewritten), partition, settings))
    if not options:
        return work, *_cut(work, objective, goal, overheads)
    return min(options, key=lambda each: _predicted(each[0], objective, *each[1:]))


def _predicted(work: _Work, objective: str, found: Partition, settings: Settings) -> float:
    """What a decision makes of the objective, slice by slice."""
    prediction = _plan(work, objective, found, settings).prediction
    value = prediction.latency_ms if objective == "latency" else prediction.cost_per_million_usd
    assert value is not None
    return value


def _plan(
    work: _Work, objective: str, found: Partition, settings: Settings, warm_up: bool = True
) -> Plan:
    from slicewise.passes.place import place
    from slicewise.passes.split import records

    packed = {
        part.name: work.target.pack(
            part.weight_bytes, work.packagings, work.user_limits, work.limits
        )
        for part in found.slices
    }
    memory_mb = {
        name: max(mb, -(-packed[name].memory_bytes // MB))
        for name, mb in settings.memory_mb.items()
    }
    settings = replace(settings, memory_mb=memory_mb)
    slices, edges = place(work.crossing, found, work.target, settings, packed, rule=work.rule)
    prediction = predict(
        slices, edges, settings.model, work.times.ms, parallel=work.times.parallel,
        source=f"op times {work.times.source}", warm_up=warm_up,
        most=work.limits.max_parallel, orchestration=work.orchestration,
    )  # fmt: skip
    signature = work.signature
    return Plan(
        model=_model_info(work.captured, work.graph),
        target=work.target.name,
        objective=objective,
        limits=work.limits,
        slices=slices,
        edges=edges,
        certificate=found.certificate,
        transport_rule=work.rule,
        inputs=signature.inputs,
        outputs=signature.outputs,
        dims=signature.dims,
        input_structure=signature.input_structure,
        output_structure=signature.output_structure,
        prediction=prediction,
        coordinator_memory_mb=settings.model.caller_memory_mb,
        splits=records(work.splits, work.graph),
        warm_up=warm_up,
        orchestration=work.orchestration,
    )


def _write(work: _Work, plan: Plan, step: Steps) -> Compiled:
    """The slices of a plan as ONNX files."""
    from slicewise.codegen.carve import carve

    workspace = tempfile.TemporaryDirectory(prefix="slicewise-")
    with step(f"writing {len(plan.slices)} slices"):
        carve(work.converted, plan.slices, Path(workspace.name))
    return Compiled(
        plan=plan,
        graph=work.graph,
        target=work.target,
        notes=work.captured.notes,
        _captured=work.captured,
        _parallel=work.times.parallel,
        _workspace=workspace,
    )


def _with_peaks(plan: Plan, peaks: Mapping[str, int]) -> Plan:
    slices = tuple(replace(part, peak_memory_bytes=peaks[part.name]) for part in plan.slices)
    return replace(plan, slices=slices)


def _fitting(
    captured: Captured,
    program: ExportedProgram,
    limits: Limits,
    overheads: Overheads,
    rule: TransportRule,
) -> tuple[ExportedProgram, tuple[Split, ...]]:
    """The program with every op that is too large for a slice in pieces, and which those are.

    Raises `InfeasibleError`.
    """
    from slicewise.analyse import analyse
    from slicewise.passes.split import split_oversized
    from slicewise.passes.wire import on_wire
    from slicewise.rewrite import apply_splits

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
