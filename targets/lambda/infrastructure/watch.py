"""Log groups and alarms of a stack."""

from __future__ import annotations

from typing import Any

from ..resources import Stack, StackFunction
from .intrinsics import filled, if_on, logical_id, ref
from .parameters import ALARMS, NOTIFIED
from .suppressions import suppressed

NEAR_TIMEOUT = 0.8  # of a function's timeout
ALARMS_PER_FUNCTION = 3


def log_group_id(function: StackFunction) -> str:
    """The log group's name in the template."""
    return logical_id(function.part, "logs")


def watch(stack: Stack, tags: list[dict[str, str]]) -> dict[str, Any]:
    """A log group and three alarms for every function, by logical id.

    A slice that fails tells the coordinator, which replies with an error; what alarms see is what
    Lambda itself sees: functions that ran out of time or memory, did not start, or were throttled.
    """
    found: dict[str, Any] = {}
    for function in stack.functions:
        found[log_group_id(function)] = {
            "Type": "AWS::Logs::LogGroup",
            "Metadata": suppressed("logs"),
            "DeletionPolicy": "Delete",
            "UpdateReplacePolicy": "Delete",
            "Properties": {
                "LogGroupName": filled(function.log_group),
                "RetentionInDays": ref("LogRetentionDays"),
                "Tags": tags,
            },
        }
        late_ms = round(function.timeout_s * 1000 * NEAR_TIMEOUT)
        for metric, statistic, above, what in (
            ("Errors", "Sum", 0, "ran out of time or memory, or did not start"),
            ("Throttles", "Sum", 0, "was refused for want of concurrency"),
            ("Duration", "Maximum", late_ms, f"took more than {late_ms / 1000:g} s"),
        ):
            found[logical_id(function.part, metric, "alarm")] = {
                "Type": "AWS::CloudWatch::Alarm",
                "Condition": ALARMS,
                "Properties": {
                    "AlarmName": filled(f"{function.name}-{metric.lower()}"),
                    "AlarmDescription": f"A call of {function.part} {what}.",
                    "Namespace": "AWS/Lambda",
                    "MetricName": metric,
                    "Dimensions": [{"Name": "FunctionName", "Value": filled(function.name)}],
                    "Statistic": statistic,
                    "Period": 60,
                    "EvaluationPeriods": 1,
                    "ComparisonOperator": "GreaterThanThreshold",
                    "Threshold": above,
                    "TreatMissingData": "notBreaching",
                    "AlarmActions": if_on(NOTIFIED, [ref("AlarmTopic")]),
                    "Tags": tags,
                },
            }
    return found
