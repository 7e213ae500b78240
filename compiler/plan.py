"""`Plan` and its parts: what was cut, what crosses, how it travels, and what is proven of it.

Built once by `slicewise.api`, written as plan.json, read by targets, tools and people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from slicewise.errors import BundleError
from slicewise.graph import INPUT, OUTPUT
from slicewise.limits import Limits

if TYPE_CHECKING:
    import networkx
    import pandas

SCHEMA = 1
ORCHESTRATIONS = ("coordinator", "chain", "stepfunctions")
BRANCHES = "branches"  # the kind of a group whose slices share no ops


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What is proven of the objective: `optimal` only when `lower_bound` was reached.

    `lower_bound` is in bytes, expected ms or US dollars per million requests, as the objective is.
    `gap` is (value - lower_bound) / value, 0 for an optimal plan. `seconds` is the solver's time.
    """

    status: Literal["optimal", "bounded"]
    lower_bound: float
    gap: float
    method: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicePrediction:
    """Where the time of one call of a slice goes, expected ms: `call_ms` passes in the coordinator and
    on the way, the rest is billed to the slice. Dollars are without the coordinator's. `cold_ms` is
    what the first call of an environment takes longer.
    """

    name: str
    call_ms: float
    receive_ms: float
    compute_ms: float
    send_ms: float
    billed_ms: float
    cost_per_million_usd: float
    cold_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the target's profile predicts for one request; None where it was not computed.

    `latency_ms` is the expected value of a warm request as the caller sees it, with its 50th and
    99th percentile; `cold_latency_ms` is that of one that finds no function warm. `source` says where
    compute times are from.
    """

    latency_ms: float | None = None
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    cold_latency_ms: float | None = None
    cost_per_million_usd: float | None = None
    source: str = ""
    slices: tuple[SlicePrediction, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The original model: its class name, number of parameters, and bytes of its weights."""

    name: str
    parameters: int
    weight_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dim:
    """A dynamic dimension: the values it may take, and the one that the example inputs have."""

    name: str
    min: int
    max: int
    example: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor of the request or the reply; dynamic dimensions are expressions over `Dim` names.

    `name` is what the caller sees, `tensor` what the graph and the edges call it.
    """

    name: str
    tensor: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputCut:
    """A part of the request's tensor `source`, which edges know as `tensor`: what lies in all `ranges`,
    each a dimension, its first index and the one after its last. Who gets the request cuts it out.
    """

    tensor: str
    source: str
    ranges: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportRule:
    """What holds for every message: the transports allowed, and the bytes of JSON that it may have.

    Of tensors that go only between slices, float32 travels as `wire_dtype` ("float16"), and what
    shrinks by it is compressed ("zlib"). None: they travel as they are.
    """

    transports: tuple[str, ...]
    payload_bytes: int
    wire_dtype: str | None = None
    compression: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One ONNX model and one function. Bytes are bytes, `memory_mb` is the function's setting,
    `packaging` how the target packs it, `modules` what of the model it is (`slicewise.modules`),
    `shard` what is told of a group's slice (`slicewise.passes.joint.relayout`).
    """

    name: str
    stage: int
    ops: tuple[str, ...]
    weight_bytes: int
    peak_memory_bytes: int
    memory_mb: int
    package_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    onnx: str
    shard: Mapping[str, Any] | None = None
    packaging: str = "zip"
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One tensor from its producing slice to one consumer; `@input` and `@output` are the caller.

    `bytes` (as they travel, before compression) and `transport` hold for the example's sizes. At run
    time the actual size decides by `choices`: in order of size, the transport for a tensor of up to so
    many raw bytes (None: of any size). All edges of one tensor have the same, because it is sent once.
    `module` is the path of the module that makes the tensor. `prices` are what it takes from end to end
    by each allowed transport that can hold it: (transport, expected ms, US dollars per million).
    """

    tensor: str
    dtype: str
    shape: tuple[int | str, ...]
    bytes: int
    producer: str
    consumer: str
    transport: str
    reason: str
    choices: tuple[tuple[str, int | None], ...] = ()
    module: str = ""
    prices: tuple[tuple[str, float, float], ...] = ()

    @property
    def crosses(self) -> bool:
        """Whether both ends are slices, so that its bytes count in the objective."""
        return self.producer != INPUT and self.consumer != OUTPUT


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRecord:
    """An op that was too large for one slice and became `pieces`, one op of a slice each.

    `op` is the name in the captured program, `axis` what was divided into parts of `sizes`.
    """

    op: str
    module: str
    kind: str
    axis: str
    sizes: tuple[int, ...]
    pieces: tuple[str, ...]
    weight: str
    weight_bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Encryption:
    """What a saved bundle's models and objects are encrypted with, bound to the `plan` of this id: `key`
    is where the key comes from, "env" or "kms", whose key `key_id` decrypts `data_key` (base64).
    """

    plan: str
    key: str
    key_id: str = ""
    data_key: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Slices, edges, transports, memory sizes, prediction and certificate of one compiled model.

    `input_cuts` are the parts of the inputs that shards read instead of them;
    `input_structure` and `output_structure` are trees (see `slicewise.structure`) whose leaves name
    the tensors of `inputs` and `outputs`; `dims` are the dynamic dimensions; `splits` tells which ops
    were too large for any slice and what became of them; `coordinator_memory_mb` is the memory of the
    function that drives the slices; `warm_up` says that its first request starts all slices at once;
    with `hedge` a slice is called a second time after that percentile (0 to 1) of its latest calls.
    `orchestration` says who drives them: a "coordinator", each slice the next one ("chain"), or a state
    machine ("stepfunctions"). `encryption` is that of a bundle that was saved with it.
    """

    model: ModelInfo
    target: str
    objective: str
    limits: Limits
    slices: tuple[Slice, ...]
    edges: tuple[Edge, ...]
    certificate: Certificate
    transport_rule: TransportRule
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    dims: tuple[Dim, ...] = ()
    input_cuts: tuple[InputCut, ...] = ()
    input_structure: Any = None
    output_structure: Any = None
    prediction: Prediction = field(default_factory=Prediction)
    coordinator_memory_mb: int = 512
    splits: tuple[SplitRecord, ...] = ()
    warm_up: bool = True
    hedge: float | None = None
    orchestration: str = "coordinator"
    encryption: Encryption | None = None

    @property
    def cross_slice_bytes(self) -> int:
        """Sum of bytes over the edges whose producer and consumer are both slices."""
        return sum(edge.bytes for edge in self.edges if edge.crosses)

    @property
    def internal(self) -> frozenset[str]:
        """Tensors that go only between slices; no caller sends or receives them."""
        callers = {edge.tensor for edge in self.edges if not edge.crosses}
        return frozenset(edge.tensor for edge in self.edges) - callers

    @property
    def stages(self) -> tuple[tuple[Slice, ...], ...]:
        """The slices by stage; those of one stage do not depend on each other."""
        count = 1 + max((part.stage for part in self.slices), default=-1)
        return tuple(tuple(s for s in self.slices if s.stage == index) for index in range(count))

    def to_json(self) -> str:
        """plan.json: `from_json` rebuilds an equal plan."""
        data = asdict(self)
        ordered = {
            "schema": SCHEMA,
            **{key: data.pop(key) for key in ("model", "target", "objective", "limits")},
            "cross_slice_bytes": self.cross_slice_bytes,
            **{key: data.pop(key) for key in ("certificate", "prediction", "slices", "edges")},
            **data,
        }
        return json.dumps(ordered, indent=1)

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that `to_json` wrote. Raises `BundleError` for anything else."""
        try:
            data = json.loads(text)
            if not isinstance(data, dict):
                raise BundleError("plan.json holds no plan. Compile the model again.")
            if data["schema"] != SCHEMA:
                raise BundleError(
                    f"plan.json has schema {data['schema']!r}, this slicewise reads {SCHEMA}. "
                    "Compile the model again."
                )
            return Plan(
                model=ModelInfo(**data["model"]),
                target=data["target"],
                objective=data["objective"],
                limits=Limits(**data["limits"]),
                slices=tuple(Slice(**_tuples(part)) for part in data["slices"]),
                edges=tuple(Edge(**_tuples(edge)) for edge in data["edges"]),
                certificate=Certificate(**data["certificate"]),
                transport_rule=TransportRule(**_tuples(data["transport_rule"])),
                inputs=tuple(TensorSpec(**_tuples(spec)) for spec in data["inputs"]),
                outputs=tuple(TensorSpec(**_tuples(spec)) for spec in data["outputs"]),
                dims=tuple(Dim(**dim) for dim in data["dims"]),
                input_cuts=tuple(InputCut(**_tuples(cut)) for cut in data.get("input_cuts", ())),
                input_structure=data["input_structure"],
                output_structure=data["output_structure"],
                prediction=_prediction(data["prediction"]),
                coordinator_memory_mb=data["coordinator_memory_mb"],
                splits=tuple(SplitRecord(**_tuples(split)) for split in data.get("splits", ())),
                warm_up=data.get("warm_up", True),
                hedge=data.get("hedge"),
                orchestration=data.get("orchestration", "coordinator"),
                encryption=Encryption(**sealed) if (sealed := data.get("encryption")) else None,
            )
        except BundleError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"plan.json cannot be read: {error!r}. Compile the model again."
            ) from error

    def __str__(self) -> str:
        from slicewise.report import plan_text

        return plan_text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        from slicewise.inspection.notebook import plan_html

        return plan_html(self)

    def to_networkx(self) -> networkx.MultiDiGraph:
        """See `slicewise.inspection.exports.to_networkx`."""
        from slicewise.inspection.exports import to_networkx

        return to_networkx(self)

    def to_mermaid(self) -> str:
        """See `slicewise.inspection.exports.to_mermaid`."""
        from slicewise.inspection.exports import to_mermaid

        return to_mermaid(self)

    def to_dot(self) -> str:
        """See `slicewise.inspection.exports.to_dot`."""
        from slicewise.inspection.exports import to_dot

        return to_dot(self)

    def to_dataframe(self, what: str = "slices") -> pandas.DataFrame:
        """See `slicewise.inspection.exports.to_dataframe`."""
        from slicewise.inspection.exports import to_dataframe

        return to_dataframe(self, what)


def _prediction(data: dict[str, Any]) -> Prediction:
    slices = tuple(SlicePrediction(**part) for part in data["slices"])
    return Prediction(**{**data, "slices": slices})


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: _tuple(value) for key, value in fields.items()}


def _tuple(value: Any) -> Any:
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value
