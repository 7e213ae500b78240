"""Plans without torch: a stack of layers like a transformer's, cut, placed and predicted for real."""

from __future__ import annotations

from dataclasses import replace

from slicewise import targets
from slicewise.graph import INPUT, Op, OpGraph, Tensor, Weight
from slicewise.inspection.detail import Detail
from slicewise.limits import Limits
from slicewise.passes import partition
from slicewise.passes.place import Settings, place
from slicewise.plan import Dim, ModelInfo, Plan, TensorSpec
from slicewise.predict import predict

KINDS = ("layer_norm", "query", "key", "softmax", "value", "dense", "add", "gelu", "output", "sum")
WITH_WEIGHTS = {"query", "key", "value", "dense", "output"}
SHAPE: tuple[int | str, ...] = ("batch", 16, 64)


def stack(layers: int, ops_per_layer: int = len(KINDS), tensor_bytes: int = 8192) -> OpGraph:
    """An embedding, `layers` layers with a skip over each, and a head; every op has a time."""
    ops, tensors, weights = [], [], []

    def add(name: str, kind: str, module: str, inputs: tuple[str, ...], weight_bytes: int) -> str:
        if weight_bytes:
            weight = f"{module}.weight"
            weights.append(
                Weight(name=weight, bytes=weight_bytes, memory_bytes=weight_bytes, dtype="float32")
            )
        ops.append(
            Op(
                name=name,
                kind=f"aten.{kind}",
                inputs=inputs,
                outputs=(name,),
                weights=(f"{module}.weight",) if weight_bytes else (),
                time=0.2 + weight_bytes / 1e5,
                module=module,
                source="model.py:7 (forward)",
            )
        )
        tensors.append(
            Tensor(
                name=name,
                producer=name,
                bytes=tensor_bytes,
                max_bytes=4 * tensor_bytes,
                dtype="float32",
                shape=SHAPE,
            )
        )
        return name

    tensors.append(
        Tensor(
            name="tokens",
            producer=INPUT,
            bytes=128,
            max_bytes=512,
            dtype="int64",
            shape=("batch", 16),
        )
    )
    last = add("embedding", "embedding", "embeddings.word", ("tokens",), 60_000)
    for layer in range(layers):
        skip = last
        for index in range(ops_per_layer):
            kind = KINDS[index % len(KINDS)]
            part = "attention" if index % len(KINDS) < 5 else "mlp"
            inputs = (last, skip) if index == ops_per_layer - 1 else (last,)
            last = add(
                f"{kind}_{layer}_{index}",
                kind,
                f"encoder.layer.{layer}.{part}.{kind}_{index}",
                inputs,
                20_000 if kind in WITH_WEIGHTS else 0,
            )
    last = add("logits", "linear", "head", (last,), 30_000)
    return OpGraph(
        name="Stack",
        ops=tuple(ops),
        tensors=tuple(tensors),
        weights=tuple(weights),
        inputs=("tokens",),
        outputs=(last,),
    )


def planned(
    graph: OpGraph, limits: Limits, transports: tuple[str, ...] = ("payload", "s3")
) -> tuple[Plan, Detail]:
    """The plan of a graph for Lambda, as `slicewise.compile` makes it; equal in every run."""
    target = targets.load("lambda")
    full = target.resolve_limits(limits)
    rule = target.transport_rule(full, transports)
    model = target.cost_model(full)
    found = partition(graph, full, overheads=target.overheads(rule))
    memory_mb = {p.name: target.memory_mb(limits, full, p.memory_bytes) for p in found.slices}
    packed = {p.name: target.pack(p.weight_bytes, ("zip",), limits, full) for p in found.slices}
    settings = Settings(memory_mb=memory_mb, model=model)
    slices, edges = place(graph, found, target, settings, packed, rule=rule)
    times = {op.name: op.time for op in graph.ops}
    plan = Plan(
        model=ModelInfo(name=graph.name, parameters=1000, weight_bytes=graph.weight_bytes),
        target="lambda",
        objective="bytes",
        limits=full,
        slices=slices,
        edges=edges,
        certificate=replace(found.certificate, seconds=0.1),
        transport_rule=rule,
        inputs=(TensorSpec(name="tokens", tensor="tokens", dtype="int64", shape=("batch", 16)),),
        outputs=(TensorSpec(name="logits", tensor="logits", dtype="float32", shape=SHAPE),),
        dims=(Dim(name="batch", min=1, max=8, example=2),),
        input_structure={},
        output_structure={},
        prediction=predict(slices, edges, model, times, parallel=0.9, source="op times estimated"),
        coordinator_memory_mb=model.caller_memory_mb,
    )
    return plan, Detail(graph=graph, parallel=0.9)


def small() -> tuple[Plan, Detail]:
    """Four layers in three slices."""
    return planned(stack(4), Limits(weight_bytes=200_000))


def grouped(plan: Plan) -> Plan:
    """The same plan whose first two slices say that they are shards."""
    told = {"group": 0, "of": 2, "kind": "rows", "gain_ms": 12.5, "extra_bytes": 4096,
            "redundant_compute": 0.07}  # fmt: skip
    slices = tuple(
        replace(part, shard={**told, "index": index} if index < 2 else None)
        for index, part in enumerate(plan.slices)
    )
    return replace(plan, slices=slices)
