"""AWS Lambda as a `slicewise.targets.Target`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slicewise.cost import CostModel
from slicewise.crossover import choices, line, pinned
from slicewise.errors import InfeasibleError, LimitsError
from slicewise.limits import Limits, Overheads
from slicewise.plan import Edge, Plan, TransportRule
from slicewise.target import Chosen, Packed, Sent

from .costs import cost_model
from .packings import allowed_packagings, most_package_mb, pack, with_packagings
from .profile import MB, Profile, default_profile, read_profile
from .runtime import arrays
from .runtime.rule import ENVELOPE_BYTES, Rule, choose, inline_bytes
from .runtime.wire import WIRE_DTYPES

if TYPE_CHECKING:
    from slicewise.graph import OpGraph
    from slicewise.target import Deployer, Endpoint, Handlers, SliceOps

    from .packaging.packages import Packages

TRANSPORTS = ("payload", "s3", "s3express")
DEFAULT_TRANSPORTS = ("payload", "s3")  # s3express needs a bucket in one availability zone
_MONEY = 1e8  # ms per US dollar: from here on money is what counts
PAYLOAD_BYTES_MIN = 16 * 1024  # a message also holds its own fields and a record per tensor


@dataclass(frozen=True, slots=True)
class LambdaTarget:
    """See `slicewise.targets.Target`."""

    profile: Profile
    name: str = "lambda"

    def with_profile(self, path: Path) -> LambdaTarget:
        """See `profile.read_profile`."""
        return replace(self, profile=read_profile(path))

    def packagings(self, wanted: str | Sequence[str] | None) -> tuple[str, ...]:
        """See `packings.allowed_packagings`."""
        return allowed_packagings(wanted)

    def pack(
        self, weight_bytes: int, packagings: tuple[str, ...], user: Limits | None, limits: Limits
    ) -> Packed:
        """See `packings.pack`."""
        assert limits.memory_mb is not None
        return pack(weight_bytes, packagings, user, limits.memory_mb, self.profile)

    def resolve_limits(
        self, limits: Limits | None, packagings: tuple[str, ...] | None = None
    ) -> Limits:
        """Complete the user's limits; above the platform's own limit is an error."""
        profile = self.profile
        given = limits or Limits()
        packagings = allowed_packagings(packagings)
        for field, top in (
            ("memory_mb", profile.limits.memory_mb_max),
            ("package_mb", most_package_mb(packagings, profile)),
            ("payload_bytes", profile.limits.payload_bytes_max),
        ):
            value = getattr(given, field)
            if value is not None and value > top:
                raise LimitsError(
                    f"Limits({field}={value:,}) is above Lambda's own limit of {top:,}. "
                    f"Use at most {top:,}."
                )
        if given.memory_mb is not None and given.memory_mb < profile.limits.memory_mb_min:
            raise LimitsError(
                f"Limits(memory_mb={given.memory_mb}) is below Lambda's smallest function, "
                f"{profile.limits.memory_mb_min} MB. Use at least {profile.limits.memory_mb_min}."
            )
        if given.payload_bytes is not None and given.payload_bytes < PAYLOAD_BYTES_MIN:
            raise LimitsError(
                f"Limits(payload_bytes={given.payload_bytes}) has no room for a message's own fields. "
                f"Use at least {PAYLOAD_BYTES_MIN}."
            )
        for field, floor, what in (
            ("memory_mb", profile.runtime.memory_mb, "an interpreter with onnxruntime and boto3"),
            ("package_mb", profile.runtime.package_mb, "the runtime (onnxruntime and numpy)"),
        ):
            value = getattr(given, field)
            if value is not None and value <= floor:
                raise LimitsError(
                    f"Limits({field}={value}) leaves nothing for a slice: {what} alone takes "
                    f"{floor:g} MB. Use more than {floor:g}."
                )
        full = replace(
            given,
            memory_mb=given.memory_mb or profile.limits.memory_mb_default,
            payload_bytes=given.payload_bytes or profile.limits.payload_bytes_max,
        )
        return with_packagings(full, packagings, profile)

    def transport_rule(
        self,
        limits: Limits,
        transports: tuple[str, ...] | None,
        *,
        wire_dtype: str | None = None,
        compress: bool = False,
        orchestration: str = "coordinator",
    ) -> TransportRule:
        """The transports that the user allows, else payload and S3; of a state machine's 256 KiB of data
        tensors take none, so that it has S3 only.
        """
        by_reference = orchestration == "stepfunctions"
        default = ("s3",) if by_reference else DEFAULT_TRANSPORTS
        allowed = tuple(transports) if transports is not None else default
        if by_reference and "payload" in allowed:
            raise LimitsError(
                f"transports={transports!r}: a state machine's data hold 256 KiB, too little for "
                "tensors. With orchestration=\"stepfunctions\" leave 'payload' out."
            )
        unknown = [name for name in allowed if name not in TRANSPORTS]
        if unknown or not allowed:
            raise LimitsError(
                f"transports={transports!r}: choose one or more of {', '.join(TRANSPORTS)}."
            )
        assert limits.payload_bytes is not None
        if wire_dtype is not None and wire_dtype not in WIRE_DTYPES:
            raise LimitsError(
                f"wire_dtype={wire_dtype!r}: float32 travels as it is (None) or as one of "
                f"{', '.join(WIRE_DTYPES)}."
            )
        return TransportRule(
            transports=allowed,
            payload_bytes=limits.payload_bytes,
            wire_dtype=wire_dtype,
            compression="zlib" if compress else None,
        )

    def delivered(self, array: Any, dtype: str, rule: TransportRule) -> tuple[Any, str]:
        """What `arrays.unpack` makes of it; compression loses nothing."""
        raw, packed = arrays.pack(array, dtype, rule.wire_dtype)
        record = {"dtype": dtype, "shape": array.shape, **packed}
        return arrays.from_bytes(raw, record), packed.get("wire_dtype", dtype)

    def cost_model(self, limits: Limits) -> CostModel:
        """What the profile says of times and prices."""
        assert limits.payload_bytes is not None
        return cost_model(self.profile, limits.payload_bytes)

    def overheads(self, rule: TransportRule) -> Overheads:
        """Interpreter and libraries, and the buffers of the tensors in and out."""
        payload_only = set(rule.transports) == {"payload"}
        return Overheads(
            memory_bytes=int(self.profile.runtime.memory_mb * MB),
            package_bytes=int(self.profile.runtime.package_mb * MB),
            edge_factor=self.profile.runtime.buffer_factor,
            max_edge_bytes=(rule.payload_bytes - 4096) * 3 // 4 - 4096 if payload_only else None,
        )

    def choose_transports(
        self,
        message: Sequence[Sent],
        rule: TransportRule,
        model: CostModel,
        usd_weight: float = 0.0,
    ) -> Mapping[str, Chosen]:
        """The run-time rule applied to the example's sizes, with its reason in words."""
        order = [transport.name for transport in model.transports]
        choices_of = {}
        for sent in message:
            found = choices(model, rule.transports, sent.sender_mb, sent.reader_mbs, usd_weight)
            if sent.wanted is not None:
                found = pinned(found, order, sent.bytes, sent.wanted)
            choices_of[sent.tensor] = found
        try:
            chosen = choose(
                {sent.tensor: sent.bytes for sent in message},
                choices_of,
                Rule(rule.transports, rule.payload_bytes),
                {sent.tensor for sent in message if sent.is_callers},
            )
        except ValueError as error:
            raise InfeasibleError(
                f"{error}. Allow the transport 's3'.", limit_name="payload_bytes"
            ) from error
        return {
            sent.tensor: Chosen(
                transport=chosen[sent.tensor],
                choices=choices_of[sent.tensor],
                reason=_reason(model, sent, chosen[sent.tensor], rule, usd_weight),
                prices=_prices(model, sent, rule),
            )
            for sent in message
        }

    def estimate_memory(
        self, graph: OpGraph, part: SliceOps, edges: Sequence[Edge], rule: TransportRule
    ) -> int:
        """See `estimate.estimate`."""
        from .estimate import estimate

        return estimate(graph, part, edges, self.profile, rule)

    @property
    def caller_memory_mb(self) -> int:
        """The coordinator's memory where nothing else was chosen."""
        return self.profile.coordinator.memory_mb

    def memory_mb(self, user: Limits | None, limits: Limits, needed_bytes: int) -> int:
        """The user's size when one was given; else one full vCPU, or more when the slice needs it.

        Compute costs the same at any share below one vCPU, so less memory would only be slower.
        """
        assert limits.memory_mb is not None
        if user is not None and user.memory_mb is not None:
            return user.memory_mb
        return min(limits.memory_mb, max(self.profile.cpu.mb_per_vcpu, -(-needed_bytes // MB)))

    def write_bundle(
        self,
        plan: Plan,
        handlers: Handlers,
        slices: Path,
        directory: Path,
        encrypt: str | None = None,
    ) -> None:
        """See `bundle.write_bundle`."""
        from .bundle import write_bundle

        write_bundle(plan, handlers, self.profile, slices, directory, encrypt)

    def measure_memory(
        self, directory: Path, plan: Plan, request: Mapping[str, Any]
    ) -> Mapping[str, int] | None:
        """See `measure.measure_memory`."""
        from .measure import measure_memory

        return measure_memory(directory, plan, self.profile, request)

    def serve(self, directory: Path, plan: Plan, **options: Any) -> Endpoint:
        """See `endpoint.serve`."""
        from .endpoint import serve

        return serve(directory, plan, self.profile, **options)

    def package(self, directory: Path, plan: Plan, **options: Any) -> Packages:
        """See `packaging.packages.package`; without `architecture` it is the profile's."""
        from .packaging.packages import package

        options["architecture"] = options.get("architecture") or self.profile.architecture
        return package(directory, plan, limit_mb=self.profile.limits.package_mb_max, **options)

    def deployer(self, **options: Any) -> Deployer:
        """See `deployment.deployer.LambdaDeployer`."""
        from .deployment.deployer import LambdaDeployer

        return LambdaDeployer(self.profile, **options)

    def calibrate(self, where: str, output: Path, **options: Any) -> str:
        """See `calibrate.calibrate`."""
        from .calibrate import calibrate

        return calibrate(where, output, self.profile, **options)


def _reason(
    model: CostModel, sent: Sent, transport: str, rule: TransportRule, usd_weight: float
) -> str:
    """Why, in bytes and milliseconds (or dollars), against the best of the other transports."""
    if len(rule.transports) == 1:
        return f"{transport} is the only transport allowed"
    if sent.is_callers and transport == "payload":
        return f"{sent.bytes:,} bytes, fits the caller's message"
    took = {}
    for name in rule.transports:
        way = model.transport(name)
        start, slope, _ = line(model, way, sent.sender_mb, sent.reader_mbs, usd_weight)
        took[name] = start + slope * sent.bytes
    own = took.pop(transport)
    if transport != "payload" and "payload" in took:
        fits = inline_bytes(sent.bytes) <= rule.payload_bytes - ENVELOPE_BYTES
        if not fits:
            return f"{sent.bytes:,} bytes exceed the message; {transport}: {_show(own, usd_weight)}"
    other = min(took, key=lambda name: took[name])
    words = (
        f"{sent.bytes:,} bytes, {transport}: {_show(own, usd_weight)}, "
        f"{other} would take {_show(took[other], usd_weight)}"
    )
    full = transport != "payload" and other == "payload" and took[other] < own
    if not full:
        return words
    return words + (", but together it is better" if sent.wanted else ", but the message is full")


def _prices(
    model: CostModel, sent: Sent, rule: TransportRule
) -> tuple[tuple[str, float, float], ...]:
    """See `Edge.prices`."""
    found = []
    for name in rule.transports:
        way = model.transport(name)
        if way.max_bytes is not None and sent.bytes > way.max_bytes:
            continue
        # A line is ms + weight * dollars: by its weight's first dollar it grows by the dollars.
        start, slope, _ = line(model, way, sent.sender_mb, sent.reader_mbs)
        start_paid, slope_paid, _ = line(model, way, sent.sender_mb, sent.reader_mbs, 1.0)
        ms = start + slope * sent.bytes
        usd = start_paid + slope_paid * sent.bytes - ms
        found.append((name, ms, usd * 1e6))
    return tuple(found)


def _show(value: float, usd_weight: float) -> str:
    """A value of `line` in words: milliseconds, or what they and the money come to."""
    if usd_weight < _MONEY:
        return f"{value:.1f} ms"
    return f"${value / usd_weight * 1e6:.2f} per million"


TARGET = LambdaTarget(profile=default_profile())
