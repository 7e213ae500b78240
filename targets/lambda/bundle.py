"""The bundle: a directory with one package per function, plan.json and functions.json.

plan.json                     what was decided, and why
functions.json                the functions: package, handler, memory, timeout
profile.json                  the platform's numbers that it was made with
smoke.npz                     an example request and the original model's reply (slicewise/smoke.py)
functions/<slice>/            handler.py, model.onnx, model.data, slicewise_runtime/
functions/coordinator/        handler.py, manifest.json, slicewise_runtime/
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from slicewise.errors import BundleError
from slicewise.plan import Plan
from slicewise.target import Handlers

from .functions import Function
from .profile import Profile

COORDINATOR = "coordinator"
STACK_NAME_MAX = 32  # roles are named after stack, function and region, in 64 characters
_RUNTIME = Path(__file__).parent / "runtime"


def write_bundle(
    plan: Plan, handlers: Handlers, profile: Profile, slices: Path, directory: Path
) -> None:
    """Write the bundle; weights files are hard-linked from `slices` where the file system allows."""
    names = function_names(plan)
    coordinator = names[COORDINATOR]
    stack = stack_name(plan)
    functions = directory / "functions"
    for part in plan.slices:
        package = functions / part.name
        _start_package(package)
        for file in sorted((slices / part.name).iterdir()):
            _link_or_copy(file, package / file.name)
        (package / "handler.py").write_text(handlers.slices[part.name])
    package = functions / COORDINATOR
    _start_package(package)
    (package / "handler.py").write_text(handlers.coordinator)
    manifest = {
        **handlers.manifest,
        "stack": stack,
        "timeout_s": profile.limits.timeout_s,
    }
    (package / "manifest.json").write_text(json.dumps(manifest, indent=1))

    entries = [
        {
            "name": names[part.name],
            "package": f"functions/{part.name}",
            "handler": "handler.handler",
            "memory_mb": part.memory_mb,
            "timeout_s": profile.limits.timeout_s,
        }
        for part in plan.slices
    ]
    entries.append(
        {
            "name": coordinator,
            "package": f"functions/{COORDINATOR}",
            "handler": "handler.handler",
            "memory_mb": plan.coordinator_memory_mb,
            "timeout_s": min(900, profile.limits.timeout_s * len(plan.stages)),
        }
    )
    (directory / "functions.json").write_text(
        json.dumps({"stack": stack, "entry": coordinator, "functions": entries}, indent=1)
    )
    (directory / "plan.json").write_text(plan.to_json())
    (directory / "profile.json").write_text(profile.model_dump_json(indent=1, by_alias=True))


def stack_name(plan: Plan) -> str:
    """What a bundle's functions, roles and bucket are named after unless a deployment says otherwise."""
    name = re.sub(r"[^a-z0-9]+", "-", plan.model.name.lower()).strip("-")
    return name[:STACK_NAME_MAX].strip("-") or "model"


def function_names(plan: Plan) -> dict[str, str]:
    """The function of every slice and of the coordinator."""
    stack = stack_name(plan)
    return {name: f"{stack}-{name}" for name in (*(p.name for p in plan.slices), COORDINATOR)}


def read_functions(directory: Path, environment: dict[str, str]) -> tuple[str, list[Function]]:
    """The entry function's name and all functions of a bundle. Raises `BundleError`."""
    try:
        data = json.loads((directory / "functions.json").read_text())
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
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise BundleError(
            f"{directory} is no complete bundle ({error!r}). Write it again with Compiled.save()."
        ) from error


def _start_package(package: Path) -> None:
    package.mkdir(parents=True)
    runtime = package / "slicewise_runtime"
    runtime.mkdir()
    for source in sorted(_RUNTIME.glob("*.py")):
        shutil.copyfile(source, runtime / source.name)


def _link_or_copy(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
