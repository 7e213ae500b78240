"""Every error that slicewise raises on purpose.

Each message says what was found, what the limit or expectation is, and what to do next.
Each class also derives from the builtin that a caller would already catch.
"""

from __future__ import annotations


class SlicewiseError(Exception):
    """The root of all errors below; catch it to catch any of them."""


class CaptureError(SlicewiseError, RuntimeError):
    """The model could not be turned into a graph, or its graph holds something we cannot compile."""


class LimitsError(SlicewiseError, ValueError):
    """A limit is not positive, contradicts another one, or lies above what the platform allows."""


class GraphError(SlicewiseError, ValueError):
    """A graph that was handed in is not a DAG or has impossible numbers in it."""


class InfeasibleError(SlicewiseError, ValueError):
    """No plan can keep the limits.

    Attributes: `op` is the op that cannot be placed (None when no single op is to blame),
    `needed` and `limit` are in the unit of `limit_name`, and `smallest_limit` is the smallest value
    of that limit with which a plan exists (None when it is not known).
    """

    def __init__(
        self,
        message: str,
        *,
        op: str | None = None,
        limit_name: str | None = None,
        needed: int | None = None,
        limit: int | None = None,
        smallest_limit: int | None = None,
    ) -> None:
        super().__init__(message)
        self.op = op
        self.limit_name = limit_name
        self.needed = needed
        self.limit = limit
        self.smallest_limit = smallest_limit


class VerificationError(SlicewiseError, ArithmeticError):
    """The slices do not compute what the original model computes."""


class BundleError(SlicewiseError, ValueError):
    """A bundle directory is missing, incomplete, or was written by an incompatible version."""


class TargetError(SlicewiseError, RuntimeError):
    """A target, or the local platform that stands in for it, cannot do what was asked."""


class DeploymentError(SlicewiseError, RuntimeError):
    """A deployment could not be made, changed, read or removed. What serves keeps serving."""


class RequestError(SlicewiseError, ValueError):
    """A served model refused a request. `status` is 4xx; `field` names the offending part."""

    def __init__(self, message: str, *, status: int = 400, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.field = field


class SliceFailure(SlicewiseError, RuntimeError):  # noqa: N818 - a failure over there, not here
    """A slice of a served model failed. `slice` and `request_id` say which one and when, `kind` is the
    name of the cause as Lambda, S3 or the runtime has it, such as "DeadlineExceeded".
    """

    def __init__(
        self,
        message: str,
        *,
        slice: str | None = None,
        request_id: str | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(message)
        self.slice = slice
        self.request_id = request_id
        self.kind = kind
