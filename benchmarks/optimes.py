"""Compute time per op: how well the profile of a whole model tells what its slices take.

Every model is profiled once. Its times add up to a plain run ("sum / run"), and then it is cut by
several limits of weights; each slice is run alone, and the times of its ops are compared with what
it took ("slices": ratio of predicted to measured, smallest and largest). `estimate` is the sum of the
estimates over the measured sum. All measured times are CPU time of one thread, the median of several
runs with rests between, as op times are. `--rates` measures what slicewise/flops.py has as constants.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from models import StackedLstm, image_model
from torch import nn

from slicewise import Limits
from slicewise.analyse import analyse
from slicewise.capture import capture
from slicewise.codegen.carve import carve
from slicewise.codegen.convert import convert
from slicewise.compiled import _to_numpy
from slicewise.flops import estimated
from slicewise.graph import OpGraph
from slicewise.kernels import run_times, session_options
from slicewise.optime import _whole, op_times
from slicewise.passes import partition
from slicewise.plan import Slice
from slicewise.structure import bind


def bert(layers: int, width: int, tokens: int) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        from transformers import BertConfig, BertModel

        config = BertConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=12,
            intermediate_size=4 * width, vocab_size=8000,
        )  # fmt: skip
        ids = torch.randint(0, 8000, (1, tokens))
        return BertModel(config), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return make


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "minilm": bert(6, 384, 128),
    "bert-base": bert(12, 768, 128),
    "resnet50": lambda: image_model("ResNet-50"),
    "mobilenetv2": lambda: image_model("MobileNetV2"),
    "vgg16": lambda: image_model("VGG-16"),
    "lstm": lambda: (StackedLstm(), (torch.randint(0, 5000, (1, 100)),)),
}
SLICES = (2, 3, 5)


def cpu_ms(folder: Path, feeds: Mapping[str, np.ndarray], outputs: list[str] | None = None) -> Any:
    """(CPU time of a run in ms, the outputs) of the model in `folder`."""
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), session_options(1), ["CPUExecutionProvider"]
    )
    given = {spec.name: feeds[spec.name] for spec in session.get_inputs()}
    results = session.run(outputs, given)
    times = run_times(lambda: session.run(outputs, given))
    return statistics.median(cpu for _, cpu in times) * 1e3, results


def as_slice(graph: OpGraph, name: str, ops: tuple[str, ...]) -> Slice:
    members = [graph.op[op] for op in ops]
    made = {tensor for op in members for tensor in op.outputs}
    read = dict.fromkeys(t for op in members for t in op.inputs if t not in made)
    left = [
        t for op in members for t in op.outputs
        if t in graph.outputs or any(reader not in ops for reader in graph.consumers[t])
    ]  # fmt: skip
    return Slice(
        name=name, stage=0, ops=ops, weight_bytes=0, peak_memory_bytes=0, memory_mb=0,
        package_bytes=0, inputs=tuple(read), outputs=tuple(left), onnx="",
    )  # fmt: skip


def compare(name: str, make: Callable[[], tuple[nn.Module, Any]]) -> None:
    torch.manual_seed(0)
    model, inputs = make()
    captured = capture(model.eval().requires_grad_(False), inputs)
    converted = convert(captured.program)
    graph, signature = analyse(
        converted.program, name=name, aliases=converted.aliases, dim_names=captured.dim_names
    )
    bound = bind(signature.input_structure, captured.args, captured.kwargs)
    feeds = {key: _to_numpy(value) for key, value in bound.items()}
    started = time.perf_counter()
    times = op_times(converted, graph, feeds, cache=False)
    took = time.perf_counter() - started
    total = sum(times.ms.values())
    estimate = sum(estimated(converted.program, graph).values())
    with tempfile.TemporaryDirectory() as scratch:
        carve(converted, [_whole(graph)], Path(scratch))
        run, _ = cpu_ms(Path(scratch) / "whole", feeds)
    print(
        f"{name:12} {len(graph.ops):5} ops {total:8.2f} ms  sum / run {total / run:.3f}  "
        f"estimate {estimate / total:.2f}  parallel {times.parallel:.2f}  profiled in {took:.1f} s"
    )
    if not times.source.startswith("measured"):
        print(times.source)
    largest = max(weight.bytes for weight in graph.weights)
    for count in SLICES:
        limit = max(int(graph.weight_bytes / count * 1.1), int(largest * 1.1))
        parts = partition(graph, Limits(weight_bytes=limit), time_limit_s=10)
        ratios, summed = [], 0.0
        held = dict(feeds)
        for part in parts.slices:
            cut = as_slice(graph, part.name, tuple(part.ops))
            with tempfile.TemporaryDirectory() as scratch:
                carve(converted, [cut], Path(scratch))
                took, results = cpu_ms(Path(scratch) / cut.name, held, list(cut.outputs))
            held.update(zip(cut.outputs, results, strict=True))
            summed += took
            predicted = sum(times.ms[op] for op in cut.ops)
            ratios.append((predicted / took, took))
        shown = "  ".join(f"{ratio:.2f} ({took:.1f} ms)" for ratio, took in ratios)
        print(f"    {len(parts.slices):2} slices: together {total / summed:.3f}; {shown}")


def rates() -> None:
    """GFLOP/s of a matrix product and a convolution, GB/s of an elementwise op; one thread."""
    f32 = onnx.TensorProto.FLOAT
    for op, shapes, work in (
        ("MatMul", [(128, 768), (768, 3072)], 2 * 128 * 768 * 3072),
        ("MatMul", [(512, 512), (512, 512)], 2 * 512**3),
        ("Conv", [(1, 64, 56, 56), (64, 64, 3, 3)], 2 * 64 * 54 * 54 * 64 * 9),
        ("Conv", [(1, 256, 14, 14), (1024, 256, 1, 1)], 2 * 1024 * 14 * 14 * 256),
        ("Relu", [(16, 1 << 20)], 2 * 4 * 16 << 20),
        ("Add", [(16, 1 << 20), (16, 1 << 20)], 3 * 4 * 16 << 20),
    ):  # fmt: skip
        values = [np.random.rand(*shape).astype(np.float32) for shape in shapes]
        names = ["x", "w"][: len(shapes)]
        weights = [onnx.numpy_helper.from_array(values[1], "w")] if len(values) > 1 else []
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(op, names, ["y"])], op,
            [onnx.helper.make_tensor_value_info("x", f32, shapes[0])],
            [onnx.helper.make_tensor_value_info("y", f32, None)], weights,
        )  # fmt: skip
        model = onnx.helper.make_model(
            graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)]
        )
        with tempfile.TemporaryDirectory() as scratch:
            onnx.save(model, Path(scratch) / "model.onnx")
            ms, _ = cpu_ms(Path(scratch), {"x": values[0]})
        unit = "GB/s" if op in ("Relu", "Add") else "GFLOP/s"
        print(f"{op:8} {' x '.join(map(str, shapes)):40} {work / ms / 1e6:8.1f} {unit}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], default=[])
    parser.add_argument("--rates", action="store_true")
    arguments = parser.parse_args()
    if arguments.rates:
        rates()
    else:
        for model_name in arguments.models or MODELS:
            compare(model_name, MODELS[model_name])
