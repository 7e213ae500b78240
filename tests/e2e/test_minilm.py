"""The demo's model: real trained weights, functions of 156 MB, real sentences."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import slicewise
import slicewise.passes


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "sentence_embeddings.py"
    spec = importlib.util.spec_from_file_location("sentence_embeddings", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_demo_runs_and_finds_the_right_neighbours(
    example: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    example.main()

    printed = capsys.readouterr().out
    assert "proven minimal" in printed
    assert "Nearest neighbours" in printed
    plan = slicewise.load(tmp_path / "build" / "sentence-embeddings").plan
    assert len(plan.slices) >= 3
    assert all(part.memory_mb <= 156 for part in plan.slices)


def test_the_largest_request_of_the_plan_fits_its_functions(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 sentences of 128 tokens are the plan's bounds; no function may die of memory. At other sizes
    too, the cut is proven to be the best one.
    """
    monkeypatch.chdir(tmp_path)
    model, _ = example.load()
    compiled = example.compile_model(model)
    ids = torch.randint(1000, 30_000, (8, 128))
    mask = torch.ones_like(ids)

    with compiled.save(tmp_path / "bundle").serve() as endpoint, torch.no_grad():
        found = endpoint(input_ids=ids, attention_mask=mask)
        reports = endpoint.reports

    for memory_mb in (148, 160, 170):
        limits = dataclasses.replace(compiled.plan.limits, memory_mb=memory_mb)
        overheads = compiled.target.overheads(compiled.plan.transport_rule)
        cut = slicewise.passes.partition(compiled.graph, limits, overheads=overheads)
        assert cut.certificate.status == "optimal", memory_mb

    torch.testing.assert_close(found, model(ids, mask), rtol=0, atol=1e-5)
    assert all(report.max_memory_mb <= report.memory_mb for report in reports)
