"""Daemon threads, which Python does not join at exit, so that an interrupted export ends at once."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from contextvars import ContextVar
from typing import Any

from imageryxr.sources.fetch.threads import stop_on

STOP: ContextVar[threading.Event | None] = ContextVar("imageryxr_stop", default=None)
"""The event that stops the region of this thread. It is set when the export is interrupted or fails."""


def check_stop() -> None:
    """Raise `CancelledError` if the region of this thread is no longer needed."""
    stop = STOP.get()
    if stop is not None and stop.is_set():
        raise CancelledError("the export has ended")


class DaemonPool(Executor):
    """A pool of daemon threads.

    `concurrent.futures` joins the threads of its pools at exit, so a request to a server that hangs would delay the
    exit until the request times out.

    Parameters
    ----------
    count : int
        Maximum number of threads.
    name : str
        Prefix of the thread names.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._idle = 0
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function in a thread of the pool, with the stop event of the calling thread; return its future."""
        stop, future = STOP.get(), Future[Any]()

        def run() -> Any:
            STOP.set(stop)
            with stop_on(stop):
                return fn(*args, **kwargs)

        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._jobs.put((future, run))
            if self._idle:
                self._idle -= 1
            elif len(self._threads) < self._count:
                name = f"{self._name}_{len(self._threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, run = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(run())
                except BaseException as error:
                    future.set_exception(error)
            del job, future, run  # release the arrays of the region before the next job arrives
            with self._lock:
                self._idle += 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """Accept no more jobs; wait for running jobs until the timeout."""
        with self._lock:
            self._closed = True
        if cancel_futures:
            self._cancel()
        for _ in self._threads:
            self._jobs.put(None)
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads if wait else ():
            if thread is not threading.current_thread():
                thread.join(None if until is None else max(0.0, until - time.monotonic()))

    def _cancel(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None:
                job[0].cancel()
