"""Lanes run many requests in few threads."""

from __future__ import annotations

import threading

import pytest

import imageryxr as ix
from imageryxr.sources.fetch import engine
from imageryxr.sources.fetch.lanes import Lanes
from imageryxr.sources.fetch.object_stores import WebFolder
from imageryxr.sources.fetch.sockets import StoppedError, Wait
from imageryxr.sources.fetch.threads import run_in_parallel
from tests.support.hostile import HostileServer, reply


class Work:
    """Jobs that wait, reserve memory up to a limit, and count what runs at once."""

    def __init__(self, count, width, *, memory=10**6, fail_at=None, threads=3):
        self.running = self.peak = self.reserved = self.most = 0
        self.closed, self.finished = 0, []
        self.memory, self.fail_at, self.threads = memory, fail_at, threads
        self.lock = threading.Lock()
        self.lanes = Lanes(range(count), width, threads, start=self.start, finish=self.finish, discard=self.release)

    def admit(self):
        with self.lock:
            if self.reserved >= self.memory:
                return False
            self.reserved += 1
            self.most = max(self.most, self.reserved)
            return True

    def release(self, result):
        with self.lock:
            self.reserved -= 1

    def start(self, job, stop):
        self.running += 1
        self.peak = max(self.peak, self.running)
        has_memory = False
        try:
            while not (has_memory := self.admit()):
                yield Wait(0.001, is_queue=True)
            for _ in range(job % 3):
                yield Wait(0.001)
            if job == self.fail_at:
                raise ValueError("a fault")
            return job * 2
        except BaseException as error:
            self.closed += isinstance(error, GeneratorExit)
            if has_memory:
                self.release(job)
            raise
        finally:
            self.running -= 1

    def finish(self, job, result):
        assert result == job * 2
        self.finished.append(job)

    def run(self):
        run_in_parallel(self.lanes.work, range(self.threads), self.threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_each_job_finishes_once_and_at_most_width_jobs_run_at_once(threads):
    work = Work(200, 7, threads=threads)
    work.run()
    assert sorted(work.finished) == list(range(200))
    assert work.peak == 7
    assert (work.running, work.reserved) == (0, 0)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_jobs_that_fail_before_they_wait_raise_their_error(count, threads):
    def start(job, stop):
        raise ValueError("a fault")
        yield

    lanes = Lanes(range(count), 7, threads, start=start, finish=print, discard=print)
    with pytest.raises(ValueError, match="a fault"):
        run_in_parallel(lanes.work, range(threads), threads)


def test_jobs_wait_for_memory():
    work = Work(50, 20, memory=3)
    work.run()
    assert sorted(work.finished) == list(range(50))
    assert work.most == 3


def test_requests_continue_while_results_are_decoded():
    work, later = Work(20, 4, threads=3), threading.Event()
    start, finish = work.start, work.finish

    def start_and_note(job, stop):
        if job == 15:
            later.set()
        return start(job, stop)

    def decode(job, result):
        assert job > 10 or later.wait(20)
        finish(job, result)

    work.lanes = Lanes(range(20), 4, 3, start=start_and_note, finish=decode, discard=work.release)
    work.run()
    assert sorted(work.finished) == list(range(20))


def test_results_are_finished_while_a_step_of_another_request_runs():
    began, second_finished = threading.Event(), threading.Event()
    was_finished = []

    def start(job, stop):
        if job == 2:
            yield Wait(0.01)  # the results of the jobs 0 and 1 are ready before the step
            began.set()
            was_finished.append(second_finished.wait(5))
        return job

    def finish(job, result):
        if job == 0:
            assert began.wait(5)
        if job == 1:
            second_finished.set()

    lanes = Lanes(range(3), 3, 2, start=start, finish=finish, discard=lambda result: None)
    run_in_parallel(lanes.work, range(2), 2)
    assert was_finished == [True]


def test_an_error_closes_the_other_requests_and_releases_their_memory():
    work = Work(100, 50, fail_at=40, threads=1)
    with pytest.raises(ValueError, match="a fault"):
        work.run()
    assert (work.running, work.reserved) == (0, 0)
    assert work.closed
    assert 40 not in work.finished


def test_a_stopped_read_closes_its_requests():
    work, stop = Work(10, 10), threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        work.lanes.work(None, stop)
    assert (work.running, work.reserved, work.finished) == (0, 0, [])


def read(server, keys, connection):
    """Return the body of each key that was read."""
    found = {}

    def use(request, voxels):
        found[request.key] = voxels

    requests = [engine.ObjectRequest(key, 100, 100) for key in keys]
    store = WebFolder(server.url, connection)
    assert store.can_interleave
    engine.read_objects(store, requests, lambda request, stored: bytes(stored.body), use, connection)
    return found


def test_a_server_that_stalls_does_not_delay_other_objects():
    ended, others_were_read = threading.Event(), []

    def answer(sock, head):
        path = head.split()[1]
        if path == "/slow":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsl")
            others_were_read.append(ended.wait(20))
            sock.sendall(b"ow")
            return True
        with lock:
            left.discard(path)
            if not left:
                ended.set()
        return reply(sock, path.encode())

    keys, lock = [f"{number}" for number in range(30)], threading.Lock()
    left = {f"/{key}" for key in keys}
    with HostileServer(answer) as server:
        connection = ix.Connection(timeout=30, retries=0, memory_cache=0, concurrency=4)
        found = read(server, ["slow", *keys], connection)
    assert others_were_read == [True]
    assert found == {"slow": b"slow"} | {key: f"/{key}".encode() for key in keys}


def test_a_failed_request_is_repeated_while_others_run():
    seen = set()

    def answer(sock, head):
        path = head.split()[1]
        if path not in seen:
            seen.add(path)
            return reply(sock, b"busy", status="503 Busy")
        return reply(sock, path.encode())

    keys = [f"{number}" for number in range(20)]
    with HostileServer(answer) as server:
        found = read(server, keys, ix.Connection(timeout=30, retries=2, backoff=0.001, memory_cache=0))
    assert found == {key: f"/{key}".encode() for key in keys}
