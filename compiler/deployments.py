"""Deployments: bundles on a target's platform. The command line and `slicewise.deploy` come here.

A deployment is named by a bundle (its directory, or a `Bundle`), or by the name that it has there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slicewise import targets
from slicewise.compiled import Bundle, load
from slicewise.target import Deployer, Deployment, Report

DEFAULT_TARGET = "lambda"  # of deployments that are named by name alone
Which = str | Path | Bundle


def deploy(
    bundle: str | Path | Bundle,
    *,
    name: str | None = None,
    region: str | None = None,
    clients: Any = None,
    **options: Any,
) -> Deployment:
    """Deploy a bundle, or bring its deployment up to it; the result is called like the model.

    The new version serves when it has answered the bundle's example as the original model did
    (`smoke_test=False`: at once). Interrupted, the same call goes on; repeated, it changes nothing.
    Options are the target's own, for Lambda: `python`, `architecture`, `tags`, `keep`, `log_days`,
    `xray`, `zone` (of the bucket of s3express). Raises `DeploymentError`.
    """
    found = bundle if isinstance(bundle, Bundle) else load(bundle)
    deployer = _deployer(found, region, clients)
    return deployer.deploy(found.directory, found.plan, name=name, **options)


def preview(
    bundle: str | Path | Bundle,
    *,
    name: str | None = None,
    region: str | None = None,
    clients: Any = None,
    **options: Any,
) -> Report:
    """What `deploy` would change, and the monthly cost of `requests_per_month`; changes nothing."""
    found = bundle if isinstance(bundle, Bundle) else load(bundle)
    deployer = _deployer(found, region, clients)
    return deployer.changes(found.directory, found.plan, name=name, **options)


def connect(
    which: Which, *, name: str | None = None, region: str | None = None, clients: Any = None
) -> Deployment:
    """A deployment that is there: callable with the model's own arguments."""
    bundle = _bundle(which)
    deployer = _deployer(bundle, region, clients)
    if bundle is None:
        return deployer.connect(str(which), None, None)
    return deployer.connect(name, bundle.directory, bundle.plan)


def status(
    which: Which,
    *,
    name: str | None = None,
    region: str | None = None,
    clients: Any = None,
    **options: Any,
) -> Report:
    """What is deployed; for a bundle also whether that is what it says."""
    bundle = _bundle(which)
    deployer = _deployer(bundle, region, clients)
    if bundle is None:
        return deployer.status(str(which), None, None)
    return deployer.status(name, bundle.directory, bundle.plan, **options)


def destroy(
    which: Which,
    *,
    name: str | None = None,
    region: str | None = None,
    dry_run: bool = False,
    clients: Any = None,
) -> Report:
    """Remove everything of a deployment, in whatever state it is, and tell what that was."""
    bundle = _bundle(which)
    deployer = _deployer(bundle, region, clients)
    if bundle is None:
        return deployer.destroy(str(which), None, dry_run=dry_run)
    return deployer.destroy(name, bundle.directory, dry_run=dry_run)


def collect(
    which: Which,
    *,
    name: str | None = None,
    region: str | None = None,
    older_than_s: float = 3600.0,
    dry_run: bool = False,
    clients: Any = None,
) -> Report:
    """Remove what requests have left longer ago than any request lives, and tell what that was."""
    bundle = _bundle(which)
    deployer = _deployer(bundle, region, clients)
    named = (str(which), None) if bundle is None else (name, bundle.directory)
    return deployer.collect(*named, older_than_s=older_than_s, dry_run=dry_run)


def diff(
    old: str | Path, new: str | Path, *, region: str | None = None, clients: Any = None
) -> Report:
    """What differs between two bundles, or between a deployment and a bundle."""
    return _deployer(_bundle(new) or _bundle(old), region, clients).diff(old, new)


def _bundle(which: Which) -> Bundle | None:
    """The bundle, None for the name of a deployment: a name is no path to a directory."""
    if isinstance(which, Bundle):
        return which
    return load(which) if isinstance(which, Path) or Path(which).is_dir() else None


def _deployer(bundle: Bundle | None, region: str | None, clients: Any) -> Deployer:
    options = {"region": region} | ({"clients": clients} if clients is not None else {})
    if bundle is None:
        return targets.load(DEFAULT_TARGET).deployer(**options)
    profile = bundle.directory / "profile.json"
    target = targets.load(bundle.plan.target, profile if profile.exists() else None)
    return target.deployer(**options)
