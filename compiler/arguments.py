"""Arguments: what an op is called with, by the names of its schema; as data that passes can read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """All arguments by name, defaults included; by position ("0", "1") for what has no schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(index): value for index, value in enumerate(node.args)} | node.kwargs
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | node.kwargs
    return {a.name: given.get(a.name, a.default_value) for a in schema.arguments}


def as_called(target: Any, given: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by name as positional ones and those that have to be named."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return list(given.values()), {}
    args = [given[a.name] for a in schema.arguments if not a.kwarg_only]
    return args, {a.name: given[a.name] for a in schema.arguments if a.kwarg_only}


def as_data(value: Any, reference: Callable[[fx.Node], str]) -> Any:
    """An argument without torch: nodes as references, lists as tuples, dtypes and the like as text."""
    if isinstance(value, fx.Node):
        return reference(value)
    if isinstance(value, (list, tuple)):
        return tuple(as_data(item, reference) for item in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
