"""Convert and carve: every cut of every tiny model computes what the model computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from tiny import Analysed, analysed, every_cut, plan_of, run, tiny_model
from torch import nn
from torch.export import Dim

from slicewise import CaptureError
from slicewise.verify import TOLERANCE, difference

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def linears(**more: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return {"first": nn.Linear(4, 4), "second": nn.Linear(4, 4), **more}


def tied() -> Any:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 16)
            self.head = nn.Linear(16, 20, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: torch.Tensor) -> Any:
            return self.head(torch.tanh(self.embedding(tokens)))

    torch.manual_seed(0)
    return Tied().eval(), (torch.arange(6).reshape(2, 3),)


def outputs() -> Any:
    def forward(self: Any, x: torch.Tensor) -> Any:
        y = self.first(x)
        left, right = y.split(2, dim=-1)
        values, indices = y.topk(2)
        best = torch.max(y, dim=-1)
        return {"a": left * right, "b": (values, indices + 1), "c": best[1], "d": best[0], "x": x}

    return tiny_model(forward, **linears()), (X,)


def constants() -> Any:
    def forward(self: Any, x: torch.Tensor) -> Any:
        scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
        return self.second(self.first(x) * scale + scale) * scale + 2.0, x * 2.0

    return tiny_model(forward, **linears()), (X,)


def whole_numbers() -> Any:
    def forward(self: Any, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        y = torch.where(mask, ids * 3 + 2**62, ids // 2)
        return y, ~mask & (y > 3), (y % 2).to(torch.int32), mask.sum(-1)

    return tiny_model(forward), (torch.arange(-3, 5).reshape(2, 4), X > 0)


def half() -> Any:
    def forward(self: Any, x: torch.Tensor) -> Any:
        return self.second(torch.softmax(self.first(x), -1))

    return tiny_model(forward, **linears()).half(), (X.half(),)


def bfloat16() -> Any:
    def forward(self: Any, x: torch.Tensor) -> Any:
        y = self.first(x)
        return self.second(F.layer_norm(y, (4,))), y.float() + 1, y * 0.5

    return tiny_model(forward, **linears()).bfloat16(), (X.bfloat16(),)


def float64() -> Any:
    def forward(self: Any, x: torch.Tensor) -> Any:
        return (self.second(self.first(x).relu()).double() * self.ramp).float() + self.ramp.sum()

    ramp = torch.arange(4, dtype=torch.float64)
    return tiny_model(forward, **linears(ramp=ramp)), (X,)


def identities() -> Any:
    def forward(self: Any, x: torch.Tensor) -> Any:
        y = F.dropout(self.first(x), 0.5, self.training).contiguous()
        z = y.detach().to(torch.float32).expand(2, 4)
        return self.second(torch.ops.aten.alias(z)), y, F.hardtanh(z).detach().contiguous()

    return tiny_model(forward, **linears()), (X,)


def functions() -> Any:
    """Ops that the exporter writes as functions and inlines, one of them with two inputs."""

    def forward(self: Any, x: torch.Tensor) -> Any:
        y = F.softplus(F.hardswish(self.first(x)))
        return torch.linalg.cross(y[:, :3], x[:, 1:]), torch.erf(y)

    return tiny_model(forward, **linears()), (X,)


def branches() -> Any:
    def forward(self: Any, x: torch.Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda t: self.first(t), lambda t: self.second(t), (x,)) + 1

    return tiny_model(forward, **linears()), (X,)


def odd_weights() -> Any:
    def forward(self: Any, x: torch.Tensor) -> Any:
        y = F.linear(x, self.turned) @ self.part.t() + self.spread
        return self.normed(y.repeat(1, 2)) * self.scalar + self.shared(self.again(x))

    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    shared = nn.Linear(4, 4)
    return tiny_model(
        forward,
        turned=weight.t(),
        part=weight[:2],
        spread=torch.ones(1).expand(2),
        scalar=torch.tensor(2.0),
        normed=nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        shared=shared,
        again=shared,
    ), (X,)


def hooks() -> Any:
    def forward(self: Any, x: torch.Tensor) -> Any:
        return self.second(self.first(x))

    model = tiny_model(forward, **linears())
    model.first.register_forward_hook(lambda module, inputs, output: output * 2)
    model.second.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    return model, (X,)


def recurrent() -> Any:
    def forward(self: Any, x: torch.Tensor) -> Any:
        y, (hidden, cell) = self.lstm(x)
        return y[:, -1] * 2, hidden + cell

    torch.manual_seed(0)
    model = tiny_model(forward, lstm=nn.LSTM(4, 3, batch_first=True))
    return model, (torch.randn(2, 5, 4),)


def scalars_and_nothing() -> Any:
    def forward(self: Any, x: torch.Tensor, none: torch.Tensor, t: torch.Tensor) -> Any:
        return self.second(self.first(none).relu()), self.first(x) * t, t + 1

    inputs = (X.t().contiguous().t(), torch.zeros(0, 4), torch.tensor(2.5))
    return tiny_model(forward, **linears()), inputs


def dynamic() -> Any:
    def forward(self: Any, x: torch.Tensor) -> Any:
        batch, length, _ = x.shape
        mask = x.new_ones(length, length).tril().bool()
        y = self.first(x).reshape(batch * length, 4)
        return y.sum(0) / batch, x.transpose(0, 1)[-1:], mask, torch.arange(length) + batch

    dims = ({0: Dim("batch", min=1, max=8), 1: Dim("length", min=1, max=16)},)
    return tiny_model(forward, **linears()), (torch.ones(2, 3, 4),), dims


MODELS: list[Callable[[], Any]] = [
    tied, outputs, constants, whole_numbers, half, bfloat16, float64, identities, functions,
    branches, odd_weights, hooks, recurrent, scalars_and_nothing, dynamic,
]  # fmt: skip


def assert_clean(folder: Path) -> None:
    """One weights file or none, and nothing of the developer's machine in the model."""
    assert {path.name for path in folder.iterdir()} in (
        {"model.onnx"}, {"model.onnx", "model.data"},
    )  # fmt: skip
    text = (folder / "model.onnx").read_bytes()
    for private in (b".py", b"/work", b"site-packages", b"stack_trace", b"pkg.torch"):
        assert private not in text
    for weight in onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer:
        for entry in weight.external_data:
            assert entry.key != "location" or entry.value == "model.data"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_cut_computes_what_the_model_computes(model: Callable[[], Any]) -> None:
    made = analysed(*model())
    eager = made.eager()
    coarsest = max(TOLERANCE.get(tensor.dtype, 0.0) for tensor in made.graph.tensors)

    for plan, folder, found in every_cut(made):
        assert found.keys() == eager.keys()
        for name, array in found.items():
            assert array.dtype == eager[name].dtype, (name, plan.slices[0].ops)
            _, relative = difference(eager[name], array)
            allowed = coarsest if array.dtype.kind == "f" else 0.0
            assert relative <= allowed, (name, plan.slices[0].ops)
        for part in plan.slices:
            assert_clean(folder / part.name)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (8, 16)])
def test_slices_run_at_every_allowed_size(sizes: tuple[int, int], tmp_path: Path) -> None:
    made = analysed(*dynamic())
    names = tuple(op.name for op in made.graph.ops)
    x = torch.rand(*sizes, 4)
    expected = made.captured.call(x)

    plan = plan_of(made, names[: len(names) // 2], names[len(names) // 2 :])
    found = run(made, plan, tmp_path, {"x": x.numpy()})

    for index, value in enumerate(expected):
        np.testing.assert_allclose(
            found[f"output_{index}"], value.detach().numpy(), rtol=1e-4, atol=1e-6
        )


@pytest.fixture(scope="module")
def tied_model() -> Analysed:
    return analysed(*tied())


def test_a_tied_weight_is_stored_once_in_each_slice_that_needs_it(
    tied_model: Analysed, tmp_path: Path
) -> None:
    embedding, tanh, head = (op.name for op in tied_model.graph.ops)
    plan = plan_of(tied_model, (embedding,), (tanh,), (head,))
    run(tied_model, plan, tmp_path, tied_model.feeds)

    sizes = [
        (tmp_path / part.name / "model.data").stat().st_size
        if (tmp_path / part.name / "model.data").exists()
        else 0
        for part in plan.slices
    ]
    assert sizes == [20 * 16 * 4, 0, 20 * 16 * 4]

    whole = plan_of(tied_model, (embedding, tanh, head))
    run(tied_model, whole, tmp_path / "whole", tied_model.feeds)
    data = tmp_path / "whole" / "slice0" / "model.data"
    assert data.stat().st_size == 20 * 16 * 4


def test_inputs_and_outputs_are_named_as_the_plan_names_them(
    tied_model: Analysed, tmp_path: Path
) -> None:
    names = tuple(op.name for op in tied_model.graph.ops)
    plan = plan_of(tied_model, names[:1], names[1:])
    run(tied_model, plan, tmp_path, tied_model.feeds)

    for part in plan.slices:
        path = tmp_path / part.name / "model.onnx"
        graph = onnx.load(path).graph
        assert tuple(value.name for value in graph.input) == part.inputs
        assert tuple(value.name for value in graph.output) == part.outputs
        onnx.checker.check_model(str(path))


def test_carving_leaves_the_converted_model_as_it_was(tied_model: Analysed, tmp_path: Path) -> None:
    names = tuple(op.name for op in tied_model.graph.ops)
    first = run(tied_model, plan_of(tied_model, names), tmp_path / "first", tied_model.feeds)
    for _ in every_cut(tied_model):
        pass
    again = run(tied_model, plan_of(tied_model, names), tmp_path / "again", tied_model.feeds)

    np.testing.assert_array_equal(first["output"], again["output"])


def test_carving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    """An update uploads what differs; `extract` collects weights in a set of whatever order."""
    made = analysed(*constants())
    names = tuple(op.name for op in made.graph.ops)
    written = set()
    for number in range(5):
        run(made, plan_of(made, names), tmp_path / str(number), made.feeds)
        folder = tmp_path / str(number) / "slice0"
        written.add(tuple((folder / file).read_bytes() for file in ("model.onnx", "model.data")))

    assert len(written) == 1


def test_a_convolution_without_bias_takes_two_inputs() -> None:
    """ONNX Runtime fuses normalisations, and lays channels out in blocks, only without a third."""

    def forward(self: Any, x: torch.Tensor) -> Any:
        return self.norm(self.conv(x)), self.up(x)

    parts = {"conv": nn.Conv2d(3, 8, 3, bias=False), "norm": nn.BatchNorm2d(8)}
    model = tiny_model(forward, **parts, up=nn.ConvTranspose2d(3, 8, 3, bias=False))
    made = analysed(model, (torch.ones(1, 3, 8, 8),))

    convolutions = [node for node in made.converted.model.graph if "Conv" in node.op_type]
    assert [len(node.inputs) for node in convolutions] == [2, 2]


def test_an_op_without_onnx_form_is_named_with_its_line() -> None:
    def forward(self: Any, x: torch.Tensor) -> Any:
        return torch.linalg.svdvals(x * 2)

    with pytest.raises(CaptureError) as caught:
        analysed(tiny_model(forward), (torch.ones(3, 3),))

    text = str(caught.value)
    assert "the op _linalg_svd (aten._linalg_svd.default) has no ONNX form" in text
    assert f"\n  at {__file__}:" in text
    assert "Replace it by supported operations" in text
