"""Chains and state machines in the templates: who may call whom, and nothing more."""

from __future__ import annotations

import json
from typing import Any

import pytest


def invoked(template: Any, role: str) -> list[Any]:
    """What a role may invoke."""
    policies = template["Resources"][role]["Properties"]["Policies"]
    statements = [each for policy in policies for each in policy["PolicyDocument"]["Statement"]]
    return [
        resource
        for each in statements
        if "lambda:InvokeFunction" in each.get("Action", ())
        for resource in each["Resource"]
    ]


@pytest.mark.parametrize("form", ["template.yaml", "cloudformation.yaml"])
def test_in_a_chain_each_slice_may_call_the_next_one_only(chained: Any, form: str) -> None:
    template = chained.template(form)

    assert not any("oordinator" in name for name in template["Resources"] if "Role" in name)
    for index in range(3):
        called = json.dumps(invoked(template, f"Slice{index}Role"))
        assert [n for n in range(3) if f"slice{n}" in called] == ([index + 1] if index < 2 else [])
    entry = template["Resources"]["Slice0"]["Properties"]["Environment"]["Variables"]
    assert "slice1=" in json.dumps(entry["SLICEWISE_VERSIONS"])
    assert "slice2=" in json.dumps(entry["SLICEWISE_VERSIONS"])
    assert template["Resources"]["CoordinatorAlias"]["Properties"]["FunctionName"] == {
        "Ref": "Slice0"
    }


@pytest.mark.parametrize("form", ["template.yaml", "cloudformation.yaml"])
def test_a_state_machine_calls_versions_by_a_role_of_its_own(stepped: Any, form: str) -> None:
    template = stepped.template(form)
    machine = template["Resources"]["StateMachine"]["Properties"]

    definition = json.loads(machine["DefinitionString"])
    names = machine["DefinitionSubstitutions"]
    assert names.keys() == {"slice0", "slice1", "slice2", "coordinator", "partition"}
    for part in names.keys() - {"partition"}:
        assert names[part] in invoked(template, "StateMachineRole")
        assert template["Resources"][names[part]["Ref"]]["Type"] == "AWS::Lambda::Version"
        assert invoked(template, f"{part.capitalize()}Role") == []
    assert list(definition["States"]) == [
        "begin", "slice0", "slice1", "slice2", "end", "failed", "refused"]  # fmt: skip
    assert machine["StateMachineType"] == {"Ref": "StateMachineType"}
    assert "StateMachine" in template["Outputs"]
    assert "CoordinatorUrl" not in template["Resources"]


def test_every_state_retries_faults_of_the_service_and_catches_all(stepped: Any) -> None:
    states = json.loads((stepped.directory / "statemachine.asl.json").read_text())["States"]
    for name in ("begin", "slice0", "slice1", "slice2", "end"):
        assert "Lambda.TooManyRequestsException" in states[name]["Retry"][0]["ErrorEquals"]
        (catch,) = states[name]["Catch"]
        assert (catch["ErrorEquals"], catch["Next"]) == (["States.ALL"], "failed")
    # What a caller sent must not be taken for the state of an execution.
    assert states["begin"]["Catch"][0]["ResultPath"] == "$"
    assert "ResultPath" not in states["begin"]
