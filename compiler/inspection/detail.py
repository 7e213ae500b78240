"""graph.json in a bundle: the ops that a plan was cut from, for those who ask why."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from slicewise.errors import BundleError, GraphError
from slicewise.graph import OpGraph

FILE = "graph.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Detail:
    """The graph with the ops' times (ms at one vCPU), of which threads divide the part `parallel`."""

    graph: OpGraph
    parallel: float


def write_detail(directory: Path, detail: Detail) -> None:
    """Write graph.json into a bundle."""
    graph = detail.graph.to_json()
    head = json.dumps({"schema": SCHEMA, "parallel": detail.parallel})
    (directory / FILE).write_text(f'{head[:-1]}, "graph": {graph}}}')


def read_detail(directory: Path) -> Detail:
    """What `write_detail` wrote. Raises `BundleError`."""
    try:
        data = json.loads((directory / FILE).read_text())
        if data["schema"] != SCHEMA:
            raise BundleError(
                f"{FILE} has schema {data['schema']!r}, this slicewise reads {SCHEMA}. "
                "Compile the model again."
            )
        return Detail(
            graph=OpGraph.from_json(json.dumps(data["graph"])), parallel=float(data["parallel"])
        )
    except BundleError:
        raise
    except FileNotFoundError as error:
        raise BundleError(
            f"{directory} holds no {FILE}, which tells of the ops: an older slicewise wrote it. "
            "Compile the model again."
        ) from error
    except (OSError, KeyError, TypeError, ValueError, GraphError) as error:
        raise BundleError(
            f"{directory / FILE} cannot be read: {error!r}. Compile the model again."
        ) from error
