"""A deployed bundle, called through the client that bundles served on this machine have too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slicewise.plan import Plan

from ..client import Client
from ..steps_client import StepsClient
from .clients import Clients
from .work import Changes


class DeployedEndpoint:
    """A deployment: callable with the model's own arguments.

    `versions` has the version of every part that serves. `url` is None where HTTP requests are not
    answered.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        *,
        url: str | None = None,
        versions: Mapping[str, str] | None = None,
        changes: Changes | None = None,
    ) -> None:
        self.name = name
        self.client = client
        self.url = url
        self.versions = dict(versions or {})
        self.changes = changes

    @property
    def function(self) -> str:
        """What is called: a function with its alias, or the ARN of a state machine's alias."""
        return self.client.function

    @property
    def last_trace(self) -> dict[str, Any]:
        """Where the time of the latest call went, ms."""
        return self.client.last_trace

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for these inputs. Raises `RequestError` or `SliceFailure`."""
        return self.client(*args, **kwargs)


def client_of(clients: Clients, plan: Plan, target: str, buckets: Mapping[str, str]) -> Client:
    """A client of one version or alias, of a function or by the ARN of a state machine's; tensors go
    through these buckets, by transport.
    """
    from ..runtime.store import Store
    from ..sealing import seal_of

    store = Store(buckets, clients.s3, seal_of(plan.encryption))
    if plan.orchestration == "stepfunctions":
        return StepsClient(plan, target, clients.states, store)
    return Client(plan, target, clients.invoke, store)
