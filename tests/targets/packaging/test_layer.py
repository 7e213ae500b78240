"""The layer: the real wheels, stripped, and run by an interpreter that has nothing else."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

compiled = importlib.import_module("slicewise.targets.lambda.packaging.compiled")
layer_module = importlib.import_module("slicewise.targets.lambda.packaging.layer")
wheels = importlib.import_module("slicewise.targets.lambda.packaging.wheels")
PYTHON = "3.13"
RUN = """
import json, sys
import numpy, onnxruntime, pybase64
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
(y,) = session.run(None, {"x": numpy.arange(8, dtype=numpy.float32).reshape(2, 4)})
print(json.dumps({
    "y": y.tolist(), "from": [m.__file__ for m in (numpy, onnxruntime, pybase64)],
    "base64": pybase64.b64encode(b"slicewise").decode(),
}))
"""


@pytest.fixture(scope="module")
def interpreter() -> Any:
    found = compiled.find_interpreter(PYTHON)
    if found is None:
        pytest.skip(f"no CPython {PYTHON} on this machine")
    return found


@pytest.fixture(scope="module")
def layer(interpreter: Any) -> Any:
    return layer_module.build_layer(wheels.runtime_wheels(PYTHON, "x86_64"), interpreter)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the layer is of x86_64")
def test_a_session_computes_right_with_the_layer_alone(
    layer: Any, interpreter: Any, tmp_path: Path
) -> None:
    with zipfile.ZipFile(layer.path) as archive:
        archive.extractall(tmp_path / "layer")
    weight = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, tmp_path / "model.onnx")

    done = subprocess.run(
        [interpreter.path, "-S", "-c", RUN],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "layer" / "python"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_allclose(found["y"], np.maximum(x @ weight, 0), rtol=1e-6)
    assert found["base64"] == "c2xpY2V3aXNl"
    assert all(str(tmp_path / "layer") in path for path in found["from"])


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the layer is of x86_64")
def test_the_layer_of_an_encrypted_bundle_opens_what_is_sealed(
    layer: Any, interpreter: Any, tmp_path: Path
) -> None:
    seal = importlib.import_module("slicewise.targets.lambda.runtime.seal")
    sealing = importlib.import_module("slicewise.targets.lambda.sealing")
    files = wheels.requirements_of(True)
    found = [w for f in files for w in wheels.runtime_wheels(PYTHON, "x86_64", requirements=f)]
    encrypted = layer_module.build_layer(found, interpreter)
    assert files[:-1] == wheels.requirements_of(False)
    more = encrypted.unzipped_bytes - layer.unzipped_bytes
    assert 0.7 * sealing.PACKAGE_MB * 2**20 < more < sealing.PACKAGE_MB * 2**20

    with zipfile.ZipFile(encrypted.path) as archive:
        archive.extractall(tmp_path / "layer")
    shutil.copytree(Path(str(seal.__file__)).parent, tmp_path / "slicewise_runtime")
    sealed = seal.Seal(bytes(32), "plan").close("x", b"tensor")
    program = (
        "from slicewise_runtime.seal import Seal; "
        f"print(bytes(Seal(bytes(32), 'plan').open('x', {sealed!r})))"
    )
    done = subprocess.run(
        [interpreter.path, "-S", "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}/layer/python:{tmp_path}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "b'tensor'\n"), done.stderr


def test_the_layer_leaves_the_planned_room(layer: Any) -> None:
    profile = importlib.import_module("slicewise.targets.lambda.profile").default_profile()

    assert layer.unzipped_bytes < (profile.runtime.package_mb - 1) * 2**20


def test_the_layer_holds_licences_and_byte_code_and_nothing_that_inference_never_reads(
    layer: Any,
) -> None:
    with zipfile.ZipFile(layer.path) as archive:
        names = archive.namelist()

    assert all(name.startswith("python/") for name in names)
    assert not [n for n in names if "libonnxruntime.so" in n or n.endswith((".pyi", ".h", ".a"))]
    assert not [n for n in names if "/tests/" in n or "/f2py/" in n or "/quantization/" in n]
    assert not [n for n in names if "protobuf" in n or "flatbuffers" in n]
    assert len([n for n in names if "licenses/" in n or n.endswith("LICENSE")]) > 3
    modules = [n for n in names if n.endswith(".py")]
    cached = {n for n in names if n.endswith(".pyc")}
    for name in modules:
        folder, _, file = name.rpartition("/")
        assert f"{folder}/__pycache__/{file[:-3]}.cpython-313.pyc" in cached


def test_byte_code_is_unchecked_and_says_where_it_will_lie(layer: Any) -> None:
    with zipfile.ZipFile(layer.path) as archive:
        code = archive.read("python/numpy/__pycache__/__init__.cpython-313.pyc")

    assert int.from_bytes(code[4:8], "little") == 0b01  # hash-based, source not checked
    assert b"/opt/python/numpy/__init__.py" in code


def test_a_layer_is_built_once_and_the_same_again(
    layer: Any, interpreter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = wheels.runtime_wheels(PYTHON, "x86_64")
    small = [wheel for wheel in found if wheel.name.startswith("pybase64")]

    built = [
        layer_module.build_layer(small, interpreter, cache=tmp_path / name) for name in ("a", "b")
    ]
    assert built[0].sha256 == built[1].sha256
    times = built[0].path.stat().st_mtime_ns
    assert layer_module.build_layer(small, interpreter, cache=tmp_path / "a") == built[0]
    assert built[0].path.stat().st_mtime_ns == times
    without = layer_module.build_layer(small, None, cache=tmp_path / "a")
    assert without.path != built[0].path
    assert without.unzipped_bytes < built[0].unzipped_bytes


def test_a_wrong_interpreter_is_refused(interpreter: Any, tmp_path: Path) -> None:
    errors = importlib.import_module("slicewise.errors")
    with pytest.raises(errors.TargetError, match=r"is CPython 3\.13.*needs a CPython 3\.12"):
        compiled.find_interpreter("3.12", interpreter.path)
    with pytest.raises(errors.TargetError, match="is no Python that runs"):
        compiled.find_interpreter("3.12", tmp_path / "nothing")
