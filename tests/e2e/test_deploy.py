"""Bundles of five slices on AWS: moto has the account, the local platform runs the uploaded zips."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import slicewise
from slicewise import DeploymentError, deployments

pytest.importorskip("moto")

from cloud import Cloud, cloud
from data_plane import DataPlane, Executions

WIDTH = 64
BUCKET = "five-123456789012-eu-west-1"


@dataclass
class Account:
    """An AWS account: what is in it, what runs, and the clients that deploy to it."""

    cloud: Cloud
    running: DataPlane
    clients: Any


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    with cloud() as found:
        running = DataPlane(found, tmp_path / "unpacked")
        try:
            yield Account(
                cloud=found,
                running=running,
                clients=replace(
                    found.clients,
                    invoke=running,
                    states=Executions(found.clients.states, running),
                ),
            )
        finally:
            running.close()


def model_of(*changed: int) -> nn.Module:
    """Five layers of the same seed; of the changed ones the weights are others."""
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(5)]
    for index in changed:
        nn.init.uniform_(layers[index].weight, -0.1, 0.1)
    return nn.Sequential(*(each for layer in layers for each in (layer, nn.Tanh()))).eval()


def saved(
    directory: Path, model: nn.Module, encrypt: str | None = None, **options: Any
) -> slicewise.Bundle:
    one_layer = WIDTH * WIDTH * 4 + WIDTH * 4
    limits = slicewise.Limits(weight_bytes=int(one_layer * 1.5))
    compiled = slicewise.compile(model, (torch.ones(2, WIDTH),), limits=limits, **options)
    assert len(compiled.plan.slices) == 5
    return compiled.save(directory, encrypt=encrypt)


def spoilt(bundle: slicewise.Bundle) -> slicewise.Bundle:
    """The bundle with other weights in one slice than its model's."""
    weights = bundle.directory / "functions" / "slice2" / "model.data"
    content = np.frombuffer(weights.read_bytes(), np.uint8).copy()
    content[: WIDTH * 4] = 0
    weights.unlink()  # a link to what the compiler keeps
    weights.write_bytes(content.tobytes())
    return bundle


def test_a_bundle_is_deployed_updated_rolled_back_and_removed(
    account: Account, tmp_path: Path
) -> None:
    x = torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH)
    old, new = model_of(), model_of(1, 3)
    first = saved(tmp_path / "first", old)

    deployment = first.deploy(clients=account.clients, name="five")

    assert deployment.function == "five-coordinator:live"
    torch.testing.assert_close(deployment(x), old(x))
    parts = [f"slice{index}" for index in range(5)]
    assert account.running.served == [dict.fromkeys([*parts, "coordinator"], "1")]

    # New weights in two slices: two uploads, two versions, and the coordinator's.
    second = saved(tmp_path / "second", new)
    changed: Any = deployments.diff(first.directory, second.directory)
    assert changed.changed_packages == ("slice1", "slice3")
    account.cloud.calls.clear()
    updated: Any = second.deploy(clients=account.clients, name="five")
    torch.testing.assert_close(updated(x), new(x))
    assert account.cloud.calls.changing.count("PutObject") == 2
    assert updated.versions == {
        **dict.fromkeys(parts, "1"), "slice1": "2", "slice3": "2", "coordinator": "2"
    }  # fmt: skip
    by_name = deployments.connect("five", clients=account.clients)
    torch.testing.assert_close(by_name(x), new(x))
    account.cloud.calls.clear()
    second.deploy(clients=account.clients, name="five")
    assert account.cloud.calls.changing == []

    # A slice with the wrong weights: the smoke test finds it, and the version before serves on.
    third = spoilt(saved(tmp_path / "third", model_of(1, 2, 3)))
    before = account.cloud.serving("five")
    keys = account.cloud.keys(BUCKET)
    with pytest.raises(
        DeploymentError, match=r"differs by .* allowed 1e-04.*five-coordinator:2 serves as before"
    ):
        third.deploy(clients=account.clients, name="five")
    assert account.cloud.serving("five") == before
    assert account.cloud.keys(BUCKET) == keys
    torch.testing.assert_close(by_name(x), new(x))

    slicewise.destroy("five", clients=account.clients)

    assert not any(account.cloud.resources().values())


@pytest.mark.parametrize("orchestration", ["chain", "stepfunctions"])
def test_other_drivers_are_deployed_updated_rolled_back_and_removed(
    orchestration: str, account: Account, tmp_path: Path
) -> None:
    x = torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH)
    old, new = model_of(), model_of(1, 3)
    clients = account.clients

    first = saved(tmp_path / "first", old, orchestration=orchestration)
    deployment: Any = first.deploy(clients=clients, name="five")
    torch.testing.assert_close(deployment(x), old(x))
    machine = "arn:aws:states:eu-west-1:123456789012:stateMachine:five:live"
    assert (
        deployment.function
        == {"chain": "five-slice0:live", "stepfunctions": machine}[orchestration]
    )

    second = saved(tmp_path / "second", new, orchestration=orchestration)
    account.cloud.calls.clear()
    updated: Any = second.deploy(clients=clients, name="five")
    torch.testing.assert_close(updated(x), new(x))
    by_name: Any = deployments.connect("five", clients=clients)
    torch.testing.assert_close(by_name(x), new(x))
    account.cloud.calls.clear()
    second.deploy(clients=clients, name="five")
    assert account.cloud.calls.changing == []

    third = spoilt(saved(tmp_path / "third", model_of(1, 2, 3), orchestration=orchestration))
    entry = "slice0" if orchestration == "chain" else "coordinator"
    before = account.cloud.serving("five", entry)
    with pytest.raises(DeploymentError, match=r"differs by .* allowed 1e-04.*:2 serves as before"):
        third.deploy(clients=clients, name="five")
    assert account.cloud.serving("five", entry) == before
    torch.testing.assert_close(by_name(x), new(x))

    slicewise.destroy("five", clients=clients)
    assert not any(account.cloud.resources().values())


def test_tensors_go_by_the_directory_bucket_and_weights_come_from_the_bucket(
    account: Account, tmp_path: Path
) -> None:
    """The transport s3express and the packaging s3-weights, in one deployment."""
    x = torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH)
    model = model_of()
    bundle = saved(tmp_path / "bundle", model, transports=["s3express"], packaging="s3-weights")

    deployment: Any = bundle.deploy(clients=account.clients, name="five", zone="euw1-az1")

    torch.testing.assert_close(deployment(x), model(x))
    express = "five-123456789012--euw1-az1--x-s3"
    assert account.cloud.resources()["buckets"] == [express, BUCKET]
    assert account.cloud.keys(express) == []
    assert len([key for key in account.cloud.keys(BUCKET) if key.startswith("weights/")]) == 5
    traces = deployment.last_trace["slices"]
    assert len(traces) == 5
    slicewise.destroy("five", clients=account.clients)
    assert not any(account.cloud.resources().values())


def test_an_encrypted_bundle_is_deployed_with_its_key(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = base64.b64encode(bytes(range(32))).decode()
    monkeypatch.setenv("SLICEWISE_KEY", key)
    x = torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH)
    model = model_of()
    bundle = saved(tmp_path / "bundle", model, encrypt="env", transports=["s3"])

    monkeypatch.delenv("SLICEWISE_KEY")
    with pytest.raises(slicewise.SlicewiseError, match="export SLICEWISE_KEY="):
        bundle.deploy(clients=account.clients, name="five")
    assert not any(account.cloud.resources().values())
    monkeypatch.setenv("SLICEWISE_KEY", key)
    deployment: Any = bundle.deploy(clients=account.clients, name="five")

    torch.testing.assert_close(deployment(x), model(x))
    functions = account.cloud.client("lambda")
    live = functions.get_function_configuration(FunctionName="five-slice0", Qualifier="1")
    assert live["Environment"]["Variables"]["SLICEWISE_KEY"] == key
    slicewise.destroy("five", clients=account.clients)
    assert not any(account.cloud.resources().values())
