"""`modules_of`: what of a model some ops are, in few words."""

from __future__ import annotations

import pytest
import sample

from slicewise.graph import Op, OpGraph
from slicewise.modules import MOST, modules_of

GRAPH = sample.stack(6)
NAMES = [op.name for op in GRAPH.ops]


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (0, 62, ("embeddings", "encoder", "head")),
        (0, 1, ("embeddings",)),
        (1, 31, ("encoder.layer.0–2",)),
        (11, 31, ("encoder.layer.1–2",)),
        (11, 21, ("encoder.layer.1",)),
        (0, 26, ("embeddings", "encoder.layer.0–1", "encoder.layer.2.attention")),
        (16, 36, ("encoder.layer.1.mlp", "encoder.layer.2", "encoder.layer.3.attention")),
    ],
)
def test_whole_modules_are_named_and_runs_joined(
    first: int, last: int, expected: tuple[str, ...]
) -> None:
    assert modules_of(GRAPH, NAMES[first:last]) == expected


def test_what_would_be_many_words_is_told_in_parts() -> None:
    found = modules_of(GRAPH, NAMES[::2])

    assert len(found) <= MOST
    assert any(word.startswith("part of encoder") for word in found)


def test_a_graph_without_paths_has_none() -> None:
    graph = OpGraph(name="bare", ops=(Op(name="a"), Op(name="b")), tensors=())

    assert modules_of(graph, ("a",)) == ()
