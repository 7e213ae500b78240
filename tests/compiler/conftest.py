"""A small compiled model that several files look at."""

from __future__ import annotations

import pytest
import torch
import zoo

import slicewise


@pytest.fixture(scope="session")
def compiled() -> slicewise.Compiled:
    """The tied model of the zoo in several slices, with a dynamic batch."""
    case = zoo.tied()
    batch = torch.export.Dim("batch", min=1, max=8)
    return slicewise.compile(
        case.model, case.inputs, limits=case.limits, dynamic_shapes=({0: batch},)
    )
