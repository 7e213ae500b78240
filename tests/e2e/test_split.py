"""Models with ops that fit no slice: split, served as functions, and equal to eager PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import slicewise
from slicewise import Limits


def vgg() -> tuple[nn.Module, tuple[torch.Tensor, ...], Any]:
    """A scaled-down VGG: its first fully connected layer is wider than all else together."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(7),
        nn.Flatten(), nn.Linear(1568, 64), nn.ReLU(), nn.Dropout(),
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    batch = torch.export.Dim("batch", min=1, max=8)
    return model.eval(), (torch.randn(2, 3, 28, 28),), ({0: batch},)


class LanguageModel(nn.Module):
    """Two layers between an embedding and a head that are one weight."""

    def __init__(self, vocabulary: int = 1001, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embedding(tokens)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = torch.tanh(self.mix(x))
        return {"logits": self.head(x), "state": x[:, -1]}


def language_model() -> tuple[nn.Module, tuple[torch.Tensor, ...], Any]:
    torch.manual_seed(0)
    return LanguageModel().eval(), (torch.arange(1001).reshape(7, 143),), None


CASES: dict[str, tuple[Any, Limits, list[tuple[str, int]]]] = {
    "vgg": (vgg, Limits(weight_bytes=150_000), [("input features", 3)]),
    "language model": (
        language_model,
        Limits(weight_bytes=50_000),
        [("vocabulary rows", 3), ("output features", 3)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_served_pieces_equal_the_model(name: str, tmp_path: Path) -> None:
    build, limits, expected_splits = CASES[name]
    model, inputs, dynamic_shapes = build()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    compiled = slicewise.compile(model, inputs, dynamic_shapes=dynamic_shapes, limits=limits)
    bundle = compiled.save(tmp_path / "bundle")

    plan = bundle.plan
    assert plan == compiled.plan
    assert [(split.axis, len(split.sizes)) for split in plan.splits] == expected_splits
    ops = {op for part in plan.slices for op in part.ops}
    for split in plan.splits:
        assert len(split.pieces) == len(split.sizes)
        assert ops.issuperset(split.pieces)
        assert split.weight_bytes > (limits.weight_bytes or 0)
        assert f"by {split.axis} into {len(split.sizes)} pieces" in " ".join(str(plan).split())
    assert all(part.weight_bytes <= (limits.weight_bytes or 0) for part in plan.slices)
    assert all(difference.relative <= difference.tolerance for difference in compiled.verify())
    with bundle.serve() as endpoint, torch.no_grad():
        for batch in (inputs, tuple(x[:1] for x in inputs)) if dynamic_shapes else (inputs,):
            expected = model(*batch)
            torch.testing.assert_close(endpoint(*batch), expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)


def test_the_pieces_of_tied_weights_are_tied_and_the_weight_is_gone() -> None:
    model, inputs, _ = language_model()

    compiled = slicewise.compile(model, inputs, limits=Limits(weight_bytes=50_000), verify=False)

    look, head = compiled.plan.splits
    for one, other in zip(look.pieces, head.pieces, strict=True):
        assert compiled.graph.op[one].weights == compiled.graph.op[other].weights
    assert "embedding.weight" not in compiled.graph.weight
    assert compiled.plan.model.weight_bytes == sum(
        parameter.numel() * parameter.element_size() for parameter in model.parameters()
    )


def test_an_op_that_cannot_be_split_is_refused_before_the_conversion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(program: Any) -> Any:
        raise AssertionError("converted")

    monkeypatch.setattr("slicewise.codegen.convert.convert", never)

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(100, 100))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    with pytest.raises(slicewise.InfeasibleError, match=r"'mul'.*'scale'.*40,000 bytes") as refused:
        slicewise.compile(Scale().eval(), (torch.randn(100),), limits=Limits(weight_bytes=39_999))
    assert refused.value.op == "mul"
    assert refused.value.smallest_limit == 40_000
