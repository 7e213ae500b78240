"""Messages: what is lifted out of JSON bytes is what a parser finds there, whatever surrounds it."""

from __future__ import annotations

import base64
import importlib
import json
from typing import Any

import pytest
from awslambdaric.lambda_runtime_client import LambdaRuntimeClient
from awslambdaric.lambda_runtime_exception import FaultException
from hypothesis import example, given
from hypothesis import strategies as st

messages = importlib.import_module("slicewise.targets.lambda.runtime.messages")

BASE64 = st.binary(max_size=12).map(lambda raw: base64.b64encode(raw).decode())
# Text made of what could be taken for a tensor's data.
MARKERS = [
    '"data"',
    "data",
    '"',
    "\\",
    ":",
    " ",
    "{",
    "}",
    ",",
    '": "',
    '\\"data": "AAAA"',
    "é",
    "\n",
]
TEXT = st.one_of(st.lists(st.sampled_from(MARKERS), max_size=6).map("".join), st.text(max_size=6))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT.filter("data".__ne__), inner),
    max_leaves=6,
)
RECORDS = st.dictionaries(
    TEXT,
    st.builds(
        lambda rest, data: rest if data is None else {**rest, "data": data},
        st.dictionaries(TEXT.filter("data".__ne__), VALUES, min_size=1, max_size=3),
        st.none() | BASE64,
    ),
    max_size=4,
)
MESSAGES = st.dictionaries(
    TEXT.filter(lambda key: key not in ("data", "tensors")), VALUES, max_size=3
)


def plain(value: Any) -> Any:
    """With text where views are."""
    for record in value["tensors"].values():
        if "data" in record:
            record["data"] = bytes(record["data"]).decode()
    return value


@given(MESSAGES, RECORDS, st.booleans(), st.sampled_from([None, (",", ":"), (", \n", " :\t")]))
@example({'"data': "x"}, {"data": {"dtype": '"data": "AAAA"', "data": "AAAA"}}, True, None)
@example({"\\": ['"data"', '": "']}, {'\\"data': {"data\\": ": ", "data": ""}}, False, None)
def test_what_is_lifted_is_what_a_parser_finds(
    message: dict[str, Any], records: dict[str, Any], ascii_only: bool, separators: Any
) -> None:
    whole = {**message, "tensors": records}
    raw = json.dumps(whole, ensure_ascii=ascii_only, separators=separators).encode()

    assert plain(messages.lift(raw, "tensors")) == whole


@given(MESSAGES, RECORDS)
def test_a_joined_message_is_the_same_json(
    message: dict[str, Any], records: dict[str, Any]
) -> None:
    as_bytes = {
        name: {**record, "data": record["data"].encode()} if "data" in record else record
        for name, record in records.items()
    }

    for given_records in (records, as_bytes):
        joined = messages.join(message, "tensors", given_records)
        assert json.loads(joined) == {**message, "tensors": records}
        assert plain(messages.lift(joined, "tensors")) == {**message, "tensors": records}


def test_tensors_are_not_copied() -> None:
    raw = messages.join({}, "tensors", {"x": {"dtype": "int8", "data": b"AAAA"}})

    data = messages.lift(raw, "tensors")["tensors"]["x"]["data"]
    assert data.obj is raw


@pytest.mark.parametrize(
    "raw",
    [
        b'{"tensors": {"x": {"data": "AA\\"AA"}}}',
        b'{"tensors": {"x": {"data": "AAAA\\\\"}}}',
        b'{"tensors": {"x": {"data": "AAAA',
        b'{"tensors": {"x": {"data": 0}}}',
        b'{"tensors": {"x": {"data": 0}, "y": {"data": "AAAA"}}}',
        b'{"tensors": {"x": {"data": {}}}}',
        b'{"tensors": {"x": {"data": true}}}',
        b'{"tensors": {"x": {"data": "AAAA", "data": "BBBB"}}}',
        b'{"tensors": {"x": {"inner": {"data": "AAAA"}}}}',
        b'{"data": "AAAA"}',
        b'{"other": {"x": {"data": "AAAA"}}}',
        b'"data": "AAAA"',
        b"not json",
    ],
)
def test_anything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"data|Expecting|Extra"):
        messages.lift(raw, "tensors")


@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from(MARKERS), max_size=20).map(lambda m: "".join(m).encode())
)
def test_no_bytes_are_misread(raw: bytes) -> None:
    """Whatever is lifted, the parser agrees; what the parser refuses is refused."""
    try:
        value = messages.lift(raw, "tensors")
    except ValueError:
        return
    assert value == (json.loads(raw) if raw else {})


def test_an_empty_answer_is_an_empty_object() -> None:
    assert messages.lift(b"", "tensors") == {}


@pytest.fixture
def marshaller(monkeypatch: pytest.MonkeyPatch) -> Any:
    """awslambdaric's, once the events of the function are lifted."""
    monkeypatch.setattr(LambdaRuntimeClient, "marshaller", LambdaRuntimeClient.marshaller)
    messages.lift_events()
    return LambdaRuntimeClient.marshaller


@pytest.mark.parametrize("field", ["inputs", "tensors"])
def test_events_of_tensors_come_lifted(marshaller: Any, field: str) -> None:
    raw = messages.join({"plan": "p"}, field, {"x": {"dtype": "int8", "data": b"AAAA"}})

    event = marshaller.unmarshal_request(raw)

    data = event[field]["x"].pop("data")
    assert event == {"plan": "p", field: {"x": {"dtype": "int8"}}}
    assert bytes(data) == b"AAAA" and data.obj is raw


@pytest.mark.parametrize(
    "event",
    [
        {"inputs": {"x": {"data": [[1, 2], [3, 4]]}}},
        {"inputs": {"x": {"data": 0}, "y": {"data": "AAAA"}}},
        {"inputs": {"x": {"data": 'not "base64"'}}},
        {"data": "AAAA"},
        ["data", 1.5, None],
        "text",
    ],
)
def test_other_events_come_as_awslambdaric_parses_them(marshaller: Any, event: Any) -> None:
    raw = json.dumps(event).encode()
    assert marshaller.unmarshal_request(raw) == event
    assert marshaller.unmarshal_request(raw, "text/plain") == raw


@pytest.mark.parametrize("raw", [b"", b"{", b'{"inputs": {"x": {"data": "AA'])
def test_events_that_are_no_json_are_refused_as_before(marshaller: Any, raw: bytes) -> None:
    with pytest.raises(FaultException, match="Unable to unmarshal input"):
        marshaller.unmarshal_request(raw)


def test_replies_are_passed_on_as_they_are(marshaller: Any) -> None:
    assert marshaller.marshal_response(b"{}") == (b"{}", "application/unknown")
