"""Convert: the one conversion of a whole program to ONNX, from which all slices are carved.

`torch.onnx.export` decomposes the program and translates it node by node, and tells for every ONNX
node which torch.fx node it came from. Decomposing takes most of the time, so the decomposed program
that it worked on is kept and becomes the `OpGraph`: the ops that are cut are the ops that run.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slicewise.codegen.fold import fold_weights
from slicewise.codegen.names import FX_NODE, restore_names
from slicewise.errors import CaptureError

if TYPE_CHECKING:
    import onnx_ir
    from torch import fx
    from torch.export import ExportedProgram

OPSET = 20  # onnxruntime >= 1.17 runs it; torch.onnx's default for this version of its library


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A program in core ops, its ONNX form, and the nodes that became nothing in ONNX.

    `aliases` maps each such node to the node whose value it passes on.
    """

    program: ExportedProgram
    model: onnx_ir.Model
    aliases: dict[str, str]


def convert(program: ExportedProgram, *, keep_names: bool = False) -> Converted:
    """Convert the program once. Raises `CaptureError` for an op without an ONNX form.

    `keep_names` is for a program in core ops: its ops keep their names.
    """
    import torch

    _check_outputs(program)
    # Without gradients, as the program was captured: attention has other strides with them, and then
    # torch.onnx refuses views that the program holds.
    with _quiet(), torch.no_grad():
        try:
            converted = torch.onnx.export(
                program, dynamo=True, optimize=False, verbose=False, opset_version=OPSET
            )
        except Exception as error:
            raise _conversion_error(program, error) from error
    assert converted is not None
    core = converted.exported_program
    assert core is not None
    if keep_names:
        restore_names(core, converted.model)
    _share_tied_weights(core, converted.model)
    aliases = _aliases(core.graph, converted.model)
    fold_weights(converted.model)
    return Converted(program=core, model=converted.model, aliases=aliases)


def _check_outputs(program: ExportedProgram) -> None:
    """torch.onnx takes no constant but None among the outputs."""
    from torch.export.graph_signature import ConstantArgument

    for spec in program.graph_signature.output_specs:
        if isinstance(spec.arg, ConstantArgument) and spec.arg.value is not None:
            raise CaptureError(
                f"the model returns the constant {spec.arg.value!r}. A slice returns tensors: leave it "
                "out of the outputs, or return torch.tensor(...) of it."
            )


def fx_node_name(node: onnx_ir.Node) -> str | None:
    """The torch.fx node that this ONNX node came from."""
    source = node.meta.get("node")
    if source is not None:
        return str(source.name)
    # A node of a function that the exporter inlined only keeps the text.
    named = re.match(r"%(\w+)", node.metadata_props.get(FX_NODE, ""))
    return named.group(1) if named else None


def _aliases(graph: fx.Graph, model: onnx_ir.Model) -> dict[str, str]:
    """Nodes without ONNX nodes of their own pass their first tensor argument on."""
    import operator

    present = {fx_node_name(node) for node in model.graph}
    # The opset conversion drops even the text, but not the names of values.
    present |= {value.name for node in model.graph for value in node.outputs}
    aliases = {}
    for node in graph.nodes:
        if node.op != "call_function" or node.name in present or node.target is operator.getitem:
            continue
        if node.all_input_nodes and hasattr(node.meta.get("val"), "dtype"):
            aliases[node.name] = node.all_input_nodes[0].name
    return aliases


def _share_tied_weights(program: ExportedProgram, model: onnx_ir.Model) -> None:
    """Let all uses of a tied weight read the initializer that is named first."""
    import onnx_ir

    from slicewise.analyse import weight_identity, weight_tensors

    first: dict[tuple[object, ...], onnx_ir.Value] = {}
    for _, name, tensor in weight_tensors(program):
        value = model.graph.initializers.get(name)
        if value is None:
            continue
        shared = first.setdefault(weight_identity(tensor), value)
        if shared is not value:
            onnx_ir.convenience.replace_all_uses_with(value, shared)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs what is none of the user's business (torchvision is not installed, ...)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _conversion_error(program: ExportedProgram, error: Exception) -> CaptureError:
    from slicewise.capture import source_line

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    named = re.search(r"%(\w+)\s*:", "\n".join(map(str, chain)))
    where, op = "", "an op"
    if named:
        op = f"the op {named.group(1)}"
        target = re.search(r"target=(?:torch\.ops\.)?([\w.]+)", "\n".join(map(str, chain)))
        if target:
            op += f" ({target.group(1)})"
        nodes = {node.name: node for node in program.graph.nodes}
        if named.group(1) not in nodes:  # the exporter's name for a part of some op
            with contextlib.suppress(Exception):
                nodes = {node.name: node for node in program.run_decompositions().graph.nodes}
        if named.group(1) in nodes:
            line = source_line(nodes[named.group(1)].meta.get("stack_trace"))
            where = f"\n  at {line}" if line else ""
    reason = str(chain[-1]).strip().splitlines()
    return CaptureError(
        f"{op} has no ONNX form that torch.onnx knows: {reason[0] if reason else error!r}{where}\n"
        "Replace it by supported operations, or decompose it first "
        "(ExportedProgram.run_decompositions) and compile the result."
    )
