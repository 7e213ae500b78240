"""What tests share: a small compiled model, and no deadlines on a busy machine."""

from __future__ import annotations

import pytest
import torch
import zoo
from hypothesis import settings

import slicewise

settings.register_profile("slicewise", derandomize=True, deadline=None)
settings.load_profile("slicewise")


@pytest.fixture(scope="session")
def compiled() -> slicewise.Compiled:
    """The tied model of the zoo in several slices, with a dynamic batch."""
    case = zoo.tied()
    batch = torch.export.Dim("batch", min=1, max=8)
    return slicewise.compile(
        case.model, case.inputs, limits=case.limits, dynamic_shapes=({0: batch},)
    )
