"""The functions of a stack in both forms: layer, roles, functions, versions, alias and URL.

Every function is published as a version, and the coordinator's version names those of the slices that
it calls. The alias moves last, so an update changes all slices at once, or none when it fails.

A version keeps the function as it was, so CloudFormation must make a new one whenever the function
changes. Its logical id has the digest of what the bundle says of the function, and its description names
the parameters that change it: with either, CloudFormation replaces the version. Lambda refuses a second
version of an unchanged function, so the function's own description tells the digest and what else of
this is not the function's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..packaging.archive import tree_sha256
from ..resources import (
    ALIAS,
    Place,
    Stack,
    StackFunction,
    environment,
    policy,
    role_name,
    trust_policy,
)
from .intrinsics import attribute, filled, if_on, logical_id, ref
from .machine import machine
from .parameters import PROVISIONED, RESERVED, SNAPSTART, URL, XRAY, key_variables_in_template
from .suppressions import suppressed
from .watch import log_group_id

Form = Literal["sam", "cloudformation"]
LAYER, CODE_BUCKET, LAYER_KEY = "RuntimeLayer", "CodeBucket", "LayerKey"
LAYER_FOLDER = "layer"
COORDINATOR_ALIAS, COORDINATOR_URL = "CoordinatorAlias", "CoordinatorUrl"
SLICES_MAX = 50  # whose version numbers, of four digits, fit a description of 256 characters
_KEY_FITS = 30  # slices, and the key of a zip file of 100 characters
_SHOWN = 10  # hexadecimal digits of a digest within a name


def code_parameters(stack: Stack) -> dict[str, Any]:
    """Where the zip files are that `slicewise package` made, for the plain form."""
    keys = {LAYER_KEY: "the runtime layer, dist/layer.zip"}
    keys |= {key_id(f): f"{f.part}, dist/{f.part}.zip" for f in stack.functions}
    return {
        CODE_BUCKET: {
            "Type": "String",
            "Description": "A bucket of yours, in this region, that holds the zip files.",
        },
        **{
            name: {
                "Type": "String",
                "MaxLength": 100,
                "Description": f"Key of {what}; its SHA-256 in it, as a new version needs a new key.",
            }
            for name, what in keys.items()
        },
    }


def digests(directory: Path, stack: Stack) -> dict[str, str]:
    """SHA-256 of all that a bundle says of each function, by part; the coordinator's is of all parts."""
    shared = {"python": stack.python, "architecture": stack.architecture}
    layer = tree_sha256(directory / LAYER_FOLDER)
    found = {}
    for function in stack.functions:
        said = {
            **shared,
            "layer": layer,
            "code": tree_sha256(directory / function.package),
            "settings": [function.handler, function.memory_mb, function.timeout_s],
        }
        found[function.part] = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    everything = json.dumps(sorted(found.items()))
    return {**found, stack.entry: hashlib.sha256(everything.encode()).hexdigest()}


def compute(
    stack: Stack,
    place: Place,
    digest: Mapping[str, str],
    form: Form,
    tags: list[dict[str, str]],
) -> dict[str, Any]:
    """Layer, roles, functions, versions, alias and URL, by logical id."""
    versions = {f.part: version_id(f, digest) for f in stack.functions}
    found = {LAYER: _layer(stack, form)}
    for function in stack.functions:
        found[_role_id(function)] = _role(stack, function, place, tags)
        shown = digest[function.part][:_SHOWN]
        properties = _settings(stack, function, place, versions)
        properties["Description"] = filled(
            f"{function.part} of {stack.model[:100]}, {shown}, provisioned ${{ProvisionedConcurrency}}"
        )
        found[logical_id(function.part)] = _function(function, properties, form, tags)
        found[versions[function.part]] = _version(stack, function, versions, form)
    coordinator = logical_id(stack.entry)
    found[COORDINATOR_ALIAS] = {
        "Type": "AWS::Lambda::Alias",
        "Properties": {
            "Name": ALIAS,
            "FunctionName": ref(coordinator),
            "FunctionVersion": attribute(versions[stack.entry], "Version"),
            "ProvisionedConcurrencyConfig": _provisioned(),
        },
    }
    if stack.definition:  # which answers no HTTP requests
        return {**found, **machine(stack, place, versions, tags)}
    found[COORDINATOR_URL] = {
        "Type": "AWS::Lambda::Url",
        "Condition": URL,
        "DependsOn": [COORDINATOR_ALIAS],
        "Properties": {
            "TargetFunctionArn": ref(coordinator),
            "Qualifier": ALIAS,
            "AuthType": "AWS_IAM",  # callers need lambda:InvokeFunctionUrl and lambda:InvokeFunction
            "InvokeMode": "BUFFERED",
        },
    }
    return found


def version_id(function: StackFunction, digest: Mapping[str, str]) -> str:
    """The logical id of a function's version."""
    return f"{logical_id(function.part, 'version')}{digest[function.part][:_SHOWN]}"


def key_id(function: StackFunction) -> str:
    """The parameter with the key of the function's zip file."""
    return logical_id(function.part, "key")


def _layer(stack: Stack, form: Form) -> dict[str, Any]:
    shared = {
        # Not Fn::Sub: SAM fills parameters of a layer in, and leaves one without any behind.
        "LayerName": {"Fn::Join": ["-", [ref("Name"), "runtime"]]},
        "Description": "numpy, onnxruntime and pybase64, for all functions of the stack.",
        "CompatibleRuntimes": [f"python{stack.python}"],
        "CompatibleArchitectures": [stack.architecture],
    }
    if form == "sam":
        return {
            "Type": "AWS::Serverless::LayerVersion",
            "Metadata": {"BuildMethod": "makefile", "BuildArchitecture": stack.architecture},
            "Properties": {
                **shared,
                "ContentUri": f"{LAYER_FOLDER}/",
                "RetentionPolicy": "Delete",
            },
        }
    content = {"S3Bucket": ref(CODE_BUCKET), "S3Key": ref(LAYER_KEY)}
    return {"Type": "AWS::Lambda::LayerVersion", "Properties": {**shared, "Content": content}}


def _role(
    stack: Stack, function: StackFunction, place: Place, tags: list[dict[str, str]]
) -> dict[str, Any]:
    document = policy(stack, function, place)
    own = document["Statement"]
    traced = policy(stack, function, place, xray=True)["Statement"]
    statements = [*own, *(if_on(XRAY, added) for added in traced if added not in own)]
    document = filled({**document, "Statement": statements})
    return {
        "Type": "AWS::IAM::Role",
        "Properties": {
            "RoleName": filled(role_name(function, place)),
            "AssumeRolePolicyDocument": trust_policy(),
            "Policies": [{"PolicyName": "function", "PolicyDocument": document}],
            "Tags": tags,
        },
    }


def _settings(
    stack: Stack, function: StackFunction, place: Place, versions: Mapping[str, str]
) -> dict[str, Any]:
    """What both forms call by the same names."""
    variables = environment(stack, function, place) | key_variables_in_template(stack)
    if function.part == stack.entry:
        pairs = (f"{f.part}=${{{versions[f.part]}.Version}}" for f in stack.slices)
        variables["SLICEWISE_VERSIONS"] = ",".join(pairs)
    return {
        "FunctionName": filled(function.name),
        "Runtime": f"python{stack.python}",
        "Architectures": [stack.architecture],
        "Handler": function.handler,
        "MemorySize": function.memory_mb,
        "Timeout": function.timeout_s,
        "Role": attribute(_role_id(function), "Arn"),
        "Layers": [ref(LAYER)],
        "Environment": {"Variables": filled(variables)},
        "LoggingConfig": {"LogGroup": ref(log_group_id(function))},
        "SnapStart": {"ApplyOn": if_on(SNAPSTART, "PublishedVersions", "None")},
        "ReservedConcurrentExecutions": if_on(RESERVED, ref("ReservedConcurrency")),
    }


def _function(
    function: StackFunction, settings: dict[str, Any], form: Form, tags: list[dict[str, str]]
) -> dict[str, Any]:
    mode = if_on(XRAY, "Active", "PassThrough")
    metadata = suppressed("function")
    if form == "sam":
        # cfn-lint misses SAM's own way to versions; here they are resources of their own.
        metadata |= {"cfn-lint": {"config": {"ignore_checks": ["W2530"]}}}
        properties = {
            **settings,
            "CodeUri": f"{function.package.as_posix()}/",
            "Tracing": mode,
            "Tags": {tag["Key"]: tag["Value"] for tag in tags},
        }
        return {
            "Type": "AWS::Serverless::Function",
            "Metadata": metadata,
            "Properties": properties,
        }
    properties = {
        **settings,
        "Code": {"S3Bucket": ref(CODE_BUCKET), "S3Key": ref(key_id(function))},
        "TracingConfig": {"Mode": mode},
        "Tags": tags,
    }
    return {"Type": "AWS::Lambda::Function", "Metadata": metadata, "Properties": properties}


def _version(
    stack: Stack, function: StackFunction, versions: Mapping[str, str], form: Form
) -> dict[str, Any]:
    own = f"${{{key_id(function)}}}" if form == "cloudformation" else ""
    if function.part == stack.entry:
        # A new version whenever a slice has one: the old one is about to be deleted.
        others = [other.part for other in stack.slices]
        numbers = " ".join(f"${{{versions[part]}.Version}}" for part in others)
        changes = [own if len(others) <= _KEY_FITS else "", numbers]
    else:
        layer = f"${{{LAYER_KEY}}}" if form == "cloudformation" else ""
        options = "xray ${XRay} snapstart ${SnapStart} provisioned ${ProvisionedConcurrency}"
        changes = [own, layer, options]
    properties = {
        "FunctionName": ref(logical_id(function.part)),
        "Description": filled(" ".join(filter(None, changes))),
    }
    if function.part != stack.entry:  # whose alias has it
        properties["ProvisionedConcurrencyConfig"] = _provisioned()
    # Old versions go when an update has succeeded: with provisioned concurrency they would cost on.
    return {
        "Type": "AWS::Lambda::Version",
        "DeletionPolicy": "Delete",
        "UpdateReplacePolicy": "Delete",
        "Properties": properties,
    }


def _provisioned() -> dict[str, Any]:
    return if_on(PROVISIONED, {"ProvisionedConcurrentExecutions": ref("ProvisionedConcurrency")})


def _role_id(function: StackFunction) -> str:
    return logical_id(function.part, "role")
