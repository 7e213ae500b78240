"""Capture: a model and example inputs become a `torch.export` program, without touching the model.

`torch.export` first; when it cannot, `torch.fx.symbolic_trace`, and the result says why it was needed.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.export import ExportedProgram

from slicewise.decompose import without_embedding_bags
from slicewise.errors import CaptureError


@dataclass(frozen=True, kw_only=True)
class Captured:
    """A captured model: the program, the example it was captured with, and what to tell the user."""

    name: str
    program: ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    call: nn.Module  # the original model
    dim_names: Mapping[str, str]  # symbol of torch.export -> the user's name of the dimension
    notes: tuple[str, ...] = ()


def capture(
    model: nn.Module | ExportedProgram,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> Captured:
    """Capture `model` (in eval mode) on the example inputs.

    `example_inputs` is a tuple of positional arguments, a dict of keyword arguments, or None for a
    model with `dummy_inputs` and for an `ExportedProgram`. Raises `CaptureError`.
    """
    if isinstance(model, ExportedProgram):
        _check_weights(model.state_dict.items())
        return _from_program(model, example_inputs)
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            f"compile() was given a {type(model).__name__}; it takes an nn.Module, "
            "an ExportedProgram or an fx.GraphModule."
        )
    _check_model(model)
    args, kwargs = _example(model, example_inputs)
    notes: tuple[str, ...] = ()
    with untouched(model), torch.no_grad(), _quiet():
        try:
            program = torch.export.export(
                model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
        except Exception as export_error:
            try:
                program = torch.export.export(
                    _trace(model), args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
                )
            except Exception as trace_error:
                raise _capture_error(model, export_error, trace_error) from export_error
            notes = (
                "captured with torch.fx.symbolic_trace, because torch.export refused: "
                + _first_line(export_error),
            )
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return Captured(
        name=type(model).__name__,
        program=without_embedding_bags(program),
        args=args,
        kwargs=kwargs,
        call=model,
        dim_names=_dim_names(model, program, dynamic_shapes, args, kwargs),
        notes=notes,
    )


def _from_program(program: ExportedProgram, example_inputs: Any) -> Captured:
    if example_inputs is None:
        if program.example_inputs is None:
            raise CaptureError(
                "the ExportedProgram carries no example inputs; pass example_inputs."
            )
        args, kwargs = program.example_inputs
    else:
        args, kwargs = _arguments(example_inputs)
    return Captured(
        name=type(program.graph_module).__name__,
        program=without_embedding_bags(program),
        args=tuple(args),
        kwargs=dict(kwargs),
        call=program.module(),
        dim_names={},
    )


def _check_model(model: nn.Module) -> None:
    training = [name or "the model itself" for name, m in model.named_modules() if m.training]
    if training:
        raise CaptureError(
            f"{len(training)} modules are in training mode (first: {training[0]}); dropout and batch "
            "normalisation would compute something else than in production. Call model.eval() first."
        )
    _check_weights((*model.named_parameters(), *model.named_buffers()))


def _check_weights(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    for name, weight in weights:
        if weight.device.type != "cpu":
            raise CaptureError(
                f"the weight {name!r} is on {weight.device}; slices are built from CPU weights. "
                "Call model.cpu() first" + (" (and load real weights)." if weight.is_meta else ".")
            )


def _example(model: nn.Module, example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if example_inputs is None:
        example_inputs = getattr(model, "dummy_inputs", None)
        if example_inputs is None:
            raise CaptureError(
                f"{type(model).__name__} offers no dummy_inputs; pass example_inputs: a tuple of "
                "positional arguments or a dict of keyword arguments."
            )
    return _arguments(example_inputs)


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, with numpy arrays as tensors."""
    if isinstance(example_inputs, (torch.Tensor, np.ndarray)):
        example_inputs = (example_inputs,)
    is_sequence = isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str)
    if not isinstance(example_inputs, Mapping) and not is_sequence:
        raise CaptureError(
            f"example_inputs is a {type(example_inputs).__name__}; expected a tuple or a dict."
        )
    keyword = isinstance(example_inputs, Mapping)
    given: Any = dict(example_inputs) if keyword else tuple(example_inputs)
    given = pytree.tree_map_only(np.ndarray, torch.from_numpy, given)
    for value in pytree.tree_leaves(given):
        if isinstance(value, torch.Tensor) and value.device.type != "cpu":
            raise CaptureError(
                f"an example input is on {value.device}; slices run on the CPU. Pass CPU tensors."
            )
    return ((), given) if keyword else (given, {})


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back whatever attributes, buffers and modules the user's own forward assigns."""
    attributes = {module: dict(vars(module)) for module in model.modules()}
    held = [value for fields in attributes.values() for value in fields.values()]
    # Parameters, buffers, submodules and hooks are dicts; models keep caches in lists and dicts.
    contents = [(value, value.copy()) for value in held if isinstance(value, (dict, list, set))]
    try:
        yield
    finally:
        for module, fields in attributes.items():
            vars(module).clear()
            vars(module).update(fields)
        for container, content in contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch warns, logs and prints about what either works or ends in a `CaptureError`."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Tracer(fx.Tracer):
    """Buffers as proxies: by default fx computes with the user's own, in place if forward says so."""

    proxy_buffer_attributes = True


def _trace(model: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(model, _Tracer().trace(model))


_NOT_THE_USERS = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')


def source_line(stack_trace: str | None, *, short: bool = False) -> str:
    """The innermost user line of a torch.fx stack trace as "file:line (function)", or "".

    `short` names the file as an import would, so that it does not tell whose machine this is.
    """
    frames = _FRAME.findall(stack_trace or "")
    if not frames:
        return ""
    ours = [f for f in frames if "/torch/nn/" not in f[0] and "/torch/_" not in f[0]] or frames
    path, line, function = ours[-1]
    return f"{_short(path) if short else path}:{line} ({function})"


@cache
def _short(path: str) -> str:
    """Relative to the folder that modules are imported from, else the file's name alone."""
    file = Path(path)
    folders = [Path(entry).absolute() for entry in sys.path]
    holding = [folder for folder in folders if file.is_relative_to(folder)]
    nearest = max(holding, key=lambda folder: len(folder.parts), default=file.parent)
    return file.relative_to(nearest).as_posix()


def _capture_error(model: nn.Module, export: Exception, trace: Exception) -> CaptureError:
    where = ""
    for frame in reversed(traceback.extract_tb(export.__traceback__)):
        if not frame.filename.startswith(_NOT_THE_USERS):
            where = f"\n  at {frame.filename}:{frame.lineno} ({frame.name}): {frame.line}"
            break
    text = str(export)
    operator = re.search(r"(aten\.[\w.]+|torch\.ops\.[\w.]+)", text)
    named = f" at the op {operator.group(1)}" if operator else ""
    advice = (
        "Rewrite that line with tensor operations (torch.where, torch.cond), or make the value it "
        "depends on a constant of the model."
    )
    if "Dim" in text and "dynamic" in text.lower():
        advice = "Correct dynamic_shapes as torch.export suggests above."
    return CaptureError(
        f"{type(model).__name__} cannot be captured: torch.export stopped{named}: "
        f"{_first_lines(export)}{where}\n"
        f"torch.fx.symbolic_trace failed as well: {_first_line(trace)}\n{advice}"
    )


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _first_lines(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n".join(lines[:6]) if lines else type(error).__name__


def _dim_names(
    model: nn.Module,
    program: ExportedProgram,
    dynamic_shapes: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[str, str]:
    """The user's names (`Dim("batch")`) of torch.export's symbols (`s43`)."""
    if not dynamic_shapes:
        return {}
    specs = dynamic_shapes
    if isinstance(specs, Mapping):
        parameters = list(inspect.signature(model.forward).parameters)
        specs = [specs.get(name) for name in (*parameters[: len(args)], *kwargs)]
    placeholders = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    # The leaves of the arguments are the program's inputs, in the same order.
    values = iter(placeholders.get(str(n)) for n in program.graph_signature.user_inputs)
    names: dict[str, str] = {}
    for given, spec in zip((*args, *kwargs.values()), specs, strict=False):
        for value, dims in _with_dims(given, spec, values):
            axes = dims.items() if isinstance(dims, Mapping) else enumerate(dims)
            for axis, dim in axes:
                size = value.shape[axis]
                name = dim if isinstance(dim, str) else getattr(dim, "__name__", "")
                if isinstance(size, torch.SymInt) and name.isidentifier():
                    names.setdefault(str(size.node.expr), name)
    return names


def _with_dims(given: Any, spec: Any, values: Iterator[Any]) -> list[tuple[torch.Tensor, Any]]:
    """Each traced tensor below one argument with its part of dynamic_shapes; takes from `values`."""
    if pytree.tree_is_leaf(given):
        value = next(values)
        return [(value, spec)] if isinstance(value, torch.Tensor) and spec is not None else []
    children = pytree.tree_leaves(given, is_leaf=lambda part: part is not given)
    keys = list(given) if isinstance(given, Mapping) else range(len(children))
    inner = spec if isinstance(spec, (Mapping, Sequence)) else dict.fromkeys(keys)
    return [
        found
        for key, child in zip(keys, children, strict=True)
        for found in _with_dims(child, inner[key], values)
    ]
