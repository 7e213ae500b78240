"""What the slices' files hold of the weights: transposed where that is their only use, never twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from tiny import Analysed, analysed, plan_of, run
from torch import nn


class Tied(nn.Module):
    """An embedding tied to its head, whose input has three dimensions, so that it is a MatMul."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(40, 16)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embedding(tokens)))  # type: ignore[no-any-return]


WEIGHT_BYTES = 40 * 16 * 4


def carved(made: Analysed, folder: Path, *groups: tuple[str, ...]) -> list[onnx.ModelProto]:
    """The slices' files, which compute together what the model does."""
    found = run(made, plan_of(made, *groups), folder, made.feeds)
    for name, expected in made.eager().items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)
    return [onnx.load(file) for file in sorted(folder.rglob("model.onnx"))]


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def stored_bytes(model: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def test_a_weight_that_is_only_used_transposed_is_stored_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 24).eval()
    made = analysed(layer, (torch.randn(2, 3, 16),))

    (model,) = carved(made, tmp_path, tuple(op.name for op in made.graph.ops))

    assert "Transpose" not in ops(model)
    (stored,) = (t for t in model.graph.initializer if t.name == "weight.transposed")
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(stored), layer.weight.detach().numpy().T
    )


def test_a_slice_that_also_uses_it_as_it_is_holds_it_once(tmp_path: Path) -> None:
    made = analysed(Tied().eval(), (torch.arange(6).reshape(2, 3),))

    (model,) = carved(made, tmp_path, tuple(op.name for op in made.graph.ops))

    assert "Transpose" in ops(model)
    assert WEIGHT_BYTES <= stored_bytes(model) < 1.5 * WEIGHT_BYTES


def test_it_is_decided_per_slice(tmp_path: Path) -> None:
    """Apart, the embedding's slice has the weight as it is, and the head's has it transposed."""
    made = analysed(Tied().eval(), (torch.arange(6).reshape(2, 3),))
    names = tuple(op.name for op in made.graph.ops)

    first, second = carved(made, tmp_path, names[:1], names[1:])

    assert ops(first) == ["Gather"]
    assert "Transpose" not in ops(second)
    shapes = [list(model.graph.initializer[0].dims) for model in (first, second)]
    assert shapes == [[40, 16], [16, 40]]


def test_a_layer_called_twice_has_one_transposed_weight(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(16, 16, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.tanh(self.layer(x)))  # type: ignore[no-any-return]

    made = analysed(Twice().eval(), (torch.randn(2, 3, 16),))

    (model,) = carved(made, tmp_path, tuple(op.name for op in made.graph.ops))

    assert ops(model) == ["MatMul", "Tanh", "MatMul"]
    assert stored_bytes(model) == 16 * 16 * 4


def test_convolutions_without_a_bias_have_two_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ConvTranspose2d(8, 4, 3, bias=False), nn.Conv2d(4, 4, 1)
    )
    made = analysed(model.eval(), (torch.randn(1, 3, 7, 7),))

    (found,) = carved(made, tmp_path, tuple(op.name for op in made.graph.ops))

    assert [len(node.input) for node in found.graph.node if "Conv" in node.op_type] == [2, 2, 3]
