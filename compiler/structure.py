"""Structures: how a model's nested inputs and outputs are laid out over named tensors, as plain data.

A structure is a JSON tree. A leaf is {"tensor": name} or {"constant": value}. A node has a "kind"
("tuple", "list", "dict" or "object"), its "children", and "keys" for the last two; an "object" also
has the "type" it is rebuilt as (a Hugging Face output, a dataclass, a named tuple) when that type can
be imported, and becomes a dict when it cannot. Nothing here needs torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slicewise.errors import RequestError

Structure = dict[str, Any]


def leaves(structure: Structure) -> list[Structure]:
    """The leaves from left to right."""
    if "kind" not in structure:
        return [structure]
    return [leaf for child in structure["children"] for leaf in leaves(child)]


def build(structure: Structure, tensors: Mapping[str, Any]) -> Any:
    """The value that the structure describes, with each tensor taken from `tensors` by its name."""
    if "tensor" in structure:
        return tensors[structure["tensor"]]
    if "constant" in structure:
        return structure["constant"]
    children = [build(child, tensors) for child in structure["children"]]
    match structure["kind"]:
        case "tuple":
            return tuple(children)
        case "list":
            return children
        case "dict":
            return dict(zip(structure["keys"], children, strict=True))
        case _:
            return _rebuild(structure["type"], dict(zip(structure["keys"], children, strict=True)))


def _rebuild(type_name: str, fields: dict[str, Any]) -> Any:
    module, _, name = type_name.rpartition(".")
    try:
        kind: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return fields
    for arguments, named in (((), fields), ((tuple(fields.values()),), {})):
        try:
            return kind(*arguments, **named)
        except TypeError:
            continue  # torch's own result types take one sequence
    return fields


def bind(structure: Structure, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of one call by name. `structure` is a "dict" over the model's parameters.

    Positional arguments follow the parameters' order. Raises `RequestError` naming the field that is
    missing, unknown, given twice, or laid out differently than at compile time.
    """
    parameters: list[str] = structure["keys"]
    if len(args) > len(parameters):
        raise RequestError(
            f"{len(args)} positional arguments were given, the model takes {len(parameters)}: "
            f"{', '.join(parameters)}."
        )
    given = dict(zip(parameters, args, strict=False))
    for name, value in kwargs.items():
        if name not in parameters:
            raise RequestError(
                f"unknown field {name!r}; the model takes {', '.join(parameters)}.", field=name
            )
        if name in given:
            raise RequestError(f"{name!r} was given twice.", field=name)
        given[name] = value
    tensors: dict[str, Any] = {}
    for name, child in zip(parameters, structure["children"], strict=True):
        if name not in given:
            if all("constant" in leaf for leaf in leaves(child)):
                continue
            raise RequestError(f"missing field {name!r}.", field=name)
        _flatten(name, child, given[name], tensors)
    return tensors


def _flatten(path: str, structure: Structure, value: Any, tensors: dict[str, Any]) -> None:
    if "tensor" in structure:
        if value is None:
            raise RequestError(f"{path!r} is None; a tensor was expected.", field=path)
        tensors[structure["tensor"]] = value
        return
    if "constant" in structure:
        if type(value) is not type(structure["constant"]) or value != structure["constant"]:
            raise RequestError(
                f"{path!r} was {structure['constant']!r} when the model was compiled and is fixed; "
                "compile again to change it.",
                field=path,
            )
        return
    children = structure["children"]
    keys = structure.get("keys", list(range(len(children))))
    by_item = structure["kind"] != "object" or isinstance(value, Mapping)
    try:
        items = [value[key] if by_item else getattr(value, key) for key in keys]
    except (AttributeError, KeyError, IndexError, TypeError):
        items = []
    if len(items) != len(children) or (hasattr(value, "__len__") and len(value) != len(children)):
        raise RequestError(
            f"{path!r} should hold {', '.join(map(str, keys))} as it did at compile time.",
            field=path,
        )
    for key, child, item in zip(keys, children, items, strict=True):
        _flatten(f"{path}.{key}", child, item, tensors)
