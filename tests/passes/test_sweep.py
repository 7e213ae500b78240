"""`sweep` against `shardings`, which looks at one run of ops after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shardable import Mlp, MobileBlock, Residual, graph_of, vgg
from torch import nn

from slicewise.passes.shards import sharding, shardings, sweep
from slicewise.passes.shards.boxes import WHOLE, bytes_of, pieces
from slicewise.passes.shards.parts import Part
from tests.passes.test_groups import timed

MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "vgg": (vgg(), (1, 3, 34, 27)),
    "residual": (Residual(), (1, 3, 67, 30)),
    "mobile": (MobileBlock(), (2, 8, 17, 22)),
    "mlp": (nn.Sequential(Mlp(), Mlp()), (3, 10)),
    "lstm": (nn.Sequential(nn.Linear(6, 5), nn.LSTM(5, 5, batch_first=True)), (2, 9, 6)),
}


def graph(name: str) -> Any:
    model, shape = MODELS[name]
    if name == "lstm":
        model = _First(model)
    return timed(graph_of(model, (torch.randn(*shape),)), 7.0)


class _First(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(x)[0]
        return found


@pytest.mark.parametrize("name", MODELS)
def test_every_run_is_split_as_if_it_were_the_only_one(name: str) -> None:
    found = graph(name)
    names = [op.name for op in found.ops]
    ways = sweep(found, list(found.ops), list(range(len(names))), [2, 3])
    for way in ways:
        exact = sharding(found, names[way.start :], way.along, way.degree)
        assert exact is not None
        assert way.is_by_time == (exact.kind == "time")
        for part, work, received, sent in zip(
            exact.parts, way.work_ms, way.received, way.sent, strict=True
        ):
            assert work == pytest.approx(sum(found.op[n].time * share for n, share in part.work))
            assert dict(part.received) == {
                tensor: bytes_of(found.tensor[tensor], parts) for tensor, parts in received.items()
            }
            assert dict(part.sent).keys() == sent.keys()
    told = {(way.start, way.along.key, way.degree): way for way in ways}
    missed = []
    for start in range(len(names)):
        for other in shardings(found, names[start:], [2, 3]):
            key = (start, other.along.key, other.degree)
            least = max(
                sum(found.op[n].time * share for n, share in part.work) for part in other.parts
            )
            if key not in told or max(told[key].work_ms) > least + 1e-9:
                missed.append((names[start], other.kind, other.degree))
    assert not missed


def test_shards_send_each_other_what_overlaps() -> None:
    rows = [(Part(2, 0, 4),), (Part(2, 4, 7),), (Part(2, 7, 11),)]
    assert pieces(rows, [(Part(2, 3, 8),)]) == [
        (0, (Part(2, 3, 4),)), (1, (Part(2, 4, 7),)), (2, (Part(2, 7, 8),)),
    ]  # fmt: skip
    assert pieces(rows, [WHOLE]) == list(enumerate(rows))
    columns = (Part(3, 1, 5),)
    assert pieces(rows, [columns]) == [(maker, own + columns) for maker, own in enumerate(rows)]
    tiles = [(a, b) for a in (Part(2, 0, 4), Part(2, 4, 7)) for b in (Part(3, 0, 2), Part(3, 2, 6))]
    assert pieces(tiles, [(Part(2, 3, 7), Part(3, 1, 2))]) == [
        (0, (Part(2, 3, 4), Part(3, 1, 2))), (2, (Part(2, 4, 7), Part(3, 1, 2))),
    ]  # fmt: skip
