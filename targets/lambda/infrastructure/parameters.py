"""The parameters of a template: what a user may choose without compiling again."""

from __future__ import annotations

from typing import Any

from ..bundle import STACK_NAME_MAX
from ..resources import LOG_DAYS, Stack
from ..runtime.seal import KEY_VARIABLE

XRAY, SNAPSTART, PROVISIONED = "XRayOn", "SnapStartOn", "ProvisionedOn"
KEY_PARAMETER = "EncryptionKey"
RESERVED, ALARMS, NOTIFIED, URL = "ReservedOn", "AlarmsOn", "NotifiedOn", "FunctionUrlOn"


def parameters(stack: Stack, default_name: str) -> dict[str, Any]:
    """Parameters of both forms, by name; every one but the zone has a default."""
    found: dict[str, Any] = {
        "Name": {
            "Type": "String",
            "Default": default_name,
            "AllowedPattern": "[a-z]([a-z0-9-]*[a-z0-9])?",
            "MaxLength": STACK_NAME_MAX,
            "Description": "Functions, roles, buckets and log groups are named after it. "
            "Another name makes a second deployment beside the first.",
        },
        "LogRetentionDays": {
            "Type": "Number",
            "Default": LOG_DAYS,
            "AllowedValues": [1, 3, 5, 7, 14, 30, 60, 90, 180, 365, 731],
            "Description": "Days that logs are kept.",
        },
        "Alarms": _switch("on", "Alarms on errors, throttles and durations of every function."),
        "AlarmTopic": {
            "Type": "String",
            "Default": "",
            "Description": "ARN of the SNS topic that alarms notify; empty: they only change color.",
        },
        "FunctionUrl": _switch(
            "on", "An HTTPS address for signed requests; some regions have no function URLs."
        ),
        "XRay": _switch("off", "X-Ray traces of every request."),
        "ReservedConcurrency": {
            "Type": "Number",
            "Default": -1,
            "MinValue": -1,
            "Description": "As many requests of each function may run at once, and are set aside of the "
            "account's concurrency; -1: no reservation.",
        },
        "ProvisionedConcurrency": {
            "Type": "Number",
            "Default": 0,
            "MinValue": 0,
            "Description": "Environments of each function that are kept warm and paid for all the "
            "time; 0: none. Not with SnapStart.",
        },
        "SnapStart": _switch(
            "off",
            "Cold starts restore a snapshot of the initialised function, for a price per restore and "
            "per hour kept. Not with ProvisionedConcurrency.",
        ),
    }
    if stack.definition:
        del found["FunctionUrl"]
        found["StateMachineType"] = {
            "Type": "String",
            "Default": "STANDARD",
            "AllowedValues": ["STANDARD", "EXPRESS"],
            "Description": "STANDARD: paid by states, with a history; EXPRESS: paid by time, at most "
            "5 minutes, callers wait with StartSyncExecution.",
        }
    if key_variables_in_template(stack):
        found[KEY_PARAMETER] = {
            "Type": "String",
            "NoEcho": True,
            "MinLength": 44,
            "MaxLength": 44,
            "Description": f"The key of the encrypted bundle, as {KEY_VARIABLE} had it.",
        }
    if "s3express" in stack.transports:
        found["Zone"] = {
            "Type": "String",
            "AllowedPattern": "[a-z0-9]+-az[0-9]+",
            "Description": "Id of the availability zone of the directory bucket, such as use1-az4: one "
            "of the region's that have S3 Express One Zone.",
        }
    return found


def key_variables_in_template(stack: Stack) -> dict[str, str]:
    """What functions are given of the key that whoever deploys the template enters."""
    if stack.encryption is None or stack.encryption.key != "env":
        return {}
    return {KEY_VARIABLE: f"${{{KEY_PARAMETER}}}"}


def conditions(stack: Stack) -> dict[str, Any]:
    """When each of the options is on."""
    url = {} if stack.definition else {URL: _is("FunctionUrl", "on")}
    return {
        XRAY: _is("XRay", "on"),
        SNAPSTART: _is("SnapStart", "on"),
        PROVISIONED: _is_not("ProvisionedConcurrency", 0),
        RESERVED: _is_not("ReservedConcurrency", -1),
        ALARMS: _is("Alarms", "on"),
        **url,
        NOTIFIED: _is_not("AlarmTopic", ""),
    }


def rules() -> dict[str, Any]:
    """What Lambda would refuse only after everything else has been made."""
    return {
        "SnapStartOrProvisionedConcurrency": {
            "RuleCondition": _is("SnapStart", "on"),
            "Assertions": [
                {
                    "Assert": _is("ProvisionedConcurrency", 0),
                    "AssertDescription": "Lambda allows SnapStart or provisioned concurrency, not both; "
                    "set ProvisionedConcurrency=0 or SnapStart=off.",
                }
            ],
        }
    }


def _switch(default: str, description: str) -> dict[str, Any]:
    return {
        "Type": "String",
        "Default": default,
        "AllowedValues": ["on", "off"],
        "Description": description,
    }


def _is(parameter: str, value: str | int) -> dict[str, Any]:
    return {"Fn::Equals": [{"Ref": parameter}, value]}


def _is_not(parameter: str, value: str | int) -> dict[str, Any]:
    return {"Fn::Not": [_is(parameter, value)]}
