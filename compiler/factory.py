"""The factory of a model: MODULE:FACTORY of the command line, found and called."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import click


def call_factory(factory: str) -> tuple[Any, Any, Any]:
    """The model, its example inputs and its dynamic shapes. Raises `click.BadParameter`."""
    module_name, separator, name = factory.rpartition(":")
    if not (separator and module_name and name):
        raise click.BadParameter(f"{factory!r} is not MODULE:FACTORY")
    try:
        if module_name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(module_name).stem, module_name)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses look their module up
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, str(Path.cwd()))
            module = importlib.import_module(module_name)
        function = getattr(module, name)
    except (ImportError, OSError, AttributeError) as error:
        raise click.BadParameter(f"cannot load {factory}: {error}") from error
    if not callable(function):
        raise click.BadParameter(f"{factory} is a {type(function).__name__}, not a function")
    try:
        signature(function).bind()
    except TypeError as error:
        raise click.BadParameter(f"{factory} must take no arguments: {error}") from error
    made = function()
    made = made if isinstance(made, tuple) else (made,)
    model, example, dynamic = (*made, None, None)[:3]
    return model, example, dynamic
