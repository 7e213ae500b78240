"""Handlers: the source text of each function, short enough to read, with every edge and its reason."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from slicewise.plan import Edge, Plan, Prediction, Slice
from slicewise.target import Handlers
from slicewise.templates import templates


def render(plan: Plan) -> Handlers:
    """The handlers of a plan; equal plans give equal texts."""
    # What was measured on the way, or only explains, is no part of what was decided.
    decided = replace(
        plan,
        certificate=replace(plan.certificate, seconds=0.0),
        prediction=Prediction(),
        slices=tuple(replace(part, peak_memory_bytes=0) for part in plan.slices),
        edges=tuple(replace(edge, prices=()) for edge in plan.edges),
    )
    plan_id = hashlib.sha256(decided.to_json().encode()).hexdigest()[:16]
    shared = {
        "plan": plan,
        "plan_id": plan_id,
        "version": version("slicewise"),
        "packed": _packed(plan),
    }
    texts = templates("slicewise.codegen")
    slice_template = texts.get_template("slice_handler.py.jinja")
    return Handlers(
        plan_id=plan_id,
        slices={
            part.name: slice_template.render(
                **shared,
                part=part,
                inputs=[edge for edge in plan.edges if edge.consumer == part.name],
                outputs=_sent(plan, part),
                rule=plan.transport_rule,
            )
            for part in plan.slices
        },
        coordinator=None
        if plan.orchestration == "chain"
        else texts.get_template("coordinator_handler.py.jinja").render(**shared),
        manifest=_manifest(plan, plan_id),
    )


def _manifest(plan: Plan, plan_id: str) -> dict[str, Any]:
    """What the coordinator reads, ready for JSON."""
    rule = plan.transport_rule
    return {
        "id": plan_id,
        "model": plan.model.name,
        "slicewise": version("slicewise"),
        "inputs": [
            {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
            for spec in plan.inputs
        ],
        "input_cuts": [asdict(cut) for cut in plan.input_cuts],
        "outputs": [
            {
                "name": spec.name,
                "tensor": spec.tensor,
                "dtype": spec.dtype,
                "shape": list(spec.shape),
            }
            for spec in plan.outputs
        ],
        "dims": [{"name": dim.name, "min": dim.min, "max": dim.max} for dim in plan.dims],
        "rule": {
            "transports": list(rule.transports),
            "payload_bytes": rule.payload_bytes,
        },
        "warm_up": plan.warm_up,
        "max_parallel": plan.limits.max_parallel or len(plan.slices),
        "hedge": plan.hedge,
        "planned_transports": sorted({edge.transport for edge in plan.edges}),
        "choices": {edge.tensor: [list(choice) for choice in edge.choices] for edge in plan.edges},
        "stages": [
            [
                {
                    "name": part.name,
                    "stage": part.stage,
                    "inputs": list(part.inputs),
                    "outputs": list(part.outputs),
                }
                for part in stage
            ]
            for stage in plan.stages
        ],
    }


def _packed(plan: Plan) -> dict[str, str]:
    """In words what is made of each tensor on its way, empty where it travels as it is."""
    rule, internal = plan.transport_rule, plan.internal
    packed = {}
    for edge in plan.edges:
        wire_dtype = rule.wire_dtype if edge.dtype == "float32" else None
        ways = [way for way in (wire_dtype, rule.compression) if way and edge.tensor in internal]
        packed[edge.tensor] = f" as {' and '.join(ways)}" if ways else ""
    return packed


def _sent(plan: Plan, part: Slice) -> list[Edge]:
    """One edge per tensor that leaves, in the order of the slice's outputs; all readers share it."""
    by_tensor: dict[str, list[Edge]] = {name: [] for name in part.outputs}
    for edge in plan.edges:
        if edge.producer == part.name:
            by_tensor[edge.tensor].append(edge)
    merged = []
    for edges in by_tensor.values():
        readers = ", ".join(dict.fromkeys(edge.consumer for edge in edges))
        merged.append(replace(edges[0], consumer=readers))
    return merged
