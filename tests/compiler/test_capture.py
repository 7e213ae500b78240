"""Capture: any way a user holds a model, the model untouched, and errors that say where and what."""

from __future__ import annotations

import copy
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model
from torch import fx, nn
from torch.export import Dim

from slicewise import CaptureError
from slicewise.capture import capture, untouched

X = torch.ones(2, 4)


class KeepsLast(nn.Module):
    """torch.export refuses the assignment of a buffer of another shape; torch.fx does not mind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("last", torch.zeros(3))
        self.seen: list[Any] = []
        self.calls = 0
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = x
        self.calls += 1
        self.seen.append(x)
        self.extra = nn.Linear(2, 2)
        return self.linear(x)  # type: ignore[no-any-return]


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = x
        if x.sum() > 0:
            return x * 2
        return x


def state(model: nn.Module) -> dict[str, Any]:
    """All that a user could notice of a model."""
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "identities": [id(value) for value in (*model.parameters(), *model.buffers())],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "modules": [name for name, _ in model.named_modules()],
        "training": [module.training for module in model.modules()],
        "grads": [parameter.requires_grad for parameter in model.parameters()],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    weights, found = before.pop("weights"), after.pop("weights")
    assert weights.keys() == found.keys()
    assert all(torch.equal(weights[name], found[name]) for name in weights)
    assert before == after


def test_the_fallback_says_why_it_was_needed_and_leaves_no_trace() -> None:
    model = KeepsLast()
    before = state(model)

    with pytest.warns(UserWarning, match="captured with torch.fx.symbolic_trace"):
        captured = capture(model, (X,))

    (note,) = captured.notes
    assert "captured with torch.fx.symbolic_trace, because torch.export refused: " in note
    assert len(note) > 80
    assert_same(before, state(model))
    assert model.seen == []
    assert model.calls == 0
    assert not hasattr(model, "extra")


def test_a_compile_with_verification_leaves_no_trace() -> None:
    import slicewise

    model = KeepsLast()
    before = state(model)

    with pytest.warns(UserWarning, match="captured with"):
        compiled = slicewise.compile(model, (X,))

    assert compiled.notes
    assert_same(before, state(model))
    assert (model.seen, model.calls) == ([], 0)


def test_torch_export_needs_no_note() -> None:
    assert capture(nn.Linear(4, 4).eval(), (X,)).notes == ()


def test_a_failed_capture_names_line_and_advice_and_leaves_no_trace(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = Branches().eval()

    with pytest.raises(CaptureError) as caught:
        capture(model, (X,))

    text = str(caught.value)
    assert "Branches cannot be captured: torch.export stopped" in text
    assert f"{__file__}:" in text
    assert "(forward): if x.sum() > 0:" in text
    assert "torch.fx.symbolic_trace failed as well" in text
    assert "torch.where, torch.cond" in text
    assert not hasattr(model, "last")
    assert capfd.readouterr().err == ""


def test_the_line_is_named_wherever_the_users_files_are(tmp_path: Path) -> None:
    """In a clone of this repository, or a project that is called after it."""
    file = tmp_path / "slicewise" / "torch" / "mine.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "from torch import nn\n"
        "class Mine(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x if x.sum() > 0 else -x\n"
    )
    spec = importlib.util.spec_from_file_location("mine", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    with pytest.raises(CaptureError, match=re.escape(f"at {file}:4 (forward)")):
        capture(module.Mine().eval(), (X,))


def test_a_buffer_is_not_updated_while_tracing() -> None:
    """torch.fx would by default compute with the model's own buffers."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        self.last = x
        self.count.add_(1)
        return x + self.count  # type: ignore[no-any-return]

    model = tiny_model(forward, count=torch.zeros(1), last=torch.zeros(3))
    capture(model, (X,))

    assert model.count.item() == 0
    assert model.last.shape == (3,)


def test_untouched_restores_containers_in_place() -> None:
    module: Any = nn.Module()
    module.cache, module.names, module.history = {"a": 1}, {"x"}, [1]
    containers = module.cache, module.names, module.history

    with pytest.raises(KeyError), untouched(module):
        module.cache["b"] = 2
        module.names.clear()
        module.history = [3]
        module.weight = nn.Parameter(torch.ones(1))
        raise KeyError

    assert (module.cache, module.names, module.history) == ({"a": 1}, {"x"}, [1])
    assert all(
        a is b
        for a, b in zip((module.cache, module.names, module.history), containers, strict=True)
    )
    assert list(module.parameters()) == []


def test_training_mode_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    model[0].eval()
    before = state(model)

    with pytest.raises(CaptureError, match=r"2 modules are in training mode.*Call model\.eval\(\)"):
        capture(model, (X,))
    assert_same(before, state(model))
    with pytest.raises(CaptureError, match=r"first: 1\)"):
        model.training = False
        capture(model, (X,))


def test_weights_and_inputs_must_be_on_the_cpu() -> None:
    with pytest.raises(CaptureError, match=r"'weight' is on meta.*load real weights"):
        capture(nn.Linear(4, 4, device="meta").eval(), (X,))
    with pytest.raises(CaptureError, match="an example input is on meta"):
        capture(nn.Linear(4, 4).eval(), (X.to("meta"),))
    with torch.device("meta"):
        program = torch.export.export(nn.Linear(4, 4).eval(), (torch.ones(2, 4),))
    with pytest.raises(CaptureError, match="'weight' is on meta"):
        capture(program)


@pytest.mark.parametrize("model", [None, 3, "bert", nn.Linear])
def test_only_modules_and_programs_are_models(model: Any) -> None:
    with pytest.raises(CaptureError, match=r"it takes an nn\.Module"):
        capture(model, (X,))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_script_module_is_no_model() -> None:
    with pytest.raises(CaptureError, match=r"RecursiveScriptModule; it takes an nn\.Module"):
        capture(torch.jit.script(nn.ReLU().eval()), (X,))


@pytest.mark.parametrize("example", [3, "text", 2.5, {1, 2}])
def test_only_tuples_and_dicts_are_examples(example: Any) -> None:
    with pytest.raises(CaptureError, match="expected a tuple or a dict"):
        capture(nn.Linear(4, 4).eval(), example)


def test_a_model_without_dummy_inputs_needs_an_example() -> None:
    with pytest.raises(CaptureError, match="offers no dummy_inputs; pass example_inputs"):
        capture(nn.Linear(4, 4).eval())


def test_a_model_may_bring_its_own_example() -> None:
    model = tiny_model(lambda self, x, y: x + y)
    model.dummy_inputs = {"y": X, "x": X}

    captured = capture(model)

    assert captured.args == ()
    assert list(captured.kwargs) == ["y", "x"]


def test_one_tensor_or_array_is_the_only_argument() -> None:
    examples: list[Any] = [X, X.numpy(), [X], (np.ones((2, 4), np.float32),)]
    for example in examples:
        (value,) = capture(nn.Linear(4, 4).eval(), example).args
        assert isinstance(value, torch.Tensor)
        assert value.shape == (2, 4)


def test_an_exported_program_brings_its_example_or_takes_another() -> None:
    program = torch.export.export(nn.Linear(4, 4).eval(), (X,))
    doubled: Any = X * 2

    assert torch.equal(capture(program).args[0], X)
    assert capture(program, doubled).args[0][0, 0] == 2
    assert capture(program, {"input": X}).kwargs.keys() == {"input"}
    bare = copy.copy(program)
    bare._example_inputs = None
    with pytest.raises(CaptureError, match="carries no example inputs"):
        capture(bare)


def test_a_graph_module_is_a_model() -> None:
    traced = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval())

    assert capture(traced, (X,)).notes == ()


def test_a_compiled_module_is_the_module_it_wraps() -> None:
    wrapped: Any = torch.compile(nn.Linear(4, 4).eval())

    captured = capture(wrapped, {"input": X})

    assert captured.name == "Linear"


BATCH, LENGTH = Dim("batch", min=1, max=8), Dim("length", max=32)
ROWS = torch.ones(3, 5, 4)


@pytest.mark.parametrize(
    ("example", "dynamic"),
    [
        ((ROWS,), ({0: BATCH, 1: LENGTH},)),
        ((ROWS,), {"x": {0: BATCH, 1: LENGTH}}),
        ((ROWS,), {"x": (BATCH, LENGTH, None)}),
        ({"x": ROWS}, {"x": {0: BATCH, 1: LENGTH}}),
        (([ROWS],), {"x": [{0: BATCH, 1: LENGTH}]}),
        (({"a": ROWS},), {"x": {"a": {0: BATCH, 1: LENGTH}}}),
    ],
)
def test_dynamic_dimensions_keep_the_users_names(example: Any, dynamic: Any) -> None:
    def forward(self: nn.Module, x: Any) -> torch.Tensor:
        x = x[0] if isinstance(x, list) else x["a"] if isinstance(x, dict) else x
        return x + 1  # type: ignore[no-any-return]

    captured = capture(tiny_model(forward), example, dynamic_shapes=dynamic)

    assert sorted(captured.dim_names.values()) == ["batch", "length"]


def test_a_dimension_that_is_not_dynamic_says_what_to_change() -> None:
    model = tiny_model(lambda self, x: x.reshape(2, 4) + 1)

    with pytest.raises(CaptureError, match=r"Correct dynamic_shapes as torch\.export suggests"):
        capture(model, (X,), dynamic_shapes=({0: BATCH},))
