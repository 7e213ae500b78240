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
from ..packaging.image import contents_of, image_tag
from ..packaging.packages import package
from ..profile import Profile
from ..resources import PYTHON, Stack, stack_of
from .clients import Clients, connect, explained
from .collect import collect
from .deploy import Order, carry_out
from .destroy import destroy
from .diff import IMAGE, Diff, Side, diff_of
from .endpoint import DeployedEndpoint, client_of
from .express import zone_of
from .functions import function_url, read_function
from .image import tag_of
from .live import read_live
from .price import monthly_usd
from .status import Status, deployed_plan, must_live, read_status
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
        zone: str | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> DeployedEndpoint:
        """Deploy a bundle, or bring its deployment up to it; see deploy.py for the order of things.

        The new version serves once it answers the bundle's example as the original model did; if it does
        not, it is removed and the version before keeps serving. Options: `name` of the stack, `python`,
        `architecture` (None: the profile's), `tags`, `smoke_test`, `keep` (versions that stay),
        `log_days`, `xray`, and `zone`, the availability zone of the directory bucket where tensors go by
        s3express (None: that of the deployment which is there).
        """
        step = steps(progress)
        with step("packing the functions"):
            order = self._order(directory, plan, **options)
        stack, work = order.stack, Work()
        clients = self._in_zone(stack, zone)
        versions = carry_out(work, clients, order, step)
        live = must_live(clients, stack.name)
        with explained("reading the URL"):
            url = function_url(clients, stack.coordinator.name)
        return DeployedEndpoint(
            stack.name,
            client_of(clients, plan, live.target, live.buckets),
            url=url,
            versions=versions,
            changes=Changes(
                stack=stack.name, changes=tuple(work.changes), notes=order.packages.notes
            ),
        )

    def changes(
        self,
        directory: Path,
        plan: Plan,
        *,
        requests_per_month: int = 0,
        zone: str | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> Changes:
        """What `deploy` with these options would change, in its order, and what the deployment would
        cost a month; nothing is changed.
        """
        step = steps(progress)
        with step("packing the functions"):
            order = self._order(directory, plan, **{**options, "smoke_test": False})
        work = Work(dry_run=True)
        carry_out(work, self._in_zone(order.stack, zone), order, step)
        packages = [*order.packages.parts.values(), order.packages.layer]
        stored = sum(each.zip_bytes for each in packages if each is not None)
        costs = monthly_usd(plan, order.stack, self._profile, stored, requests_per_month)
        place, profile = self.clients.place, self._profile
        note = (
            f"Prices are those of {profile.region}, {profile.architecture} (the bundle's profile)."
        )
        other = (place.region, order.stack.architecture) != (profile.region, profile.architecture)
        notes = [*order.packages.notes, *([note] if other else [])]
        if order.stack.has_image:
            notes.append("The image's storage in ECR is not in this price.")
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
        stack = _name(name, directory)
        live = must_live(self.clients, stack)
        plan = plan or deployed_plan(self.clients, stack, live)
        client = client_of(self.clients, plan, live.target, live.buckets)
        with explained("reading the URL"):
            url = function_url(self.clients, f"{stack}-{live.entry}")
        return DeployedEndpoint(stack, client, url=url, versions=live.numbers)

    def status(
        self, name: str | None, directory: Path | None, plan: Plan | None, **options: Any
    ) -> Status:
        """What is deployed. With a bundle, also what deploying it with these options would change."""
        changes = None
        if directory is not None and plan is not None:
            changes = replace(self.changes(directory, plan, name=name, **options), monthly_usd=None)
        return read_status(self.clients, _name(name, directory), changes)

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
        """What differs between two bundles, or between a deployment (by name) and a bundle, which is
        then packed as the deployment is.
        """
        deployed = {
            each: self._deployed(str(each)) for each in (old, new) if not Path(each).is_dir()
        }
        options = next((options for _, options in deployed.values()), {})
        return diff_of(
            *(
                deployed[each][0] if each in deployed else self._saved(Path(each), options)
                for each in (old, new)
            )
        )

    def _saved(self, directory: Path, options: Mapping[str, Any]) -> Side:
        """A bundle, packed with these options."""
        order = self._order(
            directory,
            Plan.from_json((directory / "plan.json").read_text()),
            smoke_test=False,
            **options,
        )
        parts = order.packages.parts
        packages = {part: (each.sha256, each.zip_bytes) for part, each in parts.items()}
        if order.stack.has_image:
            packages[IMAGE] = (contents_of(order.image_tag), 0)
        return Side(name=str(directory), plan=order.plan, packages=packages)

    def _deployed(self, stack: str) -> tuple[Side, dict[str, Any]]:
        """A deployment, and the options that its functions were packed with."""
        live = must_live(self.clients, stack)
        plan = deployed_plan(self.clients, stack, live)
        packages = {}
        options = {"architecture": live.version.settings.architecture}
        with explained(f"reading {stack}"):
            for part, number in live.numbers.items():
                state = read_function(self.clients, f"{stack}-{part}")
                version = state.version(number) if state else None
                if version is None:
                    raise DeploymentError(
                        f"version {number} of {stack}-{part} is not there, which the version that "
                        "serves calls. Deploy the bundle again."
                    )
                settings = version.settings
                if settings.is_image:
                    tag = tag_of(self.clients, stack, settings.sha256)
                    packages[IMAGE] = (contents_of(tag), 0)
                else:
                    packages[part] = (settings.sha256, version.bytes)
                    options["python"] = settings.runtime.removeprefix("python")
        return Side(name=stack, plan=plan, packages=packages), options

    def _in_zone(self, stack: Stack, zone: str | None) -> Clients:
        """The clients, with the zone of the directory bucket where the stack has one."""
        clients = self.clients
        if "s3express" in stack.transports and zone is None:
            with explained(f"reading {stack.name}"):
                live = read_live(clients, stack.name)
            bucket = live.buckets.get("s3express") if live is not None else None
            zone = zone_of(bucket) if bucket else None
        return replace(clients, place=replace(clients.place, zone=zone))

    def _order(
        self,
        directory: Path,
        plan: Plan,
        *,
        name: str | None = None,
        python: str = PYTHON,
        architecture: str | None = None,
        tags: Mapping[str, str] | None = None,
        smoke_test: bool = True,
        **options: Any,
    ) -> Order:
        """Everything that can be known and refused before AWS is asked."""
        architecture = architecture or self._profile.architecture
        built_for: dict[str, Any] = {"python": python, "architecture": architecture}
        return Order(
            directory=directory,
            stack=stack_of(directory, plan, name=name, tags=tags, **built_for),
            plan=plan,
            packages=package(
                directory, plan, limit_mb=self._profile.limits.package_mb_max, **built_for
            ),
            weights=streamed_weights(directory),
            image_tag=image_tag(directory, **built_for),
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
