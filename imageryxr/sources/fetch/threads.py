"""Parallel jobs in daemon threads, so that neither Ctrl-C nor the exit of Python waits for a slow server."""

from __future__ import annotations

import concurrent.futures.thread  # imported first, so that it registers its exit function before this module
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any, TypeVar

from imageryxr.errors import ServerError
from imageryxr.sources.fetch.sockets import POLL_SECONDS, StoppedError, closing

Job = TypeVar("Job")
Result = TypeVar("Result")

# Holds the stop event of the jobs of a thread, and whether `_start_threads` started it.
_thread_state = threading.local()
# At exit Python joins the threads of pools, such as dask's. `closing` wakes those that wait in this module. Exit
# functions run in reverse order of their registration, so this one runs before that of concurrent.futures.
getattr(threading, "_register_atexit", lambda function: None)(closing.set)


def run_in_parallel(work: Callable[[Job, threading.Event], Result], jobs: Sequence[Job], width: int) -> list[Result]:
    """Return the results of jobs that run in up to ``width`` threads; the first error is raised at once.

    Ctrl-C interrupts the caller. An interrupt or error sets the event that each job receives, including jobs that jobs
    have started, and running jobs are not joined. If the system permits fewer threads, the jobs share those. A single
    job that another job starts runs in the thread of that job.
    """
    outer = current_stop_event()
    if outer is not None and outer.is_set():
        raise StoppedError("the caller was stopped")
    if outer is not None and len(jobs) == 1 and getattr(_thread_state, "is_daemon", False):
        return [work(jobs[0], outer)]
    stop, numbers, finished = threading.Event(), count(), count(1)
    results: list[Any] = [None] * len(jobs)
    # The caller is woken once, by the first error or by None after the last job.
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        while not stop.is_set() and (number := next(numbers)) < len(jobs):
            try:
                results[number] = work(jobs[number], stop)
            except BaseException as error:
                done.put(error)
                return
            if next(finished) == len(jobs):
                done.put(None)

    try:
        _start_threads(run, min(width, len(jobs)), stop)
        error = _next_message(done, outer) if jobs else None
        if error is not None:
            raise error
    finally:
        stop.set()
    return results


def run_all(calls: Sequence[Callable[[], Result]]) -> list[Callable[[], Result]]:
    """Run functions in parallel, and return for each a function that returns its result or raises its error."""
    with start_all(calls) as results:
        for result in results:
            with suppress(Exception):
                result()
        return results


@contextmanager
def start_all(calls: Sequence[Callable[[], Result]]) -> Iterator[list[Callable[[], Result]]]:
    """Start functions in parallel, and yield for each a function that waits for its result or raises its error.

    Functions that still run at the end of the context are stopped, but not joined.
    """
    stop, outer, numbers = threading.Event(), current_stop_event(), count()

    def run() -> None:
        while not stop.is_set() and (number := next(numbers)) < len(calls):
            try:
                futures[number].set_result(calls[number]())
            except BaseException as error:
                futures[number].set_exception(error)

    def result(future: Future[Result]) -> Result:
        while not future.done():
            concurrent.futures.wait([future], POLL_SECONDS)
            if closing.is_set() or (outer is not None and outer.is_set()):
                raise StoppedError("the caller was stopped")
        return future.result()

    futures: list[Future[Result]] = [Future() for _ in calls]
    try:
        _start_threads(run, len(calls), stop)
        yield [partial(result, future) for future in futures]
    finally:
        stop.set()


def _start_threads(run: Callable[[], None], number: int, stop: threading.Event) -> None:
    """Start daemon threads that `stop` stops, or as many as the system permits.

    Raises
    ------
    ServerError
        If the system permits none.
    """

    def begin() -> None:
        _thread_state.stop, _thread_state.is_daemon = stop, True
        run()

    for started in range(number):
        try:
            threading.Thread(target=begin, daemon=True, name="imageryxr-web").start()
        except (RuntimeError, MemoryError) as error:
            if started:
                return
            raise ServerError(f"no thread could be started ({error}): the limit of the system is reached") from error


def current_stop_event() -> threading.Event | None:
    """Return the event that stops the requests of this thread, if there is one."""
    return getattr(_thread_state, "stop", None)


@contextmanager
def stop_on(event: threading.Event | None) -> Iterator[None]:
    """Stop the requests of this thread when an event is set."""
    before = getattr(_thread_state, "stop", None)
    _thread_state.stop = event
    try:
        yield
    finally:
        _thread_state.stop = before


def _next_message(done: queue.SimpleQueue[Any], outer: threading.Event | None) -> Any:
    while True:
        try:
            return done.get(timeout=POLL_SECONDS)
        except queue.Empty:
            if closing.is_set() or (outer is not None and outer.is_set()):
                raise StoppedError("the caller was stopped") from None
