"""Sealing: what `Compiled.save(encrypt=...)` makes of a plan and its slices' files (runtime/seal.py)."""

from __future__ import annotations

import base64
from dataclasses import asdict, replace
from pathlib import Path

from slicewise.errors import TargetError
from slicewise.plan import Encryption, Plan, Slice

from .profile import MB, Profile
from .runtime.seal import (
    HOW_TO_MAKE,
    KEY_VARIABLE,
    Seal,
    SealError,
    context_of,
    key_of_environment,
    made_of,
)
from .runtime.weights import sealed_name

PACKAGE_MB = 17  # of cryptography and cffi, stripped, in the layer (packaging/encryption.txt)
MEMORY_MB = 10  # of cryptography in a running function
KMS = "kms:"
ENCRYPTION_PACKAGES = ("cryptography",)  # that functions need besides


def encrypted(plan: Plan, plan_id: str, encrypt: str, profile: Profile) -> tuple[Plan, Seal]:
    """The plan with its encryption and functions large enough for it, and what seals its bundle.

    `encrypt` is "env", whose key SLICEWISE_KEY has, or "kms:" and the id, ARN or alias of a KMS key,
    which makes one. Raises `TargetError`.
    """
    try:
        import cryptography  # noqa: F401 - bundles that are not encrypted do without it
    except ImportError:
        raise TargetError(
            "encrypt needs cryptography; install it with: pip install 'slicewise[encrypt]'"
        ) from None
    key, encryption = _key(plan_id, encrypt)
    slices = tuple(_enlarged(part, profile) for part in plan.slices)
    return replace(plan, slices=slices, encryption=encryption), Seal(key, plan_id)


def _key(plan_id: str, encrypt: str) -> tuple[bytes, Encryption]:
    if encrypt == "env":
        try:
            return key_of_environment(), Encryption(plan=plan_id, key="env")
        except SealError as error:
            raise TargetError(str(error)) from None
    if not encrypt.startswith(KMS) or encrypt == KMS:
        raise TargetError(
            f"encrypt={encrypt!r}: choose 'env', for a key in {KEY_VARIABLE} ({HOW_TO_MAKE}), or "
            "'kms:' and a key of KMS, such as 'kms:alias/models'."
        )
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        made = boto3.client("kms").generate_data_key(
            KeyId=encrypt.removeprefix(KMS),
            KeySpec="AES_256",
            EncryptionContext=context_of(plan_id),
        )
    except (BotoCoreError, ClientError) as error:
        raise TargetError(f"KMS makes no data key with {encrypt!r}: {error}") from error
    data_key = base64.b64encode(made["CiphertextBlob"]).decode()
    told = Encryption(plan=plan_id, key="kms", key_id=made["KeyId"], data_key=data_key)
    return made["Plaintext"], told


def _enlarged(part: Slice, profile: Profile) -> Slice:
    """With memory for weights that are decrypted before ONNX Runtime copies them."""
    runtime = profile.runtime
    needed = runtime.memory_mb + MEMORY_MB + runtime.stream_factor * part.weight_bytes / MB
    memory_mb = max(part.memory_mb, -(-int(needed * MB) // MB))
    if memory_mb > profile.limits.memory_mb_max:
        raise TargetError(
            f"{part.name} needs {memory_mb:,} MB to decrypt its weights; functions have at most "
            f"{profile.limits.memory_mb_max:,} MB. Compile with a smaller Limits(weight_bytes=...)."
        )
    package_bytes = part.package_bytes + PACKAGE_MB * MB
    most_mb = profile.limits.package_mb_max
    if part.packaging == "zip" and package_bytes > most_mb * MB:
        raise TargetError(
            f"{part.name} takes {package_bytes:,} bytes with what decrypts it, over the {most_mb} MB of "
            f"a package. Compile with Limits(package_mb={most_mb - PACKAGE_MB}) or less."
        )
    return replace(part, memory_mb=memory_mb, package_bytes=package_bytes)


def seal_file(seal: Seal, part: str, source: Path, destination: Path) -> None:
    """Write the sealed content of a slice's file. Raises `TargetError`."""
    from .runtime.preoptimised import PREOPTIMISED  # onnxruntime takes long to import

    if source.name == PREOPTIMISED:
        raise TargetError(
            "a preoptimised graph cannot be encrypted: it is loaded from a file. Leave out preoptimise "
            "or encrypt."
        )
    try:
        destination.write_bytes(seal.close(sealed_name(part, source.name), source.read_bytes()))
    except SealError as error:
        raise TargetError(str(error)) from None


def seal_of(encryption: Encryption | None) -> Seal | None:
    """What a client seals and opens objects with, by its own environment. Raises `TargetError`."""
    if encryption is None:
        return None
    try:
        return made_of(asdict(encryption))
    except SealError as error:
        raise TargetError(str(error)) from None


def key_variables(encryption: Encryption | None) -> dict[str, str]:
    """What functions with such a bundle are given of this environment. Raises `TargetError`."""
    if encryption is None or encryption.key != "env":
        return {}
    try:
        return {KEY_VARIABLE: base64.b64encode(key_of_environment()).decode()}
    except SealError as error:
        raise TargetError(str(error)) from None
