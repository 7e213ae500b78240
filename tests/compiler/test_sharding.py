"""`apply_shardings`: shards compute what the model computes, in torch and in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from shardable import (
    Core,
    Inception,
    Mlp,
    MobileBlock,
    Residual,
    close,
    core_of,
    run,
    run_onnx,
    sharded,
    vgg,
)
from torch import nn

from slicewise.analyse import analyse, weight_tensors
from slicewise.codegen.convert import convert
from slicewise.passes.shards import sharding, shardings
from slicewise.passes.shards.along import Along
from slicewise.sharding import apply_shardings


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def ops(core: Core) -> list[str]:
    return [op.name for op in core.graph.ops]


def span(core: Core, first: str, last: str) -> list[str]:
    names = ops(core)
    return names[names.index(first) : names.index(last) + 1]


IMAGES = {
    "vgg": (lambda: vgg(), (1, 3, 34, 27)),
    "vgg, odd and even": (lambda: vgg(), (2, 3, 27, 34)),
    "residual": (lambda: Residual(), (1, 3, 67, 70)),
    "residual, even and odd": (lambda: Residual(), (2, 3, 70, 67)),
    "inception": (lambda: Inception(), (2, 4, 19, 18)),
    "inception, even and odd": (lambda: Inception(), (1, 4, 18, 19)),
    "mobile": (lambda: MobileBlock(), (1, 8, 17, 22)),
    "unet": (lambda: zoo.unet().model, (1, 3, 32, 64)),
}


@pytest.fixture(scope="module", params=IMAGES)
def images(request: pytest.FixtureRequest) -> tuple[Core, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    build, shape = IMAGES[request.param]
    inputs = (torch.randn(*shape),)
    return core_of(build(), inputs), inputs


@pytest.mark.parametrize("degree", [2, 3, 4, 8])
def test_rows_and_columns_of_whole_networks(
    images: tuple[Core, tuple[torch.Tensor, ...]], degree: int
) -> None:
    core, inputs = images
    wanted = run(core.converted.program, inputs)
    found = shardings(core.graph, ops(core), [degree])
    assert found or degree == 8
    for way in found:
        close(run(sharded(core, [way]), inputs), wanted)


@pytest.mark.parametrize("degree", [2, 3])
def test_rows_in_onnx_runtime(
    images: tuple[Core, tuple[torch.Tensor, ...]], degree: int, tmp_path: Any
) -> None:
    core, inputs = images
    (way,) = [w for w in shardings(core.graph, ops(core), [degree]) if w.kind == "rows"]
    close(run_onnx(sharded(core, [way]), inputs, tmp_path), run(core.converted.program, inputs))


@pytest.mark.parametrize("outer", [1, 2, 3])
def test_parts_at_the_ends_may_be_larger(outer: int) -> None:
    inputs = (torch.randn(1, 3, 67, 20),)
    core = core_of(vgg(), inputs)
    way = sharding(core.graph, ops(core), Along(dim=2, outer=outer), 3)
    assert way is not None
    rows = [dict(part.sent)[ops(core)[-1]] // (12 * 5 * 4) for part in way.parts]
    assert rows == {1: [6, 5, 6], 2: [6, 4, 7], 3: [6, 4, 7]}[outer]
    close(run(sharded(core, [way]), inputs), run(core.converted.program, inputs))


def test_consecutive_groups_exchange_only_what_overlaps() -> None:
    inputs = (torch.randn(1, 3, 40, 12),)
    core = core_of(vgg(), inputs)
    names = ops(core)
    chosen = [
        next(way for way in shardings(core.graph, group, [degree]) if way.kind == "rows")
        for group, degree in ((names[:5], 2), (names[5:], 3))
    ]
    program = sharded(core, chosen)
    close(run(program, inputs), run(core.converted.program, inputs))
    graph, _ = analyse(program, name="m", aliases={}, dim_names={})
    _, told = apply_shardings(core.converted.program, chosen, aliases=core.converted.aliases)
    owner = {name: (one.sharding, one.shard) for one in told for name in one.ops}
    received = {(1, shard): 0 for shard in range(3)}
    for tensor in graph.tensors:
        for reader in {owner.get(c) for c in graph.consumers[tensor.name]}:
            maker = owner.get(tensor.producer)
            if reader in received and maker is not None and maker[0] == 0:
                received[reader] += tensor.bytes
    assert list(received.values()) == [dict(part.received)[names[4]] for part in chosen[1].parts]
    # No op puts the whole result of the first group together.
    assert not told[0].combines


def test_shards_share_the_models_weights() -> None:
    core = core_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (torch.randn(1, 3, 9, 9),))
    way = next(w for w in shardings(core.graph, ops(core), [4]) if w.kind == "channels")
    found = weight_tensors(sharded(core, [way]))
    whole = {t.untyped_storage().data_ptr() for _, _, t in weight_tensors(core.converted.program)}
    assert len(found) == 8
    assert {tensor.untyped_storage().data_ptr() for _, _, tensor in found} == whole


CASES = {
    "dense, depthwise and grouped": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 12, 1, groups=4)
        ),
        (1, 3, 9, 11),
        [("channels", "concatenate", 2), ("channels", "concatenate", 3)],
    ),
    "channels summed": (
        lambda: nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, 4, 3)),
        (1, 3, 9, 11),
        [("channels", "sum", 4)],
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), nn.ConvTranspose2d(6, 3, 2, 3)),
        (1, 4, 7, 6),
        [("rows", "concatenate", 5), ("channels", "sum", 3)],
    ),
    "upsampled": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 3),
                              nn.Upsample(scale_factor=3, mode="bilinear")),
        (1, 2, 9, 8),
        [("rows", "concatenate", 4), ("columns", "concatenate", 3)],
    ),
    "padding to the same size": (
        lambda: nn.Conv2d(2, 4, 3, padding="same", dilation=2),
        (1, 2, 11, 9),
        [("rows", "concatenate", 3), ("columns", "concatenate", 2)],
    ),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 5, padding=4, dilation=2), nn.AvgPool1d(3, 2, 1)),
        (2, 2, 23),
        [("columns", "concatenate", 4)],
    ),
    "three dimensions": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.MaxPool3d(2)),
        (1, 2, 9, 8, 7),
        [("planes", "concatenate", 2), ("rows", "concatenate", 2), ("columns", "concatenate", 3)],
    ),
    "mlp": (
        lambda: Mlp(10, 23),
        (3, 10),
        [("features", "sum", d) for d in (2, 3, 4, 8)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_small_networks_in_torch_and_onnx_runtime(case: str, tmp_path: Any) -> None:
    build, shape, expected = CASES[case]
    inputs = (torch.randn(*shape),)
    core = core_of(build(), inputs)
    wanted = run(core.converted.program, inputs)
    for kind, combine, degree in expected:
        found = shardings(core.graph, ops(core), [degree])
        (way,) = [way for way in found if (way.kind, way.combine) == (kind, combine)]
        program = sharded(core, [way])
        close(run(program, inputs), wanted)
    close(run_onnx(program, inputs, tmp_path), wanted)


@pytest.fixture(scope="module")
def gpt2() -> tuple[Core, Any]:
    case = zoo.gpt2()
    return core_of(case.model, case.inputs), case.inputs


@pytest.mark.parametrize("degree", [2, 3, 4])  # it has four heads
def test_gpt2_by_heads_features_and_vocabulary(
    gpt2: tuple[Core, Any], degree: int, tmp_path: Any
) -> None:
    core, inputs = gpt2
    groups = [("embedding", "embedding", "vocabulary"), ("layer_norm", "view_9", "heads"),
              ("layer_norm_1", "view_13", "features"), ("layer_norm_2", "view_22", "heads"),
              ("linear", "linear", "features")]  # fmt: skip
    chosen = [
        next(
            way
            for way in shardings(core.graph, span(core, first, last), [degree])
            if way.kind == kind
        )
        for first, last, kind in groups
    ]
    heads = chosen[1]
    assert heads.combine == "sum"
    # Every shard has whole heads, and computes no more than them.
    work = [dict(part.work)["scaled_dot_product_attention"] for part in heads.parts]
    assert sum(work) == pytest.approx(1)
    program = sharded(core, chosen)
    wanted = run(core.converted.program, inputs)
    close(run(program, inputs), wanted)
    if degree != 2:
        close(run_onnx(program, inputs, tmp_path), wanted)


def test_names_survive_the_second_conversion(gpt2: tuple[Core, Any]) -> None:
    core, _ = gpt2
    way = next(
        way
        for way in shardings(core.graph, span(core, "layer_norm", "view_9"), [2])
        if way.kind == "heads"
    )
    program, told = apply_shardings(core.converted.program, [way], aliases=core.converted.aliases)
    again = convert(program, keep_names=True)
    graph, _ = analyse(again.program, name="m", aliases=again.aliases, dim_names={})
    for one in told:
        assert {*one.ops, *one.cuts, *one.combines} <= {*graph.op, *again.aliases}


@pytest.mark.parametrize("degree", [2, 3, 4, 8])
def test_bert_by_heads_and_features(degree: int, tmp_path: Any) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=99, hidden_size=48, num_hidden_layers=1, num_attention_heads=8,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.randint(0, 99, (2, 11)),
        "attention_mask": torch.tensor([[1] * 11, [1] * 7 + [0] * 4]),
    }
    core = core_of(BertModel(config, add_pooling_layer=False).eval(), inputs)
    linears = [op.name for op in core.graph.ops if op.kind == "aten.linear"]
    query, _, _, out, up, down = linears
    chosen = []
    for group, kind in ((span(core, query, out), "heads"), (span(core, up, down), "features")):
        found = shardings(core.graph, group, [degree])
        chosen.append(next(w for w in found if (w.kind, w.combine) == (kind, "sum")))
    weights = [sum(part.weight_bytes for part in way.parts) for way in chosen]
    assert sum(weights) == sum(
        core.graph.weight[name].bytes for name in core.graph.weights_of(linears)
    )
    program, wanted = sharded(core, chosen), run(core.converted.program, inputs)
    close(run(program, inputs), wanted)
    if degree in (3, 4):
        close(run_onnx(program, inputs, tmp_path), wanted)


class Recurrent(nn.Module):
    """Both directions, then one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.second = nn.GRU(10, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.second(self.first(x)[0])[0]
        return found


@pytest.fixture(scope="module")
def recurrent() -> tuple[Core, Any]:
    torch.manual_seed(0)
    inputs = (torch.randn(9, 7, 6),)
    return core_of(Recurrent(), inputs), inputs


@pytest.mark.parametrize("degree", [2, 3, 4, 8])
def test_recurrent_layers_by_batch_entries(
    recurrent: tuple[Core, Any], degree: int, tmp_path: Any
) -> None:
    core, inputs = recurrent
    ways = shardings(core.graph, ops(core), [degree])
    assert [(way.kind, way.combine) for way in ways] == [("batch", "concatenate")]
    program, wanted = sharded(core, ways), run(core.converted.program, inputs)
    close(run(program, inputs), wanted)
    if degree in (2, 4):
        close(run_onnx(program, inputs, tmp_path), wanted)


def test_a_dynamic_batch_stays_dynamic(tmp_path: Any) -> None:
    batch = torch.export.Dim("batch", min=1, max=9)
    case = zoo.vit()
    core = core_of(case.model, case.inputs, dynamic_shapes={"pixel_values": {0: batch}})
    attention = next(op for op in core.graph.ops if "attention" in op.kind)
    linears = [op.name for op in core.graph.ops if op.kind == "aten.linear"]
    place = ops(core).index(attention.name)
    before = [name for name in linears if ops(core).index(name) < place]
    after = [name for name in linears if ops(core).index(name) > place]
    group = span(core, before[-3], after[0])
    way = next(w for w in shardings(core.graph, group, [2]) if w.kind == "heads")
    program = sharded(core, [way])
    inputs = {"pixel_values": torch.randn(5, 3, 32, 32)}
    wanted = run(core.converted.program, inputs)
    close(run(program, inputs), wanted)
    close(run_onnx(program, inputs, tmp_path), wanted)


class Stack(nn.Module):
    """Recurrent layers with a sum around each, embedding and head."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], layers: int, batch_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12)
        self.layers = nn.ModuleList(
            kind(12, 12, num_layers=1 + index % 2, batch_first=batch_first)
            for index in range(layers)
        )
        self.head = nn.Linear(12, 7)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + layer(x)[0]
        found: torch.Tensor = self.head(x)
        return found


@pytest.fixture(scope="module")
def stacks() -> dict[tuple[str, bool], tuple[Core, Any]]:
    torch.manual_seed(0)
    return {
        (kind.__name__, batch_first): stacked(kind, batch_first)
        for kind in (nn.LSTM, nn.GRU)
        for batch_first in (True, False)
    }


def stacked(kind: type[nn.LSTM | nn.GRU], batch_first: bool) -> tuple[Core, Any]:
    inputs = (torch.randint(0, 50, (2, 13) if batch_first else (13, 2)),)
    return core_of(Stack(kind, 3, batch_first), inputs), inputs


@pytest.mark.parametrize(
    ("degree", "batch_first"), [(2, True), (3, True), (3, False), (4, True), (8, True)]
)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_layers_by_chunks_of_time(
    stacks: dict[tuple[str, bool], tuple[Core, Any]],
    kind: str,
    degree: int,
    batch_first: bool,
    tmp_path: Any,
) -> None:
    core, inputs = stacks[kind, batch_first]
    names = ops(core)
    middle = (
        names.index(next(op.name for op in core.graph.ops if op.kind.startswith("aten.add"))) + 1
    )
    chosen = []
    for group in (names[:middle], names[middle:]):
        found = [w for w in shardings(core.graph, group, [degree]) if w.kind == "time"]
        assert len(found) == 1
        assert [part.work[-1][1] for part in found[0].parts] == pytest.approx(
            [1 / degree] * degree, abs=0.1
        )
        chosen += found
    program, told = apply_shardings(core.converted.program, chosen, aliases=core.converted.aliases)
    wanted = run(core.converted.program, inputs)
    close(run(program, inputs), wanted)
    # Each chunk waits for the state of the one before, and for its own of the layers before: no other.
    graph, _ = analyse(program, name="m", aliases={}, dim_names={})
    owner = {name: (one.sharding, one.shard) for one in told for name in one.ops}
    makers: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for op in graph.ops:
        if op.name in owner:
            here = makers.setdefault(owner[op.name], set())
            before = [graph.tensor[name].producer for name in op.inputs]
            here |= {owner[name] for name in before if name in owner} - {owner[op.name]}
    assert makers[0, 0] == set() and makers[0, 1] == {(0, 0)}
    assert makers[1, 0] == {(0, 0)} and makers[1, 1] == {(0, 1), (1, 0)}
    if degree == 3:
        close(run_onnx(program, inputs, tmp_path), wanted)
