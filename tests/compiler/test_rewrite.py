"""`apply_splits`: the rewritten program computes what the model computes, from views of its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir
import onnxruntime
import pytest
import torch
from tiny import tiny_model
from torch import nn
from torch.export import ExportedProgram
from torch.nn import functional

from slicewise.analyse import analyse, weight_tensors
from slicewise.capture import Captured, capture
from slicewise.codegen.convert import convert
from slicewise.limits import Limits, Overheads
from slicewise.passes.split import Split, split_oversized
from slicewise.rewrite import apply_splits

BATCH = torch.export.Dim("batch", min=1, max=9)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def split(
    model: nn.Module,
    inputs: tuple[Any, ...],
    weight_bytes: int,
    *,
    dynamic_shapes: Any = None,
    **limits: Any,
) -> tuple[Captured, ExportedProgram, tuple[Split, ...]]:
    captured = capture(model, inputs, dynamic_shapes=dynamic_shapes)
    graph, _ = analyse(captured.program, name="m", aliases={}, dim_names=captured.dim_names)
    splits = split_oversized(graph, Limits(weight_bytes=weight_bytes, **limits), Overheads())
    return captured, apply_splits(captured.program, splits), splits


def axes(splits: tuple[Split, ...]) -> list[str]:
    return [use.axis for found in splits for use in found.uses]


def largest(program: ExportedProgram) -> int:
    """Bytes of the largest weight that an op of the program reads."""
    nodes = {node.name: node for node in program.graph.nodes}
    return max(
        tensor.numel() * tensor.element_size()
        for name, _, tensor in weight_tensors(program)
        if nodes[name].users
    )


def sequential(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).eval()


def product(
    forward: Callable[..., Any], *shape: int, bias: tuple[int, ...] = ()
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        parts = {"w": nn.Parameter(torch.randn(*shape))}
        if bias:
            parts["b"] = nn.Parameter(torch.randn(*bias))
        model: nn.Module = tiny_model(forward, **parts)
        return model

    return build


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, str]] = {
    # name: model, the input's shape, bytes per slice, what it is split along
    "linear, output": (lambda: sequential(nn.Linear(7, 101)), (3, 7), 999, "output features"),
    "linear, input": (lambda: sequential(nn.Linear(101, 7)), (3, 101), 999, "input features"),
    "linear, 1-d": (lambda: sequential(nn.Linear(7, 101)), (7,), 999, "output features"),
    "linear, 4-d": (lambda: sequential(nn.Linear(101, 7)), (2, 2, 3, 101), 999, "input features"),
    "linear, no bias": (
        lambda: sequential(nn.Linear(7, 101, bias=False)), (3, 7), 999, "output features",
    ),
    "linear, input, no bias": (
        lambda: sequential(nn.Linear(101, 7, bias=False)), (2, 3, 101), 999, "input features",
    ),
    "conv1d": (lambda: sequential(nn.Conv1d(5, 33, 3)), (2, 5, 9), 999, "output channels"),
    "conv1d, same": (
        lambda: sequential(nn.Conv1d(33, 5, 3, padding="same")), (2, 33, 9), 999, "input channels",
    ),
    "conv2d": (
        lambda: sequential(nn.Conv2d(3, 17, 3, stride=2, padding=1)), (2, 3, 9, 9), 999,
        "output channels",
    ),
    "conv2d, no bias": (
        lambda: sequential(nn.Conv2d(17, 3, 3, bias=False)), (2, 17, 9, 9), 999, "input channels",
    ),
    "conv2d, unbatched": (lambda: sequential(nn.Conv2d(3, 17, 3)), (3, 9, 9), 999, "output channels"),
    "conv3d": (lambda: sequential(nn.Conv3d(3, 7, 3)), (1, 3, 5, 5, 5), 999, "input channels"),
    "conv, groups": (
        lambda: sequential(nn.Conv2d(10, 20, 3, groups=5)), (2, 10, 9, 9), 999, "groups of channels",
    ),
    "conv, groups without bias": (
        lambda: sequential(nn.Conv1d(10, 20, 3, groups=5, bias=False)), (2, 10, 9), 199,
        "groups of channels",
    ),
    "conv, within groups": (
        lambda: sequential(nn.Conv2d(6, 22, 3, groups=2)), (2, 6, 9, 9), 499, "groups of channels",
    ),
    "conv, depthwise": (
        lambda: sequential(nn.Conv2d(31, 31, 3, groups=31)), (2, 31, 9, 9), 299, "groups of channels",
    ),
    "transposed conv": (
        lambda: sequential(nn.ConvTranspose2d(3, 17, 2, stride=2)), (2, 3, 4, 4), 399,
        "output channels",
    ),
    "transposed conv, groups": (
        lambda: sequential(nn.ConvTranspose1d(10, 20, 3, groups=5)), (2, 10, 9), 199,
        "groups of channels",
    ),
    "transposed conv, input": (
        lambda: sequential(nn.ConvTranspose1d(17, 3, 2)), (2, 17, 4), 199, "input channels",
    ),
    "matmul": (product(lambda s, x: x @ s.w, 7, 101), (2, 3, 7), 999, "output features"),
    "matmul, vector": (product(lambda s, x: x @ s.w, 101, 7), (101,), 999, "input features"),
    "matmul, weight on the left": (
        product(lambda s, x: s.w @ x, 101, 7), (7, 3), 999, "output features",
    ),
    "matmul, weight times vector": (
        product(lambda s, x: s.w @ x, 7, 101), (101,), 999, "input features",
    ),
    "matmul, batch": (product(lambda s, x: x @ s.w, 5, 7, 11), (5, 3, 7), 999, "batch entries"),
    "matmul, broadcast batch": (
        product(lambda s, x: x @ s.w, 5, 7, 11), (3, 7), 999, "batch entries",
    ),
    "matmul, transposed weight": (
        product(lambda s, x: x @ s.w.t(), 101, 7), (3, 7), 999, "output features",
    ),
    "linear, transposed weight": (
        product(lambda s, x: functional.linear(x, s.w.T, s.b), 101, 7, bias=(7,)), (3, 101), 999,
        "input features",
    ),
    "mm": (product(lambda s, x: torch.mm(x, s.w), 7, 101), (3, 7), 999, "output features"),
    "mm, square": (product(lambda s, x: torch.mm(s.w, x), 17, 17), (17, 17), 999, "output features"),
    "addmm": (
        product(lambda s, x: torch.addmm(s.b, x, s.w, beta=0.5, alpha=2), 7, 101, bias=(101,)),
        (3, 7), 999, "output features",
    ),
    "addmm, input": (
        product(lambda s, x: torch.addmm(s.b, x, s.w, beta=0.5, alpha=2), 101, 7, bias=(7,)),
        (3, 101), 999, "input features",
    ),
    "addmm, computed bias": (
        product(lambda s, x: torch.addmm(x.sum() + torch.arange(101.0), x, s.w), 7, 101),
        (3, 7), 999, "output features",
    ),
    "addmm, weight on the left": (
        product(lambda s, x: torch.addmm(s.b, s.w, x), 101, 7, bias=(101, 1)), (7, 3), 1499,
        "output features",
    ),
    "bmm": (product(lambda s, x: torch.bmm(x, s.w), 5, 7, 11), (5, 3, 7), 999, "batch entries"),
    "baddbmm": (
        product(lambda s, x: torch.baddbmm(s.b, x, s.w), 5, 7, 11, bias=(5, 1, 11)), (5, 3, 7), 999,
        "batch entries",
    ),
    "bmm, large entries": (
        product(lambda s, x: torch.bmm(x, s.w), 2, 7, 50), (2, 3, 7), 999, "output features",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_op_computes_the_same_in_pieces(name: str) -> None:
    build, shape, weight_bytes, axis = KINDS[name]
    model, x = build(), torch.randn(shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    captured, program, splits = split(model, (x,), weight_bytes)

    assert axes(splits) == [axis]
    assert largest(captured.program) > weight_bytes >= largest(program)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(program.module()(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(captured.program.module()(x), expected)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)


@pytest.mark.parametrize("name", [name for name in KINDS if "," not in name])
def test_the_pieces_of_every_kind_run_in_onnx_runtime(name: str) -> None:
    build, shape, weight_bytes, _ = KINDS[name]
    model, x = build(), torch.randn(shape)
    _, program, _ = split(model, (x,), weight_bytes)

    expected = model(x).detach().numpy()
    torch.testing.assert_close(run_onnx(program, x=x), expected, rtol=1e-4, atol=1e-4)


def run_onnx(program: ExportedProgram, **feeds: torch.Tensor) -> Any:
    """What ONNX Runtime makes of a program with one output."""
    model = onnx_ir.to_proto(convert(program).model).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    arrays = dict(zip(names, (value.numpy() for value in feeds.values()), strict=True))
    return session.run(None, arrays)[0]


class Tied(nn.Module):
    """An embedding tied to the head, with the tokens' padding."""

    def __init__(self, vocabulary: int = 103, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=3)
        self.head = nn.Linear(width, vocabulary)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.tanh(self.embedding(tokens)))
        return logits


def test_a_tied_embedding_and_head_stay_tied_piece_by_piece() -> None:
    model = Tied().eval()
    tokens = torch.arange(103).reshape(1, 103)  # every row, at every end of a piece

    captured, program, splits = split(
        model,
        (tokens[:, :5],),
        1200,
        dynamic_shapes={"tokens": {1: torch.export.Dim("n", max=103)}},
    )

    assert axes(splits) == ["vocabulary rows", "output features"]
    names = [target for _, target, _ in weight_tensors(program)]
    assert set(splits[0].pieces) <= set(names)
    assert "embedding.weight" not in names
    assert "head.weight" not in names
    assert sum(t.numel() for n, _, t in weight_tensors(program) if "weight" in n) == 103 * 8
    with torch.no_grad():
        torch.testing.assert_close(program.module()(tokens), model(tokens))
        torch.testing.assert_close(
            run_onnx(program, tokens=tokens), model(tokens).numpy(), rtol=1e-5, atol=1e-5
        )
    assert largest(captured.program) == 103 * 8 * 4


def test_pieces_are_views_of_the_models_own_weights() -> None:
    model = Tied().eval()

    _, program, _ = split(model, (torch.arange(5)[None],), 1200)

    storage = model.embedding.weight.untyped_storage().data_ptr()
    pieces = [tensor for _, name, tensor in weight_tensors(program) if "weight" in name]
    assert len(pieces) == 4
    assert {piece.untyped_storage().data_ptr() for piece in pieces} == {storage}
    assert all(isinstance(piece, nn.Parameter) for piece in pieces)


@pytest.mark.parametrize("vocabulary", [64, 65, 127, 400])
def test_an_embedding_alone_is_exact_in_columns_and_in_rows(vocabulary: int) -> None:
    tokens = torch.randint(0, vocabulary, (2, 3, 7))
    model = sequential(nn.Embedding(vocabulary, 16, padding_idx=0))
    _, columns, found = split(model, (tokens,), vocabulary * 16)
    assert axes(found) == ["embedding columns"]
    assert torch.equal(columns.module()(tokens), model(tokens))

    narrow = sequential(nn.Embedding(vocabulary, 1))
    _, rows, found = split(narrow, (tokens,), vocabulary)
    assert axes(found) == ["vocabulary rows"]
    assert torch.equal(rows.module()(tokens), narrow(tokens))


def test_a_wrong_index_is_refused_as_without_the_split() -> None:
    model = sequential(nn.Embedding(64, 1))
    _, program, _ = split(model, (torch.arange(5),), 128)

    with pytest.raises(IndexError):
        program.module()(torch.tensor([1, 2, 64, 3, 4]))
    with pytest.raises(IndexError):
        program.module()(torch.tensor([1, 2, -1, 3, 4]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(7, 101), (101, 7)])
def test_other_dtypes(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    model, x = sequential(nn.Linear(*shape)).to(dtype), torch.randn(3, shape[0], dtype=dtype)

    _, program, splits = split(model, (x,), 500 if dtype.itemsize == 2 else 1999)

    assert len(splits) == 1
    with torch.no_grad():
        expected = model(x)
    found = program.module()(x)
    assert found.dtype == dtype
    tolerance = {2: 2e-2, 8: 1e-12}[dtype.itemsize]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layer", [nn.Linear(101, 7), nn.Linear(7, 101)])
def test_a_dynamic_batch_stays_dynamic(layer: nn.Linear) -> None:
    model = sequential(layer)
    example = torch.randn(2, 5, layer.in_features)

    captured, program, _ = split(model, (example,), 999, dynamic_shapes=({0: BATCH},))

    for batch in (1, 9):
        x = torch.randn(batch, 5, layer.in_features)
        torch.testing.assert_close(program.module()(x), model(x))
    before, _ = analyse(captured.program, name="m", aliases={}, dim_names=captured.dim_names)
    after, signature = analyse(program, name="m", aliases={}, dim_names=captured.dim_names)
    assert after.tensor[after.outputs[0]].shape == before.tensor[before.outputs[0]].shape
    assert [dim.name for dim in signature.dims] == ["batch"]


def test_every_new_op_names_the_module_and_the_line_it_stands_for() -> None:
    model = Tied().eval()
    captured, program, _ = split(model, (torch.arange(5)[None],), 1200)
    before, _ = analyse(captured.program, name="m", aliases={}, dim_names={})
    after, _ = analyse(program, name="m", aliases={}, dim_names={})

    assert {(op.module, op.source) for op in after.ops} == {
        (op.module, op.source) for op in before.ops
    }
    assert {op.module for op in after.ops} == {"embedding", "head", ""}


def test_the_captured_program_is_not_changed() -> None:
    model = Tied().eval()
    captured = capture(model, (torch.arange(5)[None],))
    graph, _ = analyse(captured.program, name="m", aliases={}, dim_names={})
    text, names = str(captured.program), list(captured.program.state_dict)

    apply_splits(captured.program, split_oversized(graph, Limits(weight_bytes=1200), Overheads()))

    assert str(captured.program) == text
    assert list(captured.program.state_dict) == names
    assert apply_splits(captured.program, ()) is captured.program


def test_partial_results_can_be_summed_in_turn() -> None:
    model, x = sequential(nn.Linear(512, 64, bias=False)), torch.randn(10_000, 512)

    _, program, splits = split(model, (x,), 512 * 64 * 4 // 16, memory_mb=80)

    assert splits[0].uses[0].combine == "sum in turn"
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_layer_that_is_applied_twice_has_one_set_of_pieces() -> None:
    layer = nn.Linear(40, 40)
    model = tiny_model(lambda self, x: self.layer(torch.relu(self.layer(x))), layer=layer)
    x = torch.randn(3, 40)

    _, program, splits = split(model, (x,), 2000)

    assert len(splits) == 1
    assert len(splits[0].uses) == 2
    torch.testing.assert_close(program.module()(x), model(x))
    assert sum(t.numel() for _, _, t in weight_tensors(program)) == 40 * 40 + 40


def test_an_output_that_is_split_keeps_its_place() -> None:
    model = tiny_model(lambda self, x: {"b": self.wide(x), "a": x + 1}, wide=nn.Linear(7, 101))
    x = torch.randn(3, 7)

    _, program, _ = split(model, (x,), 999)

    found = program.module()(x)
    assert list(found) == ["b", "a"]
    torch.testing.assert_close(found["b"], model(x)["b"])


def test_buffers_and_programs_in_core_ops_are_split_too() -> None:
    model = tiny_model(lambda self, x: x @ self.table, table=torch.randn(7, 101))
    convolution = sequential(nn.ConvTranspose1d(16, 16, 3), nn.Linear(18, 99))
    x, image = torch.randn(3, 7), torch.randn(2, 16, 16)
    core = torch.export.export(convolution, (image,)).run_decompositions()
    graph, _ = analyse(core, name="m", aliases={}, dim_names={})

    _, program, _ = split(model, (x,), 999)
    pieces = split_oversized(graph, Limits(weight_bytes=1500), Overheads())
    decomposed = apply_splits(core, pieces)

    torch.testing.assert_close(program.module()(x), model(x))
    assert len(pieces) == 2
    torch.testing.assert_close(decomposed.module()(image), convolution(image), rtol=1e-5, atol=1e-5)
