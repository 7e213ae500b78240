"""What checkov finds and is not so here: each with the reason, in the template's own metadata."""

from __future__ import annotations

from typing import Any, Literal

_REASONS = {
    "function": {
        "CKV_AWS_116": "Functions are invoked synchronously; a dead letter queue gets nothing.",
        "CKV_AWS_117": "The functions call only Lambda and S3; a VPC would add endpoints and no safety.",
        "CKV_AWS_173": "No secrets are in the environment: bucket, stack and version numbers.",
    },
    "logs": {
        "CKV_AWS_158": "Logs hold durations and error messages, no tensors; AWS encrypts them.",
    },
    "bucket": {
        "CKV_AWS_18": "Tensors live for a request; CloudTrail's data events record access if wanted.",
        "CKV_AWS_21": "Tensors must be gone after the request; versions would keep them.",
    },
}


def suppressed(kind: Literal["function", "logs", "bucket"]) -> dict[str, Any]:
    """The metadata of a resource of this kind."""
    skip = [{"id": check, "comment": reason} for check, reason in _REASONS[kind].items()]
    return {"checkov": {"skip": skip}}
