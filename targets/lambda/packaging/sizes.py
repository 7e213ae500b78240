"""Sizes: a table of what each package takes, of Lambda's limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slicewise.report import megabytes

if TYPE_CHECKING:
    from .packages import Packages


def sizes_text(packages: Packages) -> str:
    """The sizes of all packages, and which Python and architecture they are for."""
    rows = [("package", "zip", "unzipped", "with layer", "left")]
    if packages.layer is not None:
        layer = packages.layer
        rows.append(("layer", megabytes(layer.zip_bytes), megabytes(layer.unzipped_bytes), "", ""))
    for each in packages.packages:
        archive, left = each.archive, each.limit_bytes - each.with_layer_bytes
        rows.append(
            (
                each.part + (" (weights from S3)" if each.packaging == "s3-weights" else ""),
                megabytes(archive.zip_bytes),
                megabytes(archive.unzipped_bytes),
                megabytes(each.with_layer_bytes),
                megabytes(left),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if len(rows) == 1:
        lines = []
    if packages.images:
        lines.append(f"In one image, by the bundle's Dockerfile: {', '.join(packages.images)}")
    by = f"CPython {packages.compiled_by}" if packages.compiled_by else "none"
    lines.append(f"Python {packages.python}, {packages.architecture}; byte code: {by}")
    return "\n".join(lines)
