"""`OpGraph`: what the passes see of a model. Ops, tensors and weights with their bytes; no torch.

An `OpGraph` comes from a captured program (`slicewise.analyse`) or from any networkx digraph.
It is a value: frozen, comparable, with a JSON form that round-trips.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from slicewise.errors import GraphError

if TYPE_CHECKING:
    import networkx

INPUT = "@input"  # the producer of a request's tensors
OUTPUT = "@output"  # the consumer of a reply's tensors
TENSOR, WEIGHT = "%", "#"  # the first letter of a reference to one in `Op.arguments`

_N = TypeVar("_N", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A value that an op (or the request, `@input`) produces.

    `bytes` counts at the sizes of the example inputs, `max_bytes` at the upper bound of every
    dynamic dimension; `shape` holds ints and, for dynamic dimensions, expressions such as "batch".
    """

    name: str
    producer: str
    bytes: int
    max_bytes: int
    dtype: str = ""
    shape: tuple[int | str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A parameter or buffer. Tied parameters are one weight.

    `bytes` is its size in the package; `memory_bytes` is what it takes in a running function
    (ONNX Runtime keeps a packed copy of some weights and maps others from the file).
    """

    name: str
    bytes: int
    memory_bytes: int
    dtype: str = ""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One node of the captured graph.

    `inputs` and `outputs` are tensor names, `weights` weight names. `time` is in milliseconds at one
    full vCPU (0 when unknown). `memory_bytes` is scratch memory that the op needs only while it runs,
    `loading_bytes` what it needs, beside its weights, only while they are loaded.
    `is_view` says that the output shares the memory of the first input, `is_cheap` that slices may
    each run the op again instead of sending its outputs (views, casts, masks, index arithmetic),
    `copies_weights` that a running function holds a copy of its weights (others stay file pages).
    `arguments` are all of the op's, by the names of its schema: a tensor is "%name", a weight "#name".
    `items` says which of its results the outputs are, if it has several.
    """

    name: str
    kind: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    time: float = 0.0
    memory_bytes: int = 0
    loading_bytes: int = 0
    is_view: bool = False
    is_cheap: bool = False
    copies_weights: bool = True
    module: str = ""
    source: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()
    items: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OpGraph:
    """A DAG of ops in a topological order, with the tensors and weights they use.

    `inputs` are the tensors of the request, `outputs` those of the reply (tensor names).
    """

    name: str
    ops: tuple[Op, ...]
    tensors: tuple[Tensor, ...]
    weights: tuple[Weight, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    @cached_property
    def op(self) -> Mapping[str, Op]:
        """Ops by name."""
        return {op.name: op for op in self.ops}

    @cached_property
    def tensor(self) -> Mapping[str, Tensor]:
        """Tensors by name."""
        return {tensor.name: tensor for tensor in self.tensors}

    @cached_property
    def weight(self) -> Mapping[str, Weight]:
        """Weights by name."""
        return {weight.name: weight for weight in self.weights}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[str, ...]]:
        """For every tensor, the ops that read it, in graph order, each once."""
        found: dict[str, list[str]] = {tensor.name: [] for tensor in self.tensors}
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                found[name].append(op.name)
        return {name: tuple(ops) for name, ops in found.items()}

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all weights that some op uses, each counted once."""
        used = {name for op in self.ops for name in op.weights}
        return sum(self.weight[name].bytes for name in used)

    def weights_of(self, ops: Iterable[str]) -> tuple[str, ...]:
        """The weights that these ops use, each once, in a stable order."""
        return tuple(dict.fromkeys(w for name in ops for w in self.op[name].weights))

    def peak_activation_bytes(self, ops: Iterable[str]) -> int:
        """Peak bytes of live tensors while one slice of these ops runs, by liveness.

        The ops run in graph order. Tensors from outside stay live throughout, because the caller
        holds them; tensors that leave stay live to the end; a tensor in between lives from its op to
        its last reader in the slice. A view shares its source's bytes. Dynamic dimensions count at
        their upper bound.
        """
        return peak_activation_bytes(self, ops)

    def to_json(self) -> str:
        """A JSON text from which `from_json` rebuilds an equal graph; defaults are left out."""
        lists = {
            kind: [_brief(part) for part in getattr(self, kind)]
            for kind in ("ops", "tensors", "weights")
        }
        data = {"name": self.name, **lists, "inputs": self.inputs, "outputs": self.outputs}
        return json.dumps(data)

    @staticmethod
    def from_json(text: str) -> OpGraph:
        """The graph that `to_json` wrote. Raises `GraphError` for anything else."""
        try:
            data = json.loads(text)
            return OpGraph(
                name=data["name"],
                ops=tuple(Op(**_tuples(op)) for op in data["ops"]),
                tensors=tuple(Tensor(**_tuples(tensor)) for tensor in data["tensors"]),
                weights=tuple(Weight(**_tuples(weight)) for weight in data["weights"]),
                inputs=tuple(data["inputs"]),
                outputs=tuple(data["outputs"]),
            )
        except GraphError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise GraphError(f"this is no graph that OpGraph.to_json() wrote: {error!r}") from error

    @staticmethod
    def from_networkx(digraph: networkx.DiGraph, name: str = "graph") -> OpGraph:
        """A graph of one op per node, each producing one tensor for all its successors.

        Node attributes, all optional: `weight_bytes` (held as long as the slice lives),
        `memory_bytes` (scratch while the op runs), `time` (ms), `bytes` (the output tensor's bytes).
        Raises `GraphError` for a cycle, and for a size or time that is no number or negative.
        """
        import networkx as nx

        if not digraph.is_directed():
            raise GraphError("the graph is undirected; pass a DiGraph whose edges follow the data.")
        if not nx.is_directed_acyclic_graph(digraph):
            cycle = " -> ".join(str(edge[0]) for edge in nx.find_cycle(digraph))
            raise GraphError(f"the graph has a cycle: {cycle}. Remove one of its edges.")
        ops, tensors, weights = [], [], []
        for node in nx.lexicographical_topological_sort(digraph, key=str):
            attributes = digraph.nodes[node]
            size = _number(node, attributes, "bytes", int)
            weight_bytes = _number(node, attributes, "weight_bytes", int)
            tensors.append(Tensor(name=str(node), producer=str(node), bytes=size, max_bytes=size))
            if weight_bytes:
                weights.append(
                    Weight(name=f"{node}.weight", bytes=weight_bytes, memory_bytes=weight_bytes)
                )
            ops.append(
                Op(
                    name=str(node),
                    inputs=tuple(str(source) for source in digraph.predecessors(node)),
                    outputs=(str(node),),
                    weights=(f"{node}.weight",) if weight_bytes else (),
                    time=_number(node, attributes, "time", float),
                    memory_bytes=_number(node, attributes, "memory_bytes", int),
                )
            )
        outputs = tuple(str(node) for node in digraph if digraph.out_degree(node) == 0)
        return OpGraph(
            name=name,
            ops=tuple(ops),
            tensors=tuple(tensors),
            weights=tuple(weights),
            outputs=outputs,
        )


def peak_activation_bytes(graph: OpGraph, ops: Iterable[str]) -> int:
    """See `OpGraph.peak_activation_bytes`."""
    members = set(ops)
    order = [op for op in graph.ops if op.name in members]
    root: dict[str, str] = {}  # tensor -> the tensor whose memory it shares
    last_use: dict[str, int] = {}
    end = len(order)
    wanted_outside = set(graph.outputs)

    for position, op in enumerate(order):
        for name in op.inputs:
            source = root.setdefault(name, name)
            outside = graph.tensor[name].producer not in members
            last_use[source] = end if outside else max(last_use.get(source, 0), position)
        for index, name in enumerate(op.outputs):
            shares = op.is_view and index == 0 and bool(op.inputs)
            source = root[name] = root[op.inputs[0]] if shares else name
            leaves = name in wanted_outside or any(c not in members for c in graph.consumers[name])
            last_use[source] = end if leaves else max(last_use.get(source, 0), position)

    size = {name: graph.tensor[name].max_bytes for name in last_use}
    produced = {name for op in order for name in op.outputs}
    live = sum(size[name] for name in last_use if name not in produced)
    peak = live
    freed_after: dict[int, int] = {}
    for name, position in last_use.items():
        freed_after[position] = freed_after.get(position, 0) + size[name]
    for position, op in enumerate(order):
        live += sum(size[name] for name in op.outputs if root[name] == name)
        peak = max(peak, live + op.memory_bytes)
        live -= freed_after.get(position, 0)
    return peak


def _brief(part: Op | Tensor | Weight) -> dict[str, Any]:
    values = ((field, getattr(part, field.name)) for field in fields(part))
    return {field.name: value for field, value in values if value != field.default}


def _number(node: Any, attributes: Mapping[str, Any], name: str, kind: type[_N]) -> _N:
    try:
        return kind(attributes.get(name, 0))
    except (TypeError, ValueError, OverflowError) as error:
        raise GraphError(
            f"node {node!r}: {name} is {attributes[name]!r}; expected a finite number."
        ) from error


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: _tuple(value) for key, value in fields.items()}


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _check(graph: OpGraph) -> None:
    """Raise `GraphError` unless names are unique, references exist, and the order is topological."""
    tensor_names = {tensor.name for tensor in graph.tensors}
    weight_names = {weight.name for weight in graph.weights}
    for what, items, names in (
        ("tensor", graph.tensors, tensor_names),
        ("weight", graph.weights, weight_names),
        ("op", graph.ops, {op.name for op in graph.ops}),
    ):
        if len(names) != len(items):
            raise GraphError(f"two {what}s of the graph {graph.name!r} have the same name")
    sized: list[Tensor | Weight] = [*graph.tensors, *graph.weights]
    for item in sized:
        if item.bytes < 0:
            raise GraphError(f"{item.name!r} has {item.bytes} bytes; sizes cannot be negative")
    producer = {tensor.name: tensor.producer for tensor in graph.tensors}
    ready = {tensor.name for tensor in graph.tensors if tensor.producer == INPUT}
    for op in graph.ops:
        if op.memory_bytes < 0 or not op.time >= 0:
            raise GraphError(f"op {op.name!r} has a negative time or memory_bytes")
        for name in op.inputs:
            if name not in ready:
                raise GraphError(f"op {op.name!r} reads {name!r}, which no earlier op produces")
        for name in op.weights:
            if name not in weight_names:
                raise GraphError(f"op {op.name!r} uses the weight {name!r}, which does not exist")
        for name in op.outputs:
            if name not in tensor_names:
                raise GraphError(f"op {op.name!r} produces {name!r}, which is not a tensor")
            if producer[name] != op.name:
                raise GraphError(
                    f"op {op.name!r} produces {name!r}, whose producer is {producer[name]!r}"
                )
        ready.update(op.outputs)
    for name in graph.outputs:
        if name not in ready:
            raise GraphError(f"the output {name!r} is produced by no op")
