"""Analyse: the bytes, names and structures of what was captured, and what no slice could compute."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from tiny import Analysed, analysed, tiny_model
from torch import nn
from torch.export import Dim
from transformers.modeling_outputs import BaseModelOutput

from slicewise import CaptureError
from slicewise.graph import INPUT

X = torch.ones(2, 4)
BATCH = Dim("batch", min=1, max=8)


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


def kinds(made: Analysed) -> list[str]:
    return [op.kind for op in made.graph.ops]


@pytest.fixture(scope="module")
def dynamic() -> Analysed:
    """Sizes with a dynamic batch: twice the batch, half precision, bools, and a size as a value."""

    def forward(self: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        wide = torch.cat([x, x], dim=0)
        return wide, x > 0, (x + 1).half(), torch.arange(x.shape[0]), y * 2

    return analysed(
        tiny_model(forward),
        (X, torch.ones(4, 1, dtype=torch.float64)),
        {"x": {0: BATCH}, "y": {0: 2 * BATCH}},
    )


def test_bytes_count_at_the_example_and_at_the_upper_bound(dynamic: Analysed) -> None:
    shapes = {s.name: dynamic.graph.tensor[s.tensor] for s in dynamic.signature.outputs}

    found = [(t.dtype, t.shape, t.bytes, t.max_bytes) for t in shapes.values()]
    assert found == [
        ("float32", ("2*batch", 4), 4 * 4 * 4, 16 * 4 * 4),
        ("bool", ("batch", 4), 2 * 4, 8 * 4),
        ("float16", ("batch", 4), 2 * 4 * 2, 8 * 4 * 4),  # computed in float32
        ("int64", ("batch",), 2 * 8, 8 * 8),
        ("float64", ("2*batch", 1), 4 * 8, 16 * 8),
    ]


def test_dimensions_keep_name_bounds_and_example(dynamic: Analysed) -> None:
    (dim,) = dynamic.signature.dims

    assert (dim.name, dim.min, dim.max, dim.example) == ("batch", 1, 8, 2)
    assert [s.shape for s in dynamic.signature.inputs] == [("batch", 4), ("2*batch", 1)]


@pytest.mark.parametrize("unbounded", [Dim("batch"), Dim.AUTO, Dim.DYNAMIC])
def test_a_dimension_without_a_bound_is_bounded_by_the_example(unbounded: Any) -> None:
    made = analysed(tiny_model(lambda self, x: x + 1), (X,), ({0: unbounded},))

    (dim,) = made.signature.dims
    assert (dim.max, dim.example) == (2, 2)
    (output,) = made.signature.outputs
    assert made.graph.tensor[output.tensor].max_bytes == 2 * 4 * 4


def test_a_tied_weight_is_one_weight() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.embedding.weight
            self.register_buffer("scale", torch.tensor(0.5, dtype=torch.float64))
            self.register_buffer("view", self.embedding.weight.data[:2])

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embedding(tokens) * self.scale.float()
            return self.head(x) + self.view.sum()  # type: ignore[no-any-return, operator]

    graph = analysed(Tied().eval(), (torch.zeros(2, 3, dtype=torch.int64),)).graph

    weights = {weight.name: weight for weight in graph.weights}
    assert {name: w.bytes for name, w in weights.items()} == {
        "embedding.weight": 20 * 8 * 4, "scale": 8, "view": 2 * 8 * 4,
    }  # fmt: skip
    assert weights["scale"].shape == ()
    users = [op.name for op in graph.ops if "embedding.weight" in op.weights]
    assert users == ["embedding", "linear"]
    assert graph.weight_bytes == 20 * 8 * 4 + 8 + 2 * 8 * 4


def test_half_precision_weights_are_computed_with_in_float32() -> None:
    made = analysed(nn.Linear(4, 4).eval().bfloat16(), (X.bfloat16(),))

    assert {w.name: (w.bytes, w.memory_bytes) for w in made.graph.weights} == {
        "weight": (32, 64), "bias": (8, 16),
    }  # fmt: skip


def test_ops_with_several_outputs_name_each_once() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left, right = x.split(2, dim=-1)
        best = torch.max(x, dim=-1)
        values, _ = x.topk(2)
        return left + right, best[0] + best[0] * best.indices, values

    graph = analysed(tiny_model(forward), (X,)).graph

    outputs = {op.kind.split(".")[1]: op.outputs for op in graph.ops}
    assert len(outputs["max"]) == 2
    assert len(next(o for kind, o in outputs.items() if kind.startswith("split"))) == 2
    for name in (name for names in outputs.values() for name in names):
        assert graph.tensor[name].bytes > 0
    assert graph.tensor[outputs["max"][1]].dtype == "int64"


@pytest.fixture(scope="module")
def nested() -> Analysed:
    """Outputs of every kind: an input as it is, one tensor twice, None, nested containers."""

    def forward(self: nn.Module, x: torch.Tensor, unused: torch.Tensor) -> Any:
        y = x * 2
        lazy: dict[str, Any] = defaultdict(list)
        lazy["p"], lazy["q"] = y + 3, None
        return {
            "same": [x, y, y.detach().contiguous()],
            "none": None,
            7: OrderedDict(z=y, a=Pair(y + 1, x)),
            "lazy": lazy,
            "best": y.max(-1),
            "out": BaseModelOutput(last_hidden_state=y + 2, hidden_states=(y,)),
            "a.b": y,
            "a": {"b": x},
        }

    return analysed(tiny_model(forward), (X, X))


def test_outputs_are_named_by_their_place(nested: Analysed) -> None:
    assert [spec.name for spec in nested.signature.outputs] == [
        "same.0", "same.1", "same.2", "output_7.z", "output_7.a.first", "output_7.a.second",
        "lazy.p", "best.values", "best.indices", "out.last_hidden_state", "out.hidden_states.0",
        "a.b", "a.b_",
    ]  # fmt: skip


def test_an_output_may_be_an_input_or_come_twice(nested: Analysed) -> None:
    tensor = {spec.name: spec.tensor for spec in nested.signature.outputs}

    assert nested.graph.tensor[tensor["same.0"]].producer == INPUT
    assert tensor["same.1"] == tensor["output_7.z"] == tensor["a.b"]
    assert tensor["a.b_"] == tensor["same.0"]
    assert len(nested.graph.outputs) == len(set(nested.graph.outputs))


def test_nested_outputs_are_rebuilt_as_the_model_returns_them(nested: Analysed) -> None:
    from slicewise.structure import build

    eager = nested.captured.call(X, X)
    built = build(nested.signature.output_structure, nested.eager())

    assert list(built) == list(eager)
    assert built["none"] is None
    assert type(built[7]["a"]) is Pair
    assert isinstance(built["out"], BaseModelOutput)
    assert built["lazy"].keys() == eager["lazy"].keys()
    assert torch.equal(torch.as_tensor(built["best"].indices), eager["best"].indices)
    assert torch.equal(torch.as_tensor(built[7]["z"]), eager[7]["z"])


def test_an_unused_input_stays_a_field_of_the_request(nested: Analysed) -> None:
    assert [spec.name for spec in nested.signature.inputs] == ["x", "unused"]
    assert nested.signature.input_structure["keys"] == ["x", "unused"]


def test_arguments_that_are_no_tensors_are_fixed() -> None:
    def forward(
        self: nn.Module, x: torch.Tensor, mask: Any = None, power: int = 1, *, mode: str = "a"
    ) -> torch.Tensor:
        return x**power if mode == "b" and mask is None else x

    made = analysed(tiny_model(forward), {"x": X, "mask": None, "power": 3, "mode": "b"})

    assert made.signature.input_structure["keys"] == ["x", "mask", "power", "mode"]
    assert made.signature.input_structure["children"][1:] == [
        {"constant": None}, {"constant": 3}, {"constant": "b"},
    ]  # fmt: skip
    assert [spec.name for spec in made.signature.inputs] == ["x"]


def test_the_parameters_keep_the_users_names() -> None:
    def forward(self: nn.Module, input: torch.Tensor, type: torch.Tensor, *rest: Any) -> Any:
        return input + type + rest[0]

    assert (
        analysed(tiny_model(forward), (X, X, X))
        .signature.input_structure["keys"][-1]
        .startswith("rest")
    )
    plain = analysed(nn.Bilinear(4, 4, 2).eval(), {"input2": X, "input1": X})
    assert set(plain.signature.input_structure["keys"]) == {"input1", "input2"}


def test_dead_ops_are_dropped() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        self.unused(x)
        return x * 2

    graph = analysed(tiny_model(forward, unused=nn.Linear(4, 4).eval()), (X,)).graph

    assert graph.weights == ()
    assert not any("linear" in op.kind for op in graph.ops)


def test_ops_know_where_they_come_from() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x.tanh()

    model = nn.Sequential(nn.Linear(4, 4), tiny_model(forward)).eval()

    ops = {op.kind.split(".")[1]: op for op in analysed(model, (X,)).graph.ops}

    assert ops["linear"].module == "0"
    assert "test_analyse.py" in ops["tanh"].source


def test_attention_needs_scratch_memory_even_over_itself() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    made = analysed(tiny_model(forward), (torch.ones(1, 2, 8, 4),))

    (op,) = made.graph.ops
    assert op.memory_bytes >= 4 * 2 * (2 * 8 * 8)  # scores and their softmax


def test_a_view_is_marked() -> None:
    made = analysed(tiny_model(lambda self, x: x.tanh().reshape(4, 2).relu()), (X,))

    assert [op.is_view for op in made.graph.ops if "scalar" not in op.kind] == [False, True, False]


def counted(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.count += 1
    return x + self.count  # type: ignore[no-any-return]


class Random(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(2, 4)


def in_place(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x += 1
    return x * 2


REFUSED: dict[str, tuple[Any, str]] = {
    "mutated buffer": (counted, r"changes 'count' in place.*Return the new value"),
    "mutated input": (in_place, "changes 'x' in place"),
    "random": (Random.forward, r"rand.*draws random numbers.*\n  at .*test_analyse.py:\d+"),
    "random like": (lambda self, x: x + torch.randn_like(x), "draws random numbers"),
    "dropout": (lambda self, x: F.dropout(x), "dropout.*draws random numbers"),
    "attention dropout": (
        lambda self, x: F.scaled_dot_product_attention(
            x[None, None], x[None, None], x[None, None], dropout_p=0.1
        ),
        "scaled_dot_product_attention.*draws random numbers",
    ),
    "nonzero": (lambda self, x: x.nonzero(), "nonzero.*depends on the data.*mask of fixed shape"),
    "bool index": (lambda self, x: x[x > 0], "depends on the data"),
    "complex": (lambda self, x: torch.fft.fft(x).abs(), "complex64; ONNX has no complex"),
    "weight": (lambda self, x: (x + 1, self.count), "returns its weight 'count' unchanged"),
    "nothing": (lambda self, x: x, "nothing to run in slices"),
    "constant": (lambda self, x: (x + 1, 3), r"returns the constant 3\..*leave it out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_slice_could_compute_is_an_error_with_advice(case: str) -> None:
    forward, text = REFUSED[case]

    with pytest.raises(CaptureError, match=text):
        analysed(tiny_model(forward, count=torch.ones(1)), (X,))


def test_dropout_in_eval_mode_is_no_random_op() -> None:
    model = tiny_model(lambda self, x: F.dropout(x, 1.0, self.training) + 1)

    assert analysed(model, (X,)).graph.ops


def test_sizes_that_no_module_reads_have_no_module() -> None:
    """torch.export gives them a name of its own, which no user knows."""
    made = analysed(nn.Sequential(nn.Linear(4, 4), nn.Flatten(0)).eval(), (X,), ({0: BATCH},))

    assert "aten.sym_size.int" in kinds(made)
    assert {op.module for op in made.graph.ops} <= {"", "0", "1"}
