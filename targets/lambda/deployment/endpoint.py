"""A deployed bundle, called through the client that bundles served on this machine have too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slicewise.plan import Plan

from ..client import Client
from .clients import Clients
from .work import Changes


class DeployedEndpoint:
    """A deployment: callable with the model's own arguments.

    `versions` has the version of every slice and of the coordinator (by part), where that is known.
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
        """The coordinator, with the alias or version that is called."""
        return self.client.function

    @property
    def last_trace(self) -> dict[str, Any]:
        """Where the time of the latest call went, ms."""
        return self.client.last_trace

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for these inputs. Raises `RequestError` or `SliceFailure`."""
        return self.client(*args, **kwargs)


def client_of(clients: Clients, plan: Plan, function: str, qualifier: str, bucket: str) -> Client:
    """A client of one version or alias of a coordinator; tensors go through its stack's bucket."""
    from ..runtime.store import Store
    from ..sealing import seal_of

    ways = [way for way in plan.transport_rule.transports if way != "payload"]
    store = Store(dict.fromkeys(ways, bucket), clients.s3, seal_of(plan.encryption))
    return Client(plan, f"{function}:{qualifier}", clients.invoke, store)
