"""A slice that fails names itself, the request and the cause; the next request works."""

from __future__ import annotations

import importlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import slicewise


def broken(
    bundle: slicewise.Bundle, directory: Path, source: str, function: str = "slice1"
) -> slicewise.Bundle:
    """A copy of the bundle one of whose functions runs `source` around its real handler."""
    shutil.copytree(bundle.directory, directory)
    handler = directory / "functions" / function / "handler.py"
    handler.write_text(handler.read_text() + source)
    return slicewise.load(directory)


ONCE = """
_handler = handler
_calls = 0

def handler(event, context):
    global _calls
    _calls += "warm" not in event  # not the call that only starts it
    if _calls == 1:
        {action}
    return _handler(event, context)
"""


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("raise RuntimeError('the disk is on fire')", "the disk is on fire"),
        ("import os; os.kill(os.getpid(), 9)", "slice1"),
        ("import sys; sys.exit(3)", "slice1"),
    ],
)
def test_a_failing_slice_is_named_and_the_next_request_works(
    wide_bundle: slicewise.Bundle, tmp_path: Path, action: str, words: str
) -> None:
    bundle = broken(wide_bundle, tmp_path / "bundle", ONCE.format(action=action))
    x, mask = torch.zeros(2, 8), torch.ones(2, dtype=torch.int64)
    with bundle.serve() as endpoint:
        with pytest.raises(slicewise.SliceFailure, match=words) as failure:
            endpoint(x, mask)
        assert failure.value.slice == "slice1"
        assert failure.value.request_id
        assert failure.value.request_id in str(failure.value)
        if "kill" not in action and "exit" not in action:
            assert endpoint(x, mask)["narrow"].shape == (2, 8)


@pytest.mark.parametrize("function", ["slice1", "coordinator"])
def test_a_request_ends_at_its_deadline_whatever_hangs(
    function: str, wide_bundle: slicewise.Bundle, tmp_path: Path
) -> None:
    """The first request of an environment hangs; the next one gets the answer of another."""
    source = ONCE.format(action="import time; time.sleep(300)")
    bundle = broken(wide_bundle, tmp_path / "bundle", source, function)
    x, mask = torch.zeros(2, 8), torch.ones(2, dtype=torch.int64)
    served: Any = bundle.serve()
    with served as endpoint:
        endpoint.platform.warm(endpoint.function)  # else the client's time is over before its own
        endpoint.client.deadline_s = 10.0  # less than the function's own time
        with pytest.raises(slicewise.SliceFailure) as failure:
            endpoint(x, mask)
        assert failure.value.kind == "DeadlineExceeded"
        assert str(failure.value.request_id) in str(failure.value)
        assert failure.value.slice == (function if function == "slice1" else None)


@pytest.mark.parametrize("slice_is_reached", [True, False])
def test_a_failed_request_leaves_no_objects(
    slice_is_reached: bool, wide_model: torch.nn.Module, tmp_path: Path
) -> None:
    """Neither those of the slices before, nor those that the failing one has put and never told of."""
    x, mask = torch.zeros(2, 8), torch.ones(2, dtype=torch.int64)
    compiled = slicewise.compile(
        wide_model,
        (x, mask),
        limits=slicewise.Limits(weight_bytes=700_000),
        transports=["s3"],
        verify=False,
    )
    action = "_handler(event, context)\n        " if slice_is_reached else ""
    source = ONCE.format(action=action + "raise RuntimeError('out of luck')")
    bundle = broken(compiled.save(tmp_path / "whole"), tmp_path / "bundle", source)
    endpoint: Any = bundle.serve()
    with endpoint:
        s3, (name,) = endpoint.platform.client("s3"), endpoint.buckets.values()
        with pytest.raises(slicewise.SliceFailure, match="out of luck"):
            endpoint(x, mask)
        assert "Contents" not in s3.list_objects_v2(Bucket=name)
        assert endpoint(x, mask)["narrow"].shape == (2, 8)


@pytest.mark.parametrize("action", ["lambda:InvokeFunction", "s3:GetObject"])
def test_a_missing_permission_is_named(
    action: str, wide_bundle: slicewise.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 80 rows the tensor between the slices goes by S3."""
    resources: Any = importlib.import_module("slicewise.targets.lambda.resources")
    whole = resources.policy

    def without(*arguments: Any) -> Any:
        document = whole(*arguments)
        for statement in document["Statement"]:
            statement["Action"] = [each for each in statement["Action"] if each != action]
        return document

    x, mask = torch.zeros(80, 8), torch.ones(80, dtype=torch.int64)
    monkeypatch.setattr(resources, "policy", without)
    with (
        wide_bundle.serve() as endpoint,
        pytest.raises(slicewise.SliceFailure, match=f"not authorized to perform: {action} on"),
    ):
        endpoint(x, mask)


def test_a_slice_of_another_plan_is_refused(wide_bundle: slicewise.Bundle, tmp_path: Path) -> None:
    bundle = broken(wide_bundle, tmp_path / "bundle", "")
    handler = tmp_path / "bundle" / "functions" / "slice1" / "handler.py"
    text = handler.read_text()
    handler.write_text(text.replace(text.split("plan='")[1][:16], "0" * 16))
    with bundle.serve() as endpoint, pytest.raises(slicewise.SliceFailure, match="belongs to plan"):
        endpoint(torch.zeros(2, 8), torch.ones(2, dtype=torch.int64))


def test_a_missing_weights_file_is_named(wide_bundle: slicewise.Bundle, tmp_path: Path) -> None:
    bundle = broken(wide_bundle, tmp_path / "bundle", "")
    (tmp_path / "bundle" / "functions" / "slice1" / "model.data").unlink()
    with bundle.serve() as endpoint:
        for _ in range(2):
            with pytest.raises(slicewise.SliceFailure, match=r"slice1.*model\.data") as failure:
                endpoint(torch.zeros(2, 8), torch.ones(2, dtype=torch.int64))
            assert failure.value.slice == "slice1"


def test_requests_that_take_turns_do_not_wait_for_their_own_slices(
    wide_bundle: slicewise.Bundle,
) -> None:
    served: Any = wide_bundle.serve(requests_at_once=1)
    x, mask = torch.ones(2, 8), torch.ones(2, dtype=torch.int64)
    with served as endpoint, ThreadPoolExecutor(4) as pool:
        first, *rest = pool.map(lambda _: endpoint(x, mask)["narrow"], range(8))
        assert all(torch.equal(first, each) for each in rest)
        reports = [report for report in endpoint.reports if report.function == endpoint.function]
    assert len(reports) == 8
    assert len({report.instance for report in reports}) == 1


def test_many_requests_at_once_are_answered_rightly(wide: Any) -> None:
    wanted = [torch.full((2, 8), float(i)) for i in range(12)]
    mask = torch.ones(2, dtype=torch.int64)
    alone = [wide(x, mask)["narrow"] for x in wanted]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: wide(x, mask)["narrow"], wanted))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)
