"""The platform's side of the keeper, the process that starts and kills all others.

See keeper_process.py for why it exists.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slicewise.errors import TargetError

SCRIPT = Path(__file__).with_name("keeper_process.py")
STOP_SECONDS = 20.0


@dataclass(slots=True)
class Process:
    """A process that the keeper started. `pidfd` becomes readable when it ends."""

    pid: int
    pidfd: int
    procs: tuple[str, ...]
    _closed: bool = field(default=False, init=False)

    def ended(self, timeout_s: float = 0.0) -> bool:
        """Whether the process has ended, after waiting for at most `timeout_s`."""
        if self._closed:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def close(self) -> None:
        """Give the descriptor back; the process must have ended."""
        if not self._closed:
            self._closed = True
            os.close(self.pidfd)


class Keeper:
    """Starts and kills processes; when this process ends, however it ends, they all end too."""

    def __init__(self, directories: Sequence[Path]) -> None:
        """Start the keeper. It removes `directories` (cgroups or trees) at the end."""
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._keeper = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(SCRIPT)),
                    *(str(theirs.fileno()), str(os.getpid())),
                    *map(str, directories),
                ],
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C and killpg must not reach it
                env={},
            )
        self._socket.settimeout(STOP_SECONDS)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        output: Path,
        procs: Sequence[Path] = (),
        rlimits: Mapping[str, int] | None = None,
        fds: Sequence[int] = (),
    ) -> Process:
        """Start a program in its own session.

        Its stdout and stderr are appended to `output`; it joins the cgroups whose cgroup.procs
        files are `procs` before it runs; `fds` become its descriptors 3, 4, ...
        """
        names = tuple(map(str, procs))
        request = {
            "op": "spawn",
            "argv": list(argv),
            "env": dict(env),
            "cwd": str(cwd),
            "output": str(output),
            "procs": names,
            "rlimits": dict(rlimits or {}),
        }
        reply, passed = self._ask(request, fds)
        if "error" in reply:
            raise TargetError(f"cannot start {argv[0]}: {reply['error']}")
        return Process(reply["pid"], passed[0], names)

    def kill(self, process: Process) -> int | None:
        """SIGKILL the process, its group and its cgroup; the wait status, None if it hangs."""
        if not process.ended() or process.procs:
            self._ask({"op": "kill", "pid": process.pid, "procs": process.procs})
        return self.status(process)

    def status(self, process: Process) -> int | None:
        """The wait status of a process that has ended or is about to; None if it does not end."""
        process.ended(5.0)
        for _ in range(200):
            status: int | None = self._ask({"op": "status", "pid": process.pid})[0]["status"]
            if status is not None:
                return status
            time.sleep(0.005)  # ended, but the keeper has not reaped it yet
        return None

    def stop(self) -> None:
        """End all processes and the keeper."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.send(b'{"op": "stop"}')
            self._socket.recv(16)
        self._socket.close()
        try:
            self._keeper.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._keeper.send_signal(signal.SIGKILL)
            self._keeper.wait()

    def _ask(
        self, request: dict[str, Any], fds: Sequence[int] = ()
    ) -> tuple[dict[str, Any], list[int]]:
        data = json.dumps(request).encode()
        try:
            with self._lock:
                socket.send_fds(self._socket, [data], list(fds))
                reply, passed, _flags, _address = socket.recv_fds(self._socket, 65536, 1)
        except OSError as error:
            raise TargetError(f"the platform's keeper process does not answer: {error}") from error
        if not reply:
            raise TargetError("the platform's keeper process has ended; stop() and start() again")
        return json.loads(reply), passed
