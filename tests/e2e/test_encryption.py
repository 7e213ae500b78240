"""Encrypted bundles: right answers, and nothing to read in their packages and buckets."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from moto.server import ThreadedMotoServer
from torch import nn

import slicewise

X, MASK = torch.ones(80, 8), torch.ones(80, dtype=torch.int64)
# Tells how the object that slice1 gets differs from the tensor in it.
WATCH = """
_handler = handler

def handler(event, context):
    import boto3, hashlib, os, zlib
    for name, record in event.get("tensors", {}).items():
        if "s3" in record:
            bucket, key = os.environ["SLICEWISE_BUCKET"], record["s3"]
            raw = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
            more = len(raw) - record["bytes"]
            same = hashlib.sha256(raw).hexdigest() == record["sha256"]
            print("OBJECT", more, same, len(zlib.compress(raw)) < 0.9 * len(raw))
    return _handler(event, context)
"""


@pytest.fixture(scope="module")
def compiled(wide_model: nn.Module) -> slicewise.Compiled:
    """Every tensor goes by S3; the one between the slices is half zeros and shrinks when compressed."""
    return compile_wide(wide_model, transports=["s3"])


def compile_wide(model: nn.Module, **options: Any) -> slicewise.Compiled:
    batch = torch.export.Dim("batch", min=1, max=80)
    return slicewise.compile(
        model,
        (X[:2], MASK[:2]),
        dynamic_shapes={"x": {0: batch}, "mask": {0: batch}},
        limits=slicewise.Limits(weight_bytes=700_000),
        verify=False,
        **options,
    )


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    set_key(monkeypatch, 1)


def set_key(monkeypatch: pytest.MonkeyPatch, byte: int) -> None:
    monkeypatch.setenv("SLICEWISE_KEY", base64.b64encode(bytes([byte]) * 32).decode())


def readable(model: nn.Module, folder: Path) -> set[str]:
    """The weights that lie in the files below the folder as they are, or transposed."""
    content = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    return {
        name
        for name, weight in model.state_dict().items()
        for array in (weight.numpy(), np.ascontiguousarray(weight.numpy().T))
        if array.tobytes()[:64] in content
    }


@pytest.mark.parametrize("encrypt", [None, "env"])
def test_answers_are_right_and_tensors_in_the_bucket_unreadable(
    encrypt: str | None, compiled: slicewise.Compiled, wide_model: nn.Module, tmp_path: Path
) -> None:
    """Without encryption the same looks find what there is to read."""
    bundle = compiled.save(tmp_path / "bundle", encrypt=encrypt)
    weights = set(wide_model.state_dict())
    assert readable(wide_model, bundle.directory / "functions") == (set() if encrypt else weights)
    handler = bundle.directory / "functions" / "slice1" / "handler.py"
    handler.write_text(handler.read_text() + WATCH)

    endpoint: Any = bundle.serve()
    with endpoint:
        found = endpoint(X, MASK)
        logs = endpoint.platform.logs(f"{endpoint.function.removesuffix('coordinator')}slice1")
        assert endpoint.gc() == 0
    torch.testing.assert_close(found["wide"], wide_model(X, MASK)["wide"], rtol=1e-4, atol=1e-4)
    assert ("OBJECT 28 False False" if encrypt else "OBJECT 0 True True") in logs


@pytest.mark.parametrize("orchestration", ["chain", "stepfunctions"])
def test_every_orchestration_knows_the_key(
    orchestration: str, wide_model: nn.Module, tmp_path: Path
) -> None:
    compiled = compile_wide(wide_model, transports=["s3"], orchestration=orchestration)
    with compiled.save(tmp_path / "bundle", encrypt="env").serve() as endpoint:
        found = endpoint(X, MASK)
    torch.testing.assert_close(found["wide"], wide_model(X, MASK)["wide"], rtol=1e-4, atol=1e-4)


def test_weights_that_are_streamed_are_unreadable_in_the_bucket(
    wide_model: nn.Module, tmp_path: Path
) -> None:
    compiled = compile_wide(wide_model, packaging="s3-weights")
    bundle = compiled.save(tmp_path / "bundle", encrypt="env")
    assert len(list((bundle.directory / "weights").iterdir())) == 3
    assert readable(wide_model, bundle.directory / "weights") == set()

    endpoint: Any = bundle.serve()
    with endpoint:
        s3, bucket = endpoint.platform.client("s3"), next(iter(endpoint.buckets.values()))
        listed = s3.list_objects_v2(Bucket=bucket, Prefix="weights/")["Contents"]
        assert len(listed) == 3
        found = endpoint(X, MASK)
    torch.testing.assert_close(found["wide"], wide_model(X, MASK)["wide"], rtol=1e-4, atol=1e-4)


def test_slices_that_were_swapped_do_not_start(
    compiled: slicewise.Compiled, tmp_path: Path
) -> None:
    bundle = compiled.save(tmp_path / "bundle", encrypt="env")
    functions = bundle.directory / "functions"
    for file in ("model.onnx", "model.data"):
        (functions / "slice1" / file).write_bytes((functions / "slice2" / file).read_bytes())
    with (
        bundle.serve() as endpoint,
        pytest.raises(slicewise.SliceFailure, match=r"functions/slice1/.* cannot be decrypted"),
    ):
        endpoint(X[:2], MASK[:2])


def test_another_key_opens_nothing_and_a_missing_one_is_named(
    compiled: slicewise.Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = compiled.save(tmp_path / "bundle", encrypt="env")
    set_key(monkeypatch, 2)
    with (
        bundle.serve() as endpoint,
        pytest.raises(slicewise.SliceFailure, match="cannot be decrypted"),
    ):
        endpoint(X[:2], MASK[:2])
    monkeypatch.delenv("SLICEWISE_KEY")
    for use in (bundle.serve, lambda: compiled.save(tmp_path / "other", encrypt="env")):
        with pytest.raises(slicewise.TargetError, match="SLICEWISE_KEY is not set"):
            use()
    with pytest.raises(slicewise.TargetError, match="encrypt='yes': choose 'env'"):
        compiled.save(tmp_path / "other", encrypt="yes")


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of KMS (moto's), which this process uses, too."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    yield f"http://{host}:{port}"
    server.stop()


def test_functions_get_their_key_from_kms(
    kms: str, compiled: slicewise.Compiled, wide_model: nn.Module, tmp_path: Path
) -> None:
    key_id = boto3.client("kms").create_key()["KeyMetadata"]["KeyId"]
    bundle = compiled.save(tmp_path / "bundle", encrypt=f"kms:{key_id}")
    assert readable(wide_model, bundle.directory / "functions") == set()
    with bundle.serve(environment={"AWS_ENDPOINT_URL_KMS": kms}) as endpoint:
        found = endpoint(X, MASK)
    torch.testing.assert_close(found["wide"], wide_model(X, MASK)["wide"], rtol=1e-4, atol=1e-4)
