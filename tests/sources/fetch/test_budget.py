"""Limits of requests in flight and of bytes in memory."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

import imageryxr as ix
from imageryxr.sources.fetch import attempt, client, engine
from imageryxr.sources.fetch.budget import (
    FILE_REQUESTS,
    LINK_REQUESTS,
    MOST_SERVICES,
    PROCESS_REQUESTS,
    SERVICE_REQUESTS,
    ByteBudget,
    RequestBudget,
    RequestBudgets,
    service_of,
)
from imageryxr.sources.fetch.object_stores import WebFolder
from imageryxr.sources.fetch.sockets import StoppedError
from imageryxr.sources.fetch.threads import stop_on
from imageryxr.sources.fetch.transport import ConnectionPool, _PooledConnection
from imageryxr.sources.fetch.url import parse_web_url
from tests.support.hostile import HostileServer, reply

GO = threading.Event()


def test_the_limit_halves_once_for_requests_that_were_in_flight_together():
    budget, began = RequestBudget(), time.monotonic()
    for _ in range(64):
        budget.record(429, 64, began)
    assert budget.limit(64) == 32
    budget.record(503, 64, time.monotonic())
    assert budget.limit(64) == 16


def test_the_limit_never_falls_below_one():
    budget = RequestBudget()
    for _ in range(20):
        budget.record(429, 8, time.monotonic())
    assert budget.limit(8) == 1


def test_the_limit_recovers_by_one_per_round_of_successes():
    budget = RequestBudget()
    budget.record(429, 64, time.monotonic())
    for limit in range(32, 64):
        assert budget.limit(64) == limit
        for _ in range(limit + 1):
            budget.record(200, 64, time.monotonic())
    assert budget.limit(64) == 64


def test_a_waiting_request_is_checked_without_a_look_at_all_others(monkeypatch):
    """Each of a thousand waiting threads checks five times per second; looks at all others took all their time."""
    budget, stop = RequestBudget(), threading.Event()
    running, *waiting = [budget.acquire(most, stop, "host") for most in (1, *[1, 4, 1] * 300)]
    for _ in range(3):
        budget.record(429, 1, time.monotonic())
    with suppress(StopIteration):
        next(running)
    for steps in waiting:
        next(steps)
    looks, limit = [], RequestBudget.limit
    monkeypatch.setattr(RequestBudget, "limit", lambda self, most: looks.append(most) or limit(self, most))
    for steps in waiting:
        next(steps)
    assert len(looks) < 5 * len(waiting)


def test_a_request_with_a_larger_limit_passes_those_that_wait_at_a_smaller_one():
    budget, stop = RequestBudget(), threading.Event()
    running, small, large, larger = [budget.acquire(most, stop, "host") for most in (1, 1, 2, 3)]
    with suppress(StopIteration):
        next(running)
    next(small)
    for steps in (large, larger):
        with pytest.raises(StopIteration):
            next(steps)
    next(small)


def test_other_statuses_do_not_change_the_limit():
    budget = RequestBudget()
    for status in (200, 404, 403, 500):
        budget.record(status, 64, time.monotonic())
    assert budget.limit(64) == 64


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://storage.googleapis.com/bucket", FILE_REQUESTS),
        ("http://127.0.0.1:80/em", FILE_REQUESTS),
        ("https://minnie.microns-daf.com/segmentation", SERVICE_REQUESTS),
    ],
)
def test_services_get_fewer_requests_than_file_servers(url, expected):
    assert client.default_width(parse_web_url(url)) == expected


def test_a_throttled_server_gets_fewer_requests_at_once(cave):
    cave.fault("/data/em/info", "status", status=429, times=1)
    connection = ix.Connection(concurrency=8, backoff=0)
    assert client.send_request("GET", f"{cave.url}/data/em/info", connection).status == 200
    budget = attempt._state.budgets.of(service_of(parse_web_url(cave.url)))
    assert budget.limit(8) == 4


@pytest.mark.parametrize(
    ("url", "service"),
    [
        ("https://storage.googleapis.com/bucket/em/info", "storage.googleapis.com/bucket"),
        ("https://s3.amazonaws.com/bucket.org/em", "s3.amazonaws.com/bucket.org"),
        ("https://s3.eu-west-1.amazonaws.com/bucket", "s3.eu-west-1.amazonaws.com/bucket"),
        ("https://bucket.s3.amazonaws.com/em/info", "bucket.s3.amazonaws.com"),
        ("http://127.0.0.1:80/em/info", "127.0.0.1"),
        ("https://server.example:444/em/info", "server.example:444"),
        ("https://storage.googleapis.com", "storage.googleapis.com"),
        ("https://storage.googleapis.com.example/bucket/em", "storage.googleapis.com.example"),
    ],
)
def test_a_service_is_a_server_or_a_bucket(url, service):
    assert service_of(parse_web_url(url)) == service


def test_a_throttled_bucket_does_not_limit_another():
    budgets = RequestBudgets()
    one, other = (budgets.of(service_of(parse_web_url(f"https://storage.googleapis.com/{b}/info"))) for b in "ab")
    one.record(429, 64, time.monotonic())
    assert (one.limit(64), other.limit(64)) == (32, 64)


@pytest.mark.parametrize(("from_link", "most"), [(False, PROCESS_REQUESTS), (True, LINK_REQUESTS)])
def test_requests_to_many_services_are_limited_together(from_link, most):
    budgets, stopped = RequestBudgets(), threading.Event()
    stopped.set()
    with ExitStack() as running:
        for number in range(most):
            running.enter_context(budgets.slot(f"bucket{number}", 64, GO, "host", from_link=from_link))
        with pytest.raises(StoppedError), budgets.slot("other", 64, stopped, "host", from_link=from_link):
            raise AssertionError
    with budgets.slot("other", 64, GO, "host", from_link=from_link):
        assert len(budgets) <= MOST_SERVICES


def test_the_budget_of_a_service_with_running_requests_is_kept():
    budgets = RequestBudgets()
    with budgets.slot("bucket", 64, GO, "host", from_link=True) as budget:
        for number in range(2 * MOST_SERVICES):
            budgets.of(f"bucket{number}")
        assert budgets.of("bucket") is budget
        assert len(budgets) == MOST_SERVICES


def test_idle_connections_to_all_servers_are_limited():
    pool, sockets = ConnectionPool(), []
    for server in range(8):
        for _ in range(64):
            pair = socket.socketpair()
            sockets += pair
            pool.put(server, _PooledConnection(pair[0]))
    assert sum(sock.fileno() != -1 for sock in sockets[::2]) == 128
    pool.close()
    for sock in sockets:
        sock.close()


def test_bytes_in_memory_stay_below_the_limit():
    budget = ByteBudget(100)

    def work(size):
        with budget.reserve(size, None, GO):
            time.sleep(1e-3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [30] * 40))
    assert 30 <= budget.peak <= 100
    assert budget.used == 0


def test_memory_is_reserved_in_the_order_of_the_requests():
    budget = ByteBudget(100)
    first = next_ticket(budget.acquire(60, "reader", GO))
    large, small = budget.acquire(90, "other", GO), budget.acquire(30, "third", GO)
    assert next(large).is_queue
    assert next(small).is_queue  # there is memory for the small one, but small ones could delay the large one for ever
    budget.release(first)
    second = next_ticket(large)
    assert next(small).is_queue
    budget.release(second)
    budget.release(next_ticket(small))
    assert budget.used == 0


def test_each_read_can_reserve_one_small_chunk_when_others_have_reserved_all_memory():
    budget = ByteBudget(100)
    all_of_it = next_ticket(budget.acquire(100, "stalled", GO))
    small, second, other = (budget.acquire(10, reader, GO) for reader in ("one", "one", "other"))
    reserved = next_ticket(small)
    assert next(second).is_queue
    others = next_ticket(other)
    budget.release(reserved)
    budget.release(next_ticket(second))
    budget.release(others)
    budget.release(all_of_it)
    assert (budget.used, budget.peak) == (0, 100)


def test_a_stopped_read_leaves_the_queue_for_memory():
    budget, stop = ByteBudget(100), threading.Event()
    first = next_ticket(budget.acquire(60, "reader", GO))
    large, small = budget.acquire(90, "other", stop), budget.acquire(30, "third", GO)
    assert next(large).is_queue
    assert next(small).is_queue
    stop.set()
    with pytest.raises(StoppedError):
        next(large)
    budget.release(next_ticket(small))
    budget.release(first)
    assert budget.used == 0


def next_ticket(steps):
    """Return the result of a reservation whose next step succeeds without a wait."""
    with pytest.raises(StopIteration) as end:
        next(steps)
    return end.value.value


@pytest.mark.parametrize("is_throttled", [False, True])
def test_a_service_that_stalls_or_throttles_does_not_stop_reads_of_another(monkeypatch, is_throttled):
    monkeypatch.setattr(client, "LONGEST_WAIT", 30.0)
    ended = threading.Event()

    def stall(sock, head):
        if is_throttled and not ended.is_set():
            return reply(sock, status="429 Busy", Retry_After="30")
        ended.wait(20)
        return reply(sock, b"x")

    connection = ix.Connection(timeout=30, retries=1, memory_cache=0)

    def read(url, size):
        requests = [engine.ObjectRequest(str(number), 10, size) for number in range(20)]
        found = []
        store = WebFolder(url, connection)
        engine.read_objects(
            store, requests, lambda _, stored: stored.body, lambda _, body: found.append(body), connection
        )
        return found

    def read_stalled():
        with suppress(StoppedError), stop_on(ended):
            read(slow.url, engine._state.memory.most // 4)

    with HostileServer(stall) as slow, HostileServer(lambda sock, head: reply(sock, b"y")) as good:
        stalled = threading.Thread(target=read_stalled, daemon=True)
        stalled.start()
        while len(slow.requests) < 4:
            time.sleep(1e-3)
        assert engine._state.memory.used == engine._state.memory.most
        assert read(good.url, 1 << 20) == [b"y"] * 20
        ended.set()
        stalled.join(20)
    for _ in range(2000):  # a stopped read returns before its requests have ended
        if not engine._state.memory.used:
            return
        time.sleep(0.01)
    raise AssertionError("memory is still reserved")


def test_a_chunk_larger_than_the_limit_is_read_alone():
    budget = ByteBudget(100)
    with budget.reserve(500, None, GO):
        assert budget.used == 500
    assert budget.used == 0


def test_a_request_whose_thread_is_busy_keeps_its_place_and_does_not_delay_others():
    budget, stop = RequestBudget(), threading.Event()
    for _ in range(2):
        assert not list(budget.acquire(2, stop, "server"))  # neither request waits
    first, second, third = waiting = [budget.acquire(2, stop, "server") for _ in range(3)]
    assert all(next(steps).is_queue for steps in waiting)
    budget.release(stop)
    budget.release(stop)
    assert next(third, None).is_queue  # the two free places belong to the first and the second request
    assert next(second, None) is None
    assert next(third, None).is_queue
    assert next(first, None) is None
    budget.release(stop)
    assert next(third, None) is None
