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

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slicewise.compiled import Compiled, load
from slicewise.errors import (
    InfeasibleError,
    LimitsError,
)
from slicewise.goal import Goal, objective_of
from slicewise.limits import MB, Limits
from slicewise.pipeline import (
    Work,
    cut_in_shards,
    frontier_cuts,
    plan_of,
    prepare,
    with_peaks,
    write,
)
from slicewise.plan import ORCHESTRATIONS, Plan
from slicewise.progress import Steps, steps
from slicewise.target import Endpoint

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


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
    work = prepare(
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
    work: Work,
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
            held, partition, settings = cut_in_shards(work, chosen, goal, overheads)
        plan = replace(plan_of(held, chosen, partition, settings, warm_up), hedge=hedge)
        compiled = write(held, plan, step)
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
            grown = plan_of(held, chosen, partition, replace(settings, memory_mb=sizes), warm_up)
            peaks = {part.name: part.peak_memory_bytes for part in slices}
            return replace(measured, plan=with_peaks(replace(grown, hedge=hedge), peaks))
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
    hull. Nothing is written: compile with a `Goal` for the one that you like. Slices that run at the
    same time are among them where `Limits(max_parallel=...)` is given; a plan with shards takes as long
    as converting and timing the model does.
    """
    if points < 2:
        raise LimitsError(f"points={points}: a frontier has at least its two ends.")
    step = steps(progress)
    work = prepare(
        model, example_inputs, step, target=target, limits=limits, dynamic_shapes=dynamic_shapes,
        transports=transports, profile=profile, time_limit_s=time_limit_s,
        measure_times=measure_times,
    )  # fmt: skip
    with step("choosing cuts from the fastest to the cheapest"):
        cuts = frontier_cuts(work, points)
    return tuple(plan_of(held, "latency", found, settings) for held, found, settings in cuts)


def serve(directory: str | Path, **options: Any) -> Endpoint:
    """Run a bundle on this machine; the result is callable and a context manager.

    Options are the target's own, for Lambda: see `slicewise.targets.lambda.local.Platform`.
    """
    return load(directory).serve(**options)
