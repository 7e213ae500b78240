"""Times per op: what kernels belong to which op, that times add up, and what the cache does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import pytest
import torch
from tiny import Analysed, analysed, tiny_model
from torch import nn

from slicewise import kernels, optime, targets
from slicewise.attribution import attribution, spread
from slicewise.flops import estimated
from slicewise.optime import OpTimes, op_times, with_times


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "slicewise" / "optimes"


@pytest.fixture(scope="module")
def made() -> Analysed:
    """A convolution that is fused with normalisation, residual sum and activation; a linear, a GELU."""

    def forward(self: Any, x: torch.Tensor) -> Any:
        y = torch.relu(self.norm(self.conv(x)))
        y = self.third(torch.relu(self.second(y) + y))
        return torch.nn.functional.gelu(self.linear(y.flatten(1))) * 2

    torch.manual_seed(0)
    model = tiny_model(
        forward,
        conv=nn.Conv2d(3, 8, 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(8),
        second=nn.Conv2d(8, 8, 1),
        third=nn.Conv2d(8, 8, 1),
        linear=nn.Linear(8 * 64, 16),
    )
    return analysed(model, (torch.randn(1, 3, 8, 8),))


@pytest.fixture(scope="module")
def measured(made: Analysed) -> OpTimes:
    return op_times(made.converted, made.graph, made.feeds, cache=False)


def test_measured_times_are_there_for_every_op_and_name_their_source(
    made: Analysed, measured: OpTimes
) -> None:
    assert measured.source.startswith("measured on ")
    assert "onnxruntime" in measured.source
    assert 0 <= measured.parallel <= 1
    assert list(measured.ms) == [op.name for op in made.graph.ops]
    for op in made.graph.ops:
        assert measured.ms[op.name] > 0 or op.is_view or not op.inputs, op.name


def test_the_graph_takes_the_times(made: Analysed, measured: OpTimes) -> None:
    graph = with_times(made.graph, measured)

    assert {op.name: op.time for op in graph.ops} == measured.ms
    assert graph.tensors == made.graph.tensors


def test_every_kernel_belongs_to_the_ops_that_it_computes(made: Analysed, tmp_path: Path) -> None:
    optimised = optimised_graph(made, tmp_path)
    found = attribution(optimised, made.converted, made.graph)
    kinds = {kernel.name: kernel.op_type for kernel in optimised}
    of_kind: dict[str, list[set[str]]] = {}
    for name, ops in found.items():
        of_kind.setdefault(kinds[name], []).append({made.graph.op[op].kind for op in ops})

    assert set(kinds) == set(found)  # also the layout's changes
    # The second one takes in a sum and an activation, which are views then and take no time.
    assert sorted(of_kind["Conv"], key=len) == [
        {"aten.conv2d"},
        {"aten.conv2d"},
        {"aten.conv2d", "aten._native_batch_norm_legit_no_training", "aten.relu"},
    ]
    assert any("aten.gelu" in ops for ops in of_kind.get("Gelu", of_kind.get("BiasGelu", [])))
    assert {op for ops in found.values() for op in ops} >= {
        op.name for op in made.graph.ops if op.inputs and not op.is_view
    }


def test_kernels_share_by_estimate_and_add_up_to_the_run() -> None:
    found = spread(
        {"fused": 3.0, "alone": 1.0, "nobody's": 9.0},
        {"fused": ("a", "b"), "alone": ("b",), "free": ("view",)},
        {"a": 2.0, "b": 1.0, "view": 0.0, "other": 5.0},
        total=8.0,
    )

    assert found == {"a": 4.0, "b": 4.0, "view": 0.0, "other": 0.0}


def test_a_kernel_takes_the_median_of_its_times_as_often_as_it_is_called() -> None:
    def event(name: str, microseconds: int, category: str = "Node") -> dict[str, Any]:
        return {"cat": category, "name": name, "dur": microseconds}

    events = [
        event(f"{name}_kernel_time", us)
        for us in (5000, 90_000, 3000)
        for name in ("once", "twice")
    ]
    events += [event("twice_kernel_time", 4000)] * 3 + [event("model_run", 9000, "Session")]

    assert kernels._kernels(events, runs=3) == {"once": 5.0, "twice": 8.0}


@pytest.mark.parametrize(("computes", "total"), [({}, 1.0), ({"k": ("a",)}, 0.0)])
def test_times_of_no_op_and_runs_of_no_time_are_refused(
    computes: dict[str, tuple[str, ...]], total: float
) -> None:
    with pytest.raises(ValueError, match="kernels of known ops"):
        spread({"k": 1.0}, computes, {"a": 1.0}, total=total)


STEADY = "measured on a steady machine"


def test_the_second_call_does_not_run_the_model(
    made: Analysed, measured: OpTimes, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    steady = replace(measured, source=STEADY)
    monkeypatch.setattr(optime, "_measured", lambda *_: steady)
    op_times(made.converted, made.graph, made.feeds, cache=False)
    assert not own_cache.exists()
    assert op_times(made.converted, made.graph, made.feeds) == steady
    (file,) = own_cache.iterdir()

    monkeypatch.setattr(optime, "_measured", lambda *_: pytest.fail("it ran again"))
    assert op_times(made.converted, made.graph, made.feeds) == steady
    with pytest.raises(pytest.fail.Exception):
        op_times(made.converted, made.graph, made.feeds, cache=False)
    assert list(own_cache.iterdir()) == [file]


def test_times_of_a_busy_machine_are_not_kept(
    made: Analysed, measured: OpTimes, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    busy = replace(measured, source=STEADY + optime.UNSTEADY)
    monkeypatch.setattr(optime, "_measured", lambda *_: busy)

    assert op_times(made.converted, made.graph, made.feeds) == busy
    assert not own_cache.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ms": {}, "parallel": 1, "source": ""}'])
def test_a_broken_cache_file_is_replaced(
    made: Analysed, measured: OpTimes, monkeypatch: pytest.MonkeyPatch, own_cache: Path, text: str
) -> None:
    measured = replace(measured, source=STEADY)
    monkeypatch.setattr(optime, "_measured", lambda *_: measured)
    op_times(made.converted, made.graph, made.feeds)
    (file,) = own_cache.iterdir()
    file.write_text(text)

    assert op_times(made.converted, made.graph, made.feeds) == measured
    assert json.loads(file.read_text())["ms"] == measured.ms


def test_another_size_or_machine_is_another_entry(
    made: Analysed, measured: OpTimes, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    measured = replace(measured, source=STEADY)
    monkeypatch.setattr(optime, "_measured", lambda *_: measured)
    larger = {name: array.repeat(2, axis=0) for name, array in made.feeds.items()}
    op_times(made.converted, made.graph, made.feeds)
    op_times(made.converted, made.graph, larger)
    monkeypatch.setattr(optime, "_cpu_model", lambda: "another")
    op_times(made.converted, made.graph, made.feeds)

    assert len(list(own_cache.iterdir())) == 3


def test_a_model_that_is_not_run_is_estimated(made: Analysed, own_cache: Path) -> None:
    found = op_times(made.converted, made.graph, made.feeds, run=False)

    assert found.source == "estimated"
    assert found.ms == estimated(made.converted.program, made.graph)
    assert not own_cache.exists()


def test_a_run_that_fails_is_estimated_and_says_why(made: Analysed, own_cache: Path) -> None:
    found = op_times(made.converted, made.graph, {})

    assert found.source.startswith("estimated, because running the model failed: KeyError: 'x'")
    assert found.ms == estimated(made.converted.program, made.graph)
    assert not own_cache.exists()


def test_the_options_are_those_of_a_function(made: Analysed, tmp_path: Path) -> None:
    """The runtime ships alone, and the profiling script imports nothing of it."""
    targets.load("lambda")
    import importlib

    runtime = importlib.import_module("slicewise.targets.lambda.runtime.slice")
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy")
    relu = onnx.helper.make_node("Relu", ["x"], ["y"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([relu], "relu", [x], [y]),
        ir_version=10,
        opset_imports=[onnx.helper.make_opsetid("", 20)],
    )
    onnx.save(model, tmp_path / "model.onnx")
    spinning = "session.intra_op.allow_spinning"
    for memory_mb, threads in ((1769, 1), (3538, 2)):
        theirs = runtime.open_session(tmp_path / "model.onnx", memory_mb).get_session_options()
        ours = kernels.session_options(threads)
        for name in ("intra_op_num_threads", "inter_op_num_threads", "enable_mem_pattern",
                     "enable_mem_reuse", "enable_cpu_mem_arena",
                     "graph_optimization_level"):  # fmt: skip
            assert getattr(ours, name) == getattr(theirs, name)
        assert ours.get_session_config_entry(spinning) == theirs.get_session_config_entry(spinning)


def optimised_graph(made: Analysed, folder: Path) -> onnx_ir.Graph:
    """The graph that ONNX Runtime makes of the whole model."""
    import onnxruntime

    from slicewise.codegen.carve import carve

    carve(made.converted, [optime._whole(made.graph)], folder)
    options = kernels.session_options(1)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(
        str(folder / "whole" / "model.onnx"), options, ["CPUExecutionProvider"]
    )
    return onnx_ir.load(folder / "optimised.onnx").graph
