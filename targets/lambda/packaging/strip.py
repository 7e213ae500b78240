"""Strip: take from the runtime's packages what no inference needs.

Of standard library only, for an image's build runs it as a program: `python strip.py DIRECTORY`.
What is removed was found by running sessions without it (tests/targets/packaging/test_layer.py).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

UNNEEDED = (
    # ONNX Runtime: tools for making models, and the library for C, which the Python module has within.
    "onnxruntime/backend",
    "onnxruntime/datasets",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
    "onnxruntime/capi/libonnxruntime.so*",
    # numpy: what builds extensions or checks types.
    "numpy/f2py",
    "numpy/_core/include",
    "numpy/_core/lib",
    "numpy/_pyinstaller",
    "numpy/random/_examples",
    "numpy/random/lib",
    "numpy/typing",
    "numpy/**/tests",
    "numpy/tests",
    "numpy/conftest.py",
    # Of all: stubs, and what an installer leaves. Licences and METADATA stay.
    "bin",
    "**/__pycache__",
    "**/*.pyi",
    "**/*.pxd",
    "**/py.typed",
    "*.dist-info/RECORD",
    "*.dist-info/INSTALLER",
    "*.dist-info/REQUESTED",
    "*.dist-info/direct_url.json",
    "*.dist-info/entry_points.txt",
    "*.dist-info/sboms",
)


def strip(directory: Path) -> None:
    """Remove what is not needed from unpacked wheels."""
    for pattern in UNNEEDED:
        for path in list(directory.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


if __name__ == "__main__":
    strip(Path(sys.argv[1]))
