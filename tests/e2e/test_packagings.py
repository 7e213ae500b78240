"""Packagings: a slice whose weights are streamed from S3 computes what the model computes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo

import slicewise
from slicewise.errors import RequestError, SlicewiseError

packages = importlib.import_module("slicewise.targets.lambda.packaging.packages")


@pytest.fixture(scope="module")
def case() -> Any:
    return zoo.tied()


@pytest.fixture(scope="module")
def streaming(case: Any, tmp_path_factory: pytest.TempPathFactory) -> slicewise.Bundle:
    compiled = slicewise.compile(
        case.model, case.inputs, limits=case.limits, packaging="s3-weights", transports=["payload"]
    )
    return compiled.save(tmp_path_factory.mktemp("streaming") / "bundle")


@pytest.fixture
def endpoint(streaming: slicewise.Bundle) -> Iterator[Any]:
    with streaming.serve() as served:
        yield served


def leaves(value: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in torch.utils._pytree.tree_leaves(value)]


def test_packages_hold_no_weights_and_the_bundle_each_once(streaming: slicewise.Bundle) -> None:
    kept = {path.name for path in (streaming.directory / "weights").iterdir()}
    named = set()
    for part in streaming.plan.slices:
        folder = streaming.directory / "functions" / part.name
        spec = json.loads((folder / "weights.json").read_text())
        named.add(spec["sha256"])
        assert spec["key"] == f"weights/{spec['sha256']}"
        assert not (folder / "model.data").exists()
        assert part.packaging == "s3-weights"
    assert named == kept


def test_what_is_streamed_computes_what_the_model_does(endpoint: Any, case: Any) -> None:
    found = leaves(endpoint(*case.inputs))

    with torch.no_grad():
        expected = leaves(case.model(*case.inputs))
    assert len(found) == len(expected)
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-5)


def first_log(endpoint: Any, bundle: slicewise.Bundle) -> str:
    name = bundle.plan.slices[0].name
    function = next(r.function for r in endpoint.reports if r.function.endswith(f"-{name}"))
    return str(endpoint.platform.logs(function))


def test_other_weights_than_the_models_are_refused(
    endpoint: Any, streaming: slicewise.Bundle, case: Any
) -> None:
    folder = streaming.directory / "functions" / streaming.plan.slices[0].name
    spec = json.loads((folder / "weights.json").read_text())
    s3, bucket = endpoint.platform.client("s3"), endpoint.buckets["s3"]
    s3.put_object(Bucket=bucket, Key=spec["key"], Body=bytes(spec["bytes"]))

    with pytest.raises((RequestError, SlicewiseError)):
        endpoint(*case.inputs)
    assert f"not {spec['sha256']}; deploy the bundle again" in first_log(endpoint, streaming)


def test_missing_weights_say_where_they_should_be(
    endpoint: Any, streaming: slicewise.Bundle, case: Any
) -> None:
    folder = streaming.directory / "functions" / streaming.plan.slices[0].name
    spec = json.loads((folder / "weights.json").read_text())
    endpoint.platform.client("s3").delete_object(Bucket=endpoint.buckets["s3"], Key=spec["key"])

    with pytest.raises((RequestError, SlicewiseError)):
        endpoint(*case.inputs)
    assert f"/{spec['key']} cannot be read" in first_log(endpoint, streaming)


def test_streaming_packages_are_small(streaming: slicewise.Bundle) -> None:
    for each in streaming.package().packages:
        with_data = any("model.data" in name for name in _names(each.archive.path))
        assert not with_data


def test_an_image_serves_as_a_zip_does(case: Any, tmp_path: Path) -> None:
    compiled = slicewise.compile(
        case.model, case.inputs, limits=case.limits, packaging="image", verify=False
    )
    saved = compiled.save(tmp_path / "bundle")

    made = saved.package()
    assert made.images == (*(part.name for part in saved.plan.slices), "coordinator")
    assert made.packages == ()
    assert made.layer is None
    assert "Dockerfile" in str(made)
    with saved.serve() as served, torch.no_grad():
        for array, wanted in zip(
            leaves(served(*case.inputs)), leaves(case.model(*case.inputs)), strict=True
        ):
            np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-5)


def _names(path: Path) -> list[str]:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        return archive.namelist()
