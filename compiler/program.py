"""A changed graph as a program of its own: the captured program and the model stay as they are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputSpec,
    OutputSpec,
    TensorArgument,
)


def copied_graph(program: ExportedProgram) -> fx.Graph:
    """A graph to change, of the same names; what the nodes' `meta` holds is shared."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    for old, new in zip(program.graph.nodes, graph.nodes, strict=True):
        new.name = old.name  # torch.fx avoids Python's own names ("input"), torch.export does not
        new.meta = dict(old.meta)
    return graph


def with_graph(
    program: ExportedProgram,
    graph: fx.Graph,
    *,
    specs: Mapping[str, InputSpec],
    renamed: Mapping[str, str],
    state: dict[str, torch.Tensor],
    constants: dict[str, Any],
) -> ExportedProgram:
    """The program of another graph. `specs` are by placeholder; `renamed` says which node of `graph`
    computes what a node of the program did, where that may be an output.
    """

    def output(spec: OutputSpec) -> OutputSpec:
        if spec.arg.name not in renamed:
            return spec
        argument = TensorArgument(name=renamed[spec.arg.name])
        return OutputSpec(kind=spec.kind, arg=argument, target=spec.target)

    placeholders = [node.name for node in graph.nodes if node.op == "placeholder"]
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=ExportGraphSignature(
            input_specs=[specs[name] for name in placeholders],
            output_specs=[output(spec) for spec in program.graph_signature.output_specs],
        ),
        state_dict=state,
        range_constraints=copy.copy(program.range_constraints),
        module_call_graph=[copy.copy(entry) for entry in program.module_call_graph],
        example_inputs=program.example_inputs,
        constants=constants,
        verifiers=program.verifiers,
    )
