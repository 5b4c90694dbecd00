"""Jobs side by side in threads that nothing waits for once their caller has gone."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  # registers its own end of Python before ours, below
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar

from imageryxr.sources.fetch.sockets import POLL_SECONDS, StoppedError, closing

Job = TypeVar("Job")
Result = TypeVar("Result")

_thread_state = threading.local()  # the event of the jobs that a thread works for
# Python joins the threads of pools, such as dask's, before it ends: those that wait here should not make it wait. What
# was registered last is called first, and so before concurrent.futures joins its threads.
getattr(threading, "_register_atexit", lambda function: None)(closing.set)


def run_in_parallel(work: Callable[[Job, threading.Event], Result], jobs: Sequence[Job], width: int) -> list[Result]:
    """Do jobs in up to ``width`` threads; the first error ends it.

    Whoever waits here can be interrupted: jobs that still run are told so by the event that they are given, those
    within them, too, and nothing waits for them.
    """
    outer: threading.Event | None = getattr(_thread_state, "stop", None)
    if outer is not None and outer.is_set():
        raise StoppedError("nobody waits for this any more")
    stop, numbers = threading.Event(), count()
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        _thread_state.stop = stop
        while not stop.is_set() and (number := next(numbers)) < len(jobs):
            try:
                done.put((number, work(jobs[number], stop), None))
            except BaseException as error:
                done.put((number, None, error))
                return

    for _ in range(min(width, len(jobs))):
        threading.Thread(target=run, daemon=True, name="imageryxr-web").start()
    results: list[Any] = [None] * len(jobs)
    try:
        for _ in jobs:
            number, result, error = _next_result(done, outer)
            if error is not None:
                raise error
            results[number] = result
    finally:
        stop.set()
    return results


def current_stop_event() -> threading.Event | None:
    """Return the event that ends the requests that this thread waits for, if there is one."""
    return getattr(_thread_state, "stop", None)


@contextmanager
def stop_on(event: threading.Event | None) -> Iterator[None]:
    """End the requests that this thread waits for when an event is set."""
    before = getattr(_thread_state, "stop", None)
    _thread_state.stop = event
    try:
        yield
    finally:
        _thread_state.stop = before


def _next_result(done: queue.SimpleQueue[Any], outer: threading.Event | None) -> Any:
    while True:
        try:
            return done.get(timeout=POLL_SECONDS)
        except queue.Empty:
            if closing.is_set() or (outer is not None and outer.is_set()):
                raise StoppedError("nobody waits for this any more") from None
