"""The client: what it sends, and how long."""

from __future__ import annotations

import importlib
import json
import time

client = importlib.import_module("slicewise.targets.lambda.client")


def test_a_request_tells_what_is_left_of_its_time_when_it_is_sent() -> None:
    request = b'{"request_id": "0123abcd"}'
    deadline = time.monotonic() + 2.0

    first = json.loads(client.timed(request, deadline))["remaining_ms"]
    time.sleep(0.1)
    again = json.loads(client.timed(request, deadline))["remaining_ms"]

    assert 1000 < first <= 2000
    assert again <= first - 100
    assert client.timed(request, float("inf")) == request
