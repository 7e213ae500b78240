"""Bundles that deploy but do not run: made in milliseconds, with the content that a test wants."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import slicewise
from slicewise.limits import Limits
from slicewise.plan import (
    Certificate,
    Edge,
    ModelInfo,
    Plan,
    Prediction,
    Slice,
    TensorSpec,
    TransportRule,
)
from slicewise.smoke import Smoke, write_smoke

states_module = importlib.import_module("slicewise.targets.lambda.states")
bundle_module = importlib.import_module("slicewise.targets.lambda.bundle")
INPUT, OUTPUT = "@input", "@output"


def write_bundle(
    directory: Path,
    weights: Mapping[str, bytes],
    *,
    packaging: str = "zip",
    memory_mb: int = 512,
    transports: tuple[str, ...] = ("payload", "s3"),
    coordinator: str = "handler = None\n",
    orchestration: str = "coordinator",
) -> slicewise.Bundle:
    """A bundle of slices with these weights, by name, each of which reads from the one before."""
    names = list(weights)
    tensors = ["x", *(f"t{index + 1}" for index in range(len(names)))]
    slices = tuple(
        Slice(
            name=name,
            stage=stage,
            ops=(f"op{stage}",),
            weight_bytes=len(weights[name]),
            peak_memory_bytes=0,
            memory_mb=memory_mb,
            package_bytes=0,
            inputs=(tensors[stage],),
            outputs=(tensors[stage + 1],),
            onnx=f"functions/{name}/model.onnx",
            packaging=packaging,
        )
        for stage, name in enumerate(names)
    )
    ends = [INPUT, *names, OUTPUT]
    edges = tuple(
        Edge(
            tensor=tensors[index],
            dtype="float32",
            shape=(1,),
            bytes=4,
            producer=ends[index],
            consumer=ends[index + 1],
            transport="payload",
            reason="",
            choices=(("payload", None),),
        )
        for index in range(len(ends) - 1)
    )
    plan = Plan(
        model=ModelInfo(name="Chain", parameters=1, weight_bytes=4),
        target="lambda",
        objective="bytes",
        limits=Limits(),
        slices=slices,
        edges=edges,
        certificate=Certificate(
            status="optimal", lower_bound=0, gap=0.0, method="by hand", seconds=0.0
        ),
        transport_rule=TransportRule(transports=transports, payload_bytes=1 << 20),
        inputs=(TensorSpec(name="x", tensor="x", dtype="float32", shape=(1,)),),
        outputs=(TensorSpec(name="y", tensor=tensors[-1], dtype="float32", shape=(1,)),),
        prediction=Prediction(latency_ms=10.0, cost_per_million_usd=4.0),
        orchestration=orchestration,
    )
    for name, content in weights.items():
        folder = directory / "functions" / name
        folder.mkdir(parents=True)
        (folder / "handler.py").write_text(f"# {name}\n")
        (folder / "model.data").write_bytes(content)
        if packaging == "s3-weights":
            bundle_module._write_streamed(folder / "model.data", folder, directory)
            (folder / "model.data").unlink()
    parts = names if orchestration == "chain" else [*names, "coordinator"]
    if "coordinator" in parts:
        folder = directory / "functions" / "coordinator"
        folder.mkdir(parents=True)
        (folder / "handler.py").write_text(coordinator)
    if orchestration == "stepfunctions":
        text = states_module.definition_text(plan, "".join(names), 60)
        (directory / states_module.DEFINITION).write_text(text)
    entries = [
        {
            "name": f"chain-{name}",
            "package": f"functions/{name}",
            "handler": "handler.handler",
            "memory_mb": memory_mb,
            "timeout_s": 60,
            "packaging": "zip" if (name, packaging) == ("coordinator", "s3-weights") else packaging,
        }
        for name in parts
    ]
    entry = names[0] if orchestration == "chain" else "coordinator"
    functions = {"stack": "chain", "entry": f"chain-{entry}", "functions": entries}
    (directory / "functions.json").write_text(json.dumps(functions))
    (directory / "plan.json").write_text(plan.to_json())
    profile = importlib.import_module("slicewise.targets.lambda.profile").default_profile()
    (directory / "profile.json").write_text(profile.model_dump_json(by_alias=True))
    one = np.ones(1, np.float32)
    write_smoke(directory, Smoke(inputs={"x": one}, outputs={"y": one}, tolerance={"y": 1e-4}))
    return slicewise.load(directory)
