"""What CloudFormation makes of a template's intrinsic functions, for given parameters."""

from __future__ import annotations

import re
from typing import Any

PSEUDO = {
    "AWS::Partition": "aws",
    "AWS::Region": "eu-west-1",
    "AWS::AccountId": "123456789012",
}
_GONE = object()


def resolved(template: dict[str, Any], **given: Any) -> dict[str, Any]:
    """The resources that are made, their properties filled in; other resources stay as references."""
    values: dict[str, Any] = dict(PSEUDO)
    for name, parameter in template["Parameters"].items():
        values[name] = given.get(name, parameter.get("Default"))
    values["AWS::NoValue"] = _GONE
    conditions = {name: _holds(c, values) for name, c in template["Conditions"].items()}
    return {
        name: _value(resource, values, conditions)
        for name, resource in template["Resources"].items()
        if conditions.get(resource.get("Condition"), True)
    }


def violated(template: dict[str, Any], **given: Any) -> list[str]:
    """What the template's rules say against the parameters."""
    values = {name: p.get("Default") for name, p in template["Parameters"].items()} | given
    return [
        assertion["AssertDescription"]
        for rule in template["Rules"].values()
        if _holds(rule["RuleCondition"], values)
        for assertion in rule["Assertions"]
        if not _holds(assertion["Assert"], values)
    ]


def _holds(condition: Any, values: dict[str, Any]) -> bool:
    match condition:
        case {"Fn::Equals": [left, right]}:
            return bool(_value(left, values, {}) == right)
        case {"Fn::Not": [inner]}:
            return not _holds(inner, values)
    raise AssertionError(f"a condition that CloudFormation knows, but this does not: {condition}")


def _value(value: Any, values: dict[str, Any], conditions: dict[str, bool]) -> Any:
    match value:
        case {"Ref": name}:
            return values.get(name, value)
        case {"Fn::Sub": text}:
            return re.sub(r"\$\{([A-Za-z0-9:]+)\}", lambda m: str(values.get(m[1], m[0])), text)
        case {"Fn::If": [name, yes, no]}:
            return _value(yes if conditions[name] else no, values, conditions)
        case {"Fn::Join": [separator, parts]}:
            return separator.join(_value(part, values, conditions) for part in parts)
        case dict():
            found = {key: _value(item, values, conditions) for key, item in value.items()}
            return {key: item for key, item in found.items() if item is not _GONE}
        case list():
            items = [_value(item, values, conditions) for item in value]
            return [item for item in items if item is not _GONE]
    return value
