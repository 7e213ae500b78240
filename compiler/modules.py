"""`modules_of`: what of a model a set of ops is, in few words, by the paths of its modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from slicewise.graph import OpGraph

MOST = 6  # words that a slice is told in, where its modules allow


@dataclass(slots=True)
class _Module:
    """A module with its ops, its children's included: `own` of the set, `all` of the graph."""

    path: str
    own: int = 0
    all: int = 0
    children: dict[str, _Module] = field(default_factory=dict)


def modules_of(graph: OpGraph, ops: Sequence[str]) -> tuple[str, ...]:
    """The modules that hold these ops, in graph order: "layer.0–3" is a run of whole modules, "part of
    layer.4" has ops elsewhere too. At most about six, as deep as that allows; none without paths.
    """
    members = set(ops)
    root = _Module("")
    for op in graph.ops:
        found = root
        _count(found, op.name in members)
        for prefix in _prefixes(op.module):
            found = found.children.setdefault(prefix, _Module(prefix))
            _count(found, op.name in members)
    if not root.children:
        return ()
    told = [root]
    while True:
        # The first that says too little, opened; its own ops go unsaid beside its children.
        wider = None
        for index, module in enumerate(told):
            inside = [child for child in module.children.values() if child.own]
            if inside and (module is root or module.own < module.all):
                candidate = [*told[:index], *inside, *told[index + 1 :]]
                if told == [root] or len(_words(candidate)) <= MOST:
                    wider = candidate
                    break
        if wider is None:
            return () if told == [root] else tuple(_words(told))
        told = wider


def _count(module: _Module, is_own: bool) -> None:
    module.all += 1
    module.own += is_own


def _prefixes(path: str) -> list[str]:
    names = path.split(".") if path else []
    return [".".join(names[: end + 1]) for end in range(len(names))]


def _words(modules: Sequence[_Module]) -> list[str]:
    """Runs of whole modules with consecutive numbers are one word."""
    found: list[str] = []
    run: tuple[str, int, int] | None = None  # parent, first, last
    for module in modules:
        parent, _, last = module.path.rpartition(".")
        whole = module.own == module.all
        if whole and last.isdecimal():
            number = int(last)
            if run and run[0] == parent and run[2] == number - 1:
                run = (parent, run[1], number)
                found[-1] = f"{parent}.{run[1]}–{number}".lstrip(".")
            else:
                run = (parent, number, number)
                found.append(module.path)
            continue
        run = None
        found.append(module.path if whole else f"part of {module.path}")
    return found
