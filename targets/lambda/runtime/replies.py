"""The last replies of an execution environment: a repeated call gets the first one's result.

A call is the same when it has the same request id and the same tensors; one that only has the id of
another is a call of its own. In another environment it is computed again, to the same bytes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from .wire import Record

MOST = 8
MOST_BYTES = 256 * 1024  # of one reply: the function's memory is for its tensors


class Replies:
    """Kept by `key_of`, the latest few. Only replies whose tensors will still be there belong here."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, bytes] = {}

    def get(self, key: Hashable) -> bytes | None:
        """The reply to the same call before."""
        return self._kept.get(key)

    def keep(self, key: Hashable, reply: bytes) -> None:
        """Keep a reply, unless it is large."""
        if len(reply) > MOST_BYTES:
            return
        self._kept[key] = reply
        if len(self._kept) > MOST:
            del self._kept[next(iter(self._kept))]


def key_of(request_id: str, records: Mapping[str, Record]) -> Hashable:
    """What makes a call the same."""
    tensors = sorted(
        (name, str(record.get("dtype")), str(record.get("shape")), str(record.get("sha256")))
        for name, record in records.items()
    )
    return request_id, tuple(tensors)
