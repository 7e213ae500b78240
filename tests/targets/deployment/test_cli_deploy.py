"""The commands of deployments, against an account: what they print, and their exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cloud import Cloud
from console import call
from deployable import write_bundle

import slicewise


@pytest.fixture
def bundle(tmp_path: Path) -> slicewise.Bundle:
    return write_bundle(tmp_path / "bundle", {"slice0": b"zero"})


def test_deploy_status_diff_destroy(
    aws: Cloud, bundle: slicewise.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(bundle.directory)
    code, out, _ = call(capsys, "deploy", path, "--dry-run", "--requests-per-month", "1000000")
    assert (code, "$      4.00 a month: 1,000,000 requests" in out) == (0, True)
    assert not any(aws.resources().values())

    code, out, err = call(capsys, "deploy", path, "--no-smoke-test", "--tag", "team=ml")
    assert (code, "chain serves as chain-coordinator:live" in out) == (0, True), err
    code, out, _ = call(capsys, "status", path, "--json")
    assert (code, json.loads(out)["stack"]) == (0, "chain")
    code, out, _ = call(capsys, "status", "chain")
    assert "chain-slice0" in out
    write_bundle(tmp_path / "new", {"slice0": b"0"})
    code, out, _ = call(capsys, "diff", "chain", str(tmp_path / "new"))
    assert (code, "packages to upload: slice0" in out) == (0, True)

    code, out, err = call(capsys, "deploy", str(tmp_path / "new"))
    assert (code, "error: the smoke test failed" in err) == (1, True)

    code, out, _ = call(capsys, "destroy", "chain", "--dry-run")
    assert (code, "delete   function chain-coordinator" in out) == (0, True)
    assert aws.resources()["functions"]
    assert call(capsys, "destroy", "chain", "--yes")[0] == 0
    assert not any(aws.resources().values())


def test_destroy_asks_first(
    aws: Cloud, bundle: slicewise.Bundle, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import io

    slicewise.deploy(bundle, clients=aws.clients, smoke_test=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))

    code, _, err = call(capsys, "destroy", "chain")

    assert code == 130
    assert "delete   function chain-slice0" in err
    assert aws.resources()["functions"]


def test_a_tag_that_is_none_is_a_usage_error(
    bundle: slicewise.Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "deploy", str(bundle.directory), "--tag", "team")
    assert (code, "'team' is not KEY=VALUE" in err) == (2, True)
