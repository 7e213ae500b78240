"""`LambdaDeployer`: what `slicewise.target.Deployer` asks of a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from slicewise.errors import DeploymentError
from slicewise.plan import Plan
from slicewise.progress import steps
from slicewise.smoke import read_smoke

from ..bundle import read_index, streamed_weights
from ..functions import COORDINATOR
from ..packaging.packages import package
from ..profile import Profile
from ..resources import ALIAS, stack_of
from .clients import Clients, connect, explained
from .collect import collect
from .deploy import Order, carry_out, function_url
from .destroy import called, destroy
from .diff import Diff, Side, diff_of
from .endpoint import DeployedEndpoint, client_of
from .functions import read_function
from .price import monthly_usd
from .status import Status, deployed_plan, not_deployed, read_status
from .work import Changes, Work


class LambdaDeployer:
    """Deploys to AWS Lambda in one region (None: the configured one). `clients` are other clients than
    boto3 makes by itself, see `clients.connect`. All methods raise `DeploymentError`.
    """

    def __init__(
        self, profile: Profile, *, region: str | None = None, clients: Clients | None = None
    ) -> None:
        self._profile = profile
        self._region = region
        if clients is not None:
            self.clients = clients

    @cached_property
    def clients(self) -> Clients:
        """The clients; made when AWS is first needed."""
        return connect(self._region)

    def deploy(
        self,
        directory: Path,
        plan: Plan,
        *,
        progress: bool | None = None,
        **options: Any,
    ) -> DeployedEndpoint:
        """Deploy a bundle, or bring its deployment up to it; see deploy.py for the order of things.

        The new version serves once it answers the bundle's example as the original model did; if it does
        not, it is removed and the version before keeps serving. Options: `name` of the stack, `python`,
        `architecture`, `tags`, `smoke_test`, `keep` (versions that stay), `log_days`, `xray`.
        """
        step = steps(progress)
        with step("packing the functions"):
            order = _order(directory, plan, **options)
        stack = order.stack
        work = Work()
        versions = carry_out(work, self.clients, order, step)
        bucket = stack.bucket(self.clients.place)
        with explained("reading the URL"):
            url = function_url(self.clients, stack.coordinator.name)
        return DeployedEndpoint(
            stack.name,
            client_of(self.clients, plan, stack.coordinator.name, ALIAS, bucket),
            url=url,
            versions=versions,
            changes=Changes(stack=stack.name, changes=tuple(work.changes)),
        )

    def changes(
        self,
        directory: Path,
        plan: Plan,
        *,
        requests_per_month: int = 0,
        progress: bool | None = None,
        **options: Any,
    ) -> Changes:
        """What `deploy` with these options would change, in its order, and what the deployment would
        cost a month; nothing is changed.
        """
        step = steps(progress)
        with step("packing the functions"):
            order = _order(directory, plan, **{**options, "smoke_test": False})
        work = Work(dry_run=True)
        carry_out(work, self.clients, order, step)
        packages = [*order.packages.parts.values(), order.packages.layer]
        stored = sum(each.zip_bytes for each in packages if each is not None)
        costs = monthly_usd(plan, order.stack, self._profile, stored, requests_per_month)
        place, profile = self.clients.place, self._profile
        note = (
            f"Prices are those of {profile.region}, {profile.architecture} (the bundle's profile)."
        )
        other = (place.region, order.stack.architecture) != (profile.region, profile.architecture)
        notes = [note] if other else []
        if not requests_per_month:
            notes.append("Requests are paid by use: give a number of requests per month.")
        return Changes(
            stack=order.stack.name,
            changes=tuple(work.changes),
            monthly_usd=costs,
            notes=tuple(notes),
        )

    def connect(
        self, name: str | None, directory: Path | None, plan: Plan | None
    ) -> DeployedEndpoint:
        """A deployment that is there, by its name or its bundle."""
        stack, place = _name(name, directory), self.clients.place
        plan = plan or deployed_plan(self.clients, stack)
        bucket = f"{stack}-{place.account}-{place.region}"
        client = client_of(self.clients, plan, f"{stack}-{COORDINATOR}", ALIAS, bucket)
        return DeployedEndpoint(stack, client)

    def status(
        self, name: str | None, directory: Path | None, plan: Plan | None, **options: Any
    ) -> Status:
        """What is deployed. With a bundle, also what deploying it with these options would change."""
        changes = None
        if directory is not None and plan is not None:
            changes = replace(self.changes(directory, plan, name=name, **options), monthly_usd=None)
        stack = _name(name, directory)
        with explained(f"reading {stack}"):
            url = function_url(self.clients, f"{stack}-{COORDINATOR}")
        return read_status(self.clients, stack, changes, url)

    def destroy(self, name: str | None, directory: Path | None, *, dry_run: bool) -> Changes:
        """Remove everything that carries the stack's tag, also of a deployment that was interrupted."""
        stack, work = _name(name, directory), Work(dry_run=dry_run)
        with explained(f"removing {stack}", advice="Destroy again: it goes on where it stopped"):
            destroy(work, self.clients, stack)
        return Changes(stack=stack, changes=tuple(work.changes))

    def collect(
        self, name: str | None, directory: Path | None, *, older_than_s: float, dry_run: bool
    ) -> Changes:
        """Delete tensors that requests have left in the buckets, if they were written longer ago."""
        stack, work = _name(name, directory), Work(dry_run=dry_run)
        with explained(f"collecting what requests of {stack} have left"):
            collect(work, self.clients, stack, older_than_s)
        return Changes(stack=stack, changes=tuple(work.changes))

    def diff(self, old: str | Path, new: str | Path) -> Diff:
        """What differs between two bundles, or between a deployment (by name) and a bundle."""
        return diff_of(self._side(old), self._side(new))

    def _side(self, which: str | Path) -> Side:
        path = Path(which)
        if path.is_dir():
            plan = Plan.from_json((path / "plan.json").read_text())
            packages = package(path, plan).parts
            return Side(
                name=str(which),
                plan=plan,
                packages={part: (each.sha256, each.zip_bytes) for part, each in packages.items()},
            )
        stack = str(which)
        plan = deployed_plan(self.clients, stack)
        with explained(f"reading {stack}"):
            coordinator = read_function(self.clients, f"{stack}-{COORDINATOR}")
            live = coordinator.version(coordinator.aliases.get(ALIAS)) if coordinator else None
            if live is None:
                raise not_deployed(self.clients, stack)
            found = {COORDINATOR: (live.settings.sha256, live.bytes)}
            for part, number in called(live).items():
                state = read_function(self.clients, f"{stack}-{part}")
                version = state.version(number) if state else None
                if version is None:
                    raise DeploymentError(
                        f"version {number} of {stack}-{part} is not there, which the version that "
                        "serves calls. Deploy the bundle again."
                    )
                found[part] = (version.settings.sha256, version.bytes)
        return Side(name=stack, plan=plan, packages=found)


def _order(
    directory: Path,
    plan: Plan,
    *,
    name: str | None = None,
    python: str = "3.13",
    architecture: str = "x86_64",
    tags: Mapping[str, str] | None = None,
    smoke_test: bool = True,
    **options: Any,
) -> Order:
    """Everything that can be known and refused before AWS is asked."""
    if plan.orchestration != "coordinator":
        raise DeploymentError(
            f'slicewise deploy knows bundles with a coordinator; this is a "{plan.orchestration}". '
            "Deploy it with its template.yaml (README.md in the bundle), or compile it with "
            'orchestration="coordinator".'
        )
    return Order(
        stack=stack_of(
            directory, plan, name=name, python=python, architecture=architecture, tags=tags
        ),
        plan=plan,
        packages=package(directory, plan, python=python, architecture=architecture),
        weights=streamed_weights(directory),
        smoke=read_smoke(directory) if smoke_test else None,
        **options,
    )


def _name(name: str | None, directory: Path | None) -> str:
    """The stack's name, the bundle's own where none was given."""
    if name is not None:
        return name
    if directory is None:
        raise DeploymentError("name a deployment or a bundle.")
    return str(read_index(directory)["stack"])
