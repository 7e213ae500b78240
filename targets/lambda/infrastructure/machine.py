"""The state machine of a stack whose slices one drives, and its role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..resources import STATES, Place, Stack, machine_role, trust_policy
from .intrinsics import filled, ref

MACHINE, ROLE = "StateMachine", "StateMachineRole"


def machine(
    stack: Stack, place: Place, versions: Mapping[str, str], tags: list[dict[str, str]]
) -> dict[str, Any]:
    """By logical id; nothing for other orchestrations. It calls the versions of this very template, so
    an update changes all functions at once.
    """
    if not stack.definition:
        return {}
    functions = {part: ref(version) for part, version in versions.items()}
    return {
        ROLE: {
            "Type": "AWS::IAM::Role",
            "Properties": {
                "RoleName": filled(machine_role(stack, place)),
                "AssumeRolePolicyDocument": trust_policy(STATES),
                "Policies": [
                    {
                        "PolicyName": "states",
                        "PolicyDocument": {
                            "Version": "2012-10-17",
                            "Statement": [
                                {
                                    "Sid": "Functions",
                                    "Effect": "Allow",
                                    "Action": ["lambda:InvokeFunction"],
                                    "Resource": list(functions.values()),
                                }
                            ],
                        },
                    }
                ],
                "Tags": tags,
            },
        },
        MACHINE: {
            "Type": "AWS::StepFunctions::StateMachine",
            # It knows no substitution within an ARN; AWS has three partitions.
            "Metadata": {"cfn-lint": {"config": {"ignore_checks": ["E3601"]}}},
            "Properties": {
                "StateMachineName": ref("Name"),
                "StateMachineType": ref("StateMachineType"),
                "RoleArn": {"Fn::GetAtt": [ROLE, "Arn"]},
                "DefinitionString": stack.definition,
                "DefinitionSubstitutions": {**functions, "partition": ref("AWS::Partition")},
                "Tags": tags,
            },
        },
    }
