"""The S3 server of a platform: moto in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from slicewise.errors import TargetError

from .keeper import Keeper
from .network import Count, Network
from .permissions import Roles, roles_to_json
from .s3_network import COUNTS_PATH

SCRIPT = Path(__file__).with_name("s3_process.py")
START_SECONDS = 60.0


class S3Server:
    """Moto's S3, started with the platform and stopped with its keeper.

    It takes about a second to load; clients can connect before that and are answered then. When no
    buckets are asked for, it loads at the first connection, and so never where nobody uses S3.
    """

    def __init__(
        self,
        keeper: Keeper,
        work: Path,
        buckets: Sequence[str],
        network: Network | None = None,
        roles: Roles | None = None,
        *,
        faults: bool = False,
    ) -> None:
        self._keeper = keeper
        self._work = work
        self._buckets = tuple(buckets)
        self._network = network
        self._roles = roles
        self._faults = faults
        self._output = work / "s3.log"
        self._lock = threading.Lock()
        self._loading = False
        self._ready = -1
        self._cancelled, self._cancel = os.pipe()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        host, port = self._listener.getsockname()
        self.url = f"http://{host}:{port}"
        self._waiter: threading.Thread | None = None
        if self._buckets:
            self._load()
        else:
            self._waiter = threading.Thread(target=self._wait_for_client, name="slicewise-s3")
            self._waiter.daemon = True
            self._waiter.start()

    def wait_until_ready(self) -> None:
        """Load it and wait until it serves. Raises TargetError with its output when it does not."""
        self._load()
        with self._lock:
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
            os.close(self._ready)
            self._ready = -1

    def network_counts(self) -> dict[str, Count]:
        """The emulated operations so far, by kind; nothing when none could have been."""
        if self._network is None or not self._loading:
            return {}
        with urllib.request.urlopen(self.url + COUNTS_PATH, timeout=START_SECONDS) as reply:
            return {kind: Count(*count) for kind, count in json.load(reply).items()}

    def close(self) -> None:
        """Give everything back but the process, which is the keeper's to end."""
        os.close(self._cancel)
        if self._waiter:
            self._waiter.join(5)
        self._listener.close()
        os.close(self._cancelled)
        if self._ready >= 0:
            os.close(self._ready)

    def _wait_for_client(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._cancelled, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        if self._cancelled not in ready:
            with contextlib.suppress(TargetError):  # the keeper has gone; so has the platform
                self._load()

    def _load(self) -> None:
        """Start the process, once. It takes over the listening socket."""
        with self._lock:
            if self._loading:
                return
            self._loading = True
            self._ready, theirs = os.pipe()
            # A file, because an argument may not be as long as the roles of many functions are.
            settings = self._work / "s3.json"
            settings.write_text(
                json.dumps(
                    {
                        "network": self._network and self._network.to_json(),
                        "roles": None if self._roles is None else roles_to_json(self._roles),
                        "faults": self._faults,
                    }
                )
            )
            try:
                self._keeper.spawn(
                    # -P: the script's own directory has modules with the names of others.
                    [sys.executable, "-P", str(SCRIPT), str(settings), *self._buckets],
                    env={"PATH": os.environ.get("PATH", ""), "PYTHONDONTWRITEBYTECODE": "1"},
                    cwd=self._work,
                    output=self._output,
                    fds=[self._listener.fileno(), theirs],
                )
            finally:
                # Only the process's own copies stay open: when it dies, clients are refused.
                self._listener.close()
                os.close(theirs)
