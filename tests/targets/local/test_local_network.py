"""Network emulation: seeded waits, links that queue, and reports that say so."""

from __future__ import annotations

import http.client
import importlib
import itertools
import random
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from slicewise.errors import TargetError

endpoint = importlib.import_module("slicewise.targets.lambda.endpoint")
identity = importlib.import_module("slicewise.targets.lambda.local.identity")
network = importlib.import_module("slicewise.targets.lambda.local.network")
profile = importlib.import_module("slicewise.targets.lambda.profile")
s3_network = importlib.import_module("slicewise.targets.lambda.local.s3_network")

KINDS = {
    "call": 15,
    "s3 put": 63,
    "s3 get": 27,
    "s3express put": 6.5,
    "s3express get": 2.5,
}

MOVER = """
import json, os, time
from concurrent.futures import ThreadPoolExecutor
import boto3

s3 = boto3.client("s3")
functions = boto3.client("lambda")

def handler(event, context):
    began = time.monotonic()
    result = globals()[event["do"]](event)
    return {"ms": (time.monotonic() - began) * 1000, "result": result}

def put(event):
    s3.put_object(Bucket="a-bucket", Key=event["key"], Body=bytes(event["bytes"]))

def get(event):
    with ThreadPoolExecutor(len(event["keys"])) as pool:
        return list(pool.map(get_one, event["keys"]))

def get_one(key):
    return len(s3.get_object(Bucket="a-bucket", Key=key)["Body"].read())

def call(event):
    message = json.dumps({"do": "nothing", "text": "x" * event["bytes"]}).encode()
    reply = functions.invoke(FunctionName="mover", Payload=message)
    return json.load(reply["Payload"])

def nothing(event):
    return os.environ["AWS_ACCESS_KEY_ID"]
"""


def aws(seed: int = 0) -> Any:
    return endpoint.aws_network(profile.default_profile(), seed)


def emulated(*, bytes_s: float = 1e12, **wait_ms: float) -> Any:
    """A network whose waits do not vary; they are named by their kinds, `_` for a space."""
    waits = {kind: network.Wait(wait_ms.get(kind.replace(" ", "_"), 0.01), 0.0) for kind in KINDS}
    return network.Network(name="test", seed=0, bytes_s=bytes_s, waits=waits)


def draws(traffic: Any, kind: str, count: int) -> list[float]:
    return [traffic.draw_s(kind) for _ in range(count)]


def test_the_same_seed_draws_the_same_waits_whatever_else_is_drawn() -> None:
    alone = {kind: draws(network.Traffic(aws(7)), kind, 20) for kind in KINDS}
    together = network.Traffic(network.network_from_json(aws(7).to_json()))
    mixed: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for kind in random.Random(0).sample(
        [kind for kind in KINDS for _ in range(20)], 20 * len(KINDS)
    ):
        mixed[kind].append(together.draw_s(kind))

    assert mixed == alone
    assert draws(network.Traffic(aws(8)), "call", 20) != alone["call"]
    assert len({values[0] for values in alone.values()}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_waits_follow_the_profile(kind: str) -> None:
    """200 draws: the median is near p50, and the share above p99 is small but not nothing in 5000."""
    wait = aws().waits[kind]
    traffic = network.Traffic(aws())
    ms = [1000 * value for value in draws(traffic, kind, 5000)]
    p99 = wait.p50_ms * 2.718281828 ** (2.3263478740408408 * wait.sigma)

    assert wait.p50_ms == KINDS[kind]
    assert statistics.median(ms[:200]) == pytest.approx(wait.p50_ms, rel=0.15)
    assert statistics.median(ms) == pytest.approx(wait.p50_ms, rel=0.03)
    assert 0.006 < sum(value > p99 for value in ms) / len(ms) < 0.014


def test_transfers_of_one_environment_and_direction_queue_and_others_do_not() -> None:
    traffic = network.Traffic(emulated(bytes_s=1000))

    assert traffic.transfer("a-1", "out", 500, 10.0) == 10.5
    assert traffic.transfer("a-1", "out", 500, 10.1) == 11.0
    assert traffic.transfer("a-1", "in", 500, 10.1) == 10.6
    assert traffic.transfer("a-2", "out", 500, 10.1) == 10.6
    assert traffic.transfer("a-1", "out", 500, 20.0) == 20.5
    assert traffic.transfer(None, "out", 500, 10.1) == 10.6
    assert traffic.transfer(None, "out", 500, 10.1) == 10.6


def test_transfers_from_many_threads_take_as_long_as_all_their_bytes() -> None:
    traffic = network.Traffic(emulated(bytes_s=1000))
    ends: list[float] = []

    def move() -> None:
        ends.extend(traffic.transfer("a-1", "in", 10, 5.0) for _ in range(100))

    threads = [threading.Thread(target=move) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(ends) == pytest.approx([5.0 + 0.01 * n for n in range(1, 401)])


def test_nothing_is_finished_before_its_time_and_what_is_late_is_counted() -> None:
    traffic = network.Traffic(emulated())
    for ms in (0.05, 0.3, 1, 2, 5):
        due = time.monotonic() + ms / 1000
        traffic.finish("s3 get", due)
        assert time.monotonic() >= due
    on_time = traffic.counts["s3 get"]
    traffic.finish("s3 get", time.monotonic() - 1)

    assert on_time.operations == 5
    assert traffic.counts["s3 get"] == (6, on_time.late + 1)
    assert traffic.counts["call"] == (0, 0)


def test_operations_sleep_at_the_same_time_and_hold_no_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No sleep ends before all eight have begun."""
    traffic = network.Traffic(emulated())
    meeting = threading.Barrier(8)
    free: dict[int, bool] = {}

    def sleep(seconds: float) -> None:
        if threading.get_ident() not in free:
            meeting.wait(60)
            free[threading.get_ident()] = not traffic._lock.locked()
        time.sleep(seconds)

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
    monkeypatch.setattr(network, "time", clock)
    due = time.monotonic() + 1
    threads = [threading.Thread(target=traffic.finish, args=("call", due)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert list(free.values()) == [True] * 8
    assert traffic.counts["call"].operations == 8


@pytest.mark.parametrize(
    ("method", "path", "query", "kind"),
    [
        ("PUT", "/bucket/key", "", "s3 put"),
        ("PUT", "/bucket/key", "partNumber=1&uploadId=x", "s3 put"),
        ("POST", "/bucket/key", "uploads", "s3 put"),
        ("GET", "/bucket/key", "", "s3 get"),
        ("HEAD", "/bucket/key", "", "s3 get"),
        ("DELETE", "/bucket/key", "", "s3 get"),
        ("POST", "/bucket", "delete", "s3 get"),
        ("PUT", "/name--use1-az4--x-s3/key", "", "s3express put"),
        ("GET", "/name--use1-az4--x-s3/key--x", "", "s3express get"),
        ("GET", "/name--use1-az4--x-s3", "session", "s3express get"),
        ("GET", "/bucket/name--x-s3", "", "s3 get"),
    ],
)
def test_the_kind_of_an_s3_operation(method: str, path: str, query: str, kind: str) -> None:
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query}

    assert s3_network.kind_of(environ) == kind


@pytest.mark.parametrize("function", ["f", "a-1", "a-1-2", "slice_0"])
def test_the_access_key_id_leads_to_function_and_instance(function: str) -> None:
    key = identity.access_key_id(identity.instance_id(function, 12))
    header = f"AWS4-HMAC-SHA256 Credential={key}/20261122/us-east-1/s3/aws4_request, Signature=0"

    caller = identity.caller_of(header)

    assert (caller.function, caller.instance) == (function, f"{function}-12")
    assert identity.access_key_id_of(header) == key


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer x",
        "AWS4-HMAC-SHA256 Credential=AKIALOCALPLATFORM000/20261122/us-east-1/s3/aws4_request",
        "AWS4-HMAC-SHA256 Credential=ASIALOCAL./20261122/us-east-1/s3/aws4_request",
    ],
)
def test_others_are_no_instance(header: str | None) -> None:
    assert identity.caller_of(header) is None


@pytest.fixture
def movers(start: Callable[..., Any], make_function: Callable[..., Any]) -> Callable[..., Any]:
    """Starts a platform whose one function moves bytes."""

    def start_movers(emulation: Any = None) -> Any:
        mover = make_function("mover", MOVER, memory_mb=512)
        return start(mover, buckets=["a-bucket"], cpu_scale=8.0, network=emulation)

    return start_movers


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds and result."""
    began = time.monotonic()
    result = call()
    return (time.monotonic() - began) * 1000, result


def test_a_call_waits_outside_the_functions_own_time(movers: Callable[..., Any]) -> None:
    lambdas = movers(emulated(call=300))
    lambdas("mover", do="nothing")
    elapsed, _ = timed(lambda: lambdas("mover", do="nothing"))
    report = lambdas.platform.reports[-1]

    assert report.init_ms is None
    assert elapsed - report.duration_ms >= 300
    assert lambdas.platform.network_counts["call"].operations == 2


def test_a_call_within_a_function_waits_and_its_bytes_pass_the_callers_link(
    movers: Callable[..., Any],
) -> None:
    """200 KB at 1 MB/s and 100 ms; the reply is small."""
    lambdas = movers(emulated(call=100, bytes_s=1e6))
    reply = lambdas("mover", do="call", bytes=200_000)
    inner, _outer = lambdas.platform.reports

    assert reply["ms"] >= 100 + 200 + inner.duration_ms
    ours, theirs = lambdas("mover", do="nothing")["result"], reply["result"]["result"]
    assert ours != theirs
    assert {ours, theirs} == {
        identity.access_key_id(report.instance) for report in lambdas.platform.reports
    }


def test_s3_operations_wait_and_share_the_link_of_their_environment(
    movers: Callable[..., Any],
) -> None:
    """Objects of 100 KB at 1 MB/s: 0.1 s each, also when three are fetched at once."""
    lambdas = movers(emulated(s3_put=50, s3_get=30, bytes_s=1e6))
    for key in "abc":
        assert lambdas("mover", do="put", key=key, bytes=100_000)["ms"] >= 50 + 100
    reply = lambdas("mover", do="get", keys=list("abc"))

    assert reply["result"] == [100_000] * 3
    assert reply["ms"] >= 30 + 3 * 100


def test_the_users_own_s3_client_waits_but_has_no_link(movers: Callable[..., Any]) -> None:
    """1 MB would take 17 minutes over the link."""
    platform = movers(emulated(s3_put=50, s3_get=30, bytes_s=1000)).platform
    client = platform.client("s3", read_timeout_s=60)
    put, _ = timed(lambda: client.put_object(Bucket="a-bucket", Key="k", Body=bytes(10**6)))
    get, reply = timed(lambda: client.get_object(Bucket="a-bucket", Key="k")["Body"].read())
    deleted, _ = timed(lambda: client.delete_object(Bucket="a-bucket", Key="k"))

    assert (put >= 50, get >= 30, deleted >= 30) == (True, True, True)
    assert reply == bytes(10**6)
    counts = platform.network_counts
    assert {kind: count.operations for kind, count in counts.items()} == {
        "call": 0,
        "s3 put": 1,
        "s3 get": 2,
        "s3express put": 0,
        "s3express get": 0,
    }


def test_operations_take_their_draws_in_order(movers: Callable[..., Any]) -> None:
    client = movers(aws(3)).platform.client("s3")
    for wait in draws(network.Traffic(aws(3)), "s3 put", 5):
        elapsed, _ = timed(lambda: client.put_object(Bucket="a-bucket", Key="k", Body=b""))
        assert elapsed >= 1000 * wait


def test_operations_that_this_machine_cannot_do_in_time_are_counted(
    movers: Callable[..., Any],
) -> None:
    """No S3 server answers in 0.01 ms."""
    platform = movers(emulated()).platform
    platform.client("s3").put_object(Bucket="a-bucket", Key="k", Body=b"")

    assert platform.network_counts["s3 put"] == (1, 1)


def test_reports_say_which_network_was_emulated(movers: Callable[..., Any]) -> None:
    lambdas = movers(aws(5))
    _, response = lambdas.reply("mover", do="nothing")
    report = lambdas.platform.reports[-1]

    assert lambdas.platform.network == report.network == "aws (seed 5)"
    assert str(report).endswith("\tNetwork: aws (seed 5)")
    assert response["StatusCode"] == 200


def test_without_emulation_reports_say_so_and_nothing_is_counted(
    movers: Callable[..., Any],
) -> None:
    lambdas = movers()
    platform = lambdas.platform
    lambdas("mover", do="nothing")

    assert platform.network == platform.reports[-1].network == "off"
    assert str(platform.reports[-1]).endswith("\tNetwork: off")
    assert platform.network_counts == {}
    assert platform._traffic is None
    platform.client("s3")
    with pytest.raises(urllib.error.HTTPError):  # to S3 it is the name of a bucket, a bad one
        urllib.request.urlopen(platform.s3_endpoint_url + s3_network.COUNTS_PATH)


def test_another_s3_endpoint_cannot_be_emulated(start: Callable[..., Any]) -> None:
    with pytest.raises(TargetError, match="cannot be emulated for S3 at http://somewhere"):
        start(network=aws(), s3_endpoint_url="http://somewhere")


def test_s3_keeps_its_connections(movers: Callable[..., Any]) -> None:
    platform = movers().platform
    platform.client("s3").put_object(Bucket="a-bucket", Key="a b/ü+%", Body=b"body")
    address = urlsplit(platform.s3_endpoint_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.connect()
    sock = connection.sock
    path = "/a-bucket/a%20b/%C3%BC%2B%25"
    headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=A/20261122/us-east-1/s3/aws4_request"}
    for method, body in itertools.product(("GET", "HEAD"), (b"body", b"body")):
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        assert response.status == 200
        assert response.headers["Content-Length"] == "4"
        assert response.read() == (body if method == "GET" else b"")
        assert connection.sock is sock
    connection.close()


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(TargetError, match="'mars' is not known; it can be 'aws'"):
        endpoint.serve(None, None, profile.default_profile(), network="mars")
