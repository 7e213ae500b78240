"""The bundle: a directory with one package per function, plan.json and functions.json.

plan.json                     what was decided, and why
functions.json                the functions: package, handler, memory, timeout
profile.json                  the platform's numbers that it was made with
README.md                     what was built, how to deploy, call and remove it, what it costs
template.yaml                 the deployment as an AWS SAM template
cloudformation.yaml           and as a plain CloudFormation template
layer/                        the libraries that all functions share, and how they are put together
graph.json                    the ops with their times and bytes (slicewise/inspection/detail.py)
smoke.npz                     an example request and the original model's reply (slicewise/smoke.py)
functions/<slice>/            handler.py, model.onnx, model.data, slicewise_runtime/
                              with encryption also seal.json, and the model's files encrypted
functions/coordinator/        handler.py, manifest.json, slicewise_runtime/; a chain has none, and a
                              manifest.json in every slice
statemachine.asl.json         the state machine, with orchestration="stepfunctions"
Dockerfile, image/, layer/    for one image of all functions, see packaging/image.py
weights/<sha256>              the weights of slices that stream them from S3; these packages have
                              weights.json in model.data's place
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slicewise.errors import BundleError
from slicewise.plan import Plan
from slicewise.target import Handlers

from .functions import COORDINATOR, Function
from .profile import Profile
from .runtime.seal import SEAL_FILE
from .sealing import encrypted, seal_file
from .states import DEFINITION, definition_text

STACK_NAME_MAX = 32  # roles are named after stack, function and region, in 64 characters
_RUNTIME = Path(__file__).parent / "runtime"
_DATA = "model.data"


def write_bundle(
    plan: Plan,
    handlers: Handlers,
    profile: Profile,
    slices: Path,
    directory: Path,
    encrypt: str | None = None,
) -> None:
    """Write the bundle; weights files are hard-linked from `slices` where the file system allows.

    `encrypt` is `sealing.encrypted`'s. Raises `TargetError`.
    """
    seal = None
    if encrypt is not None:
        plan, seal = encrypted(plan, handlers.plan_id, encrypt, profile)
    names = function_names(plan)
    stack = stack_name(plan)
    functions = directory / "functions"
    for part in plan.slices:
        package = functions / part.name
        _start_package(package)
        for file in sorted((slices / part.name).iterdir()):
            packed, is_empty = package / file.name, file.stat().st_size == 0
            if seal is None or is_empty:
                _link_or_copy(file, packed)
            else:
                seal_file(seal, part.name, file, packed)
            if part.packaging == "s3-weights" and file.name == _DATA and not is_empty:
                _write_streamed(packed, package, directory)
                packed.unlink()
        (package / "handler.py").write_text(handlers.slices[part.name])
    timeout_s = profile.limits.timeout_s
    chain = plan.orchestration == "chain"
    # In a chain the first slice waits for all others; a state machine has only one request's ends here.
    turns = {"chain": len(plan.slices), "stepfunctions": 1}.get(
        plan.orchestration, len(plan.stages)
    )
    whole_s = min(900, timeout_s * turns)
    manifest = {
        **handlers.manifest,
        "stack": stack,
        "timeout_s": timeout_s,
        "deadline_s": whole_s,
    }
    if handlers.coordinator is not None:
        _start_package(functions / COORDINATOR)
        (functions / COORDINATOR / "handler.py").write_text(handlers.coordinator)
    for name in readers(plan):
        (functions / name / "manifest.json").write_text(json.dumps(manifest, indent=1))
    if plan.encryption is not None:
        for package in functions.iterdir():
            (package / SEAL_FILE).write_text(json.dumps(asdict(plan.encryption), indent=1))
    if plan.orchestration == "stepfunctions":
        text = definition_text(plan, handlers.plan_id, timeout_s)
        (directory / DEFINITION).write_text(text)

    ordered = [part for stage in plan.stages for part in stage]
    entries = [
        {
            "name": names[part.name],
            "package": f"functions/{part.name}",
            "handler": "handler.handler",
            "memory_mb": part.memory_mb,
            # In a chain a slice waits for all that follow.
            "timeout_s": min(900, timeout_s * (len(plan.slices) - index if chain else 1)),
            "packaging": part.packaging,
        }
        for index, part in enumerate(ordered)
    ]
    if not chain:
        entries.append(
            {
                "name": names[COORDINATOR],
                "package": f"functions/{COORDINATOR}",
                "handler": "handler.handler",
                "memory_mb": plan.coordinator_memory_mb,
                "timeout_s": whole_s,
                # One image serves all; without any, there is no reason to build one.
                "packaging": "image" if {p.packaging for p in plan.slices} == {"image"} else "zip",
            }
        )
    entry = names[ordered[0].name if chain else COORDINATOR]
    (directory / "functions.json").write_text(
        json.dumps({"stack": stack, "entry": entry, "functions": entries}, indent=1)
    )
    # resources.py, which it needs, imports this module.
    from .packaging.image import write_image_files

    write_image_files(
        directory,
        model=plan.model.name,
        stack=stack,
        parts=tuple(names),
        is_encrypted=plan.encryption is not None,
    )
    (directory / "plan.json").write_text(plan.to_json())
    (directory / "profile.json").write_text(profile.model_dump_json(indent=1, by_alias=True))
    # Last: it describes all of the above.
    from .infrastructure.write import write_infrastructure

    write_infrastructure(directory, plan, profile)


def stack_name(plan: Plan) -> str:
    """What a bundle's functions, roles and bucket are named after unless a deployment says otherwise."""
    name = re.sub(r"[^a-z0-9]+", "-", plan.model.name.lower()).strip("-")
    if not name[:1].isalpha():
        name = f"model-{name}"
    return name[:STACK_NAME_MAX].strip("-")


def function_names(plan: Plan) -> dict[str, str]:
    """The function of every slice and, where there is one, of the coordinator."""
    stack = stack_name(plan)
    others = () if plan.orchestration == "chain" else (COORDINATOR,)
    return {name: f"{stack}-{name}" for name in (*(p.name for p in plan.slices), *others)}


def readers(plan: Plan) -> tuple[str, ...]:
    """The parts that drive slices and so read the manifest: in a chain all, else the coordinator."""
    is_chain = plan.orchestration == "chain"
    return tuple(part.name for part in plan.slices) if is_chain else (COORDINATOR,)


def read_index(directory: Path) -> dict[str, Any]:
    """functions.json: the stack's name, the entry function's and the functions. Raises `BundleError`."""
    try:
        data: dict[str, Any] = json.loads((directory / "functions.json").read_text())
        needed = ("name", "package", "handler", "memory_mb", "timeout_s")
        _ = (
            data["stack"],
            data["entry"],
            [[entry[key] for key in needed] for entry in data["functions"]],
        )
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise BundleError(
            f"{directory} is no complete bundle ({error!r}). Write it again with Compiled.save()."
        ) from error
    return data


def read_functions(directory: Path, environment: dict[str, str]) -> tuple[str, list[Function]]:
    """The entry function's name and all functions of a bundle. Raises `BundleError`."""
    data = read_index(directory)
    functions = [
        Function(
            name=entry["name"],
            package=directory / entry["package"],
            handler=entry["handler"],
            memory_mb=entry["memory_mb"],
            timeout_s=entry["timeout_s"],
            environment=environment,
        )
        for entry in data["functions"]
    ]
    return data["entry"], functions


def package_folders(directory: Path) -> dict[str, Path]:
    """The unpacked package of every slice, by its name, and of the coordinator. Raises `BundleError`."""
    _, functions = read_functions(directory, {})
    return {function.package.name: function.package for function in functions}


def _start_package(package: Path) -> None:
    package.mkdir(parents=True)
    runtime = package / "slicewise_runtime"
    runtime.mkdir()
    for source in sorted(_RUNTIME.glob("*.py")):
        shutil.copyfile(source, runtime / source.name)


def streamed_weights(directory: Path) -> dict[str, Path]:
    """The weights that a deployment must put into its bucket, by their keys there."""
    found = directory / "weights"
    return {f"weights/{file.name}": file for file in sorted(found.glob("*"))}


def _write_streamed(weights: Path, package: Path, directory: Path) -> None:
    """Put a slice's weights beside the packages, and what runtime/weights.py reads into its package."""
    with weights.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    kept = directory / "weights" / sha256
    kept.parent.mkdir(exist_ok=True)
    if not kept.exists():  # slices may have the same weights
        _link_or_copy(weights, kept)
    spec = {
        "file": weights.name,
        "key": f"weights/{sha256}",
        "bytes": weights.stat().st_size,
        "sha256": sha256,
    }
    (package / "weights.json").write_text(json.dumps(spec, indent=1))


def _link_or_copy(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
