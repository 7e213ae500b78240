"""Work: changes that are carried out, or only listed, by the same code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")
NEW = "new"  # in a dry run: what will have a number
Action = Literal["create", "update", "delete", "upload", "publish", "move", "keep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What happens to one resource; `bytes` are uploaded."""

    action: Action
    resource: str
    detail: str = ""
    bytes: int = 0

    def __str__(self) -> str:
        size = f"{self.bytes:,} bytes" if self.bytes else ""
        more = ", ".join(each for each in (self.detail, size) if each)
        return f"{self.action:8} {self.resource}" + (f" ({more})" if more else "")


class Work:
    """A list of changes, carried out one by one; with `dry_run` none is."""

    def __init__(self, *, dry_run: bool = False) -> None:
        self.dry_run = dry_run
        self.changes: list[Change] = []

    def do(self, change: Change, call: Callable[[], T], otherwise: T) -> T:
        """Make a change and return what the call returns; a dry run notes it, for `otherwise`."""
        self.changes.append(change)
        return otherwise if self.dry_run else call()

    def keep(self, resource: str, detail: str = "") -> None:
        """Note what stays as it is."""
        self.changes.append(Change(action="keep", resource=resource, detail=detail))


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a deployment would change, or has changed; `monthly_usd` by what it is paid for."""

    stack: str
    changes: tuple[Change, ...]
    monthly_usd: dict[str, float] | None = None
    notes: tuple[str, ...] = ()

    @property
    def made(self) -> tuple[Change, ...]:
        """All that are no "keep"."""
        return tuple(change for change in self.changes if change.action != "keep")

    @property
    def upload_bytes(self) -> int:
        """Bytes to upload."""
        return sum(change.bytes for change in self.changes)

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "stack": self.stack,
            "upload_bytes": self.upload_bytes,
            "monthly_usd": self.monthly_usd,
            "changes": [asdict(change) for change in self.changes],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [str(change) for change in self.changes]
        kept = len(self.changes) - len(self.made)
        lines.append(
            f"{self.stack}: {len(self.made)} changes, {kept} resources stay, "
            f"{self.upload_bytes:,} bytes to upload"
        )
        if self.monthly_usd:
            lines += [f"${usd:10,.2f} a month: {what}" for what, usd in self.monthly_usd.items()]
            lines.append(f"${sum(self.monthly_usd.values()):10,.2f} a month in all")
        return "\n".join([*lines, *self.notes])
