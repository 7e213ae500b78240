"""The smoke test: a version of the whole, called before anybody else calls it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from slicewise.errors import DeploymentError, RequestError, SliceFailure
from slicewise.plan import Plan
from slicewise.smoke import Smoke

from .clients import PATIENCE, Clients
from .endpoint import client_of

# Roles are known everywhere only seconds after they were changed; until then calls are refused.
_NOT_YET = ("AccessDenied", "not authorized", "Forbidden")


def check_version(
    clients: Clients, plan: Plan, version: str, buckets: Mapping[str, str], smoke: Smoke
) -> None:
    """Call this version, of a function or by the ARN of a state machine's, with the bundle's example.

    Raises `DeploymentError` when it fails, or does not return what the original model did.
    """
    client = client_of(clients, plan, version, buckets)
    for attempt in range(PATIENCE + 1):
        try:
            found = client.run(smoke.inputs)
            break
        except (SliceFailure, RequestError) as error:
            early = any(words in str(error) for words in _NOT_YET)
            if not early or attempt == PATIENCE:
                raise DeploymentError(
                    f"the smoke test failed, {version} does not answer: {error}"
                ) from error
            time.sleep(clients.wait_s)
    bad = [each for each in smoke.compare(found) if not each.within]
    if bad:
        lines = "; ".join(
            f"{each.output} differs by {each.relative:.2e} of its largest magnitude "
            f"(absolute {each.absolute:.2e}), allowed {each.tolerance:.0e}"
            for each in bad
        )
        raise DeploymentError(
            f"the smoke test failed, {version} does not compute what the model computes: {lines}"
        )
