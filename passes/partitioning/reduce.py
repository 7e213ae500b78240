"""Contractions that cannot cost optimality.

Each rule takes two neighbours u -> v and shows that any feasible assignment that separates them
turns into one that does not, is feasible, costs no more and has no more slices. Applied one after
the other, each to the problem that the last one left, they preserve the optimum of a `Problem`:
loads are the only resource it knows, so moving a node that brings no new load into a slice is
always allowed.

*Pull* v down to u: every other predecessor of v is an ancestor of u, so v may run wherever u runs.
Saved: the nets that u makes for v alone. Added at most: what v makes (it may now leave u's slice)
and what v reads that u does not read and that others read too (it may now enter u's slice).

*Push* u up to v: every other successor of u is a descendant of v, so u may run wherever v runs.
Saved: the nets that u makes and v reads. Added at most: what u reads and v does not.

Both demand that the loads of the moved node are held by the other one already, and saved >= added.

*Incumbent*: with a feasible assignment of cost C in hand, a net of more than C bytes is cut by no
better one: its producer, its readers and all nodes between them are one node.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from slicewise.passes.partitioning.problem import Assignment, Load, Net, Problem

_SEARCH = 64  # nodes visited to find out whether one is an ancestor of another; more only cost time


def reduce(problem: Problem) -> Problem:
    """An equivalent problem with fewer nodes: same optimum, and its solutions lift to solutions."""
    work = Shrinking(problem)
    pending = list(range(problem.size))
    queued = [True] * problem.size
    while pending:
        node = pending.pop()
        queued[node] = False
        if work.alive[node]:
            for touched in work.contract_around(node):
                if not queued[touched]:
                    queued[touched] = True
                    pending.append(touched)
    return quotient(problem, [work.find(node) for node in range(problem.size)])


class Shrinking:
    """The graph while it shrinks: sets per node, a net's readers as a set."""

    def __init__(self, problem: Problem) -> None:
        self.alive = [True] * problem.size
        self.parent = list(range(problem.size))
        self.preds = [set(nodes) for nodes in problem.preds]
        self.succs = [set(nodes) for nodes in problem.succs]
        self.bytes = [net.bytes for net in problem.nets]
        self.readers = [set(net.readers) for net in problem.nets]
        self.producer = [net.producer for net in problem.nets]
        self.read = [set(nets) for nets in problem.read]
        self.made = [set(nets) for nets in problem.made]
        self.held = [set(loads) for loads in problem.held]

    def find(self, node: int) -> int:
        """The node that stands for this one now."""
        while self.parent[node] != node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def contract_around(self, node: int) -> set[int]:
        """Apply one rule to `node` as the moved one; the nodes that deserve another look."""
        below = self._last_pred(node)
        if below is not None and self.held[node] <= self.held[below] and self._pull(below, node):
            return self.merge(below, node)
        above = self.first_succ(node)
        if above is not None and self.held[node] <= self.held[above]:
            saved, added = self.push(node, above)
            if saved >= added:
                return self.merge(above, node)
        return set()

    def _pull(self, u: int, v: int) -> bool:
        saved = sum(self.bytes[n] for n in self.read[v] & self.made[u] if len(self.readers[n]) == 1)
        added = sum(self.bytes[n] for n in self.made[v])
        for net in self.read[v] - self.made[u]:
            if len(self.readers[net]) > 1 and u not in self.readers[net]:
                added += self.bytes[net]
        return saved >= added

    def push(self, u: int, v: int) -> tuple[int, int]:
        """Bytes saved, and added at most, when u moves to the slice of its first successor v."""
        saved = sum(self.bytes[n] for n in self.made[u] & self.read[v])
        return saved, sum(self.bytes[n] for n in self.read[u] - self.read[v])

    def _last_pred(self, node: int) -> int | None:
        """The predecessor that all others precede, if that is found at little cost."""
        return self._extreme(self.preds[node], self.preds)

    def first_succ(self, node: int) -> int | None:
        """The successor that precedes all others, if that is found at little cost."""
        return self._extreme(self.succs[node], self.succs)

    def _extreme(self, candidates: set[int], toward: list[set[int]]) -> int | None:
        """The candidate from which all others are reached along `toward`."""
        if len(candidates) <= 1:
            return next(iter(candidates), None)
        if len(candidates) > _SEARCH:
            return None
        for start in candidates:
            missing = candidates - toward[start] - {start}
            seen, frontier = set(toward[start]), list(toward[start])
            while missing and frontier and len(seen) < _SEARCH:
                for other in toward[frontier.pop()]:
                    if other not in seen:
                        seen.add(other)
                        missing.discard(other)
                        frontier.append(other)
            if not missing:
                return start
        return None

    def merge(self, kept: int, gone: int) -> set[int]:
        """Contract `gone` into its neighbour `kept`."""
        self.alive[gone] = False
        self.parent[gone] = kept
        for net in self.read[gone]:
            self.readers[net].discard(gone)
            if self.producer[net] != kept:
                self.readers[net].add(kept)
                self.read[kept].add(net)
        for net in self.made[gone]:
            self.producer[net] = kept
            self.readers[net].discard(kept)
            self.read[kept].discard(net)
            if self.readers[net]:
                self.made[kept].add(net)
        self.made[kept] = {net for net in self.made[kept] if self.readers[net]}
        self.held[kept] |= self.held[gone]
        for node in self.preds[gone]:
            self.succs[node].discard(gone)
            if node != kept:
                self.succs[node].add(kept)
                self.preds[kept].add(node)
        for node in self.succs[gone]:
            self.preds[node].discard(gone)
            if node != kept:
                self.preds[node].add(kept)
                self.succs[kept].add(node)
        self.preds[kept].discard(gone)
        self.succs[kept].discard(gone)
        return {kept} | self.preds[kept] | self.succs[kept]


def join_uncuttable(problem: Problem, best: int) -> Problem:
    """`problem` with every net of more than `best` bytes made uncuttable.

    Same optimum as long as that is at most `best`.
    """
    leader = list(range(problem.size))
    back: list[set[int]] = [set() for _ in leader]
    heavy = [net for net in problem.nets if net.bytes > best]
    if not heavy:
        return problem
    for net in heavy:
        for node in net.readers:
            back[node].add(net.producer)
    for component in _components([(*problem.succs[v], *back[v]) for v in leader]):
        for node in component:
            leader[node] = component[0]
    return quotient(problem, leader)


def quotient(problem: Problem, leader: Sequence[int]) -> Problem:
    """The problem whose nodes are the classes of equal `leader`; the classes must form a DAG.

    A leader is one of its class; its ops come first.
    """
    members: dict[int, list[int]] = {}
    for node, group in enumerate(leader):
        members.setdefault(group, []).append(node)
    after: dict[int, dict[int, None]] = {group: {} for group in members}
    for node, others in enumerate(problem.succs):
        for other in others:
            if leader[node] != leader[other]:
                after[leader[node]][leader[other]] = None
    order = _topological(members, after)
    number = {group: index for index, group in enumerate(order)}
    nets: dict[tuple[int, tuple[int, ...]], int] = {}
    for net in problem.nets:
        producer = number[leader[net.producer]]
        readers = _others((number[leader[node]] for node in net.readers), producer)
        if readers:
            nets[producer, readers] = nets.get((producer, readers), 0) + net.bytes
    loads: dict[tuple[int, ...], tuple[int, int]] = {}
    for load in problem.loads:
        users = _others(number[leader[node]] for node in load.users)
        held, memory = loads.get(users, (0, 0))
        loads[users] = (held + load.bytes, memory + load.memory)
    return Problem(
        ops=tuple(
            (
                *problem.ops[group],
                *(op for v in members[group] if v != group for op in problem.ops[v]),
            )
            for group in order
        ),
        succs=tuple(tuple(sorted(number[other] for other in after[group])) for group in order),
        nets=tuple(Net(size, *key) for key, size in nets.items()),
        loads=tuple(Load(*amounts, users) for users, amounts in loads.items()),
        weight_cap=problem.weight_cap,
        memory_cap=problem.memory_cap,
        max_slices=problem.max_slices,
    )


def carry(problem: Problem, other: Problem, slice_of: Sequence[int]) -> Assignment:
    """An assignment of `problem` as one of a contraction of it, or of what it is a contraction of.

    Where a contraction joins different slices, all go to that of its leader. After `reduce` this keeps
    caps and order and costs no more: it is what the rules do.
    """
    slice_of_op = {op: slice_of[v] for v, members in enumerate(problem.ops) for op in members}
    return [slice_of_op[members[0]] for members in other.ops]


def _others(nodes: Iterable[int], excluded: int = -1) -> tuple[int, ...]:
    return tuple(sorted(set(nodes) - {excluded}))


def _topological(members: dict[int, list[int]], after: dict[int, dict[int, None]]) -> list[int]:
    """A topological order of the groups that keeps near to the order of their first members."""
    import heapq

    waiting = dict.fromkeys(members, 0)
    for others in after.values():
        for other in others:
            waiting[other] += 1
    first = {group: nodes[0] for group, nodes in members.items()}
    ready = [(first[group], group) for group, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        _, group = heapq.heappop(ready)
        order.append(group)
        for other in after[group]:
            waiting[other] -= 1
            if waiting[other] == 0:
                heapq.heappush(ready, (first[other], other))
    if len(order) != len(members):
        raise AssertionError("a contraction made a cycle")
    return order


def _components(after: Sequence[Sequence[int]]) -> list[list[int]]:
    """Strongly connected components (Tarjan, without recursion)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    found = []
    for start in range(len(after)):
        if start in index:
            continue
        index[start] = low[start] = len(index)
        stack.append(start)
        on_stack.add(start)
        calls = [(start, iter(after[start]))]
        while calls:
            node, others = calls[-1]
            for other in others:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    on_stack.add(other)
                    calls.append((other, iter(after[other])))
                    break
                if other in on_stack:
                    low[node] = min(low[node], index[other])
            else:
                calls.pop()
                if calls:
                    low[calls[-1][0]] = min(low[calls[-1][0]], low[node])
                if low[node] == index[node]:
                    cut = stack.index(node) if len(stack) < 64 else _rindex(stack, node)
                    component = stack[cut:]
                    del stack[cut:]
                    on_stack.difference_update(component)
                    found.append(sorted(component))
    return found


def _rindex(stack: list[int], node: int) -> int:
    position = len(stack) - 1
    while stack[position] != node:
        position -= 1
    return position
