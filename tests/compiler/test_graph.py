"""`OpGraph`: how it is built and checked, and the peak of live activations."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import networkx as nx
import pytest
from hypothesis import given

from slicewise import GraphError, OpGraph
from slicewise.graph import INPUT, Op, Tensor, Weight
from tests.passes.graphs import op_graphs


def chain(*sizes: int, views: tuple[int, ...] = ()) -> OpGraph:
    """x -> a0 -> a1 -> ..., op i producing sizes[i] bytes; x has 1,000."""
    tensors = [Tensor(name="x", producer=INPUT, bytes=1000, max_bytes=1000)]
    ops = []
    for index, size in enumerate(sizes):
        before = tensors[-1].name
        tensors.append(Tensor(name=f"a{index}", producer=f"a{index}", bytes=size, max_bytes=size))
        ops.append(
            Op(
                name=f"a{index}",
                inputs=(before,),
                outputs=(f"a{index}",),
                is_view=index in views,
            )
        )
    return OpGraph(
        name="chain",
        ops=tuple(ops),
        tensors=tuple(tensors),
        inputs=("x",),
        outputs=(tensors[-1].name,),
    )


def test_from_networkx_takes_the_attributes() -> None:
    digraph = nx.DiGraph()
    digraph.add_node("a", bytes=8, weight_bytes=100, memory_bytes=5, time=1.5)
    digraph.add_node("b")
    digraph.add_edge("a", "b")

    graph = OpGraph.from_networkx(digraph, name="two")

    a, b = graph.ops
    assert (graph.name, a.name, a.time, a.memory_bytes, b.inputs) == ("two", "a", 1.5, 5, ("a",))
    assert graph.tensor["a"].bytes == graph.tensor["a"].max_bytes == 8
    assert graph.tensor["b"].bytes == 0
    assert graph.weight_bytes == graph.weight["a.weight"].memory_bytes == 100
    assert b.weights == ()
    assert graph.outputs == ("b",)
    assert graph.inputs == ()


def test_from_networkx_orders_the_ops() -> None:
    digraph = nx.DiGraph([(3, 1), (1, 2), (3, 2)])

    assert [op.name for op in OpGraph.from_networkx(digraph).ops] == ["3", "1", "2"]


def test_from_networkx_takes_an_empty_graph() -> None:
    assert OpGraph.from_networkx(nx.DiGraph()).ops == ()


def test_a_cycle_is_shown() -> None:
    with pytest.raises(GraphError, match=r"cycle: a -> b -> c.*Remove one of its edges"):
        OpGraph.from_networkx(nx.DiGraph([("a", "b"), ("b", "c"), ("c", "a")]))
    with pytest.raises(GraphError, match="cycle: a"):
        OpGraph.from_networkx(nx.DiGraph([("a", "a")]))


def test_an_undirected_graph_is_refused() -> None:
    with pytest.raises(GraphError, match="pass a DiGraph"):
        OpGraph.from_networkx(nx.Graph([("a", "b")]))


@pytest.mark.parametrize("name", ["bytes", "weight_bytes", "memory_bytes", "time"])
@pytest.mark.parametrize("value", [-1, float("nan"), "many", None])
def test_a_size_is_a_number_and_not_negative(name: str, value: Any) -> None:
    digraph = nx.DiGraph()
    digraph.add_node("a", **{name: value})

    with pytest.raises(GraphError):
        OpGraph.from_networkx(digraph)


def test_names_that_print_alike_are_refused() -> None:
    digraph = nx.DiGraph()
    digraph.add_nodes_from([1, "1"])

    with pytest.raises(GraphError, match="same name"):
        OpGraph.from_networkx(digraph)


GOOD = OpGraph(
    name="good",
    ops=(
        Op(name="a", inputs=("x",), outputs=("ta",), weights=("w",)),
        Op(name="b", inputs=("ta",), outputs=("tb",)),
    ),
    tensors=(
        Tensor(name="x", producer=INPUT, bytes=1, max_bytes=1),
        Tensor(name="ta", producer="a", bytes=1, max_bytes=1),
        Tensor(name="tb", producer="b", bytes=1, max_bytes=1),
    ),
    weights=(Weight(name="w", bytes=1, memory_bytes=1),),
    inputs=("x",),
    outputs=("tb",),
)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ops": (*GOOD.ops, GOOD.ops[0])}, "two ops"),
        ({"tensors": (*GOOD.tensors, GOOD.tensors[0])}, "two tensors"),
        ({"weights": GOOD.weights * 2}, "two weights"),
        ({"ops": GOOD.ops[::-1]}, "op 'b' reads 'ta', which no earlier op produces"),
        ({"ops": GOOD.ops[1:]}, "op 'b' reads 'ta'"),
        ({"tensors": GOOD.tensors[:2]}, "produces 'tb', which is not a tensor"),
        ({"weights": ()}, "uses the weight 'w', which does not exist"),
        ({"outputs": ("nothing",)}, "the output 'nothing' is produced by no op"),
        ({"ops": (replace(GOOD.ops[0], time=-1.0), GOOD.ops[1])}, "negative time"),
        ({"ops": (replace(GOOD.ops[0], memory_bytes=-1), GOOD.ops[1])}, "negative time"),
        (
            {"tensors": (*GOOD.tensors[:2], replace(GOOD.tensors[2], bytes=-1))},
            "'tb' has -1 bytes",
        ),
        ({"weights": (replace(GOOD.weights[0], bytes=-1),)}, "'w' has -1 bytes"),
        (
            {"tensors": (*GOOD.tensors[:2], replace(GOOD.tensors[2], producer="a"))},
            "op 'b' produces 'tb', whose producer is 'a'",
        ),
    ],
)
def test_an_impossible_graph_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(GraphError, match=text):
        replace(GOOD, **change)


@given(op_graphs())
def test_a_graph_comes_back_from_json(graph: OpGraph) -> None:
    assert OpGraph.from_json(graph.to_json()) == graph


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "3", '{"name": "x", "ops": [3]}', GOOD.to_json()[:-9]]
)
def test_a_damaged_graph_is_a_graph_error(text: str) -> None:
    with pytest.raises(GraphError, match="no graph that"):
        OpGraph.from_json(text)


def test_an_unknown_field_of_a_graph_is_a_graph_error() -> None:
    data = json.loads(GOOD.to_json())
    data["ops"][0]["colour"] = "red"

    with pytest.raises(GraphError, match="colour"):
        OpGraph.from_json(json.dumps(data))


def test_consumers_name_each_reader_once() -> None:
    twice = replace(GOOD, ops=(GOOD.ops[0], replace(GOOD.ops[1], inputs=("ta", "ta"))))

    assert twice.consumers == {"x": ("a",), "ta": ("b",), "tb": ()}


def test_shared_weights_count_once() -> None:
    both = replace(GOOD, ops=(GOOD.ops[0], replace(GOOD.ops[1], weights=("w",))))

    assert both.weight_bytes == 1
    assert both.weights_of(["a", "b"]) == ("w",)


def test_peak_of_a_chain_is_its_widest_pair_beside_the_request() -> None:
    graph = chain(10, 40, 30, 5)

    assert graph.peak_activation_bytes(graph.op) == 1000 + 40 + 30


def test_peak_of_a_part_holds_what_enters_and_leaves() -> None:
    graph = chain(10, 40, 30, 5)

    assert graph.peak_activation_bytes(["a1"]) == 10 + 40
    assert graph.peak_activation_bytes(["a1", "a2"]) == 10 + 40 + 30
    assert graph.peak_activation_bytes(["a2", "a3"]) == 40 + 30 + 5
    assert graph.peak_activation_bytes([]) == 0


def test_a_view_takes_no_memory_of_its_own() -> None:
    """a1 is a view of a0, so a0's 40 bytes live until a2 has read them."""
    graph = chain(40, 40, 7, 3, views=(1,))

    assert graph.peak_activation_bytes(graph.op) == 1000 + 40 + 7
    assert graph.peak_activation_bytes(["a1", "a2", "a3"]) == 40 + 7 + 3
    assert graph.peak_activation_bytes(["a1"]) == 40


def test_a_view_that_leaves_keeps_its_source_alive() -> None:
    graph = replace(chain(40, 40, 7, 3, views=(1,)), outputs=("a1", "a3"))

    assert graph.peak_activation_bytes(graph.op) == 1000 + 40 + 7 + 3


def test_scratch_memory_counts_only_while_its_op_runs() -> None:
    graph = chain(10, 10, 10)
    busy = replace(graph, ops=(replace(graph.ops[0], memory_bytes=15), *graph.ops[1:]))

    assert busy.peak_activation_bytes(busy.op) == 1000 + 10 + 15


def test_peak_counts_dynamic_dimensions_at_their_bound() -> None:
    graph = chain(10)
    large = replace(graph, tensors=(graph.tensors[0], replace(graph.tensors[1], max_bytes=500)))

    assert large.peak_activation_bytes(large.op) == 1500


def diamond() -> OpGraph:
    digraph = nx.DiGraph([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    for node, size in {"a": 100, "b": 20, "c": 50, "d": 1}.items():
        digraph.nodes[node]["bytes"] = size
    return OpGraph.from_networkx(digraph)


def test_peak_of_a_diamond_holds_both_branches() -> None:
    graph = diamond()

    assert graph.peak_activation_bytes(graph.op) == 100 + 20 + 50
    assert graph.peak_activation_bytes(["b", "c"]) == 100 + 20 + 50
    assert graph.peak_activation_bytes(["c", "d"]) == 100 + 20 + 50 + 1
    assert graph.peak_activation_bytes(["a", "b"]) == 100 + 20


def test_a_tensor_that_nobody_reads_lives_while_its_op_runs() -> None:
    graph = OpGraph(
        name="two outputs",
        ops=(
            Op(name="a", outputs=("kept", "unread")),
            Op(name="b", inputs=("kept",), outputs=("y",)),
        ),
        tensors=(
            Tensor(name="kept", producer="a", bytes=5, max_bytes=5),
            Tensor(name="unread", producer="a", bytes=70, max_bytes=70),
            Tensor(name="y", producer="b", bytes=3, max_bytes=3),
        ),
        outputs=("y",),
    )

    assert graph.peak_activation_bytes(graph.op) == 75
