"""Requests to web servers: retries, redirects, concurrency and cancellation."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import suppress
from email.utils import formatdate

import pytest

import imageryxr as ix
from imageryxr.sources.fetch import client, threads
from imageryxr.sources.fetch.auth import Token
from tests.support.cave_server import MERGE, TABLE, TOKEN
from tests.support.processes import ROOT
from tests.support.source_suite import dead_url

HASTY = ix.Connection(timeout=20, retries=2, backoff=0.0)


def request(cave, path="/data/em/info", connection=HASTY, **options):
    return client.send_interruptible_request("GET", cave.url + path, connection, **options)


@pytest.mark.parametrize("value", [0, -1, "5", True, float("nan"), float("inf"), None])
@pytest.mark.parametrize("name", ["timeout", "concurrency", "backoff", "retries", "memory_cache"])
def test_invalid_connection_options_are_errors(name, value):
    if (name, value) in (("concurrency", None), ("memory_cache", "5")):
        ix.Connection(**{name: value})
        return
    if value == 0 and not isinstance(value, bool) and name in ("retries", "backoff", "memory_cache"):
        ix.Connection(**{name: value})
        return
    with pytest.raises(ix.errors.OptionError, match=f"{name}="):
        ix.Connection(**{name: value})


LONGEST_WAIT = client.LONGEST_WAIT


@pytest.fixture
def recorded_waits(monkeypatch):
    """Return a list to which each wait appends its seconds. No wait takes time, and waits have their real limit."""
    monkeypatch.setattr(client, "LONGEST_WAIT", LONGEST_WAIT)
    recorded_waits = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: recorded_waits.append(seconds))
    return recorded_waits


@pytest.mark.parametrize("value", ["0", "date"])
def test_retry_after_sets_the_wait(cave, recorded_waits, value):
    retry = "7" if value == "0" else formatdate(4e9, usegmt=True)
    cave.fault("info", "status", status=429, times=1, headers={"Retry-After": retry})
    assert client.send_request("GET", cave.url + "/data/em/info", HASTY).status == 200
    assert recorded_waits[-1:] == [7.0 if value == "0" else LONGEST_WAIT]


def test_waits_between_retries_grow(cave, recorded_waits):
    cave.fault("info", "status", status=503)
    with pytest.raises(ix.errors.ServerError, match=r"after 6 attempts: HTTP 503 \(a fault"):
        client.send_request("GET", cave.url + "/data/em/info", ix.Connection())
    assert len(recorded_waits) == 5
    for number, seconds in enumerate(recorded_waits):
        assert 0.75 <= seconds / (0.25 * 2**number) <= 1.25


def test_retries_are_logged(cave, caplog):
    secret = "not-to-be-told-0123456789"
    cave.fault("info", "status", status=503, times=1)
    with caplog.at_level("INFO", logger="imageryxr"):
        request(cave, credential=Token(secret, "a test"))
        with pytest.raises(ix.errors.ServerError, match="refused"):
            client.send_interruptible_request("GET", dead_url(), HASTY)
    logged = [record.getMessage() for record in caplog.records]
    assert "HTTP 503" in logged[0]
    assert logged[0].endswith("retrying in 0.0 s, attempt 2 of 3")
    assert ["refused" in line for line in logged] == [False, True, True]
    assert secret not in "".join(logged)


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 410, 501, 505])
def test_final_statuses_are_not_retried(cave, status):
    cave.fault("info", "status", status=status)
    assert request(cave).status == status
    assert len(cave.log) == 1


def test_a_redirect_to_another_server_carries_no_secret(cave):
    cave.fault("/data/em/info", "status", status=302, headers={"Location": "/data/ws/info"}, times=1)
    assert b"segmentation" in request(cave).body
    cave.log.clear()
    cave.fault("/data/em/info", "status", status=302, headers={"Location": "/data/ws/info"}, times=1)
    request(cave, credential=Token(TOKEN, "a test"))
    assert [line.token for line in cave.log] == [TOKEN, TOKEN]
    cave.log.clear()
    elsewhere = f"http://localhost:{cave.server_port}/data/ws/info"
    cave.fault("/data/em/info", "status", status=302, headers={"Location": elsewhere}, times=1)
    request(cave, credential=Token(TOKEN, "a test"))
    assert [line.token for line in cave.log] == [TOKEN, None]


@pytest.mark.parametrize("status", [307, 308])
def test_a_permanent_redirect_repeats_the_body(cave, status):
    credential = Token(TOKEN, "a test")
    path, ids = f"/segmentation/api/v1/table/{TABLE}/roots_binary", cave.graph.ids[:3].astype("<u8").tobytes()
    moved = {"Location": f"{path}?timestamp={MERGE}"}
    cave.fault("/old", "status", status=status, headers=moved)
    reply = client.send_interruptible_request("POST", f"{cave.url}/old", HASTY, body=ids, credential=credential)
    assert reply.body == cave.graph.roots(cave.graph.ids[:3], MERGE).astype("<u8").tobytes()
    cave.log.clear()
    cave.faults.clear()
    elsewhere = {"Location": f"http://localhost:{cave.server_port}{path}"}
    cave.fault("/old", "status", status=status, headers=elsewhere)
    assert client.send_interruptible_request(
        "POST", f"{cave.url}/old", HASTY, body=ids, credential=credential
    ).is_redirect
    assert [str(line) for line in cave.log] == ["POST /old"]


def test_a_redirect_of_a_post_is_not_followed(cave):
    cave.fault("/old", "status", status=302, headers={"Location": "/new"})
    assert client.send_interruptible_request("POST", f"{cave.url}/old", HASTY, body=b"1").is_redirect
    assert [str(line) for line in cave.log] == ["POST /old"]


def test_a_redirect_loop_is_an_error(cave):
    cave.fault("info", "status", status=302, headers={"Location": "/data/em/info"})
    with pytest.raises(ix.errors.ServerError, match="redirects too often"):
        request(cave)


@pytest.mark.parametrize("place", ["ftp://x/y", "file:///etc/passwd", ""])
def test_a_redirect_to_another_protocol_is_not_followed(cave, place):
    cave.fault("info", "status", status=302, headers={"Location": place} if place else {}, times=1)
    if place:
        assert request(cave).is_redirect


def test_a_refused_connection_is_retried_and_fails():
    with pytest.raises(ix.errors.ServerError, match="after 3 attempts.*refused"):
        client.send_interruptible_request("GET", dead_url() + "/x", HASTY)


@pytest.mark.parametrize("host", ["[::1", "host:port", "", "host:99999999", ":80"])
def test_invalid_hosts_are_errors(host):
    with pytest.raises(ix.errors.SourceError, match="not a web address|has no location"):
        ix.open_image(f"precomputed://https://{host}/em")
    with pytest.raises(ix.errors.OptionError, match="server_address=.*is not a web address"):
        ix.open_datastack("x", server_address=f"https://{host}")


def test_connections_are_reused_after_an_error(cave):
    for kind in ("truncate", "drop", "status"):
        cave.fault("info", kind, times=1)
        assert request(cave).status == 200
    assert request(cave, "/data/em/nothing").status == 404


def test_the_first_error_stops_running_jobs_and_starts_no_more():
    started = []

    def work(job, stop):
        started.append(job)
        if job == 0:
            raise ix.errors.ServerError("the first")
        assert stop.wait(60)  # running requests are stopped

    with pytest.raises(ix.errors.ServerError, match="the first"):
        threads.run_in_parallel(work, range(100), 3)
    assert len(started) <= 4


def test_an_error_of_an_outer_job_stops_nested_jobs():
    inner: list[threading.Event] = []

    def run_inner(job, stop):
        inner.append(stop)
        assert stop.wait(60)

    def work(job, stop):
        if job == 0:
            while len(inner) < 2:
                stop.wait(0.01)
            raise ix.errors.ServerError("the first")
        threads.run_in_parallel(run_inner, range(2), 2)

    with pytest.raises(ix.errors.ServerError, match="the first"):
        threads.run_in_parallel(work, range(2), 2)
    for stop in inner:
        assert stop.wait(60)


def test_a_single_nested_job_runs_in_the_thread_of_its_parent_and_shares_its_stop_event():
    found = []

    def run_inner(job, stop):
        found.append((threading.get_ident(), stop))
        return job + 1

    def work(job, stop):
        assert threads.run_in_parallel(run_inner, [job], 8) == [job + 1]
        assert found == [(threading.get_ident(), stop)]
        with pytest.raises(ZeroDivisionError):
            threads.run_in_parallel(lambda job, stop: job / 0, [1], 1)

    threads.run_in_parallel(work, [5], 1)
    assert threads.run_in_parallel(run_inner, [5], 1) == [
        6
    ]  # a single job without a parent runs in a new thread, so that the caller can be interrupted
    assert found[1][0] != threading.get_ident()
    with threads.stop_on(threading.Event()):
        assert threads.run_in_parallel(run_inner, [5], 1) == [6]
    assert found[2][0] != threading.get_ident()


def test_cancelled_requests_do_not_count_as_concurrent(cave):
    cave.fault("/data/em/info", "delay", seconds=30)
    narrow = ix.Connection(concurrency=1, retries=0)
    stop = threading.Event()

    def send_and_stop():
        with suppress(ix.errors.ServerError):
            client.send_request("GET", f"{cave.url}/data/em/info", narrow, stop=stop)

    given_up = threading.Thread(target=send_and_stop, daemon=True)
    given_up.start()
    while not cave.log:
        stop.wait(0.01)
    stop.set()
    assert client.send_interruptible_request("GET", f"{cave.url}/data/ws/info", narrow).status == 200
    given_up.join(10)
    assert not given_up.is_alive()


def test_results_are_in_the_order_of_the_jobs():
    assert threads.run_in_parallel(lambda job, stop: job * 2, range(50), 8) == list(range(0, 100, 2))
    assert threads.run_in_parallel(lambda job, stop: job, [], 8) == []


FEW_THREADS = """
import resource, threading
from pathlib import Path
from imageryxr.errors import ServerError
from imageryxr.sources.fetch.threads import run_in_parallel, start_all

def limit_threads(count):
    threading.stack_size(1 << 30)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (count << 30) + (1 << 29), resource.RLIM_INFINITY))

limit_threads(0)
def started():
    with start_all([int]):
        pass
for call in (lambda: run_in_parallel(lambda job, stop: job, [1], 1), started):
    try:
        call()
    except ServerError as error:
        print(error)
limit_threads(3)
print(run_in_parallel(lambda job, stop: job * 2, range(50), 20) == list(range(0, 100, 2)))
with start_all([lambda i=i: 2 * i for i in range(20)]) as results:
    print([result() for result in results] == list(range(0, 40, 2)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_jobs_run_when_the_system_permits_fewer_threads():
    # Not `run_python`: it forks a process whose many imports already take address space.
    program = [sys.executable, "-c", FEW_THREADS]
    ran = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    lines = ran.stdout.splitlines()
    assert lines[2:] == ["True", "True"], ran.stderr
    assert all("no thread could be started" in error for error in lines[:2])


def test_the_proxy_of_the_environment_is_used(cave, monkeypatch):
    monkeypatch.setenv("http_proxy", cave.url)
    monkeypatch.setenv("no_proxy", "")
    assert (
        client.send_interruptible_request("GET", "http://imageryxr.invalid/data/em/info", HASTY).status == 200
    )  # the proxy answers for the unknown host
    assert cave.count("/data/em/info") == 1
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert request(cave).status == 200


def test_a_connection_of_another_type_is_an_error_that_states_what_to_write(tmp_path):
    for opening in (ix.open_image, ix.open_multiscale, ix.open_annotations):
        with pytest.raises(
            ix.errors.OptionError, match=r"is of type dict; write connection=imageryxr.Connection\(timeout=3\)"
        ):
            opening("precomputed://https://example.com/em", connection={"timeout": 3})
    with pytest.raises(ix.errors.OptionError, match=r"connection=30 is of type int; write"):
        ix.open_datastack("minnie65_public", connection=30)
