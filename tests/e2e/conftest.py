"""Bundles that several end-to-end tests share: compiled once, served once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import slicewise


class Wide(nn.Module):
    """Two inputs, two outputs; the tensor between the slices has 64 KB per row of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Linear(8, 16384)
        self.narrow = nn.Linear(16384, 8)
        self.last = nn.Linear(8, 16384)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        wide = torch.relu(self.widen(x))
        wide = wide * mask.unsqueeze(-1).to(wide.dtype)
        narrow = self.narrow(wide)
        return {"narrow": narrow, "wide": self.last(narrow)}


@pytest.fixture(scope="session")
def wide_model() -> nn.Module:
    torch.manual_seed(0)
    return Wide().eval()


@pytest.fixture(scope="session")
def wide_bundle(
    wide_model: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> slicewise.Bundle:
    """Three slices, batch 1 to 80: then the crossing tensor goes by S3."""
    batch = torch.export.Dim("batch", min=1, max=80)
    compiled = slicewise.compile(
        wide_model,
        (torch.randn(2, 8), torch.ones(2, dtype=torch.int64)),
        dynamic_shapes={"x": {0: batch}, "mask": {0: batch}},
        limits=slicewise.Limits(weight_bytes=700_000),
    )
    assert len(compiled.plan.slices) == 3
    directory: Path = tmp_path_factory.mktemp("wide") / "bundle"
    return compiled.save(directory)


@pytest.fixture(scope="session")
def wide(wide_bundle: slicewise.Bundle) -> Iterator[Any]:
    with wide_bundle.serve() as endpoint:
        yield endpoint
