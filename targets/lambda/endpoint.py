"""`serve`: a bundle's functions on the local platform, with a client that calls them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slicewise.errors import TargetError
from slicewise.plan import Plan

from . import resources
from .batching import check_batching
from .bundle import function_names, read_functions, stack_name, streamed_weights
from .functions import COORDINATOR, Function
from .garbage import leftovers, remove
from .packings import most_package_mb
from .profile import MB, Profile
from .resources import Place, Stack, StackFunction, stack_of
from .sealing import ENCRYPTION_PACKAGES, PACKAGE_MB, key_variables
from .states import DEFINITION, filled_in

if TYPE_CHECKING:
    from .local import Platform
    from .local.function_url import FunctionUrl
    from .local.network import Network
    from .local.permissions import Roles
    from .runtime.store import Store
    from .steps_client import StepsClient

AWS = "aws"
# The name of a directory bucket says that it is one, and in which availability zone.
ZONE = "use1-az4"
BUCKETS = {"s3": "slicewise", "s3express": f"slicewise--{ZONE}--x-s3"}  # of no stack


def serve(
    directory: Path,
    plan: Plan,
    profile: Profile,
    *,
    at_least_memory_mb: int = 0,
    network: str | None = None,
    network_seed: int = 0,
    http: int | None = None,
    batch_wait_ms: float | None = None,
    environment: Mapping[str, str] | None = None,
    permissions: bool = True,
    express: bool = False,
    **options: Any,
) -> LocalEndpoint:
    """Start the local platform with the bundle's functions. Options are `Platform`'s own.

    `http` is the port of the coordinator's URL, 0 for a free one; `batch_wait_ms` is how long a request
    of the Open Inference Protocol to it may wait for others, to be computed together (batching.py).
    `environment` has more variables for all functions, such as those of runtime/observe.py.

    `at_least_memory_mb` raises the memory of smaller functions, to see how they do with more.
    `network="aws"` adds the profile's latencies and bandwidth to calls and S3 operations; the same
    `network_seed` gives the same waits. With `permissions` the functions may do what the policies of
    the bundle's templates allow, and nothing else. `express` makes a state machine an Express one.
    """
    if batch_wait_ms is not None:
        check_batching(plan, batch_wait_ms, http)
    if http is not None and plan.orchestration == "stepfunctions":
        raise TargetError(
            "a state machine answers no HTTP requests; compile with orchestration='coordinator' or "
            "'chain', or leave http out."
        )
    if express and plan.orchestration != "stepfunctions":
        raise TargetError(
            f'express=True is for state machines; this plan is a "{plan.orchestration}"'
        )
    emulated = emulated_network(network, profile, network_seed)
    packagings = [part.packaging for part in plan.slices]
    weights = streamed_weights(directory)
    stack, place = stack_of(directory, plan), _place()
    secrets = key_variables(plan.encryption)
    buckets = {
        "s3": stack.bucket(place),
        "s3express": stack.express_bucket(place),
    }
    used = {*stack.transports, *(["s3"] if weights else [])}
    buckets = {name: bucket for name, bucket in buckets.items() if name in used}
    entry, functions = read_functions(directory, {})
    described = {function.name: function for function in stack.functions}
    functions = [
        dataclasses.replace(
            function,
            memory_mb=max(function.memory_mb, at_least_memory_mb),
            environment={
                **_environment(stack, described[function.name], place),
                **secrets,
                **(environment or {}),
            },
        )
        for function in functions
    ]
    runtime_mb = profile.runtime.package_mb + (PACKAGE_MB if plan.encryption else 0)
    platform = local_platform(
        functions,
        roles=_roles(stack, place) if permissions else None,
        network=emulated,
        buckets=tuple(buckets.values()),
        package_limit_bytes=int(most_package_mb(packagings, profile) * MB),
        runtime_package_bytes=int(runtime_mb * MB),
        more_packages=ENCRYPTION_PACKAGES if plan.encryption else (),
        **options,
    )
    platform.start()
    try:
        _upload(weights, platform, stack.bucket(place))
        endpoint = LocalEndpoint(plan, entry, platform, buckets, directory, is_express=express)
        if http is not None:
            endpoint.open_http(http, directory, batch_wait_ms)
    except BaseException:
        platform.stop()
        raise
    return endpoint


def _place() -> Place:
    """Where the local platform says that it is. Raises `TargetError` when it is not installed."""
    try:
        from .local.identity import ACCOUNT, REGION
    except ImportError as error:
        raise _not_installed(error) from error
    return Place(region=REGION, account=ACCOUNT, zone=ZONE)


def _environment(stack: Stack, function: StackFunction, place: Place) -> dict[str, str]:
    """As a deployment sets it."""
    found = resources.environment(stack, function, place)
    if function.calls:
        slices = (each.part for each in stack.functions if each.part != COORDINATOR)
        found["SLICEWISE_VERSIONS"] = ",".join(f"{part}=1" for part in slices)
    return found


def _roles(stack: Stack, place: Place) -> Roles:
    """The roles that a deployment makes."""
    from .local.permissions import Role

    return {
        function.name: Role(
            name=resources.role_name(function, place),
            policy=resources.policy(stack, function, place),
        )
        for function in stack.functions
    }


def _upload(weights: Mapping[str, Path], platform: Platform, bucket: str) -> None:
    """Put weights where functions stream them from, as a deployment does."""
    for key, path in weights.items():
        with path.open("rb") as file:
            platform.client("s3").put_object(Bucket=bucket, Key=key, Body=file)


def local_platform(
    functions: Sequence[Function], *, network: Network | None, **options: Any
) -> Platform:
    """The local platform, not started yet. Raises `TargetError` when it is not installed."""
    try:
        from .local import Platform
    except ImportError as error:
        raise _not_installed(error) from error
    return Platform(functions, network=network, **options)


def bucket_environment(buckets: Mapping[str, str]) -> dict[str, str]:
    """What tells functions their buckets, by transport. Raises `TargetError` without pybase64."""
    try:
        from .runtime.store import BUCKET_VARIABLES
    except ImportError as error:
        raise _not_installed(error) from error
    return {BUCKET_VARIABLES[name]: bucket for name, bucket in buckets.items()}


def _not_installed(error: ImportError) -> TargetError:
    return TargetError(
        f"the local platform needs {error.name}; install it with: pip install 'slicewise[local]'"
    )


def emulated_network(name: str | None, profile: Profile, seed: int) -> Network | None:
    """The network of this name, None for none. Raises `TargetError` for an unknown one."""
    if name not in (None, AWS):
        raise TargetError(f"network={name!r} is not known; it can be {AWS!r}, or None for none")
    if name is None:
        return None
    try:
        return aws_network(profile, seed)
    except ImportError as error:
        raise _not_installed(error) from error


def aws_network(profile: Profile, seed: int = 0) -> Network:
    """What the profile says of waits and bandwidth, as a network that the local platform emulates."""
    from .local.network import Network, Wait

    spreads = {
        "call": profile.call.wait_ms,
        "s3 put": profile.s3.put_ms,
        "s3 get": profile.s3.get_ms,
        "s3express put": profile.s3express.put_ms,
        "s3express get": profile.s3express.get_ms,
    }
    waits = {kind: Wait(spread.p50, spread.sigma) for kind, spread in spreads.items()}
    return Network(name=AWS, seed=seed, bytes_s=profile.network.bytes_s, waits=waits)


def _state_machine(
    plan: Plan, platform: Any, directory: Path, store: Store, is_express: bool
) -> StepsClient:
    """The client of a new state machine of this platform, whose tasks call its functions."""
    from .local.identity import ACCOUNT
    from .steps_client import StepsClient

    states = platform.client("stepfunctions")
    text = (directory / DEFINITION).read_text()
    made = states.create_state_machine(
        name=stack_name(plan),
        definition=filled_in(text, {**function_names(plan), "partition": "aws"}),
        roleArn=f"arn:aws:iam::{ACCOUNT}:role/{stack_name(plan)}-states",
        type="EXPRESS" if is_express else "STANDARD",
    )
    return StepsClient(plan, made["stateMachineArn"], states, store, is_express=is_express)


class LocalEndpoint:
    """A served bundle: callable with the model's own arguments; a context manager.

    `platform` has the addresses, boto3 clients, and the REPORT of every invocation; `buckets` are those
    of the transports; `client` is the same client that a deployed bundle gets.
    """

    def __init__(
        self,
        plan: Plan,
        entry: str,
        platform: Any,
        buckets: dict[str, str],
        directory: Path,
        *,
        is_express: bool = False,
    ) -> None:
        from .client import Client
        from .runtime.store import Store
        from .sealing import seal_of

        s3 = platform.client("s3") if buckets else None  # the S3 server takes a second to load
        self.plan = plan
        self.platform = platform
        self.directory = directory
        self.buckets = buckets
        store = Store(buckets, s3, seal_of(plan.encryption) if buckets else None)
        self.client = (
            _state_machine(plan, platform, directory, store, is_express)
            if plan.orchestration == "stepfunctions"
            else Client(plan, entry, platform.client("lambda"), store)
        )
        self.function = self.client.function
        self._http: FunctionUrl | None = None

    def open_http(self, port: int, directory: Path, batch_wait_ms: float | None = None) -> None:
        """Answer HTTP requests as the coordinator's function URL does. Raises `TargetError`."""
        from .http_endpoint import open_http

        self._http = open_http(
            port, self.function, self.platform, self.client, directory, batch_wait_ms
        )

    @property
    def url(self) -> str:
        """Lambda's Invoke API here: the `endpoint_url` for any boto3 Lambda client."""
        return str(self.platform.endpoint_url)

    @property
    def http_url(self) -> str | None:
        """Where HTTP requests are answered, None without `http`."""
        return self._http.url if self._http else None

    @property
    def network(self) -> str:
        """The network that is emulated, or "off"."""
        return str(self.platform.network)

    @property
    def last_trace(self) -> dict[str, Any]:
        """Where the time of the latest call went, ms, and over which emulated network."""
        trace = self.client.last_trace
        return {**trace, "network": self.network} if trace else {}

    @property
    def reports(self) -> tuple[Any, ...]:
        """The REPORT of every invocation so far."""
        return tuple(self.platform.reports)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for these inputs. Raises `RequestError` or `SliceFailure`."""
        return self.client(*args, **kwargs)

    def gc(self, older_than_s: float = 0.0) -> int:
        """Delete tensors that requests have left, as `slicewise gc` does; how many there were."""
        count = 0
        for bucket in self.buckets.values():
            s3 = self.platform.client("s3")
            found = list(leftovers(s3, bucket, older_than_s))
            remove(s3, bucket, found)
            count += len(found)
        return count

    def close(self) -> None:
        """Stop all functions and servers."""
        if self._http:
            self._http.stop()
        self.platform.stop()

    def __enter__(self) -> LocalEndpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
