"""Capture: a model and example inputs become a `torch.export` program, without touching the model.

`torch.export` first; when it cannot, `torch.fx.symbolic_trace`, and the result says why it was needed.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from slicewise.errors import CaptureError


@dataclass(frozen=True, kw_only=True)
class Captured:
    """A captured model: the program, the example it was captured with, and what to tell the user."""

    name: str
    program: ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    call: Callable[..., Any]  # the original model
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
        return _from_program(model, example_inputs)
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"compile() was given a {type(model).__name__}; it takes an nn.Module, "
            "an ExportedProgram or an fx.GraphModule."
        )
    _check_model(model)
    args, kwargs = _example(model, example_inputs)
    notes: tuple[str, ...] = ()
    with _untouched(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(
                model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
        except Exception as export_error:
            try:
                traced = fx.symbolic_trace(model)
                program = torch.export.export(
                    traced, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
                )
            except Exception as trace_error:
                raise _capture_error(model, export_error, trace_error) from export_error
            notes = (
                "captured with torch.fx.symbolic_trace, because torch.export refused: "
                + _first_line(export_error),
            )
    return Captured(
        name=type(model).__name__,
        program=program,
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
    elif isinstance(example_inputs, Mapping):
        args, kwargs = (), dict(example_inputs)
    else:
        args, kwargs = tuple(example_inputs), {}
    return Captured(
        name=type(program.graph_module).__name__,
        program=program,
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
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
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
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        return tuple(example_inputs), {}
    raise CaptureError(
        f"example_inputs is a {type(example_inputs).__name__}; expected a tuple or a dict."
    )


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put back whatever attributes capture assigned: tracing runs the user's own forward."""
    before = {module: dict(vars(module)) for module in model.modules()}
    buffers = {module: dict(module._buffers) for module in before}
    try:
        yield
    finally:
        for module, attributes in before.items():
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers[module])


_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')


def source_line(stack_trace: str | None) -> str:
    """The innermost user line of a torch.fx stack trace as "file:line (function)", or ""."""
    frames = _FRAME.findall(stack_trace or "")
    if not frames:
        return ""
    ours = [f for f in frames if "/torch/nn/" not in f[0] and "/torch/_" not in f[0]] or frames
    path, line, function = ours[-1]
    return f"{path}:{line} ({function})"


def _capture_error(model: nn.Module, export: Exception, trace: Exception) -> CaptureError:
    where = ""
    for frame in reversed(traceback.extract_tb(export.__traceback__)):
        if "/torch/" not in frame.filename and "slicewise" not in frame.filename:
            if frame.filename != __file__:
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
    parameters = list(inspect.signature(model.forward).parameters)
    by_name: dict[str, Any] = dict(zip(parameters, args, strict=False)) | kwargs
    if isinstance(dynamic_shapes, Mapping):
        specs = dict(dynamic_shapes)
    else:
        specs = dict(zip(by_name, dynamic_shapes, strict=False))
    placeholders = {
        node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"
    }
    names: dict[str, str] = {}
    for parameter, spec in specs.items():
        value = placeholders.get(parameter)
        if not isinstance(value, torch.Tensor) or spec is None:
            continue
        axes = spec.items() if isinstance(spec, Mapping) else enumerate(spec)
        for axis, dim in axes:
            size = value.shape[axis]
            name = dim if isinstance(dim, str) else getattr(dim, "__name__", "")
            if isinstance(size, torch.SymInt) and name.isidentifier():
                names.setdefault(str(size.node.expr), name)
    return names
