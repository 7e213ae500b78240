"""The unmodified tritonclient gets the model's own answers, and refusals as the protocol has them."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

import slicewise

TYPES = {"x": "FP16", "keep": "BOOL", "index": "INT64"}


class Mixed(nn.Module):
    """Inputs and outputs of three types each."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(4, 256)
        self.narrow = nn.Linear(256, 4)
        self.half()

    def forward(
        self, x: torch.Tensor, keep: torch.Tensor, index: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        y = self.narrow(torch.relu(self.wide(x)))
        return {"y": y, "positive": (x > 0) & keep, "next": index + 1}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().eval()


@pytest.fixture(scope="module")
def bundle(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> slicewise.Bundle:
    batch = torch.export.Dim("batch", min=1, max=8)
    example = (torch.randn(2, 4).half(), torch.tensor([[True] * 4] * 2), torch.tensor([1, 2]))
    compiled = slicewise.compile(
        model,
        example,
        dynamic_shapes={"x": {0: batch}, "keep": {0: batch}, "index": {0: batch}},
        limits=slicewise.Limits(weight_bytes=3000),
    )
    assert len(compiled.plan.slices) == 2
    return compiled.save(tmp_path_factory.mktemp("mixed") / "bundle")


@pytest.fixture(scope="module")
def endpoint(bundle: slicewise.Bundle) -> Iterator[Any]:
    with bundle.serve(http=0) as served:
        yield served


@pytest.fixture
def client(endpoint: Any) -> Iterator[Any]:
    connected = triton.InferenceServerClient(endpoint.http_url.removeprefix("http://"))
    yield connected
    connected.close()


def example(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "x": random.normal(size=(rows, 4)).astype(np.float16),
        "keep": random.random((rows, 4)) > 0.5,
        "index": random.integers(-(2**62), 2**62, rows),
    }


def inputs_of(arrays: dict[str, np.ndarray], *, binary: bool = True) -> list[Any]:
    inputs = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), TYPES[name])
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return inputs


def expected(model: nn.Module, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        found = model(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    return {name: tensor.numpy() for name, tensor in found.items()}


def check(model: nn.Module, arrays: dict[str, np.ndarray], result: Any) -> None:
    for name, right in expected(model, arrays).items():
        found = result.as_numpy(name)
        assert found.dtype == right.dtype
        np.testing.assert_allclose(found, right, atol=5e-3 if name == "y" else 0)


def test_the_server_and_the_model_say_what_they_are(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("Mixed")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    found = client.get_model_metadata("Mixed")
    assert found["inputs"] == [
        {"name": "x", "datatype": "FP16", "shape": [-1, 4]},
        {"name": "keep", "datatype": "BOOL", "shape": [-1, 4]},
        {"name": "index", "datatype": "INT64", "shape": [-1]},
    ]
    assert {out["name"]: out["datatype"] for out in found["outputs"]} == {
        "y": "FP16", "positive": "BOOL", "next": "INT64"}  # fmt: skip
    assert client.is_model_ready("Mixed", found["versions"][0])
    assert not client.is_model_ready("Mixed", "other")
    assert not client.is_model_ready("Other")


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("binary", [True, False])
def test_answers_are_the_models(client: Any, model: nn.Module, rows: int, binary: bool) -> None:
    arrays = example(rows)
    check(model, arrays, client.infer("Mixed", inputs_of(arrays, binary=binary)))


def test_outputs_can_be_chosen_and_come_as_json(client: Any, model: nn.Module) -> None:
    arrays = example(2)
    wanted = [
        triton.InferRequestedOutput("next", binary_data=False),
        triton.InferRequestedOutput("y", binary_data=True),
    ]
    result = client.infer("Mixed", inputs_of(arrays), outputs=wanted, request_id="mine")
    assert result.get_response()["id"] == "mine"
    assert [out["name"] for out in result.get_response()["outputs"]] == ["next", "y"]
    right = expected(model, arrays)
    np.testing.assert_array_equal(result.as_numpy("next"), right["next"])
    np.testing.assert_allclose(result.as_numpy("y"), right["y"], atol=5e-3)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_understood(client: Any, model: nn.Module, algorithm: str) -> None:
    arrays = example(3)
    result = client.infer("Mixed", inputs_of(arrays), request_compression_algorithm=algorithm)
    check(model, arrays, result)


def test_requests_at_the_same_time_get_their_own_answers(endpoint: Any, model: nn.Module) -> None:
    address = endpoint.http_url.removeprefix("http://")

    def ask(seed: int) -> None:
        arrays = example(1 + seed % 8, seed)
        connected = triton.InferenceServerClient(address)
        check(model, arrays, connected.infer("Mixed", inputs_of(arrays)))
        connected.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(16)))


def test_what_is_wrong_is_refused_as_the_protocol_says(client: Any) -> None:
    good = example(2)
    for arrays, words, status in (
        (example(9), "batch is 9", "400"),
        ({**good, "index": np.zeros(3, np.int64)}, "batch is 3", "400"),
        ({name: array for name, array in good.items() if name != "keep"}, "missing", "400"),
        ({**good, "x": good["x"][:, :3]}, "expected", "400"),
    ):
        with pytest.raises(InferenceServerException, match=words) as refusal:
            client.infer("Mixed", inputs_of(arrays))
        assert refusal.value.status() == status
    with pytest.raises(InferenceServerException, match="unknown model") as refusal:
        client.infer("Other", inputs_of(good))
    assert refusal.value.status() == "404"
    with pytest.raises(InferenceServerException, match="unknown output 'z'"):
        client.infer("Mixed", inputs_of(good), outputs=[triton.InferRequestedOutput("z")])
    with pytest.raises(InferenceServerException, match="'sequence_end' is not supported"):
        client.infer("Mixed", inputs_of(good), sequence_id=7)
    assert client.infer("Mixed", inputs_of(good)).as_numpy("next").shape == (2,)


def test_requests_of_our_own_are_answered_at_any_other_path(
    endpoint: Any, model: nn.Module
) -> None:
    body = {"inputs": {"x": {"data": [[1, 2, 3, 4]]}, "keep": {"data": [[True] * 4]},
                       "index": {"data": [41]}}}  # fmt: skip
    request = urllib.request.Request(
        endpoint.http_url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        assert json.load(reply)["status"] == 200
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(endpoint.http_url)
    assert refusal.value.code == 405


def test_batched_requests_get_their_own_rows_and_refusals(
    bundle: slicewise.Bundle, model: nn.Module
) -> None:
    with bundle.serve(http=0, batch_wait_ms=2000) as endpoint:
        address = str(endpoint.http_url).removeprefix("http://")

        def ask(seed: int, rows: int = 2) -> str:
            connected = triton.InferenceServerClient(address)
            arrays = example(9 if seed == 5 else rows, seed)
            try:
                check(model, arrays, connected.infer("Mixed", inputs_of(arrays)))
            except InferenceServerException as refusal:
                return str(refusal.message())
            finally:
                connected.close()
            return "right"

        ask(0, rows=8)  # the cold start; it waits for no others
        before = len(endpoint.reports)
        with ThreadPoolExecutor(9) as pool:
            found = list(pool.map(ask, range(9)))
        calls = [r for r in endpoint.reports[before:] if r.function == endpoint.function]
    assert found.count("right") == 8
    assert "batch is 9" in found[5]
    # Eight requests of two rows in a model of eight; a slow machine may miss the window.
    assert 2 <= len(calls) < 8


def test_batching_that_cannot_be_is_refused(bundle: slicewise.Bundle, tmp_path: Path) -> None:
    with pytest.raises(slicewise.TargetError, match="give http a port"):
        bundle.serve(batch_wait_ms=5)
    fixed = slicewise.compile(nn.Linear(4, 4).eval(), (torch.zeros(2, 4),)).save(tmp_path / "fixed")
    with pytest.raises(slicewise.TargetError, match="dynamic dimension that comes first"):
        fixed.serve(http=0, batch_wait_ms=5)
