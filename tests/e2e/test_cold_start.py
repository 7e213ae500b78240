"""The first request starts all slices at once, each in one environment."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import slicewise

X, MASK = torch.zeros(2, 8), torch.ones(2, dtype=torch.int64)

# The modules of all slices wait for each other: so they must start at the same time.
RENDEZVOUS = """
import os, time
_end = time.monotonic() + 60
open(os.path.join({folder!r}, {name!r}), "w").close()
while len(os.listdir({folder!r})) < {count} and time.monotonic() < _end:
    time.sleep(0.005)
assert len(os.listdir({folder!r})) == {count}, "not all slices start at the same time"
"""
FAILS_WARM = """
_handler = handler

def handler(event, context):
    if "warm" in event:
        {action}
    return _handler(event, context)
"""


def changed(bundle: slicewise.Bundle, directory: Path, **sources: str) -> slicewise.Bundle:
    """A copy of the bundle with more source in some slices' handlers."""
    shutil.copytree(bundle.directory, directory)
    for name, source in sources.items():
        handler = directory / "functions" / name / "handler.py"
        handler.write_text(handler.read_text() + source)
    return slicewise.load(directory)


@pytest.fixture
def rendezvous(wide_bundle: slicewise.Bundle, tmp_path: Path) -> Iterator[slicewise.Bundle]:
    folder = tmp_path / "started"
    folder.mkdir()
    names = [f"slice{index}" for index in range(3)]
    sources = {
        name: RENDEZVOUS.format(folder=str(folder), name=name, count=len(names)) for name in names
    }
    yield changed(wide_bundle, tmp_path / "bundle", **sources)


def served(bundle: slicewise.Bundle, **options: Any) -> Any:
    """Its endpoint, with what only Lambda's has."""
    return bundle.serve(**options)


def slices(endpoint: Any) -> dict[str, dict[str, Any]]:
    return {part["slice"]: part for part in endpoint.last_trace["slices"]}


def test_the_first_request_starts_every_slice_at_once_and_only_once(
    rendezvous: slicewise.Bundle,
) -> None:
    with served(rendezvous, init_timeout_s=120.0) as endpoint:
        endpoint(X, MASK)
        first, reports = slices(endpoint), endpoint.reports
        assert endpoint.last_trace["cold"] is True
        endpoint(X, MASK)
        second = slices(endpoint)
        instances = {report.instance for report in endpoint.reports}

    assert all(part["cold"] for part in first.values())
    assert not any(part["cold"] for part in second.values())
    # One environment each; the slices were called twice, to start and to compute.
    assert len(instances) == len({report.function for report in reports}) == 4
    calls = Counter(report.function.rpartition("-")[2] for report in reports)
    assert calls == {"coordinator": 1, "slice0": 2, "slice1": 2, "slice2": 2}
    # By the function's own clock the start lies within the platform's (to the 10 ms of the kernel's).
    init_ms = {report.function: report.init_ms for report in reports if report.init_ms}
    for name, part in first.items():
        (seen,) = (ms for function, ms in init_ms.items() if function.endswith(name))
        parts = sum(part[key] for key in ("spawn_ms", "import_ms", "load_ms"))
        assert 0 < parts <= part["init_ms"] + 20 <= seen + 40


@pytest.mark.parametrize(
    "action", ["raise RuntimeError('not in the mood')", "import os; os.kill(os.getpid(), 9)"]
)
def test_a_warm_call_that_fails_does_not_fail_the_request(
    action: str, wide_bundle: slicewise.Bundle, wide: Any, tmp_path: Path
) -> None:
    source = FAILS_WARM.format(action=action)
    with served(changed(wide_bundle, tmp_path / "bundle", slice1=source)) as endpoint:
        found = endpoint(X, MASK)
        log = endpoint.platform.logs(endpoint.function)

    assert torch.equal(found["wide"], wide(X, MASK)["wide"])
    assert "the warm-up of slice1 failed" in log


def test_without_the_warm_up_slices_start_in_their_turn(
    wide_model: torch.nn.Module, tmp_path: Path
) -> None:
    compiled = slicewise.compile(
        wide_model,
        (X, MASK),
        limits=slicewise.Limits(weight_bytes=700_000),
        verify=False,
        warm_up=False,
    )
    assert slicewise.Plan.from_json(compiled.plan.to_json()).warm_up is False
    with compiled.save(tmp_path / "bundle").serve() as endpoint:
        endpoint(X, MASK)
        assert all(part["cold"] for part in slices(endpoint).values())
        assert all(report.init_ms for report in endpoint.reports)
        assert len(endpoint.reports) == 1 + len(compiled.plan.slices)


def test_what_no_object_store_serves_starts_without_boto3(tmp_path: Path) -> None:
    """It takes longer to import than all else together."""
    compiled = slicewise.compile(
        torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()).eval(), (X,), verify=False
    )
    bundle = changed(
        compiled.save(tmp_path / "whole"),
        tmp_path / "bundle",
        slice0="\nimport sys\nprint('IMPORTED', *(name for name in ('boto3', 'botocore', 'numpy')"
        " if name in sys.modules))\n",
        coordinator="\nimport sys\nprint('IMPORTED', *(name for name in ('numpy', 'onnxruntime')"
        " if name in sys.modules))\n",
    )
    with served(bundle) as endpoint:
        endpoint(X)
        logs = {
            report.function.rpartition("-")[2]: endpoint.platform.logs(report.function)
            for report in endpoint.reports
        }
    assert "IMPORTED numpy\n" in logs["slice0"]
    assert "IMPORTED\n" in logs["coordinator"]
