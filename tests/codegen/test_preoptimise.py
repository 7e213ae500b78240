"""Preoptimised graphs: written where they gain, the same twice, and loaded where they are right."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import nn

import slicewise
from slicewise.codegen import preoptimise

runtime = importlib.import_module("slicewise.targets.lambda.runtime.preoptimised")
SHAPE = (1, 3, 24, 24)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(64 * 20 * 20, 10),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiled = slicewise.compile(network(), (torch.randn(SHAPE),), progress=False)
    (part,) = compiled.plan.slices
    bundle = compiled.save(tmp_path_factory.mktemp("plain") / "bundle")
    return bundle.directory / "functions" / part.name


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for name in ("model.onnx", "model.data"):
        (to / name).write_bytes((folder / name).read_bytes())
    return to


def test_the_names_are_those_of_the_runtime() -> None:
    names = ("model.onnx", preoptimise.PREOPTIMISED_FILE, preoptimise.PROBE_FILE)
    assert names == (runtime.MODEL, runtime.PREOPTIMISED, runtime.PROBE)


def test_it_computes_the_same_and_is_written_the_same_twice(folder: Path, tmp_path: Path) -> None:
    one, two = (copied(folder, tmp_path / name) for name in ("one", "two"))

    assert preoptimise.preoptimise(one) == preoptimise.preoptimise(two) > 0
    for name in ("preoptimised.onnx", "preoptimised.data", "probe.onnx"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    plain, faster = (
        onnxruntime.InferenceSession(str(one / name), providers=["CPUExecutionProvider"])
        for name in ("model.onnx", "preoptimised.onnx")
    )
    feeds = {plain.get_inputs()[0].name: x}
    np.testing.assert_allclose(faster.run(None, feeds)[0], plain.run(None, feeds)[0], atol=1e-5)


def test_it_is_loaded_only_where_the_probe_is_right(folder: Path, tmp_path: Path) -> None:
    where = copied(folder, tmp_path / "slice")
    assert runtime.model_file(where).name == "model.onnx"
    preoptimise.preoptimise(where)
    assert runtime.model_file(where).name == "preoptimised.onnx"

    # As on a CPU with blocks of another width: the same numbers stand for other channels.
    probe = onnx_ir.load(where / "probe.onnx")
    for value in list(probe.graph.initializers.values()):
        assert value.const_value is not None
        array = value.const_value.numpy()
        if array.shape == (32, 32, 3, 3):
            swapped = array.reshape(2, 2, 8, -1).swapaxes(1, 2).reshape(array.shape)
            value.const_value = onnx_ir.tensor(np.ascontiguousarray(swapped), name=value.name)
    onnx_ir.save(probe, where / "probe.onnx")
    assert runtime.model_file(where).name == "model.onnx"
    (where / "probe.onnx").write_bytes(b"no model")
    assert runtime.model_file(where).name == "model.onnx"


def test_a_model_without_convolutions_stays_as_it_is(tmp_path: Path) -> None:
    compiled = slicewise.compile(
        nn.Sequential(nn.Linear(8, 8)).eval(),
        (torch.randn(1, 8),),
        preoptimise=True,
        progress=False,
    )
    bundle = compiled.save(tmp_path / "bundle")

    assert compiled.notes == ()
    assert not list(bundle.directory.rglob("preoptimised.onnx"))


def test_compiled_so_it_is_served_and_counted(tmp_path: Path) -> None:
    model, x = network(), torch.randn(SHAPE)
    plain = slicewise.compile(model, (x,), progress=False)
    compiled = slicewise.compile(model, (x,), preoptimise=True, progress=False)
    bundle = compiled.save(tmp_path / "bundle")
    (part,) = compiled.plan.slices
    package = bundle.directory / "functions" / part.name
    added = part.package_bytes - plain.plan.slices[0].package_bytes

    assert added == sum(
        (package / name).stat().st_size
        for name in ("preoptimised.onnx", "preoptimised.data", "probe.onnx")
    )
    (package / "model.data").write_bytes(b"")  # so it must be the other one that answers
    with bundle.serve() as endpoint:
        torch.testing.assert_close(endpoint(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_package_without_room_says_so(tmp_path: Path) -> None:
    model, x = network(), torch.randn(SHAPE)
    small = slicewise.Limits(package_mb=78)
    compiled = slicewise.compile(model, (x,), preoptimise=True, limits=small, progress=False)

    assert compiled.notes == ("slice0 is not preoptimised: its package cannot hold two models",)
    assert not list(compiled.save(tmp_path / "bundle").directory.rglob("preoptimised.onnx"))
