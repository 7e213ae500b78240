"""Estimates: arithmetic and bytes of known shapes, and the times that follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from tiny import Analysed, analysed, tiny_model
from torch import nn
from torch.export import Dim

from slicewise.flops import BYTES_PER_MS, FLOPS_PER_MS, OP_MS, estimated, flops, moved_bytes
from slicewise.sizes import sizes_of


@pytest.fixture(scope="module")
def made() -> Analysed:
    def forward(self: Any, x: torch.Tensor, tokens: torch.Tensor) -> Any:
        image = x.unsqueeze(1)
        y = self.linear(image)
        return (
            F.scaled_dot_product_attention(y, y, y),
            self.lstm(x)[0],
            self.conv(image),
            self.embedding(tokens)[:, 1:],
        )

    torch.manual_seed(0)
    model = tiny_model(
        forward,
        linear=nn.Linear(16, 24),
        lstm=nn.LSTM(16, 8, batch_first=True, bidirectional=True),
        conv=nn.Conv2d(1, 4, 3),
        embedding=nn.Embedding(1000, 8),
    )
    inputs = (torch.randn(2, 5, 16), torch.randint(0, 1000, (2, 5)))
    batch = Dim("batch", min=1, max=64)
    return analysed(model, inputs, ({0: batch}, {0: batch}))


def find(made: Analysed, kind: str) -> str:
    (name,) = (op.name for op in made.graph.ops if op.kind.startswith(kind))
    return name


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("aten.linear", 2 * 2 * 5 * 16 * 24),
        ("aten.scaled_dot_product_attention", 2 * (2 * 2 * 5 * 5 * 24)),
        ("aten.lstm", 2 * (2 * 5) * 2 * (32 * 16 + 32 * 8)),
        ("aten.conv2d", 2 * (2 * 4 * 3 * 14) * 9),
        ("aten.embedding", 0),
        ("aten.unsqueeze", 0),
    ],
)
def test_arithmetic_at_the_examples_sizes(made: Analysed, kind: str, expected: int) -> None:
    program = made.converted.program
    at = {symbol: dim.example for symbol, dim in sizes_of(program, {}).dims.items()}
    (node,) = (node for node in program.graph.nodes if node.name == find(made, kind))

    assert flops(node, at) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("aten.linear", 4 * (2 * 5 * 16 + 2 * 5 * 24 + 16 * 24 + 24)),
        # The rows that it takes, not the table; of the tokens (8 bytes each) all.
        ("aten.embedding", 4 * 2 * (2 * 5 * 8) + 8 * 2 * 5),
        ("aten.slice", 4 * 2 * (2 * 4 * 8)),
    ],
)
def test_bytes_are_what_is_read_and_written(made: Analysed, kind: str, expected: int) -> None:
    assert moved_bytes(made.graph, made.graph.op[find(made, kind)]) == expected


def test_an_op_takes_the_longer_of_both_and_a_view_nothing(made: Analysed) -> None:
    found = estimated(made.converted.program, made.graph)
    linear = made.graph.op[find(made, "aten.linear")]
    arithmetic = 2 * 2 * 5 * 16 * 24 / FLOPS_PER_MS
    traffic = moved_bytes(made.graph, linear) / BYTES_PER_MS

    assert found[linear.name] == OP_MS + max(arithmetic, traffic)
    for op in made.graph.ops:
        assert (found[op.name] == 0) == op.is_view, op.name
