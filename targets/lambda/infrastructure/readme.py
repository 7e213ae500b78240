"""README.md of a bundle: what was built, how to deploy, call and remove it, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from slicewise.plan import Plan, TensorSpec
from slicewise.templates import templates

from ..functions import COORDINATOR
from ..profile import Profile
from ..resources import Stack
from ..runtime.store import BUCKET_VARIABLES
from ..standby import standby_prices
from .compute import LAYER, LAYER_KEY, key_id
from .parameters import parameters
from .storage import BUCKET, EXPRESS_BUCKET
from .watch import ALARMS_PER_FUNCTION

TEMPLATES = "slicewise.targets.lambda.infrastructure"
_OUTPUTS = {"s3": BUCKET, "s3express": EXPRESS_BUCKET}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a million warm requests cost in one function: its memory, billed ms and US dollars."""

    name: str
    memory_mb: int
    billed_ms: float
    usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is paid for while nothing happens: US dollars per `unit`."""

    what: str
    usd: float
    unit: str


def readme_text(plan: Plan, stack: Stack, profile: Profile, why_no_templates: str = "") -> str:
    """README.md; `why_no_templates` says why the bundle has no templates, empty when it has."""
    from slicewise.report import plan_text

    parts = [function.part for function in stack.functions]
    zips = {"layer": LAYER_KEY} | {f.part: key_id(f) for f in stack.functions}
    prices, arch = profile.prices, profile.architecture
    busy = profile.provisioned.gb_s_usd[arch] / profile.prices.gb_s_usd[arch]["default"]
    return (
        templates(TEMPLATES)
        .get_template("README.md.jinja")
        .render(
            plan=plan,
            stack=stack,
            profile=profile,
            model=plan.model.name,
            slices=stack.slices,
            entry=stack.coordinator.name,
            version=version("slicewise"),
            plan_text=plan_text(plan),
            templates=not why_no_templates,
            why_no_templates=why_no_templates,
            layer=LAYER,
            parts=" ".join(parts),
            zips=" ".join(f"{part}={key}" for part, key in zips.items()),
            parameters=parameters(stack, stack.name),
            inputs=[{"name": spec.name, "code": _example_code(spec, plan)} for spec in plan.inputs],
            bfloat16={spec.name for spec in plan.inputs if spec.dtype == "bfloat16"},
            buckets={way: BUCKET_VARIABLES[way] for way in stack.transports},
            bucket_outputs=[_OUTPUTS[way] for way in stack.transports],
            payload_bytes=plan.transport_rule.payload_bytes,
            costs=costs(plan, stack, profile),
            kept=kept(stack, profile),
            provisioned_share=busy,
            alarms={
                "count": len(parts) * ALARMS_PER_FUNCTION,
                "usd": len(parts) * ALARMS_PER_FUNCTION * prices.alarm_month_usd,
            },
        )
    )


def costs(plan: Plan, stack: Stack, profile: Profile) -> Sequence[Cost]:
    """Of a million warm requests, by function; empty where the plan has no prediction.

    What the slices leave of the total is the coordinator's: its time, and the price of one request.
    """
    found = plan.prediction
    if found.cost_per_million_usd is None:
        return ()
    memory_mb = {function.part: function.memory_mb for function in stack.functions}
    rows = [
        Cost(
            name=part.name,
            memory_mb=memory_mb[part.name],
            billed_ms=part.billed_ms,
            usd=part.cost_per_million_usd,
        )
        for part in found.slices
    ]
    if COORDINATOR not in memory_mb:
        return rows
    rest = found.cost_per_million_usd - sum(row.usd for row in rows)
    gb_ms = memory_mb[COORDINATOR] / 1024 * profile.gb_s_usd / 1000
    billed_ms = (rest / 1e6 - profile.prices.request_usd) / gb_ms
    own = Cost(name=COORDINATOR, memory_mb=memory_mb[COORDINATOR], billed_ms=billed_ms, usd=rest)
    return (*rows, own)


def kept(stack: Stack, profile: Profile) -> Sequence[Kept]:
    """What options cost that keep functions ready."""
    gb = sum(function.memory_mb for function in stack.functions) / 1024
    prices = standby_prices(profile)
    return (
        Kept(
            what="`ProvisionedConcurrency=1`: one environment of each function",
            usd=gb * prices.provisioned_gb_month_usd,
            unit="a month",
        ),
        Kept(
            what="`SnapStart=on`: a snapshot of each version",
            usd=gb * prices.snapshot_gb_month_usd,
            unit="a month",
        ),
        Kept(
            what="and of a request that finds no function started",
            usd=gb * prices.restore_gb_usd * 1e6,
            unit="a million such requests",
        ),
    )


def _example_code(spec: TensorSpec, plan: Plan) -> str:
    """An array of the example's shape and type, as Python."""
    import sympy

    sizes: Mapping[str, Any] = {dim.name: dim.example for dim in plan.dims}
    shape = tuple(
        size if isinstance(size, int) else int(sympy.sympify(size, locals=dict(sizes)))
        for size in spec.shape
    )
    if spec.dtype == "bool":
        return f"np.ones({shape}, np.bool_)"
    if spec.dtype == "bfloat16":  # which numpy lacks: its bits, all zero
        return f"np.zeros({shape}, np.uint16)"
    if "int" in spec.dtype:
        return f"np.ones({shape}, np.{spec.dtype})"
    return f"np.random.default_rng(0).normal(size={shape}).astype(np.{spec.dtype})"
