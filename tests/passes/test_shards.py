"""`shardings`: what the shards of a group compute, receive and hold, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shardable import Mlp, graph_of
from torch import nn

from slicewise.analyse import analyse
from slicewise.capture import capture
from slicewise.graph import OpGraph
from slicewise.passes.shards import Sharding, shardings


def whole(graph: OpGraph) -> list[str]:
    return [op.name for op in graph.ops]


def one(graph: OpGraph, degree: int, kind: str, combine: str = "concatenate") -> Sharding:
    found = [
        way
        for way in shardings(graph, whole(graph), [degree])
        if (way.kind, way.combine) == (kind, combine)
    ]
    assert len(found) == 1
    return found[0]


def image(*shape: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(*shape),)


def test_rows_of_a_convolution_have_its_halo() -> None:
    graph = graph_of(nn.Conv2d(3, 4, 5, padding=2), image(1, 3, 12, 7))
    way = one(graph, 3, "rows")
    row = 3 * 7 * 4
    # Four rows each, and two more on each side where there are any.
    assert [dict(part.received)["input"] // row for part in way.parts] == [6, 8, 6]
    assert [dict(part.sent)["conv2d"] for part in way.parts] == [4 * 4 * 7 * 4] * 3
    assert [part.work for part in way.parts] == [(("conv2d", 1 / 3),)] * 3
    assert [part.weight_bytes for part in way.parts] == [graph.weight_bytes] * 3


def test_halo_grows_through_the_layers_and_is_computed_twice() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3, padding=1)
    )
    way = one(graph_of(model, image(1, 2, 16, 8)), 2, "rows")
    # 4 rows of 8, seen through 3 of the convolution: 5, pooled from 10, convolved from 11.
    work = dict(way.parts[0].work)
    assert work == {"conv2d": 10 / 16, "relu": 10 / 16, "max_pool2d": 5 / 8, "conv2d_1": 4 / 8}
    assert dict(way.parts[0].received)["input"] == 11 * 2 * 8 * 4


def test_columns_and_odd_sizes() -> None:
    graph = graph_of(nn.Conv2d(1, 1, 3, stride=2, padding=1), image(1, 1, 5, 13))
    way = one(graph, 3, "columns")
    assert [dict(part.sent)["conv2d"] // (3 * 4) for part in way.parts] == [2, 2, 3]
    assert [dict(part.received)["input"] // (5 * 4) for part in way.parts] == [4, 5, 6]


def test_channels_hold_their_share_of_the_weights() -> None:
    graph = graph_of(nn.Conv2d(3, 8, 3), image(1, 3, 9, 9))
    way = one(graph, 4, "channels")
    assert [part.weight_bytes for part in way.parts] == [(2 * 27 + 2) * 4] * 4
    assert [dict(part.received)["input"] for part in way.parts] == [3 * 81 * 4] * 4


def test_a_depthwise_convolution_receives_its_channels_only() -> None:
    graph = graph_of(nn.Conv2d(8, 8, 3, groups=8), image(1, 8, 9, 9))
    way = one(graph, 3, "channels")
    assert [dict(part.received)["input"] // (81 * 4) for part in way.parts] == [2, 3, 3]
    assert [part.work[0][1] for part in way.parts] == [2 / 8, 3 / 8, 3 / 8]


def test_channels_inside_a_group_are_kept_whole() -> None:
    graph = graph_of(nn.Conv2d(4, 8, 1, groups=4), image(1, 4, 9, 9))
    way = one(graph, 4, "channels")
    assert [part.work[0][1] for part in way.parts] == [1 / 4] * 4


def test_two_dense_convolutions_have_no_channels_in_common() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    graph = graph_of(model, image(1, 3, 9, 9))
    found = {(way.kind, way.combine) for way in shardings(graph, whole(graph), [2])}
    # By rows; or the channels between them, of which the shards return summands.
    assert found == {("rows", "concatenate"), ("columns", "concatenate"), ("channels", "sum")}


def test_a_block_of_two_linear_layers_exchanges_once() -> None:
    graph = graph_of(Mlp(), image(3, 10))
    way = one(graph, 4, "features", "sum")
    assert sum(part.weight_bytes for part in way.parts) == graph.weight_bytes
    assert [dict(part.received) for part in way.parts] == [{"x": 3 * 10 * 4}] * 4


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.LayerNorm((4, 7, 7))),
    ],
    ids=["group norm", "instance norm", "layer norm over space"],
)
def test_what_needs_all_of_space_is_not_split_along_it(model: nn.Module) -> None:
    graph = graph_of(model, image(1, 2, 9, 9))
    kinds = {way.kind for way in shardings(graph, whole(graph), [2, 3])}
    assert not kinds & {"rows", "columns"}


def test_a_global_pool_and_a_head_end_a_group() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    graph = graph_of(model, image(1, 2, 9, 9))
    assert {way.kind for way in shardings(graph, whole(graph), [2])} <= {"channels", "features"}
    assert all(way.combine == "sum" for way in shardings(graph, whole(graph), [2]))


def test_more_shards_than_rows_are_none() -> None:
    graph = graph_of(nn.Conv2d(1, 1, 3), image(1, 1, 5, 4))
    assert {(way.kind, way.degree) for way in shardings(graph, whole(graph), [2, 3, 4])} == {
        ("rows", 2), ("rows", 3), ("columns", 2), ("tiles", 4),
    }  # fmt: skip


def test_every_result_is_shared_by_all_shards_or_none() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            large = torch.relu(x)
            return large, torch.nn.functional.max_pool2d(large, 2)

    graph = graph_of(Two(), image(1, 1, 8, 9))
    way = one(graph, 4, "rows")
    assert [tuple(size for _, size in part.sent) for part in way.parts] == [(72, 16)] * 4
    # The smaller result has four rows and four columns only.
    assert {(way.kind, way.degree) for way in shardings(graph, whole(graph), [5, 8])} == {
        ("tiles", 8)
    }


def test_memory_is_weights_and_what_is_live() -> None:
    graph = graph_of(nn.Conv2d(1, 1, 3), image(1, 1, 10, 8))
    way = one(graph, 2, "rows")
    (op,) = graph.ops
    weights = sum(weight.memory_bytes for weight in graph.weights)
    scratch = op.memory_bytes // 2
    expected = weights + scratch + (6 * 8 + 4 * 6) * 4
    assert [part.memory_bytes for part in way.parts] == [expected] * 2


def test_the_graph_with_its_arguments_round_trips() -> None:
    graph = graph_of(nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2)), image(1, 2, 9, 9))
    assert OpGraph.from_json(graph.to_json()) == graph
    arguments: dict[str, Any] = dict(graph.ops[0].arguments)
    assert arguments["input"] == "%input" and arguments["weight"] == "#0.weight"


def test_a_branch_is_an_op_that_is_not_split() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = torch.cond(
                x.sum() > 0, lambda a: a + 1, lambda a: a - 1, (torch.relu(x),)
            )
            return found

    captured = capture(Branch().eval(), image(4, 5))
    graph, _ = analyse(captured.program, name="m", aliases={}, dim_names={})
    cond = next(op for op in graph.ops if op.kind == "cond")
    assert dict(cond.arguments)["1"] == "true_graph_0"
    assert shardings(graph, whole(graph), [2]) == ()


def test_tiles_have_halos_at_their_inner_edges_only() -> None:
    graph = graph_of(
        nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 2, 3, padding=1)),
        image(1, 1, 8, 10),
    )
    way = one(graph, 4, "tiles")
    # Each of 4 x 5: of the first convolution one more row and column, of the image two.
    assert [dict(part.sent) for part in way.parts] == [{"conv2d_1": 4 * 5 * 2 * 4}] * 4
    assert [dict(part.received)["input"] for part in way.parts] == [6 * 7 * 4] * 4
    for part in way.parts:
        assert dict(part.work) == pytest.approx({"conv2d": 5 * 6 / 80, "conv2d_1": 4 * 5 / 80})


def test_tiles_share_odd_sizes_as_evenly_as_can_be() -> None:
    graph = graph_of(nn.Conv2d(1, 1, 1), image(1, 1, 7, 9))
    sizes = {
        way.degree: [size // 4 for part in way.parts for _, size in part.sent]
        for way in shardings(graph, whole(graph), [4, 6, 9])
        if way.kind == "tiles"
    }
    assert sizes == {
        4: [3 * 4, 3 * 5, 4 * 4, 4 * 5],
        6: [2 * 4, 2 * 5, 2 * 4, 2 * 5, 3 * 4, 3 * 5],
        9: [2 * 3, 2 * 3, 2 * 3, 2 * 3, 2 * 3, 2 * 3, 3 * 3, 3 * 3, 3 * 3],
    }
