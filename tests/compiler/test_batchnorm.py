"""Folding batch norms: the program computes the same without them, or is left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from tiny import tiny_model
from torch import nn
from torch.export import ExportedProgram

import slicewise
from slicewise.analyse import weight_tensors
from slicewise.batchnorm import fold_batch_norms
from slicewise.capture import capture


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def normed(*layers: nn.Module) -> Any:
    """The layers in eval mode, with batch norms that have seen data."""
    for layer in layers:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.1, 3)
            if layer.affine:
                nn.init.uniform_(layer.weight, -2, 2)
                nn.init.uniform_(layer.bias, -1, 1)
    return nn.Sequential(*layers).eval().requires_grad_(False)


def norms(program: ExportedProgram) -> int:
    return sum("batch_norm" in str(node.target) for node in program.graph.nodes)


def folded(model: nn.Module, *inputs: torch.Tensor) -> tuple[ExportedProgram, ExportedProgram]:
    """The program before and after; both compute what the model does, and the model is as it was."""
    state = copy.deepcopy(model.state_dict())
    before = capture(model, inputs).program
    after = fold_batch_norms(before)
    for program in (before, after):
        tolerance = 1e-12 if inputs[0].dtype == torch.float64 else 1e-5
        torch.testing.assert_close(
            program.module()(*inputs), model(*inputs), rtol=tolerance, atol=tolerance
        )
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    return before, after


CONVOLUTIONS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "conv1d": lambda: (
        normed(nn.Conv1d(3, 8, 3, bias=False), nn.BatchNorm1d(8)),
        torch.randn(2, 3, 9),
    ),
    "conv2d with a bias, in groups": lambda: (
        normed(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)),
        torch.randn(2, 4, 7, 7),
    ),
    "conv2d, padded by name": lambda: (
        normed(nn.Conv2d(4, 8, 3, padding="same"), nn.BatchNorm2d(8, affine=False)),
        torch.randn(2, 4, 7, 7),
    ),
    "depthwise": lambda: (
        normed(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4, eps=0.1)),
        torch.randn(2, 4, 7, 7),
    ),
    "conv3d": lambda: (
        normed(nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6)),
        torch.randn(1, 2, 5, 5, 5),
    ),
    "transposed1d": lambda: (
        normed(nn.ConvTranspose1d(3, 8, 3), nn.BatchNorm1d(8)),
        torch.randn(2, 3, 9),
    ),
    "transposed2d in groups": lambda: (
        normed(nn.ConvTranspose2d(6, 4, 3, 2, groups=2, bias=False), nn.BatchNorm2d(4)),
        torch.randn(2, 6, 5, 5),
    ),
    "transposed3d": lambda: (
        normed(nn.ConvTranspose3d(4, 6, 2, groups=2), nn.BatchNorm3d(6)),
        torch.randn(1, 4, 3, 3, 3),
    ),
    "linear": lambda: (normed(nn.Linear(4, 8), nn.BatchNorm1d(8)), torch.randn(3, 4)),
    "float64": lambda: (
        normed(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).double(),
        torch.randn(1, 3, 7, 7).double(),
    ),
    "two in a row": lambda: (
        normed(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)),
        torch.randn(1, 3, 7, 7),
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_norm_is_gone_and_the_result_is_the_same(name: str) -> None:
    model, x = CONVOLUTIONS[name]()

    before, after = folded(model, x)

    assert norms(before) > 0
    assert norms(after) == 0


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_in_core_ops_too(name: str) -> None:
    model, x = CONVOLUTIONS[name]()
    core = capture(model, (x,)).program.run_decompositions()

    after = fold_batch_norms(core)

    assert norms(after) < norms(core) or name == "linear"  # which is an addmm there
    torch.testing.assert_close(after.module()(x), model(x), rtol=1e-5, atol=1e-5)


def shared() -> Any:
    def forward(self: Any, x: torch.Tensor) -> Any:
        return self.one(self.conv(x)) + self.two(self.conv(x))

    parts = normed(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8))
    return tiny_model(forward, conv=parts[0], one=parts[1], two=parts[2]), torch.randn(1, 3, 7, 7)


def tied() -> Any:
    """Two convolutions, one weight: folded, it would be two."""
    layers = normed(
        nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
    )  # fmt: skip
    layers[2].weight = layers[0].weight
    return layers, torch.randn(1, 3, 7, 7)


def read_twice() -> Any:
    def forward(self: Any, x: torch.Tensor) -> Any:
        y = self.conv(x)
        return self.norm(y) + y

    parts = normed(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    return tiny_model(forward, conv=parts[0], norm=parts[1]), torch.randn(1, 3, 7, 7)


def computed_weight() -> Any:
    def forward(self: Any, x: torch.Tensor, weight: torch.Tensor) -> Any:
        return self.norm(torch.nn.functional.conv2d(x, weight))

    (norm,) = normed(nn.BatchNorm2d(8))
    return tiny_model(forward, norm=norm), torch.randn(1, 3, 7, 7), torch.randn(8, 3, 3, 3)


def statistics_of_the_batch() -> Any:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))
    return layers.eval().requires_grad_(False), torch.randn(2, 3, 7, 7)


def linear_of_three_dimensions() -> Any:
    """The norm is over dimension 1, which is not what the layer puts out."""
    return normed(nn.Linear(4, 8), nn.BatchNorm1d(5)), torch.randn(3, 5, 4)


def overflow() -> Any:
    layers = normed(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    layers[0].weight.fill_(1e38)
    layers[1].running_var.fill_(1e-4)
    layers[1].weight.fill_(1.0)
    return layers, torch.zeros(1, 3, 7, 7)


@pytest.mark.parametrize(
    "make",
    [shared, tied, read_twice, computed_weight, statistics_of_the_batch,
     linear_of_three_dimensions, overflow],
)  # fmt: skip
def test_where_a_norm_has_to_stay_nothing_changes(make: Callable[[], Any]) -> None:
    model, *inputs = make()

    before, after = folded(model, *inputs)

    assert after is before
    assert norms(after) > 0


def test_half_precision_is_left_alone() -> None:
    model = normed(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).bfloat16()
    program = capture(model, (torch.randn(1, 3, 7, 7).bfloat16(),)).program

    assert fold_batch_norms(program) is program


def test_a_shared_bias_is_left_to_its_other_user() -> None:
    layers = normed(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    layers[2].bias = layers[0].bias

    _, after = folded(layers, torch.randn(1, 3, 4, 4))

    assert norms(after) == 0


def test_the_weights_keep_their_names() -> None:
    model, x = CONVOLUTIONS["conv1d"]()

    _, after = folded(model, x)

    used = {node.name for node in after.graph.nodes if node.users}
    names = {target for placeholder, target, _ in weight_tensors(after) if placeholder in used}
    assert names == {"0.weight", "0.bias"}


def test_slices_have_no_batch_norms(tmp_path: Any) -> None:
    layers = [
        layer
        for _ in range(3)
        for layer in (nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    ]
    model = normed(*layers)

    compiled = slicewise.compile(
        model, (torch.randn(1, 8, 9, 9),), limits=slicewise.Limits(weight_bytes=5000)
    )

    assert len(compiled.plan.slices) > 1
    assert compiled.plan.model.parameters == sum(p.numel() for p in model.parameters())
    compiled.save(tmp_path / "bundle")
    ops = [
        node.op_type
        for file in (tmp_path / "bundle").rglob("model.onnx")
        for node in onnx.load(file, load_external_data=False).graph.node
    ]
    assert sorted(ops) == ["Conv"] * 3 + ["Relu"] * 3
