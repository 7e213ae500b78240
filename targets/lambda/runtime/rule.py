"""The transport rule: which tensors of a message go inline and which through an object store.

The compiler plans with it by the example's sizes; the functions decide with it by the actual ones.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

ENVELOPE_BYTES = 1024  # request id, plan id and braces around the tensors
RECORD_BYTES = 512  # JSON around one tensor's base64: name, dtype, shape, checksum

Choices = Sequence[tuple[str, int | None]]  # (transport, up to so many raw bytes), by size


@dataclass(frozen=True)
class Rule:
    """What holds for every message: the transports allowed, and the bytes of JSON it may have.

    `wire_dtype` and `compression` are for tensors that go only between slices; see `wire.pack`.
    """

    transports: tuple[str, ...]
    payload_bytes: int
    wire_dtype: str | None = None
    compression: str | None = None


def inline_bytes(raw_bytes: int) -> int:
    """Bytes of JSON that a tensor of `raw_bytes` takes when it is inlined."""
    return (raw_bytes + 2) // 3 * 4 + RECORD_BYTES


def choose(
    sizes: Mapping[str, int],
    choices: Mapping[str, Choices],
    rule: Rule,
    inline_first: Container[str] = (),
) -> dict[str, str]:
    """The transport of every tensor of one message, by raw bytes; the smallest get the payload.

    A tensor takes the first of its `choices` that admits its size, and where the message is full the
    next one, at last any that the rule allows. `inline_first`: tensors that the caller itself sends or
    receives, or that are inline already; they try the payload before anything else.

    Raises `ValueError` when the message does not fit and nothing but the payload is allowed.
    """
    chosen = {}
    room = rule.payload_bytes - ENVELOPE_BYTES
    for name, size in sorted(sizes.items(), key=lambda item: item[1]):
        needed = inline_bytes(size)
        ways = [way for way, most in choices.get(name, ()) if most is None or size <= most]
        if name in inline_first:
            ways.insert(0, "payload")
        for way in (*ways, *rule.transports):
            if way in rule.transports and (way != "payload" or needed <= room):
                chosen[name] = way
                break
        else:
            raise ValueError(
                f"the tensor {name} ({size:,} bytes) does not fit the payload "
                f"({rule.payload_bytes:,} bytes) and no other transport is allowed"
            )
        if chosen[name] == "payload":
            room -= needed
    return chosen
