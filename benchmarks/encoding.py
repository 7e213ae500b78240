"""What a tensor costs on its way, in nanoseconds of CPU per raw byte, against other encoders.

Four ways to write a float32 tensor into a JSON message and to read it again: slicewise's (base64 by
pybase64, written into the message as bytes), base64 of the standard library written by `json`, nested
lists of numbers, and the published system's `struct.pack` of one element at a time before base64. Every
step is timed alone, best of a few, in one process with one thread; `parse` is what Lambda's runtime
interface client does with an event before the handler sees it, the same for all.

Below, the coordinator: what it does between a slice's reply and the next call, with the same 4.4 MB.
With `--packing`, float16 and zlib on activations of the trained MiniLM (and on noise, half of it zero,
as after a ReLU): CPU for packing and unpacking, what share of the bytes still travels, and what that
saves on a network of 78 MB/s, over which a byte goes twice: out of its slice and into the next.
With `--objects`, PUT and GET through the local platform's S3 server, whose own time is in it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib
import json
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejson

messages = importlib.import_module("slicewise.targets.lambda.runtime.messages")
arrays = importlib.import_module("slicewise.targets.lambda.runtime.arrays")
wire = importlib.import_module("slicewise.targets.lambda.runtime.wire")
store = importlib.import_module("slicewise.targets.lambda.runtime.store")

RAW_BYTES = 4_400_000
SLOW_BYTES = 220_000  # per-element encoders take a second for the whole tensor
HEAD = {"request_id": "0123abcd-0123", "plan": "0123456789abcdef"}
Steps = dict[str, Callable[[], Any]]


def best_ns(function: Callable[[], Any], size: int, rounds: int = 7) -> float:
    """CPU time of this thread, ns per byte, the least of several rounds."""
    least = float("inf")
    for _ in range(rounds):
        started = time.thread_time_ns()
        function()
        least = min(least, time.thread_time_ns() - started)
    return least / size


def ours(array: np.ndarray) -> tuple[Steps, Steps]:
    raw = arrays.to_bytes(array, "float32")
    record = wire.describe(array, raw, "float32")
    full = wire.inline(record, raw)
    event = messages.join(HEAD, "tensors", {"x": full})
    parsed = json.loads(event)["tensors"]["x"]
    back = wire.decode_inline("x", parsed)
    return (
        {
            "checksum": lambda: wire.describe(array, raw, "float32"),
            "encode": lambda: wire.inline(record, raw),
            "write": lambda: messages.join(HEAD, "tensors", {"x": full}),
        },
        {
            "parse": lambda: simplejson.loads(event),
            "decode": lambda: wire.decode_inline("x", parsed),
            "check": lambda: wire.check_bytes("x", record, back),
            "array": lambda: arrays.from_bytes(back, record),
        },
    )


def stdlib(array: np.ndarray) -> tuple[Steps, Steps]:
    raw = array.tobytes()
    data = base64.b64encode(raw).decode()
    event = json.dumps({**HEAD, "tensors": {"x": {"data": data}}}).encode()
    back = base64.b64decode(data, validate=True)
    return (
        {
            "checksum": lambda: hashlib.sha256(raw).hexdigest(),
            "encode": lambda: base64.b64encode(array.tobytes()).decode(),
            "write": lambda: json.dumps({**HEAD, "tensors": {"x": {"data": data}}}).encode(),
        },
        {
            "parse": lambda: simplejson.loads(event),
            "decode": lambda: base64.b64decode(data, validate=True),
            "check": lambda: hashlib.sha256(back).hexdigest(),
            "array": lambda: np.frombuffer(back, np.float32),
        },
    )


def lists(array: np.ndarray) -> tuple[Steps, Steps]:
    numbers = array.tolist()
    event = json.dumps({**HEAD, "tensors": {"x": numbers}}).encode()
    return (
        {
            "encode": array.tolist,
            "write": lambda: json.dumps({**HEAD, "tensors": {"x": numbers}}).encode(),
        },
        {
            "parse": lambda: simplejson.loads(event),
            "array": lambda: np.array(numbers, np.float32),
        },
    )


def per_element(array: np.ndarray) -> tuple[Steps, Steps]:
    def pack() -> str:
        packed = b"".join(struct.pack("<f", value) for value in array.reshape(-1))
        return base64.b64encode(packed).decode()

    data = pack()
    event = json.dumps({**HEAD, "tensors": {"x": {"data": data}}}).encode()

    def unpack() -> np.ndarray:
        raw = base64.b64decode(data)
        values = [struct.unpack_from("<f", raw, at)[0] for at in range(0, len(raw), 4)]
        return np.array(values, np.float32)

    return (
        {
            "encode": pack,
            "write": lambda: json.dumps({**HEAD, "tensors": {"x": {"data": data}}}).encode(),
        },
        {"parse": lambda: simplejson.loads(event), "decode": unpack},
    )


def coordinator(array: np.ndarray) -> tuple[Steps, Steps]:
    """(as it is, by parsing and writing), each for one reply that becomes the next message."""
    raw = arrays.to_bytes(array, "float32")
    record = wire.inline(wire.describe(array, raw, "float32"), raw)
    reply = messages.join({"trace": {}}, "tensors", {"x": record})
    lifted = messages.lift(reply, "tensors")["tensors"]
    parsed = json.loads(reply)["tensors"]
    return (
        {
            "take": lambda: messages.lift(reply, "tensors"),
            "pass on": lambda: messages.join(HEAD, "tensors", lifted),
        },
        {
            "take": lambda: json.loads(reply),
            "pass on": lambda: json.dumps({**HEAD, "tensors": parsed}).encode(),
        },
    )


def show(name: str, steps: Steps, size: int) -> None:
    times = {step: best_ns(function, size) for step, function in steps.items()}
    parts = ", ".join(f"{step} {value:.2f}" for step, value in times.items())
    print(f"{name:42}{sum(times.values()):9.2f}   {parts}", flush=True)


NETWORK_NS = 12.8  # of one byte at 78 MB/s


def activations() -> dict[str, np.ndarray]:
    """Of the example's sentences: tensors that a cut may leave between slices."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    example = importlib.import_module("sentence_embeddings")
    model, tokenizer = example.load()
    inputs = example.tokenize(tokenizer, 32 * example.SENTENCES)
    layer = model.bert.encoder.layer[2]
    found: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda *given_and_made: found.update({name: given_and_made[-1].numpy()})

    layer.attention.output.register_forward_hook(keep("MiniLM, between layers"))
    layer.intermediate.register_forward_hook(keep("MiniLM, after GELU"))
    with torch.no_grad():
        model(**inputs)
    noise = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    return {**found, "noise after ReLU": np.maximum(noise, 0)}


def packing() -> None:
    print(f"\n{'ns of CPU per float32 byte':42}{'pack':>8}{'unpack':>8}{'travels':>9}{'saves':>8}")
    for name, array in activations().items():
        for ways in (("float16", None), (None, "zlib"), ("float16", "zlib")):
            raw, packed = arrays.pack(array, "float32", *ways)
            record = wire.describe(array, raw, "float32", packed)
            pack = best_ns(functools.partial(arrays.pack, array, "float32", *ways), array.nbytes, 3)
            unpack = best_ns(functools.partial(arrays.unpack, "x", record, raw), array.nbytes, 3)
            share = len(raw) / array.nbytes
            saved = 2 * NETWORK_NS * (1 - share)
            title = f"{name}: {' and '.join(way for way in ways if way)}"
            print(f"{title:42}{pack:8.2f}{unpack:8.2f}{share:9.1%}{saved:8.2f}", flush=True)


def objects(array: np.ndarray) -> None:
    """Wall time: most of it is waiting for the server."""
    platform_module = importlib.import_module("slicewise.targets.lambda.local")
    with platform_module.Platform([], buckets=("objects",)) as platform:
        bucket = store.Store({"s3": "objects"}, platform.client("s3"))
        raw = arrays.to_bytes(array, "float32")
        for count in (1, 4):
            took: dict[str, list[float]] = {"put": [], "get": []}
            for turn in range(5):
                places = [store.Object("s3", f"{count}/{turn}/{i}") for i in range(count)]
                started = time.perf_counter()
                store.finish({place.key: bucket.start_put(place, raw) for place in places})
                middle = time.perf_counter()
                for get in [bucket.start_get(place, len(raw)) for place in places]:
                    assert len(get()) == len(raw)
                took["put"].append(middle - started)
                took["get"].append(time.perf_counter() - middle)
            put, get = (min(took[step]) * 1e3 for step in ("put", "get"))
            print(f"{count} objects of {len(raw):,} bytes: put {put:.1f} ms, get {get:.1f} ms")


def main() -> None:
    values = np.random.default_rng(0).standard_normal(RAW_BYTES // 4).astype(np.float32)
    print(f"{'ns of CPU per raw byte':42}{'sum':>9}")
    for name, encoder, size in (
        ("slicewise", ours, RAW_BYTES),
        ("base64 of the standard library and json", stdlib, RAW_BYTES),
        ("lists of numbers", lists, SLOW_BYTES),
        ("published: struct.pack per element", per_element, SLOW_BYTES),
    ):
        out, into = encoder(values[: size // 4].copy())
        show(f"{name}: send", out, size)
        show(f"{name}: receive", into, size)
    lifting, parsing = coordinator(values)
    show("coordinator: lift and join", lifting, RAW_BYTES)
    show("coordinator: json", parsing, RAW_BYTES)
    if "--packing" in sys.argv:
        packing()
    if "--objects" in sys.argv:
        objects(values)


if __name__ == "__main__":
    main()
