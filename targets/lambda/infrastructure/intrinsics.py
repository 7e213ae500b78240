"""CloudFormation's own words: names of resources, references, conditions, and strings to fill in."""

from __future__ import annotations

import re
from typing import Any

NO_VALUE = {"Ref": "AWS::NoValue"}


def logical_id(*words: str) -> str:
    """The name of a resource within the template: letters and digits only."""
    parts = [part for word in words for part in re.split(r"[^A-Za-z0-9]+", word) if part]
    return "".join(part[0].upper() + part[1:] for part in parts)


def ref(name: str) -> dict[str, str]:
    """The value of a parameter, or the name of a resource."""
    return {"Ref": name}


def attribute(resource: str, name: str) -> dict[str, list[str]]:
    """An attribute of a resource."""
    return {"Fn::GetAtt": [resource, name]}


def if_on(condition: str, value: Any, otherwise: Any = None) -> dict[str, list[Any]]:
    """The value where the condition holds, else `otherwise`, or nothing at all."""
    return {"Fn::If": [condition, value, NO_VALUE if otherwise is None else otherwise]}


def filled(value: Any) -> Any:
    """The same data with every string that names a parameter in "${...}" made one to fill in."""
    match value:
        case str() if "${" in value:
            return {"Fn::Sub": value}
        case dict():
            return {key: filled(item) for key, item in value.items()}
        case list() | tuple():
            return [filled(item) for item in value]
        case _:
            return value
