"""The profile as a `CostModel`: what calls, transports and functions take and cost on Lambda."""

from __future__ import annotations

from slicewise.cost import CostModel, Imports, Start, Step, Transport

from .profile import Profile, Spread, StorePart
from .runtime.rule import ENVELOPE_BYTES, RECORD_BYTES

BASE64 = 4 / 3  # bytes that travel per raw byte
GB = 1024**3


def cost_model(profile: Profile, payload_bytes: int) -> CostModel:
    """Expected times and prices when messages hold `payload_bytes`; the coordinator is the caller."""
    room = int((payload_bytes - ENVELOPE_BYTES) / BASE64)
    record = int(RECORD_BYTES / BASE64) + 2  # and the padding of base64
    byte_ns = 1e9 / profile.network.bytes_s
    call, cold, payload = profile.call, profile.cold, profile.payload
    inline = Transport(
        name="payload",
        send=Step(cpu_ns=payload.send_cpu_ns),
        collect=Step(wait_ns=byte_ns * BASE64, cpu_ns=payload.caller_receive_cpu_ns),
        pass_on=Step(wait_ns=byte_ns * BASE64, cpu_ns=payload.caller_send_cpu_ns),
        receive=Step(cpu_ns=payload.receive_cpu_ns),
        max_bytes=room - record,
        message_bytes=room,
        record_bytes=record,
    )
    return CostModel(
        mb_per_vcpu=profile.cpu.mb_per_vcpu,
        period_ms=profile.cpu.period_ms,
        resume_factor=profile.cpu.resume_factor,
        memory_mb_min=profile.limits.memory_mb_min,
        memory_mb_max=profile.limits.memory_mb_max,
        caller_memory_mb=profile.coordinator.memory_mb,
        call=_waiting(call.wait_ms, cpu_ms=call.caller_cpu_ms),
        handle=Step(cpu_ms=call.cpu_ms),
        starts=_starts(profile, byte_ns),
        imports=Imports(
            slice_ms=cold.import_ms,
            store_ms=cold.boto3_ms,
            caller_ms=cold.coordinator_ms,
            caller_store_ms=cold.coordinator_store_ms,
            early_ms=cold.early_ms,
        ),
        load_ns=cold.load_ns,
        gb_s_usd=profile.gb_s_usd,
        request_usd=profile.prices.request_usd,
        transports=(
            inline,
            _store("s3", profile.s3, byte_ns),
            _store("s3express", profile.s3express, byte_ns),
        ),
        transition=_waiting(profile.stepfunctions.gap_ms),
        transition_usd=profile.stepfunctions.transition_usd,
    )


def _starts(profile: Profile, byte_ns: float) -> tuple[Start, ...]:
    """By packaging; weights from S3 come as fast as the network of an environment allows."""
    cold = profile.cold
    zipped, image = (
        _waiting(init[profile.architecture], extra_ms=cold.placement_ms)
        for init in (cold.init_ms, cold.image_init_ms)
    )
    return (
        Start(packaging="zip", begin=zipped),
        Start(packaging="image", begin=image, fetch_ns=cold.image_fetch_ns),
        Start(packaging="s3-weights", begin=zipped, fetch_ns=byte_ns, by_store=True),
    )


def _store(name: str, store: StorePart, byte_ns: float) -> Transport:
    return Transport(
        name=name,
        send=_waiting(
            store.put_ms, wait_ns=byte_ns, cpu_ms=store.put_cpu_ms, cpu_ns=store.put_cpu_ns
        ),
        collect=Step(),
        pass_on=Step(),
        receive=_waiting(
            store.get_ms, wait_ns=byte_ns, cpu_ms=store.get_cpu_ms, cpu_ns=store.get_cpu_ns
        ),
        send_usd=store.put_usd,
        send_byte_usd=store.upload_gb_usd / GB,
        receive_usd=store.get_usd,
        receive_byte_usd=store.retrieval_gb_usd / GB,
    )


def _waiting(
    spread: Spread,
    *,
    extra_ms: float = 0.0,
    wait_ns: float = 0.0,
    cpu_ms: float = 0.0,
    cpu_ns: float = 0.0,
) -> Step:
    return Step(
        wait_ms=spread.mean + extra_ms,
        sigma=spread.sigma,
        wait_ns=wait_ns,
        cpu_ms=cpu_ms,
        cpu_ns=cpu_ns,
    )
