"""Templates: the same stack in both forms, with the permissions and versions that it must have."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cloudformation import resolved, violated

from slicewise.errors import TargetError

resources = importlib.import_module("slicewise.targets.lambda.resources")
template = importlib.import_module("slicewise.targets.lambda.infrastructure.template")
compute = importlib.import_module("slicewise.targets.lambda.infrastructure.compute")
write = importlib.import_module("slicewise.targets.lambda.infrastructure.write")

FORMS = ["template.yaml", "cloudformation.yaml"]
BUNDLES = ["one", "five", "express", "sealed"]
KEY = "A" * 43 + "="
PLACE = resources.Place(region="eu-west-1", account="123456789012", zone="euw1-az1")


@pytest.fixture(params=BUNDLES)
def made(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def of_type(found: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: r for key, r in found.items() if r["Type"].endswith(names)}


def as_deployed(template: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    return resolved(template, Zone="euw1-az1", EncryptionKey=KEY, **parameters)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("xray", [False, True])
def test_every_role_may_do_what_the_resources_say(made: Any, form: str, xray: bool) -> None:
    found = as_deployed(made.template(form), XRay="on" if xray else "off")
    roles = of_type(found, "IAM::Role")

    assert len(roles) == len(made.stack.functions)
    for function in made.stack.functions:
        role = roles[f"{function.part.capitalize()}Role"]["Properties"]
        (own,) = role["Policies"]
        assert own["PolicyDocument"] == resources.policy(made.stack, function, PLACE, xray=xray)
        assert role["AssumeRolePolicyDocument"] == resources.trust_policy()
        assert role["RoleName"] == resources.role_name(function, PLACE)
        assert "ManagedPolicyArns" not in role


@pytest.mark.parametrize("form", FORMS)
def test_every_function_is_as_the_resources_say(made: Any, form: str) -> None:
    found = as_deployed(made.template(form))
    functions = of_type(found, "::Function")

    assert len(functions) == len(made.stack.functions)
    for function in made.stack.functions:
        settings = functions[function.part.capitalize()]["Properties"]
        variables = settings["Environment"]["Variables"]
        variables.pop("SLICEWISE_VERSIONS", None)
        key = {"SLICEWISE_KEY": KEY} if made.stack.encryption else {}
        assert variables == resources.environment(made.stack, function, PLACE) | key
        assert settings["FunctionName"] == function.name
        assert settings["MemorySize"] == function.memory_mb
        assert settings["Timeout"] == function.timeout_s
        assert settings["Runtime"] == "python3.13"
        assert settings["Architectures"] == ["x86_64"]
        assert "ReservedConcurrentExecutions" not in settings
        assert settings["SnapStart"] == {"ApplyOn": "None"}


@pytest.mark.parametrize("form", FORMS)
def test_the_coordinator_names_the_published_version_of_every_slice(made: Any, form: str) -> None:
    found = as_deployed(made.template(form))
    versions = of_type(found, "Lambda::Version")
    variables = found["Coordinator"]["Properties"]["Environment"]["Variables"]

    named = dict(pair.split("=") for pair in variables["SLICEWISE_VERSIONS"].split(","))
    assert list(named) == [f.part for f in made.stack.slices]
    for part, version in named.items():
        resource = version.removeprefix("${").removesuffix(".Version}")
        assert versions[resource]["Properties"]["FunctionName"] == {"Ref": part.capitalize()}
    (alias,) = of_type(found, "Lambda::Alias").values()
    assert alias["Properties"]["Name"] == "live"
    (own,) = (name for name in versions if name.startswith("Coordinator"))
    assert alias["Properties"]["FunctionVersion"] == {"Fn::GetAtt": [own, "Version"]}


def test_only_changed_functions_and_the_coordinator_get_new_versions(make: Any) -> None:
    made = make(3, "payload")
    before = compute.digests(made.directory, made.stack)
    assert compute.digests(made.directory, made.stack) == before

    (made.directory / "functions" / "slice1" / "model.onnx").write_text("other weights")
    after = compute.digests(made.directory, made.stack)

    changed = {part for part in before if before[part] != after[part]}
    assert changed == {"slice1", "coordinator"}


def test_the_libraries_memory_and_python_of_a_function_change_its_version(make: Any) -> None:
    made = make(2, "payload")
    before = compute.digests(made.directory, made.stack)

    bigger = tuple(replace(f, memory_mb=f.memory_mb + 1) for f in made.stack.functions)
    for stack in (
        replace(made.stack, functions=bigger),
        replace(made.stack, python="3.12"),
        replace(made.stack, architecture="arm64"),
    ):
        after = compute.digests(made.directory, stack)
        assert all(before[part] != after[part] for part in before)
    (made.directory / "layer" / "requirements.txt").write_text("numpy==0")
    after = compute.digests(made.directory, made.stack)
    assert all(before[part] != after[part] for part in before)


def replacements(before: dict[str, Any], after: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The functions that get a new version, and those that change, with all that follows from it.

    What a resource says of one that is replaced changes with it.
    """
    replaced: set[str] = set()
    while True:
        news = {
            name
            for name, resource in before.items()
            if resource["Type"].endswith(("::Version", "::LayerVersion", "::Function"))
            and (
                resource != after[name]
                or any(f"${{{other}." in str(resource) for other in replaced)
                or any(
                    str({"Ref": other}) in str(resource["Properties"].get("Layers"))
                    for other in replaced
                )
            )
        }
        if news == replaced:
            break
        replaced = news
    versions = of_type({name: before[name] for name in replaced}, "Lambda::Version").values()
    changed = of_type({name: before[name] for name in replaced}, "::Function")
    return {v["Properties"]["FunctionName"]["Ref"] for v in versions}, set(changed)


EVERY = {"Coordinator", *(f"Slice{index}" for index in range(5))}
OPTIONS: list[tuple[str, Any, set[str]]] = [
    ("XRay", "on", EVERY),
    ("SnapStart", "on", EVERY),
    ("ProvisionedConcurrency", 2, EVERY),
    ("LayerKey", "packages/other.zip", EVERY),
    ("Slice1Key", "packages/other.zip", {"Slice1", "Coordinator"}),
    ("CoordinatorKey", "packages/other.zip", {"Coordinator"}),
    ("ReservedConcurrency", 7, set()),  # no setting of a version
    ("Alarms", "off", set()),
    ("LogRetentionDays", 1, set()),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "value", "expected"), OPTIONS)
def test_a_parameter_makes_new_versions_of_exactly_the_functions_that_it_changes(
    five: Any, form: str, name: str, value: Any, expected: set[str]
) -> None:
    """Lambda refuses a second version of an unchanged function, and CloudFormation deletes old ones."""
    found = five.template(form)
    if name not in found["Parameters"]:
        assert form == "template.yaml" and name.endswith("Key")
        return
    before = as_deployed(found)
    after = as_deployed(found, **{name: value})
    if name == "Alarms":
        before = {key: r for key, r in before.items() if key in after}

    versions, functions = replacements(before, after)

    assert versions == expected
    assert expected <= functions


def test_the_numbers_of_fifty_versions_fit_a_description(make: Any) -> None:
    made = make(50, "payload")
    found = made.template("cloudformation.yaml")
    (own,) = (r for name, r in found["Resources"].items() if name.startswith("CoordinatorVersion"))

    text = own["Properties"]["Description"]["Fn::Sub"]
    assert text.count(".Version}") == 50
    assert len(re.sub(r"\$\{[^}]+\}", "1234", text)) <= 256
    assert len(found["Resources"]) <= 500
    assert len(found["Parameters"]) <= 200
    assert (made.directory / "cloudformation.yaml").stat().st_size < 1_000_000


def test_both_forms_differ_in_functions_and_layer_only(made: Any) -> None:
    sam, plain = (made.template(form) for form in FORMS)
    own = ("::Function", "::LayerVersion", "Lambda::Version")

    def shared(found: dict[str, Any]) -> dict[str, Any]:
        return {k: r for k, r in found["Resources"].items() if not r["Type"].endswith(own)}

    assert shared(sam) == shared(plain)
    assert list(sam["Resources"]) == list(plain["Resources"])
    assert sam["Conditions"] == plain["Conditions"]
    assert sam["Rules"] == plain["Rules"]
    assert sam["Parameters"].items() <= plain["Parameters"].items()
    for function in made.stack.functions:
        folder = sam["Resources"][function.part.capitalize()]["Properties"]["CodeUri"]
        assert (made.directory / folder / "handler.py").is_file()


def test_buckets_are_those_of_the_transports(one: Any, five: Any, express: Any) -> None:
    def buckets(made: Any) -> set[str]:
        found = of_type(as_deployed(made.template("template.yaml")), "Bucket", "BucketPolicy")
        return {r["Type"].removeprefix("AWS::") for r in found.values()}

    standard = {"S3::Bucket", "S3::BucketPolicy"}
    assert buckets(one) == set()
    assert buckets(five) == standard
    assert buckets(express) == standard | {"S3Express::DirectoryBucket", "S3Express::BucketPolicy"}


@pytest.mark.parametrize("form", FORMS)
def test_the_key_of_an_encrypted_bundle_is_a_parameter_that_is_not_shown(
    sealed: Any, five: Any, form: str
) -> None:
    text = (sealed.directory / form).read_text()
    parameter = sealed.template(form)["Parameters"]["EncryptionKey"]
    assert parameter["NoEcho"] is True
    assert KEY not in text
    assert "EncryptionKey" not in five.template(form)["Parameters"]
    functions = of_type(as_deployed(sealed.template(form)), "::Function")
    for function in functions.values():
        assert function["Properties"]["Environment"]["Variables"]["SLICEWISE_KEY"] == KEY


def test_roles_may_decrypt_with_the_key_of_the_bundle_alone(sealed: Any, five: Any) -> None:
    arn = "arn:aws:kms:eu-west-1:123456789012:key/1"
    encryption = replace(sealed.plan.encryption, key="kms", key_id=arn, data_key="AA==")
    stack = replace(sealed.stack, encryption=encryption)
    for function in stack.functions:
        statements = resources.policy(stack, function, PLACE)["Statement"]
        (key,) = [each for each in statements if each["Sid"] == "Key"]
        assert (key["Action"], key["Resource"]) == (["kms:Decrypt"], [arn])
    for stack in (five.stack, sealed.stack):
        for function in stack.functions:
            assert "kms" not in json.dumps(resources.policy(stack, function, PLACE))


def test_the_bucket_is_private_encrypted_and_forgets_within_a_day(express: Any) -> None:
    found = as_deployed(express.template("cloudformation.yaml"))
    bucket = found["TensorBucket"]["Properties"]

    assert bucket["BucketName"] == express.stack.bucket(PLACE)
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert bucket["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    assert "aws:kms" not in json.dumps(bucket["BucketEncryption"])
    expire, abort = bucket["LifecycleConfiguration"]["Rules"]
    assert (expire["Prefix"], expire["ExpirationInDays"]) == ("requests/", 1)
    assert abort["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    policy = found["TensorBucketPolicy"]["Properties"]["PolicyDocument"]
    assert policy == resources.bucket_policy(express.stack, PLACE)
    directory = found["ExpressBucket"]["Properties"]
    assert directory["BucketName"] == express.stack.express_bucket(PLACE)
    assert directory["BucketName"].endswith("--euw1-az1--x-s3")
    policy = found["ExpressBucketPolicy"]["Properties"]["PolicyDocument"]
    assert policy == resources.express_bucket_policy(express.stack, PLACE)
    assert {s["Effect"]: s["Principal"] for s in policy["Statement"]} == {
        "Deny": "*",
        "Allow": {"Service": "lifecycle.s3.amazonaws.com"},
    }


def test_s3_express_needs_its_zone(express: Any) -> None:
    nowhere = resources.Place(region="eu-west-1", account="123456789012")
    for what in (resources.environment, resources.policy):
        with pytest.raises(TargetError, match=r"zone ids \(--zone\), such as use1-az4"):
            what(express.stack, express.stack.coordinator, nowhere)
    assert "Default" not in express.template("template.yaml")["Parameters"]["Zone"]


def test_options_are_off_by_default_and_do_what_they_say(five: Any) -> None:
    chosen = as_deployed(
        five.template("cloudformation.yaml"),
        ReservedConcurrency=3,
        ProvisionedConcurrency=2,
        XRay="on",
        AlarmTopic="arn:aws:sns:eu-west-1:123456789012:ops",
    )
    default = as_deployed(five.template("cloudformation.yaml"))
    warm = {"ProvisionedConcurrentExecutions": 2}

    for name, function in of_type(chosen, "Lambda::Function").items():
        assert function["Properties"]["ReservedConcurrentExecutions"] == 3
        assert function["Properties"]["TracingConfig"] == {"Mode": "Active"}
        assert default[name]["Properties"]["TracingConfig"] == {"Mode": "PassThrough"}
    # The slices' on the version that is called, the coordinator's on the alias.
    kept = {
        name: r["Properties"]["ProvisionedConcurrencyConfig"]
        for name, r in chosen.items()
        if "ProvisionedConcurrencyConfig" in r.get("Properties", {})
    }
    assert set(map(str, kept.values())) == {str(warm)}
    assert sorted(name[:6] for name in kept) == ["Coordi", *(f"Slice{i}" for i in range(5))]
    assert "CoordinatorAlias" in kept
    assert "ProvisionedConcurrencyConfig" not in str(default)
    assert "SnapStart" in default["Slice0"]["Properties"]
    for alarm in of_type(chosen, "Alarm").values():
        assert alarm["Properties"]["AlarmActions"] == ["arn:aws:sns:eu-west-1:123456789012:ops"]


def test_alarms_watch_errors_throttles_and_long_durations_of_every_function(five: Any) -> None:
    found = as_deployed(five.template("template.yaml"))
    alarms = [r["Properties"] for r in of_type(found, "Alarm").values()]

    watched = {(a["Dimensions"][0]["Value"], a["MetricName"]) for a in alarms}
    metrics = ("Errors", "Throttles", "Duration")
    assert watched == {(f.name, metric) for f in five.stack.functions for metric in metrics}
    coordinator = next(
        a for a in alarms if a["AlarmName"] == f"{five.stack.coordinator.name}-duration"
    )
    assert coordinator["Threshold"] == five.stack.coordinator.timeout_s * 1000 * 0.8
    silent = as_deployed(five.template("template.yaml"), Alarms="off")
    assert not of_type(silent, "Alarm")


def test_snapstart_with_provisioned_concurrency_is_refused(five: Any) -> None:
    found = five.template("template.yaml")

    (why,) = violated(found, SnapStart="on", ProvisionedConcurrency=1)
    assert "not both" in why
    assert violated(found, SnapStart="on") == []
    assert violated(found, ProvisionedConcurrency=1) == []


def test_callers_of_the_url_must_sign(five: Any) -> None:
    url = as_deployed(five.template("cloudformation.yaml"))["CoordinatorUrl"]["Properties"]

    assert url["AuthType"] == "AWS_IAM"
    assert url["Qualifier"] == "live"
    without = as_deployed(five.template("cloudformation.yaml"), FunctionUrl="off")
    assert not of_type(without, "Lambda::Url")


def test_another_name_makes_another_deployment(five: Any) -> None:
    found = as_deployed(five.template("cloudformation.yaml"), Name="second")

    assert "tied" not in json.dumps(found).replace("_Tied", "").replace("_tied", "")


def test_a_bundle_is_written_the_same_twice(make: Any) -> None:
    made = make(2, "payload", "s3")
    names = [*FORMS, "README.md", "layer/Makefile"]
    before = {name: (made.directory / name).read_bytes() for name in names}

    profile = importlib.import_module("slicewise.targets.lambda.profile").default_profile()
    write.write_infrastructure(made.directory, made.plan, profile)

    assert {name: (made.directory / name).read_bytes() for name in names} == before


def test_yaml_has_no_anchors_and_opens_with_words(made: Any) -> None:
    for form in FORMS:
        text = (made.directory / form).read_text()
        assert text.startswith("# _Tied on AWS Lambda")
        events = list(yaml.parse(text))
        assert not any(getattr(event, "anchor", None) for event in events)


def test_packages_that_are_no_zip_files_are_refused(five: Any) -> None:
    image = replace(five.stack.functions[0], packaging="image")
    stack = replace(five.stack, functions=(image, *five.stack.functions[1:]))

    with pytest.raises(TargetError, match="slice0 is packed as 'image'"):
        template.template(stack, compute.digests(five.directory, stack), "sam")


def test_a_bundle_with_too_many_slices_says_so_in_its_readme(make: Any) -> None:
    made = make(51, "payload")

    readme = (made.directory / "README.md").read_text()
    assert "There are no templates in this bundle" in readme
    assert "holds 50 of them. Deploy it with: slicewise deploy" in readme
    assert not any((Path(made.directory) / form).exists() for form in FORMS)
