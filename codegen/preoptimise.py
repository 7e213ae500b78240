"""Preoptimise: beside a slice's model the graph that ONNX Runtime makes of it, which loads at once.

What loading a convolutional slice takes is mostly the rearranging of its weights into blocks of
channels, as wide as the vectors of the CPU at hand (270 instead of 25 ms for ResNet-50). A graph that
was optimised before loads without that, but computes wrongly on a CPU with other blocks, and Lambda does
not say which one comes. So the plain model stays, and a probe goes with the other: a small convolution,
optimised alike, that tells by its result whether such graphs are right here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slicewise.codegen.carve import ONNX_FILE

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir

PREOPTIMISED_FILE = "preoptimised.onnx"
WEIGHTS_FILE = "preoptimised.data"
PROBE_FILE = "probe.onnx"  # input "x", output "difference": 0 where preoptimised graphs are right
PROBE_SHAPE = (1, 32, 6, 6)
_BLOCKED = "com.microsoft.nchwc"


def preoptimise(directory: Path) -> int:
    """Write the optimised graph of a slice's model and its probe; the bytes added.

    0, and nothing is written, where the optimised graph has no blocked convolutions: it would hardly
    load faster.
    """
    _optimise(directory / ONNX_FILE, directory / PREOPTIMISED_FILE, WEIGHTS_FILE)
    files = [directory / PREOPTIMISED_FILE, directory / WEIGHTS_FILE, directory / PROBE_FILE]
    if not _is_blocked(files[0]):
        for file in files:
            file.unlink(missing_ok=True)
        return 0
    _write_probe(files[2])
    return sum(file.stat().st_size for file in files if file.exists())


def remove_preoptimised(directory: Path) -> None:
    """Take back what `preoptimise` wrote."""
    for name in (PREOPTIMISED_FILE, WEIGHTS_FILE, PROBE_FILE):
        (directory / name).unlink(missing_ok=True)


def _optimise(source: Path, destination: Path, weights: str | None = None) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns that the file is for CPUs like this one
    options.optimized_model_filepath = str(destination)
    if weights:
        prefix = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{prefix}_file_name", weights)
        options.add_session_config_entry(f"{prefix}_min_size_in_bytes", "1024")
    # The weights are only written, never computed with.
    options.add_session_config_entry("session.disable_prepacking", "1")
    onnxruntime.InferenceSession(str(source), options, ["CPUExecutionProvider"])


def _is_blocked(model: Path) -> bool:
    import onnx_ir

    return any(node.domain == _BLOCKED for node in onnx_ir.load(model).graph)


def _write_probe(file: Path) -> None:
    """Two convolutions, and how far their result is from what the plain graph gives here."""
    import numpy as np
    import onnx_ir
    import onnxruntime

    draw = np.random.default_rng(0)
    kernels = [draw.standard_normal((32, 32, 3, 3)).astype(np.float32) for _ in range(2)]
    x = np.linspace(-1, 1, int(np.prod(PROBE_SHAPE)), dtype=np.float32).reshape(PROBE_SHAPE)
    plain = file.with_name("plain-probe.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnx_ir.save(_probe(kernels, np.zeros(PROBE_SHAPE, np.float32)), plain)
        session = onnxruntime.InferenceSession(str(plain), options, ["CPUExecutionProvider"])
        (expected,) = session.run(["y"], {"x": x})
        onnx_ir.save(_probe(kernels, expected), plain)
        _optimise(plain, file)
    finally:
        plain.unlink(missing_ok=True)


def _probe(kernels: Sequence[np.ndarray], expected: np.ndarray) -> onnx_ir.Model:
    import onnx_ir
    from onnx_ir import tape

    tensor = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    x = onnx_ir.val("x", type=tensor, shape=onnx_ir.Shape(PROBE_SHAPE))
    draft = tape.Tape()
    y = x
    for index, kernel in enumerate(kernels):
        held = draft.initializer(onnx_ir.tensor(kernel, name=f"kernel{index}"))
        y = draft.op("Conv", [y, held], {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]})
    wanted = draft.initializer(onnx_ir.tensor(expected, name="expected"))
    off = draft.op("Abs", [draft.op("Sub", [y, wanted])])
    difference = draft.op("ReduceMax", [off], {"keepdims": 0})
    y.name, difference.name = "y", "difference"
    y.type = difference.type = tensor
    y.shape, difference.shape = onnx_ir.Shape(PROBE_SHAPE), onnx_ir.Shape(())
    graph = onnx_ir.Graph(
        [x], [y, difference], nodes=draft.nodes, initializers=draft.initializers,
        opset_imports={"": 18}, name="probe",
    )  # fmt: skip
    return onnx_ir.Model(graph, ir_version=10)
