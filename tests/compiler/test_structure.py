"""Structures: nested inputs are taken apart, nested outputs are put together."""

from __future__ import annotations

import json
from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.modeling_outputs import BaseModelOutput

from slicewise import RequestError
from slicewise.structure import Structure, bind, build, leaves


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Scores:
    best: Any
    all: Any


def leaf(name: str) -> Structure:
    return {"tensor": name}


def of(kind: str, *children: Structure, keys: Any = None, type: str | None = None) -> Structure:
    node: Structure = {"kind": kind, "children": list(children)}
    if keys is not None:
        node["keys"] = list(keys)
    if type is not None:
        node["type"] = type
    return node


def typed(kind: type, *keys: str) -> Structure:
    name = f"{kind.__module__}.{kind.__qualname__}"
    return of("object", *map(leaf, keys), keys=keys, type=name)


T = {"a": 1, "b": 2, "first": 1, "second": 2, "values": 1, "indices": 2}


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        (leaf("a"), 1),
        ({"constant": None}, None),
        (of("tuple"), ()),
        (of("tuple", leaf("a"), of("list", leaf("b"), {"constant": "x"})), (1, [2, "x"])),
        (of("dict", leaf("a"), leaf("a"), keys="xy"), {"x": 1, "y": 1}),
        (of("dict", leaf("a"), leaf("b"), keys=[0, 7]), {0: 1, 7: 2}),
        (typed(Pair, "first", "second"), Pair(1, 2)),
        (typed(torch.return_types.max, "values", "indices"), (1, 2)),
        (of("object", leaf("a"), keys="k", type="no_such_module.Thing"), {"k": 1}),
        (of("object", leaf("a"), keys="k", type="json.NoSuchThing"), {"k": 1}),
        (of("object", leaf("a"), keys="k", type="test.<locals>.Thing"), {"k": 1}),
        (of("object", leaf("a"), keys="k", type="fractions.Fraction"), {"k": 1}),
    ],
)
def test_build_puts_tensors_in_their_places(structure: Structure, expected: Any) -> None:
    assert build(json.loads(json.dumps(structure)), T) == expected


def test_build_makes_the_models_own_types() -> None:
    output = typed(BaseModelOutput, "last_hidden_state")
    built = build(output, {"last_hidden_state": torch.ones(1)})

    assert isinstance(built, BaseModelOutput)
    assert torch.equal(torch.as_tensor(built.last_hidden_state), torch.ones(1))
    top = build(typed(torch.return_types.topk, "values", "indices"), T)
    assert (top.values, top.indices) == (1, 2)


def test_leaves_go_from_left_to_right() -> None:
    structure = of("tuple", leaf("a"), of("dict", leaf("b"), {"constant": 3}, keys="xy"))

    assert leaves(structure) == [leaf("a"), leaf("b"), {"constant": 3}]


CALL = of(
    "dict",
    leaf("x"),
    of("list", leaf("p"), leaf("q")),
    of("dict", leaf("v"), leaf("k"), keys=["values", "keys"]),
    {"constant": None},
    {"constant": 3},
    keys=["x", "pair", "named", "mask", "steps"],
)
NAMED = {"values": 4, "keys": 5}
BOUND = {"x": 1, "p": 2, "q": 3, "v": 4, "k": 5}


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1, [2, 3], NAMED, None, 3), {}),
        ((1, (2, 3), NAMED), {}),
        ((1,), {"named": NAMED, "pair": [2, 3]}),
        ((), {"steps": 3, "mask": None, "x": 1, "pair": [2, 3], "named": NAMED}),
        ((1, [2, 3], OrderedDict(NAMED)), {}),
        ((1, [2, 3], defaultdict(int, NAMED)), {}),
        ((1, Pair(2, 3), UserDict(NAMED)), {}),
    ],
)
def test_bind_takes_a_call_as_python_does(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert bind(CALL, args, kwargs) == BOUND


@pytest.mark.parametrize(
    ("args", "kwargs", "field", "text"),
    [
        ((), {}, "x", "missing field 'x'"),
        ((1,), {"pair": [2, 3]}, "named", "missing field 'named'"),
        ((1, [2, 3], NAMED), {"y": 1}, "y", "unknown field 'y'; the model takes x, pair"),
        ((1, [2, 3], NAMED), {"x": 1}, "x", "'x' was given twice"),
        ((None, [2, 3], NAMED), {}, "x", "'x' is None; a tensor was expected"),
        ((1, [2, None], NAMED), {}, "pair.1", "'pair.1' is None"),
        ((1, [2], NAMED), {}, "pair", "'pair' should hold 0, 1"),
        ((1, [2, 3, 4], NAMED), {}, "pair", "'pair' should hold 0, 1"),
        ((1, 2, NAMED), {}, "pair", "'pair' should hold 0, 1"),
        ((1, None, NAMED), {}, "pair", "'pair' should hold 0, 1"),
        ((1, {"p": 2, "q": 3}, NAMED), {}, "pair", "'pair' should hold 0, 1"),
        ((1, [2, 3], {"values": 4}), {}, "named", "'named' should hold values, keys"),
        ((1, [2, 3], NAMED | {"z": 1}), {}, "named", "'named' should hold values, keys"),
        ((1, [2, 3], [4, 5]), {}, "named", "'named' should hold values, keys"),
        ((1, [2, 3], NAMED, 5), {}, "mask", "'mask' was None when the model was compiled"),
        ((1, [2, 3], NAMED), {"steps": 4}, "steps", "'steps' was 3 when the model was compiled"),
        ((1, [2, 3], NAMED), {"steps": 3.0}, "steps", "is fixed"),
        ((1, 2, 3, 4, 5, 6), {}, None, "6 positional arguments were given, the model takes 5"),
    ],
)
def test_bind_names_what_is_wrong(
    args: tuple[Any, ...], kwargs: dict[str, Any], field: str | None, text: str
) -> None:
    with pytest.raises(RequestError) as caught:
        bind(CALL, args, kwargs)

    assert caught.value.field == field
    assert text in str(caught.value)


def test_bind_reads_the_attributes_of_objects() -> None:
    structure = of("dict", typed(Scores, "best", "all"), keys=["scores"])

    assert bind(structure, (Scores(1, 2),), {}) == {"best": 1, "all": 2}
    assert bind(structure, (), {"scores": {"best": 1, "all": 2}}) == {"best": 1, "all": 2}
    with pytest.raises(RequestError, match="'scores' should hold best, all"):
        bind(structure, (3,), {})


STRUCTURES = st.recursive(
    st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(STRUCTURES)
def test_what_build_made_bind_takes_apart(shape: Any) -> None:
    names = iter(f"t{index}" for index in range(100))

    def describe(value: Any) -> Structure:
        if isinstance(value, dict):
            return of("dict", *map(describe, value.values()), keys=value)
        if isinstance(value, (list, tuple)):
            return of(type(value).__name__, *map(describe, value))
        return leaf(next(names))

    structure = describe(shape)
    tensors = {part["tensor"]: index for index, part in enumerate(leaves(structure))}
    built = build(structure, tensors)

    assert bind(of("dict", structure, keys=["argument"]), (built,), {}) == tensors
