"""A bundle of five slices on AWS: moto has the account, the local platform runs the uploaded zips."""

from __future__ import annotations

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
from data_plane import DataPlane

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
                cloud=found, running=running, clients=replace(found.clients, invoke=running)
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


def saved(directory: Path, model: nn.Module) -> slicewise.Bundle:
    one_layer = WIDTH * WIDTH * 4 + WIDTH * 4
    compiled = slicewise.compile(
        model, (torch.ones(2, WIDTH),), limits=slicewise.Limits(weight_bytes=int(one_layer * 1.5))
    )
    assert len(compiled.plan.slices) == 5
    return compiled.save(directory)


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
    third = saved(tmp_path / "third", model_of(1, 2, 3))
    weights = third.directory / "functions" / "slice2" / "model.data"
    spoilt = np.frombuffer(weights.read_bytes(), np.uint8).copy()
    spoilt[: WIDTH * 4] = 0
    weights.unlink()  # a link to what the compiler keeps
    weights.write_bytes(spoilt.tobytes())
    before = account.cloud.serving("five")
    keys = account.cloud.keys(BUCKET)
    with pytest.raises(DeploymentError, match=r"differs by .* allowed 1e-04.*Version 2 .* before"):
        third.deploy(clients=account.clients, name="five")
    assert account.cloud.serving("five") == before
    assert account.cloud.keys(BUCKET) == keys
    torch.testing.assert_close(by_name(x), new(x))

    slicewise.destroy("five", clients=account.clients)

    assert not any(account.cloud.resources().values())
