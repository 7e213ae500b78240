"""The exact engine for any graph: a CP-SAT model, with the limits on memory added as they are
broken.

One monotone 0/1 variable per node and slice boundary says whether the node runs at or before it,
one per net and slice says whether the slice receives it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slicewise.passes.partitioning.ground import Ground, breaks
from slicewise.passes.partitioning.problem import Assignment, Problem, compact
from slicewise.passes.partitioning.recompute import measures

if TYPE_CHECKING:
    from ortools.sat.python import cp_model


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found: an assignment or None, and a lower bound on bytes for all of them.

    `closed` says that nothing better exists within the number of slices that was searched: the
    assignment is optimal or, when it is None, there is none. `slices_closed` says the same of the
    number of slices among the optimal ones. `copies` are (node, slice) of nodes that run again.
    """

    slice_of: Assignment | None
    lower_bound: int
    closed: bool
    slices_closed: bool = False
    copies: tuple[tuple[int, int], ...] = ()


def solve(
    problem: Problem,
    slices: int,
    *,
    hint: Sequence[int] | None,
    best: int | None,
    least: int = 0,
    seconds: float,
    workers: int,
    seed: int,
    base: Ground | None = None,
    cheap: Sequence[int] = (),
    window: tuple[int, int] | None = None,
) -> Outcome:
    """The best assignment to at most `slices` slices of at most `best` bytes, fewest slices first.

    `least` is a lower bound that is known already.

    With `base`, nodes are ops and every slice keeps all limits of the ground; liveness and buffers
    come in as linear rows, the row of an (op, slice) once a solution breaks it. The nodes of `cheap`
    may run again in slices after their own. With `window`, only nodes whose hint lies in these slices
    move, and only between them.
    """
    model = _Model(problem, slices, best, least, base, cheap)
    if window is not None and hint is not None:
        model.freeze(hint, *window)
    deadline = time.monotonic() + seconds
    bound = least
    while True:
        status, solver = model.solve(hint, deadline - time.monotonic(), workers, seed)
        from ortools.sat.python import cp_model

        if status == cp_model.INFEASIBLE:
            return Outcome(None, 0 if best is None else best + 1, True, True)
        raw = solver.best_objective_bound
        bound = max(bound, model.bytes_of(raw))
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return Outcome(None, bound, False)
        found, copies = model.read(solver)
        if base is not None and model.tighten(found, copies):
            if time.monotonic() > deadline:
                return Outcome(None, bound, False)
            hint = found
            continue
        proven = status == cp_model.OPTIMAL
        value = model.bytes_of(solver.objective_value)
        number = {old: new for new, old in enumerate(sorted(set(found)))}
        copies = tuple((node, number[index]) for node, index in copies if index in number)
        closed = proven or bound >= value
        return Outcome(compact(found), min(bound, value), closed, proven, copies)


class _Model:
    def __init__(
        self,
        problem: Problem,
        slices: int,
        best: int | None,
        least: int,
        base: Ground | None,
        cheap: Sequence[int],
    ) -> None:
        from ortools.sat.python import cp_model

        self.problem, self.slices, self.base = problem, slices, base
        self.model = cp_model.CpModel()
        self.nodes = range(problem.size)
        self.upto = [[self.model.new_bool_var("") for _ in range(slices - 1)] for _ in self.nodes]
        for node in self.nodes:
            for index in range(slices - 2):
                self.model.add_implication(self.upto[node][index], self.upto[node][index + 1])
            for other in problem.succs[node]:
                for index in range(slices - 1):
                    self.model.add_implication(self.upto[other][index], self.upto[node][index])
        self.member = [
            [self._member(node, index) for index in range(slices)] for node in self.nodes
        ]
        self.copies = {node: self._copies(node) for node in cheap}
        self.runs = [
            [
                self.member[node][index] + (self.copies[node][index] if node in self.copies else 0)
                for index in range(slices)
            ]
            for node in self.nodes
        ]
        self._order_slices()
        self._cap_loads()
        self._count_bytes(best, least)
        if base is not None:
            self.rows: set[int] = set()
            self._describe_edges(base)

    def _member(self, node: int, index: int) -> Any:
        before = self.upto[node][index - 1] if index else 0
        return (self.upto[node][index] if index < self.slices - 1 else 1) - before

    def _copies(self, node: int) -> list[Any]:
        """Per slice whether the node runs there again; what it reads exists by then."""
        found: list[Any] = [0]
        for index in range(1, self.slices):
            copy = self.model.new_bool_var("")
            self.model.add_implication(copy, self.upto[node][index - 1])
            found.append(copy)
        return found

    def _order_slices(self) -> None:
        """Empty slices come last: slice k is used if some node runs after boundary k-1."""
        self.used = [self.model.new_bool_var("") for _ in range(self.slices)]
        self.model.add(self.used[0] == 1)
        for index in range(1, self.slices):
            self.model.add_implication(self.used[index], self.used[index - 1])
            self.model.add_bool_or(
                [self.used[index].negated()]
                + [self.upto[v][index - 1].negated() for v in self.nodes]
            )
            for node in self.nodes:
                if not self.problem.succs[node]:
                    self.model.add_bool_or([self.upto[node][index - 1], self.used[index]])

    def _cap_loads(self) -> None:
        problem = self.problem
        self.holds: list[list[Any]] = []
        for load in problem.loads:
            if len(load.users) == 1:
                self.holds.append(self.member[load.users[0]])
                continue
            row = []
            for index in range(self.slices):
                held = self.model.new_bool_var("")
                for node in load.users:
                    self.model.add(held >= self.member[node][index])
                row.append(held)
            self.holds.append(row)
        for amounts, cap in problem.resources:
            for index in range(self.slices):
                total = sum(
                    amount * held[index]
                    for amount, held in zip(amounts, self.holds, strict=True)
                    if amount
                )
                self.model.add(total <= cap * self.used[index])
        if self.base is None and problem.resources:
            self._forbid_mergeable()

    def _forbid_mergeable(self) -> None:
        """Two adjacent slices do not fit in one: else merging them would save a slice."""
        for index in range(1, self.slices):
            over = [self.model.new_bool_var("") for _ in self.problem.resources]
            self.model.add_bool_or([*over, self.used[index].negated()])
            for exceeds, (amounts, cap) in zip(over, self.problem.resources, strict=True):
                total = sum(
                    amount * (held[index - 1] + held[index])
                    for amount, held in zip(amounts, self.holds, strict=True)
                    if amount
                )
                self.model.add(total >= (cap + 1) * exceeds)

    def _count_bytes(self, best: int | None, least: int) -> None:
        problem, model = self.problem, self.model
        self.receives: list[list[Any]] = []
        for net in problem.nets:
            row = []
            for index in range(1, self.slices):
                received = model.new_bool_var("")
                made = self.runs[net.producer][index]
                for node in net.readers:
                    model.add(received >= self.runs[node][index] - made)
                row.append(received)
            self.receives.append(row)
        self.scale = math.gcd(*(net.bytes for net in problem.nets)) or 1
        total = sum(
            (net.bytes // self.scale) * sum(row)
            for net, row in zip(problem.nets, self.receives, strict=True)
        )
        if best is not None:
            model.add(total <= best // self.scale)
        if least:
            model.add(total >= -(-least // self.scale))
        self.tie = self.slices + 1  # bytes count first, then slices
        model.minimize(total * self.tie + sum(self.used))

    def freeze(self, slice_of: Sequence[int], first: int, last: int) -> None:
        """Keep every node where it is, or between two slices if it is there."""
        for node, index in enumerate(slice_of):
            low, high = (first, last) if first <= index <= last else (index, index)
            for boundary, variable in enumerate(self.upto[node]):
                if boundary < low:
                    self.model.add(variable == 0)
                elif boundary >= high:
                    self.model.add(variable == 1)

    def bytes_of(self, objective: float) -> int:
        """The fewest bytes with which the objective reaches this value."""
        return max(0, math.ceil((objective - 1e-6 - self.slices) / self.tie)) * self.scale

    def _describe_edges(self, base: Ground) -> None:
        """What enters and leaves every slice, the request's and reply's tensors too."""
        model, runs = self.model, self.runs
        self.enters: list[list[Any]] = []
        self.leaves: list[list[Any]] = []
        for tensor, producer in enumerate(base.producer):
            entering: list[Any] = []
            for index in range(self.slices):
                entered = model.new_bool_var("")
                made = runs[producer][index] if producer >= 0 else 0
                for node in base.readers[tensor]:
                    model.add(entered >= runs[node][index] - made)
                entering.append(entered)
            self.enters.append(entering)
            self.leaves.append(self._leaving(base, tensor, entering))
        # A tensor's memory is held to the end when it or a view of it leaves.
        group: dict[int, list[int]] = {}
        for tensor, root in enumerate(base.root):
            group.setdefault(root, []).append(tensor)
        self.kept: list[list[Any]] = []
        for tensor, producer in enumerate(base.producer):
            row = []
            for index in range(self.slices if base.root[tensor] == tensor and producer >= 0 else 0):
                kept = model.new_bool_var("")
                made = runs[producer][index]
                for shared in group[tensor]:
                    if self.copies:  # sent from here for another slice to run a reader again
                        model.add(kept >= made + self.leaves[shared][index] - 1)
                    if base.leaves[shared]:
                        model.add(kept >= made)
                    for node in base.readers[shared]:
                        model.add(kept >= made - runs[node][index])
                row.append(kept)
            self.kept.append(row)
        most = base.overheads.max_edge_bytes
        if most is not None:
            for rows in (self.enters, self.leaves):
                for index in range(self.slices):
                    model.add(
                        sum(size * row[index] for size, row in zip(base.size, rows, strict=True))
                        <= most
                    )

    def _leaving(self, base: Ground, tensor: int, entering: list[Any]) -> list[Any]:
        """Per slice whether the tensor leaves it: its first maker sends it to all that receive it."""
        model, producer = self.model, base.producer[tensor]
        if producer < 0:
            return [0] * self.slices
        touched = (producer, *base.readers[tensor])
        leaving: list[Any] = []
        for index in range(self.slices):
            left = model.new_bool_var("")
            made = self.member[producer][index]
            if base.leaves[tensor]:
                model.add(left >= made)
            if any(node in self.copies for node in touched):
                for later in entering[index + 1 :]:
                    model.add(left >= made + later - 1)
            else:
                for node in base.readers[tensor]:
                    model.add(left >= made - self.member[node][index])
            leaving.append(left)
        return leaving

    def tighten(self, slice_of: Sequence[int], copies: Sequence[tuple[int, int]]) -> bool:
        """Add the rows that this assignment breaks; whether there were any."""
        base = self.base
        assert base is not None
        layout: list[set[int]] = [set() for _ in range(max(slice_of) + 1)]
        for node, index in (*enumerate(slice_of), *copies):
            if index < len(layout):
                layout[index].add(node)
        parts = measures(base, [ops for ops in layout if ops])
        broken = {found.busiest for found in parts if breaks(base, found)}
        if broken & self.rows:
            raise AssertionError("a memory row did not bind")
        for op in sorted(broken):
            self._bound_memory(base, op)
        self.rows |= broken
        return bool(broken)

    def _bound_memory(self, base: Ground, op: int) -> None:
        """Memory while `op` runs, in whichever slice it runs: exactly `ground.measure`."""
        cap = base.memory_cap
        assert cap is not None
        unit, factor = base.edge_factor.denominator, base.edge_factor.numerator
        most = unit * (base.scratch[op] + sum(base.weight_memory)) + sum(
            2 * (unit + factor) * size for size in base.size
        )
        for index in range(self.slices):
            total = unit * base.scratch[op]
            for load, held in zip(self.problem.loads, self.holds, strict=True):
                total += unit * load.memory * held[index]
            for tensor, size in enumerate(base.size):
                total += (unit + factor) * size * self.enters[tensor][index]
                total += factor * size * self.leaves[tensor][index]
                producer = base.producer[tensor]
                if base.root[tensor] != tensor or not 0 <= producer <= op:
                    continue  # a view, or not there yet
                if op <= base.last[tensor]:
                    total += unit * size * self.runs[producer][index]
                else:
                    total += unit * size * self.kept[tensor][index]
            self.model.add(total <= unit * cap + most * (1 - self.runs[op][index]))

    def solve(
        self, hint: Sequence[int] | None, seconds: float, workers: int, seed: int
    ) -> tuple[Any, cp_model.CpSolver]:
        from ortools.sat.python import cp_model

        self.model.clear_hints()  # type: ignore[no-untyped-call]
        if hint is not None:
            for node in self.nodes:
                for index in range(self.slices - 1):
                    self.model.add_hint(self.upto[node][index], int(hint[node] <= index))
            for index in range(self.slices):
                self.model.add_hint(self.used[index], int(index <= max(hint)))
            for net, row in zip(self.problem.nets, self.receives, strict=True):
                reading = {hint[node] for node in net.readers} - {hint[net.producer]}
                for index, received in enumerate(row, start=1):
                    self.model.add_hint(received, int(index in reading))
        solver = cp_model.CpSolver()
        solver.parameters.max_time_in_seconds = max(0.01, seconds)
        solver.parameters.num_workers = workers
        solver.parameters.random_seed = seed
        return solver.solve(self.model), solver

    def read(self, solver: cp_model.CpSolver) -> tuple[Assignment, tuple[tuple[int, int], ...]]:
        slice_of = [
            sum(1 - solver.value(variable) for variable in self.upto[node]) for node in self.nodes
        ]
        copies = tuple(
            (node, index)
            for node, row in self.copies.items()
            for index, copy in enumerate(row)
            if index and solver.value(copy)
        )
        return slice_of, copies
