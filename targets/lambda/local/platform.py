"""`Platform`: Lambda and S3 on this machine."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from slicewise.errors import TargetError

from ..functions import Function
from .cgroup import Enforcement, Kind, Limiter, choose_limiter
from .clients import READ_SECONDS, boto_client, create_buckets
from .dispatcher import Dispatcher
from .environment import check_functions
from .faults import Faults
from .instance import Surroundings
from .invoke_api import InvokeServer
from .keeper import Keeper
from .layer import build_layer
from .memory import Sampler
from .network import CALL, OFF, Count, Network, Traffic
from .permissions import Roles
from .reports import Journal, Report
from .s3 import S3Server
from .states import StatesServer

MAX_UNZIPPED_BYTES = 262_144_000
DUMMY_CREDENTIALS = ("AKIALOCALPLATFORM000", "local")
_numbers = itertools.count()


class Platform:
    """Runs functions as Lambda would: the same protocols, the same limits.

    A context manager; `start` and `stop` do the same by hand. Nothing runs until the first
    invocation. `cpu_scale` multiplies every function's CPU, also while it starts (this machine's
    cores are not AWS's, and on AWS functions do not share them). `runtime_package_bytes` is what the
    runtime packages would take in a real zip; here they come from a layer, which also has
    `more_packages` of this environment. `concurrency_limit`
    counts invocations in progress over all functions. `requests_at_once` is how many calls from outside
    run at a time: the next one waits for its turn, where Lambda would start more environments, which
    have cores of their own there. An emulated network excludes it.
    `port` is the Invoke API's, 0 for a free one. `enforcement` picks how limits are enforced.
    `event_retry_s` are the waits before an asynchronous invocation that failed is tried again.
    `network` is emulated when given, see network.py; it needs this platform's own S3.
    `roles` are those of the functions, by name: then their instances may do what these allow, see
    permissions.py; another S3 server's permissions are its own. With `faults` things go wrong as
    `platform.faults` is told, see faults.py.
    """

    def __init__(
        self,
        functions: Sequence[Function],
        *,
        port: int = 0,
        s3_endpoint_url: str | None = None,
        buckets: Sequence[str] = (),
        credentials: tuple[str, str] = DUMMY_CREDENTIALS,
        cpu_scale: float = 1.0,
        package_limit_bytes: int = MAX_UNZIPPED_BYTES,
        runtime_package_bytes: int = 0,
        concurrency_limit: int = 100,
        init_timeout_s: float = 10.0,
        event_retry_s: tuple[float, ...] = (60.0, 120.0),
        enforcement: Kind | Literal["auto"] = "auto",
        network: Network | None = None,
        roles: Roles | None = None,
        faults: bool = False,
        requests_at_once: int | None = None,
        more_packages: Sequence[str] = (),
    ) -> None:
        # Instances run in their package's directory, where a relative path would not lead to it.
        self._functions = tuple(
            replace(function, package=function.package.resolve()) for function in functions
        )
        self._port = port
        self._s3_endpoint_url = s3_endpoint_url
        self._buckets = tuple(buckets)
        self._credentials = credentials
        self._cpu_scale = cpu_scale
        self._package_limit_bytes = package_limit_bytes
        self._runtime_package_bytes = runtime_package_bytes
        self._concurrency_limit = concurrency_limit
        self._init_timeout_s = init_timeout_s
        self._event_retry_s = event_retry_s
        self._wanted_enforcement = enforcement
        self._network = network
        self._roles = roles
        self._with_faults = faults
        self._requests_at_once = requests_at_once
        self._more_packages = tuple(more_packages)
        self.faults = Faults()
        self._journal = Journal()
        self._owner = os.getpid()
        self._limiter: Limiter | None = None
        self._work: Path | None = None
        self._keeper: Keeper | None = None
        self._sampler: Sampler | None = None
        self._s3: S3Server | None = None
        self._dispatcher: Dispatcher | None = None
        self._server: InvokeServer | None = None
        self._states: StatesServer | None = None
        self._traffic: Traffic | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Check the functions and open the endpoints. Raises TargetError; then nothing is left."""
        if sys.platform != "linux":
            raise TargetError("the local platform needs Linux: it uses pidfd, /proc and cgroups")
        if self._server:
            raise TargetError("the platform has been started already")
        if self._network and self._s3_endpoint_url:
            raise TargetError(
                f"the network {self._network} cannot be emulated for S3 at {self._s3_endpoint_url}; "
                "leave out s3_endpoint_url or network"
            )
        if self._requests_at_once is not None and (self._requests_at_once < 1 or self._network):
            raise TargetError(
                f"requests_at_once={self._requests_at_once} needs to be 1 or more, without an emulated "
                "network, whose times a wait would spoil; leave one of them out"
            )
        check_functions(
            self._functions,
            package_limit_bytes=self._package_limit_bytes,
            runtime_package_bytes=self._runtime_package_bytes,
        )
        atexit.register(self.stop)
        self._owner = os.getpid()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        name = f"slicewise-{os.getpid()}-{next(_numbers)}"
        self._limiter = choose_limiter(self._wanted_enforcement, name)
        self._work = work = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        self._keeper = Keeper([*self._limiter.directories, work])
        s3_url = self._s3_endpoint_url
        if s3_url is None:
            self._s3 = S3Server(
                self._keeper,
                work,
                self._buckets,
                self._network,
                self._roles,
                faults=self._with_faults,
            )
            s3_url = self._s3.url
        elif self._buckets:
            create_buckets(boto_client("s3", s3_url, self._credentials), self._buckets)
        self.faults = Faults(self._s3.url if self._s3 else "")
        faults = self.faults if self._with_faults else None
        layer = work / "layer"
        layer.mkdir()
        build_layer(layer, self._more_packages)
        self._sampler = Sampler()
        endpoints: dict[str, str] = {"AWS_ENDPOINT_URL_S3": s3_url}
        surroundings = Surroundings(
            keeper=self._keeper,
            limiter=self._limiter,
            sampler=self._sampler,
            layer=layer,
            work=work,
            endpoints=endpoints,
            # Another S3 server knows the user's credentials and no others.
            credentials=self._credentials if self._s3_endpoint_url else None,
        )
        self._dispatcher = Dispatcher(
            self._functions,
            surroundings,
            self._journal,
            cpu_scale=self._cpu_scale,
            concurrency_limit=self._concurrency_limit,
            init_timeout_s=self._init_timeout_s,
            network=self.network,
            faults=faults,
        )
        self._traffic = Traffic(self._network) if self._network else None
        self._server = InvokeServer(
            self._dispatcher,
            self._event_retry_s,
            self._port,
            self._traffic,
            self._roles,
            faults,
            self._requests_at_once,
        )
        # No instance has started yet, so every one of them will see it.
        endpoints["AWS_ENDPOINT_URL_LAMBDA"] = self._server.url

    def stop(self) -> None:
        """Kill all instances and remove every trace. May be called again."""
        atexit.unregister(self.stop)
        if self._owner != os.getpid():
            return  # a fork of the process that started it; the platform is not its own
        if self._dispatcher:
            self._dispatcher.stop()
        if self._server:
            self._server.stop()
        if self._sampler:
            self._sampler.stop()
        if self._s3:
            self._s3.close()
        if self._keeper:
            self._keeper.stop()
        if self._dispatcher:
            self._dispatcher.close()
        if self._limiter:
            self._limiter.remove()
        if self._work:
            shutil.rmtree(self._work, ignore_errors=True)
        self._server = self._sampler = self._s3 = self._states = None
        self._keeper = self._dispatcher = self._work = None

    @property
    def endpoint_url(self) -> str:
        """Where the Lambda Invoke API answers."""
        return self._running_server().url

    @property
    def s3_endpoint_url(self) -> str:
        """Where S3 answers."""
        self._running_server()
        return self._s3_endpoint_url or (self._s3.url if self._s3 else "")

    @property
    def enforcement(self) -> Enforcement:
        """How memory and CPU limits are enforced on this machine, and why so."""
        if self._limiter is None:
            raise TargetError("the platform has not been started; call start() or use `with`")
        return self._limiter.enforcement

    @property
    def network(self) -> str:
        """The emulated network, or "off"."""
        return str(self._network or OFF)

    @property
    def network_counts(self) -> dict[str, Count]:
        """How many operations of each kind were emulated, and how many of them came too late."""
        self._running_server()
        if self._traffic is None or self._s3 is None:
            return {}
        return self._s3.network_counts() | {CALL: self._traffic.counts[CALL]}

    @property
    def reports(self) -> tuple[Report, ...]:
        """One report per invocation, oldest first; they stay after stop()."""
        return self._journal.reports

    def logs(self, function: str) -> str:
        """The last MiB of what a function's instances and the platform wrote about it."""
        return self._journal.log(function)

    def warm(self, function: str, count: int = 1) -> None:
        """Start instances of a function until `count` are idle; raises TargetError if it fails."""
        self._running_server()
        assert self._dispatcher is not None
        if function not in self._dispatcher.functions:
            raise TargetError(f"there is no function {function!r}")
        self._dispatcher.warm(self._dispatcher.functions[function], count)

    def discard_idle(self) -> None:
        """End all idle instances, so that the next invocations start cold."""
        self._running_server()
        assert self._dispatcher is not None
        self._dispatcher.discard_idle()

    def client(
        self,
        service: Literal["lambda", "s3", "stepfunctions"],
        *,
        read_timeout_s: float = READ_SECONDS,
    ) -> Any:
        """An unmodified boto3 client of this platform.

        It never retries: a repeated invocation would run the function twice.
        """
        if service == "s3":
            url = self.s3_endpoint_url
            if self._s3:
                self._s3.wait_until_ready()
        elif service == "stepfunctions":
            if self._states is None:
                server = self._running_server()
                assert self._keeper and self._work
                self._states = StatesServer(self._keeper, self._work, server.url)
            url = self._states.url
        else:
            url = self.endpoint_url
        return boto_client(service, url, self._credentials, read_timeout_s=read_timeout_s)

    def _running_server(self) -> InvokeServer:
        if self._server is None:
            raise TargetError("the platform is not running; call start() or use `with`")
        return self._server
