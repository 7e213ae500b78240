"""The steps of `slicewise.compile`, whose order api.py has: from a model to all that is known before
the cut, to slices with their settings, to the plan, to ONNX files.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slicewise import targets
from slicewise.compiled import Compiled
from slicewise.errors import (
    CaptureError,
)
from slicewise.goal import Goal
from slicewise.graph import OpGraph
from slicewise.limits import MB, Limits, Overheads
from slicewise.plan import InputCut, ModelInfo, Plan, TransportRule
from slicewise.predict import predict
from slicewise.progress import Steps
from slicewise.target import Target

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from slicewise.capture import Captured
    from slicewise.codegen.convert import Converted
    from slicewise.optime import OpTimes
    from slicewise.passes import Partition
    from slicewise.passes.joint.decide import Choices
    from slicewise.passes.joint.optimise import Choice
    from slicewise.passes.place import Settings
    from slicewise.passes.split import Split
    from slicewise.signature import Signature


DEFAULT_PARALLEL = 4  # slices at the same time, for latency and cost
LEAST_GAIN = 0.03  # predictions err: groups that gain less than this might lose


@dataclass(frozen=True, kw_only=True)
class Work:
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
    input_cuts: tuple[InputCut, ...] = ()


def prepare(
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
) -> Work:
    """Captured, split where it must be, converted, analysed and timed; raises as `compile` does."""
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
    return Work(
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


def cut(
    work: Work, objective: str, goal: Goal | None, overheads: Overheads
) -> tuple[Partition, Settings]:
    """The slices, and the settings of their functions."""
    from slicewise.passes import partition
    from slicewise.passes.joint.decide import decision
    from slicewise.passes.place import Settings

    target, limits = work.target, work.limits
    if objective != "bytes":
        found = all_choices(work, objective, goal, overheads, shards=False)
        return min(
            (decision(found, choice) for choice in found.choices),
            key=lambda each: _predicted(work, each[0], each[1], objective),
        )
    parts = partition(work.crossing, limits, overheads=overheads, time_limit_s=work.time_limit_s)
    memory_mb = {
        part.name: target.memory_mb(work.user_limits, limits, part.memory_bytes)
        for part in parts.slices
    }
    return parts, Settings(memory_mb=memory_mb, model=target.cost_model(limits))


def most_at_once(work: Work, objective: str) -> int:
    """How many slices of a plan for this objective may run at the same time."""
    return work.limits.max_parallel or (1 if objective == "bytes" else DEFAULT_PARALLEL)


def all_choices(
    work: Work, objective: str, goal: Goal | None, overheads: Overheads, *, shards: bool
) -> Choices:
    """What there is to choose from for latency or cost."""
    from slicewise.passes.joint.decide import choices

    limits = work.limits
    return choices(
        work.crossing, limits, "latency" if objective == "latency" else "cost", goal=goal,
        overheads=overheads, model=work.target.cost_model(limits), rule=work.rule,
        parallel=work.times.parallel, time_limit_s=work.time_limit_s,
        most=most_at_once(work, objective), shards=shards,
    )  # fmt: skip


def frontier_cuts(work: Work, points: int) -> list[tuple[Work, Partition, Settings]]:
    """The cuts of which none is predicted both faster and cheaper than another, fastest first, each with
    the work that has its program.
    """
    from slicewise.passes.joint.decide import frontier_choices

    overheads = work.target.overheads(work.rule)
    found = frontier_choices(
        work.crossing, work.limits, points, overheads=overheads,
        model=work.target.cost_model(work.limits), rule=work.rule,
        parallel=work.times.parallel, time_limit_s=work.time_limit_s,
        most=work.limits.max_parallel or 1, shards=True,
    )  # fmt: skip
    made = [carried_out(work, found, choice, overheads) for choice in found.choices]
    figures = [
        (_predicted(*each, "latency"), _predicted(*each, "cost"), each)
        for each in made
        if each is not None
    ]
    figures.sort(key=lambda figure: figure[:2])
    kept: list[tuple[Work, Partition, Settings]] = []
    cheapest = math.inf
    for _, usd, each in figures:  # shards that are ops take other times than the search counted
        if usd < cheapest:
            kept.append(each)
            cheapest = usd
    return kept


def cut_in_shards(
    work: Work, objective: str, goal: Goal | None, overheads: Overheads
) -> tuple[Work, Partition, Settings]:
    """As `cut`; where groups are predicted better by `LEAST_GAIN`, with the program that has them."""
    from slicewise.passes.joint.decide import decision

    if most_at_once(work, objective) == 1:
        return work, *cut(work, objective, goal, overheads)
    found = all_choices(work, objective, goal, overheads, shards=True)
    choice, *others = found.choices
    alone = (work, *decision(found, others[0])) if others else None
    if others and choice.value > others[0].value * (1 - LEAST_GAIN):
        choice = others[0]
    made = carried_out(work, found, choice, overheads)
    if made is None:
        return alone or (work, *cut(work, objective, goal, overheads))
    value = _predicted(*made, objective)
    if alone is not None and not (
        _keeps(made, goal) and value <= _predicted(*alone, objective) * (1 - LEAST_GAIN)
    ):
        return alone
    if not choice.shardings:
        return made
    # The bound is the search's, which knew the shards' ops only by their shares of whole ones.
    held, partition, settings = made
    bound = min(partition.certificate.lower_bound, value)
    proof = replace(
        partition.certificate, status="bounded", lower_bound=bound, gap=1.0 - bound / value
    )
    return held, replace(partition, certificate=proof), settings


def carried_out(
    work: Work, found: Choices, choice: Choice, overheads: Overheads
) -> tuple[Work, Partition, Settings] | None:
    """A choice with the program that has its shards as ops; None where a function does not hold them."""
    from slicewise.passes.joint.decide import decision
    from slicewise.shards import Applying, with_shards

    if not choice.shardings:
        return work, *decision(found, choice)
    made = with_shards(
        Applying(captured=work.captured, converted=work.converted, crossing=work.crossing,
                 rule=work.rule, limits=work.limits, measure_times=work.measure_times),
        found, choice, overheads,
    )  # fmt: skip
    if made is None:
        return None
    rewritten, partition, settings = made
    return replace(work, **rewritten), partition, settings


def _predicted(work: Work, found: Partition, settings: Settings, objective: str) -> float:
    """What a decision makes of the objective, slice by slice."""
    prediction = plan_of(work, objective, found, settings).prediction
    value = prediction.latency_ms if objective == "latency" else prediction.cost_per_million_usd
    assert value is not None
    return value


def _keeps(made: tuple[Work, Partition, Settings], goal: Goal | None) -> bool:
    """Whether a plan is predicted to keep the goal, slice by slice."""
    found = plan_of(made[0], "latency", *made[1:]).prediction
    figures = (found.latency_ms, found.cost_per_million_usd)
    bounds = (goal.latency_ms, goal.cost_per_million_usd) if goal else (None, None)
    return all(
        bound is None or (value is not None and value <= bound)
        for value, bound in zip(figures, bounds, strict=True)
    )


def plan_of(
    work: Work, objective: str, found: Partition, settings: Settings, warm_up: bool = True
) -> Plan:
    """The plan of a cut: functions as they are packed, edges, prediction."""
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
        input_cuts=work.input_cuts,
        input_structure=signature.input_structure,
        output_structure=signature.output_structure,
        prediction=prediction,
        coordinator_memory_mb=settings.model.caller_memory_mb,
        splits=records(work.splits, work.graph),
        warm_up=warm_up,
        orchestration=work.orchestration,
    )


def write(work: Work, plan: Plan, step: Steps) -> Compiled:
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


def with_peaks(plan: Plan, peaks: Mapping[str, int]) -> Plan:
    """The plan with these peak bytes of its slices."""
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
