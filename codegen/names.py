"""Names: converting decomposes a program anew, and torch then names some ops anew, too."""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir
    from torch.export import ExportedProgram

FX_NODE = "pkg.torch.onnx.fx_node"


def restore_names(program: ExportedProgram, model: onnx_ir.Model) -> None:
    """Name every op of a decomposed program, and its value in ONNX, as the op that it came from.

    An op that became several gives its name to the last of them, which computes its result.
    """
    import onnx_ir

    last = {}
    for node in program.graph.nodes:
        sources = node.meta.get("from_node")
        if node.op == "call_function" and node.target is not operator.getitem and sources:
            last[sources[-1].name] = node
    renamed = {node.name: name for name, node in last.items() if node.name != name}
    # What keeps its name must not meet another that gets it.
    names = {node.name for node in program.graph.nodes}
    while clashes := [
        new for new, name in renamed.items() if name in names and name not in renamed
    ]:
        for new in clashes:
            del renamed[new]
    for node in program.graph.nodes:
        node.name = renamed.get(node.name, node.name)
    for spec in program.graph_signature.output_specs:
        spec.arg.name = renamed.get(spec.arg.name, spec.arg.name)
    program.graph_module.recompile()
    for made in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
        text = made.metadata_props.get(FX_NODE, "")
        made.metadata_props[FX_NODE] = re.sub(
            r"^%(\w+)", lambda match: f"%{renamed.get(match[1], match[1])}", text
        )
        for value in made.outputs:
            value.name = renamed.get(value.name or "", value.name)
