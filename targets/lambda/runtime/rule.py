"""The transport rule: which tensors of a message go inline and which through S3.

The compiler plans with it by the example's sizes; the functions decide with it by the actual ones.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

ENVELOPE_BYTES = 1024  # request id, plan id and braces around the tensors
RECORD_BYTES = 512  # JSON around one tensor's base64: name, dtype, shape, checksum


@dataclass(frozen=True)
class Rule:
    """Payload while a tensor has at most `threshold_bytes` and the message stays below the limit."""

    transports: tuple[str, ...]
    threshold_bytes: int
    payload_bytes: int


def inline_bytes(raw_bytes: int) -> int:
    """Bytes of JSON that a tensor of `raw_bytes` takes when it is inlined."""
    return (raw_bytes + 2) // 3 * 4 + RECORD_BYTES


def choose(
    sizes: Mapping[str, int], rule: Rule, inline_first: Container[str] = ()
) -> dict[str, str]:
    """The transport of every tensor of one message, by raw bytes; the smallest get the payload.

    The threshold does not hold for `inline_first`: tensors that the caller itself sends or receives.

    Raises `ValueError` when the message does not fit and `s3` is not allowed.
    """
    chosen = {}
    room = rule.payload_bytes - ENVELOPE_BYTES
    for name, size in sorted(sizes.items(), key=lambda item: item[1]):
        needed = inline_bytes(size)
        waived = name in inline_first or "s3" not in rule.transports
        small = size <= rule.threshold_bytes or waived
        if "payload" in rule.transports and small and needed <= room:
            chosen[name] = "payload"
            room -= needed
        elif "s3" in rule.transports:
            chosen[name] = "s3"
        else:
            raise ValueError(
                f"the tensor {name} ({size:,} bytes) does not fit the payload "
                f"({rule.payload_bytes:,} bytes) and no other transport is allowed"
            )
    return chosen
