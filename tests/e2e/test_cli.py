"""The command line on a real bundle: inspect, run, serve."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

import slicewise


def slicewise_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "slicewise", *arguments]


def test_run_answers_one_request(wide_bundle: slicewise.Bundle, tmp_path: Path) -> None:
    request, reply = tmp_path / "x.npz", tmp_path / "y.npz"
    np.savez(request, x=np.ones((3, 8), np.float32), mask=np.array([1, 0, 1]))
    command = slicewise_command("run", str(wide_bundle.directory), "--input", str(request))

    done = subprocess.run(
        [*command, "--output", str(reply), "--json", "--network", "aws"],
        capture_output=True,
        text=True,
        check=True,
    )

    printed = json.loads(done.stdout)
    with np.load(reply) as outputs:
        assert outputs["narrow"].shape == (3, 8)
        np.testing.assert_allclose(printed["outputs"]["narrow"], outputs["narrow"], rtol=1e-6)
    assert printed["trace"]["network"] == "aws (seed 0)"
    assert [part["slice"] for part in printed["trace"]["slices"]] == ["slice0", "slice1", "slice2"]


def test_run_names_what_is_wrong_with_its_input(
    wide_bundle: slicewise.Bundle, tmp_path: Path
) -> None:
    request = tmp_path / "x.npz"
    np.savez(request, x=np.ones((3, 8), np.float32))

    done = subprocess.run(
        slicewise_command("run", str(wide_bundle.directory), "--input", str(request)),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "missing field 'mask'" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_listens_where_it_is_told_until_it_is_stopped(
    wide_bundle: slicewise.Bundle,
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = slicewise_command("serve", str(wide_bundle.directory), "--port", str(port))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        function = re.search(r"entry function ([\w-]+)", line)
        assert function is not None
        assert f"127.0.0.1:{port}" in line
        assert "emulated network off" in line
        body = json.dumps({"inputs": {"x": {"data": [[0.5] * 8]}, "mask": {"data": [1]}}}).encode()
        with socket.create_connection(("127.0.0.1", port)) as client:
            path = f"/2015-03-31/functions/{function.group(1)}/invocations"
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            reply = b""
            while b'"status": 200' not in reply:
                chunk = client.recv(65536)
                assert chunk, reply
                reply += chunk
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
