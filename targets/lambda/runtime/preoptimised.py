"""The graph that was optimised when the bundle was made, where it computes right on this CPU.

It has its weights in blocks as wide as the vectors of the CPU that made it. On another one it would run
and answer wrongly, so a small convolution of the same make goes first: it must give what it gave there.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnxruntime

MODEL = "model.onnx"
PREOPTIMISED = "preoptimised.onnx"
PROBE = "probe.onnx"
MOST_DIFFERENCE = (
    1.0  # of results about 500 large: rounding is below 0.001, other blocks are far above
)
_LOG = logging.getLogger(__name__)


def model_file(directory: Path) -> Path:
    """The model to load: the optimised one if there is one for this CPU, else the plain one."""
    if not (directory / PREOPTIMISED).exists():
        return directory / MODEL
    if is_right_here(directory / PROBE):
        return directory / PREOPTIMISED
    _LOG.warning("%s was made for another CPU; the plain model is loaded, slower", PREOPTIMISED)
    return directory / MODEL


def is_right_here(probe: Path) -> bool:
    """Whether the probe computes what it computed where it was made; one that fails does not."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(probe), options, ["CPUExecutionProvider"])
        shape = session.get_inputs()[0].shape
        x = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        (difference,) = session.run(["difference"], {"x": x})
    except Exception as error:
        _LOG.warning("%s does not run: %s", probe.name, error)
        return False
    return bool(difference < MOST_DIFFERENCE)
