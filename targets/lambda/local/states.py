"""Step Functions on this machine: moto's interpreter in a process of its own, calling this platform."""

from __future__ import annotations

import os
import select
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from slicewise.errors import TargetError

from .keeper import Keeper

SCRIPT = Path(__file__).with_name("states_process.py")
START_SECONDS = 300.0


class StatesServer:
    """Started by the first client, ended by the platform's keeper. Raises `TargetError`."""

    def __init__(self, keeper: Keeper, work: Path, invoke_url: str) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        host, port = listener.getsockname()
        self.url = f"http://{host}:{port}"
        output = work / "states.log"
        ready, theirs = os.pipe()
        try:
            keeper.spawn(
                [sys.executable, "-P", str(SCRIPT)],
                # moto takes the Lambda of a state machine to be at its own port.
                env={
                    "PATH": os.environ.get("PATH", ""),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "MOTO_PORT": str(urlsplit(invoke_url).port),
                },
                cwd=work,
                output=output,
                fds=[listener.fileno(), theirs],
            )
        finally:
            listener.close()
            os.close(theirs)
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        has_started = bool(poll.poll(START_SECONDS * 1000)) and os.read(ready, 1)
        os.close(ready)
        if not has_started:
            said = output.read_text(errors="replace")[-2000:] if output.exists() else ""
            raise TargetError(
                "the Step Functions server (moto) did not start; install slicewise[local]. It said:\n"
                f"{said}"
            )
