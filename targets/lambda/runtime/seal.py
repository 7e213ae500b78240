"""Sealed bytes: AES-256-GCM for tensors in S3 and for models, where the bundle was saved with `encrypt`.

A sealed package has seal.json: {"plan", "key"}, and for KMS {"data_key", "key_id"}. "key" says where
the bundle's 32 bytes come from: "env", the variable SLICEWISE_KEY (base64), or "kms", which decrypts
"data_key" when the function starts.

Each name (an object's key, a slice's file) has a key of its own, HMAC-SHA256 of plan and name: so no
nonce is ever used for two of them, and a random one of 96 bits is enough. Plan and name are the
associated data, too: bytes of another request, tensor, slice or plan are not opened.

    sealed = ciphertext, nonce (12 bytes), tag (16 bytes)

The package cryptography is imported when something is sealed or opened, for only sealed bundles ship it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL_FILE = "seal.json"
KEY_VARIABLE = "SLICEWISE_KEY"
KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16
OVERHEAD_BYTES = NONCE_BYTES + TAG_BYTES
MOST_BYTES = 2**31 - 1 - OVERHEAD_BYTES  # that cryptography takes at once
HOW_TO_MAKE = f"export {KEY_VARIABLE}=$(openssl rand -base64 32)"


class SealError(RuntimeError):
    """There is no key, or sealed bytes were changed, are others' or were sealed with another key."""


class Seal:
    """Seals and opens the bytes of one bundle."""

    def __init__(self, key: bytes, plan: str) -> None:
        self._key = key
        self._plan = plan

    def close(self, name: str, raw: bytes | memoryview) -> bytes:
        """The sealed bytes. Raises `SealError` above 2 GB."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if len(raw) > MOST_BYTES:
            raise SealError(
                f"{name} has {len(raw):,} bytes; at most {MOST_BYTES:,} can be encrypted. Compile for "
                "smaller slices (Limits(weight_bytes=...)) or without encrypt."
            )
        key, bound = self._of(name)
        nonce = os.urandom(NONCE_BYTES)
        closed = AESGCM(key).encrypt(nonce, raw, bound)
        return b"".join((closed[:-TAG_BYTES], nonce, closed[-TAG_BYTES:]))

    def open(self, name: str, sealed: bytes | memoryview) -> memoryview:
        """What was sealed. Raises `SealError`."""
        buffer = memoryview(bytearray(sealed))
        return buffer[: self.open_in_place(name, buffer)]

    def open_in_place(self, name: str, buffer: memoryview) -> int:
        """Put what was sealed where the sealed bytes are; how many they are. Raises `SealError`."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        size = len(buffer) - OVERHEAD_BYTES
        if size < 0:
            raise SealError(f"{name} has {len(buffer)} bytes and is not encrypted, or was cut off")
        key, bound = self._of(name)
        nonce, tag = bytes(buffer[size:-TAG_BYTES]), bytes(buffer[-TAG_BYTES:])
        opening = Cipher(algorithms.AES(key), modes.GCM(nonce, tag)).decryptor()
        opening.authenticate_additional_data(bound)
        try:
            opening.update_into(buffer[:size], buffer[:size])
            opening.finalize()
        except InvalidTag:
            buffer[:size] = bytes(size)  # nobody may use what was not checked
            raise SealError(
                f"{name} cannot be decrypted: it was changed, belongs to another request, tensor, slice "
                f"or plan, or was encrypted with another key than {KEY_VARIABLE} or KMS has now"
            ) from None
        return size

    def _of(self, name: str) -> tuple[bytes, bytes]:
        """The key and the associated data of a name."""
        bound = f"slicewise\n{self._plan}\n{name}".encode()
        return hmac.digest(self._key, bound, "sha256"), bound


def read_seal(directory: Path) -> Seal | None:
    """The seal of the package in this directory; None when it is not sealed. Raises `SealError`."""
    file = directory / SEAL_FILE
    return made_of(json.loads(file.read_text())) if file.exists() else None


def made_of(told: Mapping[str, Any]) -> Seal:
    """The seal of which seal.json says this. Raises `SealError`."""
    key = key_of_environment() if told["key"] == "env" else _decrypted(told)
    return Seal(key, told["plan"])


def key_of_environment() -> bytes:
    """The 32 bytes that SLICEWISE_KEY has as base64. Raises `SealError`."""
    text = os.environ.get(KEY_VARIABLE)
    if not text:
        raise SealError(
            f"encryption needs a key, and {KEY_VARIABLE} is not set. Set it to that of the bundle; "
            f"a new one is made by: {HOW_TO_MAKE}"
        )
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise SealError(
            f"{KEY_VARIABLE} is not {KEY_BYTES} bytes in base64; make one: {HOW_TO_MAKE}"
        )
    return key


def context_of(plan: str) -> dict[str, str]:
    """KMS's encryption context: a data key opens with the plan that it was made for."""
    return {"slicewise:plan": plan}


def _decrypted(told: Mapping[str, Any]) -> bytes:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = boto3.client("kms").decrypt(
            CiphertextBlob=base64.b64decode(told["data_key"]),
            KeyId=told["key_id"],
            EncryptionContext=context_of(told["plan"]),
        )
    except (BotoCoreError, ClientError) as error:
        raise SealError(
            f"this bundle is encrypted, and KMS does not decrypt its key with {told['key_id']}: {error}"
        ) from error
    key: bytes = answer["Plaintext"]
    return key
