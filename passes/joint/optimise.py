"""`optimise`: the cut, the transport of every tensor and the memory of every function, chosen together.

problem (contracted graph, links) -> pairs (all slices between two prefixes) -> search (dynamic
programming for given prices) -> layout. Bounds on latency or cost turn into prices (`goal`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from slicewise.cost import CostModel, Moved, Transport, entry_time
from slicewise.errors import InfeasibleError
from slicewise.graph import OpGraph
from slicewise.limits import Limits, Overheads
from slicewise.passes.joint.groups import Arcs, build_arcs
from slicewise.passes.joint.pairs import Pairs, build_pairs
from slicewise.passes.joint.prefixes import few_prefixes
from slicewise.passes.joint.problem import CALLER_MB, JointProblem, joint_problem
from slicewise.passes.joint.regions import boundaries, natural, regions
from slicewise.passes.joint.runs import Run, applied, runs_of_shards
from slicewise.passes.joint.search import Path, Prices, Search, Step
from slicewise.passes.partitioning.feasible import refuse_impossible, unplaceable
from slicewise.passes.partitioning.ground import Ground, breaks, ground, measure
from slicewise.passes.partitioning.ideals import lattice
from slicewise.passes.partitioning.problem import fewest_slices
from slicewise.passes.partitioning.recompute import (
    Layout,
    add_inlined,
    inlined_ops,
    sent_by,
    worthwhile_options,
)
from slicewise.passes.shards import Sharding

_MOST_PREFIXES = 1_500
_MOST_WEIGHT = 1e12  # ms per US dollar


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """One step of a plan: a slice, or slices that run at the same time. `ops` are those of each slice,
    none where `shardings` split them (several: the stages of a pipeline), an empty set for a slice that
    only puts shards' results together.
    """

    ops: tuple[set[int], ...]
    memory_mb: int
    shardings: tuple[Sharding, ...] = ()
    gain_ms: float = 0.0

    @property
    def width(self) -> int:
        """How many slices."""
        return sum(sharding.degree for sharding in self.shardings) or len(self.ops)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The steps, the caller's memory, and the transport of every tensor that crosses.

    `value` is what the prices make of it, `lower_bound` what no plan of this kind goes below;
    `usd_weight` is what a US dollar counted, in ms.
    """

    steps: tuple[Chosen, ...]
    caller_mb: int
    transports: Mapping[str, str]
    ms: float
    usd: float
    value: float
    lower_bound: float
    method: str
    path: Path
    usd_weight: float

    @property
    def layout(self) -> Layout:
        """The ops of every slice, where nothing is split into shards."""
        return [ops for step in self.steps for ops in step.ops]

    @property
    def memory_mb(self) -> tuple[int, ...]:
        """The memory of every slice of `layout`."""
        return tuple(step.memory_mb for step in self.steps for _ in step.ops)

    @property
    def shardings(self) -> tuple[Sharding, ...]:
        """What is split into shards."""
        return tuple(sharding for step in self.steps for sharding in step.shardings)


class Optimiser:
    """One graph, ready to be optimised for any prices. Raises `InfeasibleError`."""

    def __init__(
        self,
        graph: OpGraph,
        limits: Limits,
        *,
        overheads: Overheads,
        model: CostModel,
        transports: Sequence[str],
        parallel: float = 0.0,
        time_limit_s: float = 60.0,
        most: int = 1,
        shards: bool = False,
    ) -> None:
        """`most` slices may run at the same time: branches, and if `shards` parts of the same ops."""
        deadline = time.monotonic() + time_limit_s
        self.most = most if limits.max_slices is None else min(most, limits.max_slices)
        self.shards = shards
        self.runs: tuple[Run, ...] | None = None
        self._applied: dict[Run, tuple[Sharding, float]] = {}
        self.model, self.limits, self.parallel = model, limits, parallel
        self.base = base = ground(graph, limits, overheads)
        refuse_impossible(base)
        self.problem = joint_problem(base, model, transports)
        self.exact = True
        self.entry = {mb: self._entries(mb) for mb in CALLER_MB}
        pairs = self._pairs(self.problem, deadline)
        self.search = self._search(base, self.problem, pairs, deadline)
        self.free: Search | None = None
        undecided = worthwhile_options(base)
        if self.exact and undecided:
            free = joint_problem(base, model, transports, free=undecided)
            self.free = self._search(base, free, self._pairs(free, deadline), deadline)

    @property
    def input_transports(self) -> dict[str, Transport]:
        """How the request's tensors that slices read travel, by name."""
        return {
            self.base.graph.tensors[link.tensor].name: self.model.transports[link.ways[0]]
            for link in self.problem.links
            if link.producer < 0 and link.ways
        }

    def _pairs(self, problem: JointProblem, deadline: float) -> Pairs:
        found = lattice(problem.graph, _MOST_PREFIXES, deadline)
        pairs = None
        if found is not None:
            pairs = build_pairs(self.base, problem, self.model, found.ideals, deadline)
            self.method = f"all {len(found.ideals)} prefixes"
        if pairs is None:
            self.exact = False
            also = self._worth_a_group(problem) if self.most > 1 else set[int]()
            pairs, count = few_prefixes(self.base, problem, self.model, deadline, also)
            self.method = f"{count} prefixes"
        if pairs is None:
            raise unplaceable(self.base, proven=False)
        self.exact = self.exact and pairs.complete
        return pairs

    def _entries(self, caller_mb: int) -> tuple[float, float]:
        """Expected ms and US dollars of the call of the caller itself."""
        model = replace(self.model, caller_memory_mb=caller_mb)
        transports = self.model.transports
        received = [
            Moved(transport=transports[link.ways[0]].name, bytes=link.bytes)
            for link in self.problem.links
            if link.producer < 0 and link.ways
        ]
        sent = [
            Moved(transport=transports[way].name, bytes=size)
            for leaves in self.problem.leaves
            for size, way in leaves
        ]
        entry = entry_time(model, received, sent)
        return entry.total_ms, entry.usd

    def _worth_a_group(self, problem: JointProblem) -> set[int]:
        """Prefixes at which groups may begin and end."""
        found = set(boundaries(problem))
        for region in regions(problem, natural(problem)):
            found |= {region.first, region.last}
        return found

    def _search(self, base: Ground, problem: JointProblem, pairs: Pairs, deadline: float) -> Search:
        assert self.limits.memory_mb is not None
        needs = _Needs(base, problem, pairs.prefixes)
        arcs = None
        if self.most > 1:
            if self.runs is None:
                self.runs = ()
                if self.shards:
                    until = deadline - (deadline - time.monotonic()) / 2
                    self.runs, complete = runs_of_shards(
                        base, problem, self.model, self.most, until
                    )
                    self.exact = self.exact and complete
            arcs = build_arcs(base, problem, self.model, pairs, needs.of, self.most, self.runs)
            self.exact = self.exact and arcs.complete
            self.method += f", {len(arcs.groups)} groups"
        return Search(
            pairs,
            self.model,
            needs,
            arcs=arcs,
            cap_mb=self.limits.memory_mb,
            parallel=self.parallel,
            most_slices=self.limits.max_slices,
            shard_needs=partial(self._shard_needs, arcs),
        )

    def _shard_needs(self, arcs: Arcs | None, group: int) -> float:
        """What the largest shard of a group takes of memory; nothing more if it has none."""
        assert arcs is not None
        runs = arcs.groups[group].runs
        return max((self._in_shards(run)[1] for run in runs), default=0.0)

    def _in_shards(self, run: Run) -> tuple[Sharding, float]:
        if run not in self._applied:
            self._applied[run] = applied(self.base, run)
        return self._applied[run]

    def one_by_one(self) -> Optimiser:
        """The same without groups: slices one after the other."""
        found = copy(self)
        found.search = self.search.one_by_one()
        return found

    def caller(self, memory_mb: int) -> CostModel:
        """The cost model with a caller of this size."""
        return replace(self.model, caller_memory_mb=memory_mb)

    def best(self, prices: Prices, callers: Sequence[int] = CALLER_MB) -> Choice:
        """The best plan for these prices, with a caller of one of these sizes (MB)."""
        found: tuple[Path, int] | None = None
        for caller_mb in callers:
            path = self.search.best(prices, caller_mb=caller_mb)
            if path is None:
                continue
            path = replace(path, value=path.value + self._entry(prices, caller_mb))
            if found is None or path.value < found[0].value:
                found = path, caller_mb
        if found is None:
            raise unplaceable(self.base, proven=self.exact)
        path, caller_mb = found
        bound = path.value if self.exact else self._floor(prices, callers)
        if self.exact and self.free is not None:
            for mb in callers:
                other = self.free.best(prices, caller_mb=mb, measure=False)
                if other is not None:
                    bound = min(bound, other.value + self._entry(prices, mb))
        return self._choice(path, caller_mb, prices, min(bound, path.value))

    def _entry(self, prices: Prices, caller_mb: int) -> float:
        """What the call of the caller itself is worth."""
        ms, usd = self.entry[caller_mb]
        return prices.ms * ms + prices.usd * usd

    def _choice(self, path: Path, caller_mb: int, prices: Prices, bound: float) -> Choice:
        """A path in the terms of the graph."""
        pairs, problem, arcs = self.search.pairs, self.problem, self.search.arcs
        inlined = inlined_ops(self.base)
        transports: dict[str, str] = {}
        steps = []
        for step, memory in zip(path.steps, path.memory_mb, strict=True):
            if step.kind == "join":
                steps.append(Chosen(ops=(set(),), memory_mb=memory))
                continue
            if step.kind == "slice":
                before, after = int(pairs.source[step.index]), int(pairs.target[step.index])
                slices = [_nodes(pairs, before, after)]
                shardings: tuple[Sharding, ...] = ()
            else:
                assert arcs is not None
                group = arcs.groups[int(arcs.group[step.index])]
                after = int(arcs.target[step.index])
                slices = [list(nodes) for nodes in group.branches]
                shardings = tuple(self._in_shards(run)[0] for run in group.runs)
            ops = [{op for node in nodes for op in problem.graph.ops[node]} for nodes in slices]
            for each in ops:
                add_inlined(self.base, each, inlined)
            ms, _ = self.search.taken(step, memory, caller_mb)
            steps.append(
                Chosen(ops=tuple(ops), memory_mb=memory, shardings=shardings,
                       gain_ms=self._alone_ms(step, memory, caller_mb) - ms)
            )  # fmt: skip
            for link, way in enumerate(pairs.state_ways[after].tolist()):
                if way >= 0:
                    tensor = self.base.graph.tensors[problem.links[link].tensor]
                    transports[tensor.name] = self.model.transports[way].name
        ms, usd = self._totals(path, caller_mb)
        return Choice(
            steps=tuple(steps),
            caller_mb=caller_mb,
            transports=transports,
            ms=ms,
            usd=usd,
            value=path.value,
            lower_bound=bound,
            method=self.method,
            path=path,
            usd_weight=min(prices.usd / prices.ms, _MOST_WEIGHT),
        )

    def _alone_ms(self, step: Step, memory: int, caller_mb: int) -> float:
        """What one slice of the group's memory would take for all that the group does."""
        arcs, pairs = self.search.arcs, self.search.pairs
        if step.kind != "group" or arcs is None:
            return self.search.taken(step, memory, caller_mb)[0]
        source, target = int(arcs.source[step.index]), int(arcs.target[step.index])
        begin, end = pairs.begin[target], pairs.begin[target + 1]
        same = begin + np.flatnonzero(pairs.source[begin:end] == source)
        if not len(same):  # no slice holds it
            return math.nan
        return self.search.taken(Step("slice", int(same[0])), memory, caller_mb)[0]

    def _totals(self, path: Path, caller_mb: int) -> tuple[float, float]:
        ms, usd = self.search.totals(path, caller_mb)
        entry_ms, entry_usd = self.entry[caller_mb]
        return ms + entry_ms, usd + entry_usd

    def resized(self, choice: Choice, prices: Prices) -> Choice:
        """The same slices and transports with the memory sizes that are best for other prices."""
        path = self.search.resized(choice.path, prices, choice.caller_mb)
        ms, usd = self._totals(path, choice.caller_mb)
        steps = tuple(
            replace(step, memory_mb=memory)
            for step, memory in zip(choice.steps, path.memory_mb, strict=True)
        )
        return replace(choice, steps=steps, ms=ms, usd=usd, value=path.value, path=path)

    def _floor(self, prices: Prices, callers: Sequence[int]) -> float:
        """What every plan pays: each op computed once at its share, less what of it the first quota of a
        slice spares (see `slicewise.cost`), and a call for each slice; of all that, at most so many at
        the same time as groups may have slices.
        """
        model = self.model
        slices = fewest_slices(self.problem.graph)
        most_slices = self.limits.max_slices or self.problem.graph.size * self.most
        most = self.limits.memory_mb or model.memory_mb_max
        least = float("inf")
        for caller_mb in callers:
            per_ms = prices.ms + prices.usd * model.gb_ms_usd(caller_mb)
            sizes = [
                min(most, model.mb_per_vcpu),
                *range(model.mb_per_vcpu, most + 1, model.mb_per_vcpu),
            ]
            computing = min(
                (per_ms / self.most + prices.usd * model.gb_ms_usd(mb))
                / model.speed(mb, self.parallel)
                for mb in sizes
            )
            spared = max(
                (per_ms / self.most + prices.usd * model.gb_ms_usd(mb)) * (1.0 - model.share(mb))
                for mb in range(model.memory_mb_min, model.mb_per_vcpu + 1)
            )
            call = model.call.wait_ms + model.call.cpu_ms
            each = (
                per_ms / self.most * call
                + prices.usd * model.request_usd
                - spared * model.period_ms
            )
            least = min(
                least,
                self._entry(prices, caller_mb)
                + computing * sum(self.problem.times)
                + each * (slices if each > 0 else most_slices),
            )
        return least


class _Needs:
    """What a slice between two prefixes takes of memory, measured op by op; infinite if not allowed."""

    def __init__(self, base: Ground, problem: JointProblem, prefixes: Sequence[int]) -> None:
        self.base, self.problem, self.prefixes = base, problem, prefixes
        self.inlined, self.needing = inlined_ops(base), sent_by(base)

    def __call__(self, first: int, last: int) -> float:
        return self.of(_bits(self.prefixes[last] & ~self.prefixes[first]))

    def of(self, nodes: Iterable[int]) -> float:
        """The same of a slice of these nodes."""
        base = self.base
        kept = {op for node in nodes for op in self.problem.graph.ops[node]}
        sent = {
            t
            for op in kept
            for t in base.makes[op]
            if base.leaves[t] or any(other not in kept for other in self.needing[t])
        }
        add_inlined(base, kept, self.inlined)
        found = measure(base, kept, sent)
        if breaks(base, found):
            return float("inf")
        return float(base.overheads.memory_bytes + found.memory)


def _nodes(pairs: Pairs, before: int, after: int) -> list[int]:
    first = pairs.prefixes[int(pairs.state_prefix[before])]
    last = pairs.prefixes[int(pairs.state_prefix[after])]
    return _bits(last & ~first)


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def infeasible_goal(name: str, bound: float, nearest: float) -> InfeasibleError:
    """The error for a bound that no plan meets, with the nearest that one does."""
    return InfeasibleError(
        f"no plan keeps {name} at or below {bound:,.6g}; the nearest one reaches {nearest:,.6g}. "
        f"Set Goal({name}={nearest * 1.01:.4g}) or more, or loosen the limits.",
        limit_name=name,
        needed=math.ceil(nearest),
        limit=math.floor(bound),
    )
