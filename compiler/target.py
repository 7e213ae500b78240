"""What the compiler asks of a target, as protocols; `slicewise.targets.load` finds the real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from slicewise.cost import CostModel
from slicewise.graph import OpGraph
from slicewise.limits import Limits, Overheads
from slicewise.plan import Edge, Plan, TransportRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Handlers:
    """Generated code of one plan: a source text per slice, the coordinator's (None where the plan has
    none), and what it reads.

    `plan_id` names the plan in every message, so that functions of two plans never mix.
    """

    plan_id: str
    slices: Mapping[str, str]
    coordinator: str | None
    manifest: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A tensor on its way out of a function: raw bytes at the example's sizes, and the memory of the
    slices at both ends. `sender_mb` is None for a tensor of the request. `is_callers` says that only
    the caller sends or receives it: inline whenever it fits. `wanted` is the transport that was chosen
    together with cut and memory sizes, None to choose it now.
    """

    tensor: str
    bytes: int
    sender_mb: int | None
    reader_mbs: tuple[int, ...]
    is_callers: bool
    wanted: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """How a tensor travels: by which transport at the example's size, and by any size (see `Edge`)."""

    transport: str
    choices: tuple[tuple[str, int | None], ...]
    reason: str
    prices: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """How a slice is packed, the bytes of its package, and of memory that its start takes at least."""

    packaging: str
    package_bytes: int
    memory_bytes: int = 0


class Endpoint(AbstractContextManager["Endpoint", None], Protocol):
    """A running bundle: call it with the model's own arguments."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for these inputs, in the model's own structure."""
        ...

    @property
    def url(self) -> str:
        """The address of the platform's own API."""
        ...

    @property
    def function(self) -> str:
        """The name of the function that callers invoke."""
        ...

    @property
    def http_url(self) -> str | None:
        """Where HTTP requests are answered, None where they are not."""
        ...

    @property
    def last_trace(self) -> Mapping[str, Any]:
        """Where the time of the latest call went, ms."""
        ...

    @property
    def network(self) -> str:
        """The network that is emulated, or "off"."""
        ...

    @property
    def reports(self) -> Sequence[Any]:
        """What the platform reports of every invocation so far: duration, memory, cold start."""
        ...

    def close(self) -> None:
        """Stop it."""
        ...


class Report(Protocol):
    """Something to tell: as text for people, as data for --json."""

    def to_json(self) -> Any:
        """The same as dicts, lists, numbers and strings."""
        ...

    def __str__(self) -> str: ...


class Deployment(Protocol):
    """A deployed bundle: call it with the model's own arguments."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for these inputs, in the model's own structure."""
        ...

    @property
    def name(self) -> str:
        """What the deployment is called."""
        ...

    @property
    def url(self) -> str | None:
        """An HTTP address of it, None where it has none."""
        ...

    @property
    def function(self) -> str:
        """What callers invoke."""
        ...

    @property
    def changes(self) -> Report | None:
        """What deploying it has changed; None when it was there."""
        ...

    @property
    def last_trace(self) -> Mapping[str, Any]:
        """Where the time of the latest call went, ms."""
        ...


class Deployer(Protocol):
    """Puts bundles onto a target's platform. A deployment is known by its `name`, by default the
    bundle's own. All methods raise `DeploymentError`.
    """

    def deploy(self, directory: Path, plan: Plan, **options: Any) -> Deployment:
        """Deploy a bundle, or bring its deployment up to it."""
        ...

    def changes(self, directory: Path, plan: Plan, **options: Any) -> Report:
        """What `deploy` would change and what it would cost a month; changes nothing."""
        ...

    def connect(self, name: str | None, directory: Path | None, plan: Plan | None) -> Deployment:
        """A deployment that is there, by its name or its bundle."""
        ...

    def status(
        self, name: str | None, directory: Path | None, plan: Plan | None, **options: Any
    ) -> Report:
        """What is deployed, and whether it is what the bundle says."""
        ...

    def destroy(self, name: str | None, directory: Path | None, *, dry_run: bool) -> Report:
        """Remove everything of a deployment; tells what."""
        ...

    def collect(
        self, name: str | None, directory: Path | None, *, older_than_s: float, dry_run: bool
    ) -> Report:
        """Remove what requests have left longer ago; tells what."""
        ...

    def diff(self, old: str | Path, new: str | Path) -> Report:
        """What differs between two bundles (paths), or between a deployment (its name) and one."""
        ...


class SliceOps(Protocol):
    """What a target may know of a slice before it is placed: see `slicewise.passes.Part`."""

    @property
    def ops(self) -> tuple[str, ...]:
        """Op names, in graph order."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Tensors that enter."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Tensors that leave."""
        ...


class Target(Protocol):
    """What the compiler asks a target; everything else about a platform stays behind it."""

    @property
    def name(self) -> str:
        """The name that `targets.load` knows it by."""
        ...

    def with_profile(self, path: Path) -> Target:
        """This target with the numbers of a profile file. Raises `TargetError`."""
        ...

    def packagings(self, wanted: str | Sequence[str] | None) -> tuple[str, ...]:
        """The ways to pack a slice that a user allows; None for the platform's usual one.

        Raises `LimitsError`.
        """
        ...

    def resolve_limits(
        self, limits: Limits | None, packagings: tuple[str, ...] | None = None
    ) -> Limits:
        """The user's limits completed by the platform's, for these ways to pack a slice.

        Raises `LimitsError`.
        """
        ...

    def pack(
        self, weight_bytes: int, packagings: tuple[str, ...], user: Limits | None, limits: Limits
    ) -> Packed:
        """How a slice with these weights is packed, of the ways allowed."""
        ...

    def transport_rule(
        self,
        limits: Limits,
        transports: tuple[str, ...] | None,
        *,
        wire_dtype: str | None = None,
        compress: bool = False,
        orchestration: str = "coordinator",
    ) -> TransportRule:
        """The rule for the allowed transports (None: all). Raises `LimitsError`."""
        ...

    def delivered(self, array: Any, dtype: str, rule: TransportRule) -> tuple[Any, str]:
        """What the readers have of a numpy array between slices, and the type it travels as."""
        ...

    def cost_model(self, limits: Limits) -> CostModel:
        """What calls, transports and functions take and cost."""
        ...

    def overheads(self, rule: TransportRule) -> Overheads:
        """What a function holds besides its slice."""
        ...

    def choose_transports(
        self,
        message: Sequence[Sent],
        rule: TransportRule,
        model: CostModel,
        usd_weight: float = 0.0,
    ) -> Mapping[str, Chosen]:
        """How every tensor of one message travels: by the smallest ms + `usd_weight` * US dollars.

        Raises `InfeasibleError` when a tensor has no way.
        """
        ...

    def estimate_memory(
        self, graph: OpGraph, part: SliceOps, edges: Sequence[Edge], rule: TransportRule
    ) -> int:
        """Bytes that the slice's function will be measured to take, as far as can be predicted; `edges`
        are the plan's.
        """
        ...

    @property
    def caller_memory_mb(self) -> int:
        """The memory of the function that drives the slices, where nothing else was chosen."""
        ...

    def memory_mb(self, user: Limits | None, limits: Limits, needed_bytes: int) -> int:
        """The memory setting of a function that needs `needed_bytes`."""
        ...

    def write_bundle(
        self,
        plan: Plan,
        handlers: Handlers,
        slices: Path,
        directory: Path,
        encrypt: str | None = None,
    ) -> None:
        """Write everything that deploys; `slices` holds one folder of ONNX files per slice. `encrypt`
        says with which key models and objects are encrypted, None for not at all.
        """
        ...

    def measure_memory(
        self, directory: Path, plan: Plan, request: Mapping[str, Any]
    ) -> Mapping[str, int] | None:
        """Peak bytes of every slice while a bundle answers `request` (arrays by input name).

        None when what it takes to run a bundle here is not installed.
        """
        ...

    def serve(self, directory: Path, plan: Plan, **options: Any) -> Endpoint:
        """Run a bundle on this machine."""
        ...

    def package(self, directory: Path, plan: Plan, **options: Any) -> Any:
        """Make of a bundle what is uploaded; a value with `to_json`, `notes` and a table as its text."""
        ...

    def deployer(self, **options: Any) -> Deployer:
        """What deploys, with this machine's credentials. Options: `region`."""
        ...

    def calibrate(self, where: str, output: Path, **options: Any) -> str:
        """Measure a platform ("local" or the target's own), write its profile; tables for people."""
        ...
