"""The template of a stack in two forms: AWS SAM, and plain CloudFormation.

Both are made of one description (resources.py) and differ in functions and layer only: SAM takes folders
of the bundle, CloudFormation the zip files of `slicewise package` in a bucket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from slicewise.errors import TargetError

from ..resources import Place, Stack
from .compute import (
    COORDINATOR_ALIAS,
    COORDINATOR_URL,
    SLICES_MAX,
    Form,
    code_parameters,
    compute,
)
from .intrinsics import attribute, filled, ref
from .machine import MACHINE
from .parameters import URL, conditions, parameters, rules
from .storage import BUCKET, EXPRESS_BUCKET, storage
from .watch import watch

# Where a template's resources come to be, said in CloudFormation's pseudo parameters.
TEMPLATE_PLACE = Place(
    partition="${AWS::Partition}",
    region="${AWS::Region}",
    account="${AWS::AccountId}",
    zone="${Zone}",
)
FILES: Mapping[str, Form] = {"template.yaml": "sam", "cloudformation.yaml": "cloudformation"}

_HEADS: Mapping[Form, str] = {
    "sam": """\
# {model} on AWS Lambda: an AWS SAM template, written by slicewise together with the bundle around it.
#
#     sam build && sam deploy --guided --capabilities CAPABILITY_NAMED_IAM
#
# builds the runtime layer (layer/Makefile), uploads the folders and makes the stack. Options are below,
# under Parameters. cloudformation.yaml is the same without SAM. README.md says what it costs, how to
# call it and how to remove it. Do not edit: compile again, or give parameters.
""",
    "cloudformation": """\
# {model} on AWS Lambda: a plain CloudFormation template, written by slicewise.
#
#     slicewise package .              makes dist/layer.zip and a zip file per function
#     aws s3 cp ...                    puts them into a bucket of yours, in the stack's region
#     aws cloudformation deploy ...    makes the stack of this template and their keys
#
# README.md has the commands in full, what it costs, how to call it and how to remove it.
# template.yaml is the same for AWS SAM. Do not edit: compile again, or give parameters.
""",
}


def parameterised(stack: Stack) -> Stack:
    """The stack with its name left to the template's parameter `Name`."""
    name = "${Name}"
    functions = tuple(replace(f, name=f"{name}-{f.part}") for f in stack.functions)
    tags = {key: name if value == stack.name else value for key, value in stack.tags.items()}
    return replace(stack, name=name, functions=functions, tags=tags)


def template(stack: Stack, digest: Mapping[str, str], form: Form) -> dict[str, Any]:
    """The template as data. `digest` names the content of each function (see `compute.digests`).

    Raises `TargetError` for packages other than zip files, and for more than a template can hold.
    """
    _check(stack)
    place, named = TEMPLATE_PLACE, parameterised(stack)
    tags = [{"Key": key, "Value": filled(value)} for key, value in named.tags.items()]
    resources = {
        **compute(named, place, digest, form, tags),
        **storage(named, place, tags),
        **watch(named, tags),
    }
    plain = form == "cloudformation"
    wanted = {**(code_parameters(named) if plain else {}), **parameters(named, stack.name)}
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        **({} if plain else {"Transform": "AWS::Serverless-2016-10-31"}),
        "Description": f"{stack.model[:200]}: {len(stack.functions)} functions",
        "Parameters": wanted,
        "Rules": rules(),
        "Conditions": conditions(stack),
        "Resources": resources,
        "Outputs": _outputs(resources),
    }


def template_text(stack: Stack, digest: Mapping[str, str], form: Form) -> str:
    """The template as YAML, with a few lines for people on top. Raises as `template` does."""
    import yaml

    class Dumper(yaml.CSafeDumper):
        """Writes what occurs twice twice: CloudFormation's YAML should need no anchors."""

        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
            return True

    head = _HEADS[form].format(model=stack.model.replace("\n", " "))
    body = yaml.dump(template(stack, digest, form), Dumper=Dumper, sort_keys=False, width=100)
    return f"{head}\n{body}"


def _outputs(resources: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any]
    if MACHINE in resources:
        found = {MACHINE: {"Description": "ARN to execute.", "Value": ref(MACHINE)}}
    else:
        found = {
            "Function": {
                "Description": "ARN to invoke: the coordinator's alias.",
                "Value": ref(COORDINATOR_ALIAS),
            },
            "Url": {
                "Condition": URL,
                "Description": "The same over HTTPS; requests must be signed.",
                "Value": attribute(COORDINATOR_URL, "FunctionUrl"),
            },
        }
    for bucket in (BUCKET, EXPRESS_BUCKET):
        if bucket in resources:
            found[bucket] = {"Description": "Tensors on their way.", "Value": ref(bucket)}
    return found


def _check(stack: Stack) -> None:
    for function in stack.functions:
        if function.packaging != "zip":
            raise TargetError(
                f"{function.part} is packed as {function.packaging!r}; the templates deploy zip files. "
                "Deploy it with: slicewise deploy"
            )
    # CloudFormation's own limits, 500 resources and 200 parameters, are further away.
    if len(stack.slices) > SLICES_MAX:
        raise TargetError(
            f"{stack.model} has {len(stack.slices)} slices; a template holds {SLICES_MAX} of them. "
            "Deploy it with: slicewise deploy"
        )
