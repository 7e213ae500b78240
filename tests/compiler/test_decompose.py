"""Embedding bags: ONNX Runtime crashes on torch.onnx's form of them, so ours must not have it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import slicewise


class Bag(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(50, 8, **options)
        self.head = nn.Linear(8, 4)
        self.eval()

    def forward(
        self,
        x: torch.Tensor,
        offsets: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.head(self.bag(x, offsets, weights))  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["mean", "sum", "max"])
def test_bags_of_one_length_with_a_dynamic_batch(mode: str) -> None:
    model = Bag(mode=mode, padding_idx=3)
    x = torch.randint(0, 50, (3, 5))
    x[1] = 3  # a bag of nothing but padding

    batch = torch.export.Dim("batch", min=1, max=6)
    compiled = slicewise.compile(model, (x,), verify=False, dynamic_shapes=({0: batch},))

    more = torch.randint(0, 50, (6, 5))
    for rows in (x, more):
        torch.testing.assert_close(compiled.run(rows), model(rows).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("last", [False, True])
def test_bags_by_offsets_with_weights_and_an_empty_one(last: bool) -> None:
    model = Bag(mode="sum", include_last_offset=last)
    inputs = (
        torch.randint(0, 50, (7,)),
        torch.tensor([0, 2, 2, 7] if last else [0, 2, 2]),
        torch.rand(7),
    )

    compiled = slicewise.compile(model, inputs, verify=False)

    torch.testing.assert_close(compiled.run(*inputs), model(*inputs).detach(), rtol=0, atol=1e-5)


def test_the_form_that_ends_the_process() -> None:
    """Unoptimised and of fixed sizes, torch.onnx's Loop makes ONNX Runtime's loader crash."""
    model = Bag(mode="mean")
    inputs = torch.randint(0, 50, (12,)), torch.tensor([0, 4, 8])

    compiled = slicewise.compile(model, inputs, verify=False)

    torch.testing.assert_close(compiled.run(*inputs), model(*inputs).detach(), rtol=0, atol=1e-5)
