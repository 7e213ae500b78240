"""The S3 server of a platform: moto in a process of its own."""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from slicewise.errors import TargetError

from .keeper import Keeper

SCRIPT = Path(__file__).with_name("s3_process.py")
START_SECONDS = 60.0


class S3Server:
    """Moto's S3, started with the platform and stopped with its keeper.

    It takes about a second to load. Clients can connect at once and are answered then.
    """

    def __init__(self, keeper: Keeper, work: Path, buckets: Sequence[str]) -> None:
        self._output = work / "s3.log"
        self._ready, theirs = os.pipe()
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        host, port = listener.getsockname()
        self.url = f"http://{host}:{port}"
        try:
            self._process = keeper.spawn(
                # -P: the script's own directory has modules with the names of others.
                [sys.executable, "-P", str(SCRIPT), *buckets],
                env={"PATH": os.environ.get("PATH", ""), "PYTHONDONTWRITEBYTECODE": "1"},
                cwd=work,
                output=self._output,
                fds=[listener.fileno(), theirs],
            )
        finally:
            # Only the server's own copies stay open: when it dies, clients are refused.
            listener.close()
            os.close(theirs)

    def wait_until_ready(self) -> None:
        """Wait until it serves. Raises TargetError with its output when it does not."""
        if self._ready < 0:
            return
        poll = select.poll()
        poll.register(self._ready, select.POLLIN)
        if not poll.poll(START_SECONDS * 1000) or not os.read(self._ready, 1):
            output = self._output.read_text(errors="replace")[-2000:]
            raise TargetError(
                "the S3 server (moto) did not start; install slicewise[local], or name another "
                f"S3 endpoint with s3_endpoint_url. It said:\n{output}"
            )
        self.close()

    def close(self) -> None:
        """Give the pipe back."""
        if self._ready >= 0:
            os.close(self._ready)
        self._ready = -1
