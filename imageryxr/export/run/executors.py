"""Executors of regions: the base class, and threads of this process. `cluster` has the executors of other processes.

An executor takes one region per call and returns a future. The scheduler limits how many regions run at a time, and
`workers` chooses the executor. Threads end when the export is interrupted or the task of their dask worker is
cancelled.
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextvars import ContextVar, copy_context
from typing import Any

from imageryxr.core.bbox import IndexBox
from imageryxr.export.report import ON_PROGRESS
from imageryxr.sources.fetch.threads import stop_on

# Seconds that an interrupted export waits for its threads or processes to end.
ABORT_SECONDS = 0.3
# Seconds between checks whether the task of a dask worker is cancelled.
POLL_SECONDS = 0.1

STOP: ContextVar[threading.Event | None] = ContextVar("imageryxr_stop", default=None)
"""The event that stops the region of this thread. It is set when the export is interrupted or fails."""


class RegionExecutor(ABC):
    """Base class of the executors of regions."""

    @abstractmethod
    def slots(self) -> int:
        """Return how many regions may run or wait in the executor now."""

    @abstractmethod
    def submit(self, number: int, stage: int, box: IndexBox) -> Any:
        """Submit a region; return a future with ``add_done_callback``, ``result`` and ``cancel``."""

    @abstractmethod
    def close(self) -> None:
        """Wait for running regions and release the workers."""

    def abort(self) -> None:
        """Stop without waiting for running regions."""
        self.close()

    def check(self) -> None:  # noqa: B027 - most executors have nothing to check
        """Raise `TargetError` if no worker can make regions, or a retry would fail in the same way."""

    def missing_workers_message(self) -> str:
        """Return a message if no region can finish because workers are missing; an empty string otherwise."""
        return ""

    def avoid_worker(self, number: int, worker: str | None) -> bool:
        """Submit a region to other workers than this one from now on; return whether there are any."""
        return False

    def partial_progress(self) -> float:
        """Return the completed share of unfinished regions, in regions, as far as this process has recorded it."""
        return 0.0

    def cancel(self, futures: Iterable[Any]) -> None:
        """Cancel submitted regions that no worker has started."""
        for future in futures:
            future.cancel()


class ThreadExecutor(RegionExecutor):
    """Threads of this process; kernels and decoders release Python's lock and run in parallel."""

    def __init__(self, job: Callable[[int, int, IndexBox], Any], count: int) -> None:
        self._job, self._count = job, count
        self._running = set[Future[Any]]()
        self._stop = threading.Event()
        self._shares: dict[int, float] = {}

    def slots(self) -> int:
        """Return one slot per thread."""
        return self._count

    def submit(self, number: int, stage: int, box: IndexBox) -> Any:
        """Make a region in a thread of its own."""
        future = start_thread(self._work, number, stage, box, stop=self._stop)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def _work(self, number: int, stage: int, box: IndexBox) -> Any:
        self._shares[number] = 0.0

        def add_share(share: float) -> None:
            self._shares[number] += share

        before = ON_PROGRESS.set(add_share)
        try:
            return self._job(number, stage, box)
        finally:
            ON_PROGRESS.reset(before)
            del self._shares[number]

    def partial_progress(self) -> float:
        """Return the sum of the shares that the threads have reported."""
        return sum(list(self._shares.values()))

    def close(self) -> None:
        """Wait for running regions."""
        wait(set(self._running))

    def abort(self) -> None:
        """Cancel reads; wait briefly for files that are being written."""
        self._stop.set()
        wait(set(self._running), ABORT_SECONDS)


# ---------------------------------------------------------------------------------------------------------
# threads


def check_stop() -> None:
    """Raise `CancelledError` if the region of this thread is no longer needed."""
    stop = STOP.get()
    if stop is not None and stop.is_set():
        raise CancelledError("the export has ended")


def start_thread(function: Callable[..., Any], *args: Any, stop: threading.Event | None = None) -> Future[Any]:
    """Run a function in a daemon thread; return its future.

    `concurrent.futures` joins the threads of its pools at exit, so a request to a server that hangs would delay the
    exit until the request times out. The event `stop`, by default that of the calling thread, stops the function and
    its requests.
    """
    future = Future[Any]()
    future.set_running_or_notify_cancel()
    arguments = (future, stop or STOP.get(), function, args)
    threading.Thread(target=_run, args=arguments, name="imageryxr-export", daemon=True).start()
    return future


def _run(future: Future[Any], stop: threading.Event | None, function: Callable[..., Any], args: Any) -> None:
    STOP.set(stop)
    try:
        with stop_on(stop):
            result = function(*args)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
    del future  # the traceback of an error refers to this frame, which would keep the arrays of the region


def map_in_order(function: Callable[[Any], Any], jobs: Iterable[Any], threads: int) -> Iterator[Any]:
    """Yield the results of jobs in order; at most `threads` jobs run at a time."""
    if threads == 1:
        for job in jobs:
            check_stop()
            yield function(job)
        return
    running: deque[Future[Any]] = deque()
    try:
        for job in jobs:
            check_stop()
            if len(running) >= threads:
                yield running.popleft().result()
            # in the context of the caller, which may record missing chunks
            running.append(start_thread(copy_context().run, function, job))
        while running:
            yield running.popleft().result()
    finally:
        wait(running)  # a thread that still reads or writes must end before its files are closed


def run_cancellable(function: Callable[[], Any], *, own_thread: bool) -> Any:
    """Run a function; on a dask worker, stop when the task is cancelled or the worker closes.

    A thread that hangs would keep its worker from closing, and thereby an interrupted script from ending. With
    `own_thread`, the function runs in a thread that is abandoned when the task is cancelled. User-defined functions may
    need the worker's thread; for them, cancellation only stops network requests.
    """
    is_cancelled = _cancellation_check()
    if is_cancelled is None:
        return function()
    stop, ended = threading.Event(), Future[Any]()
    if own_thread:
        ended = start_thread(copy_context().run, function, stop=stop)
        _wait_until(ended, is_cancelled, stop)
        if not ended.done():
            raise CancelledError("the export has ended")
        return ended.result()
    threading.Thread(target=_wait_until, args=(ended, is_cancelled, stop), daemon=True).start()
    before = STOP.set(stop)
    try:
        with stop_on(stop):
            return function()
    finally:
        ended.set_result(None)
        STOP.reset(before)


def _wait_until(ended: Future[Any], is_cancelled: Callable[[], bool], stop: threading.Event) -> None:
    """Wait for a future; set the stop event and return if the task is cancelled."""
    while not wait([ended], POLL_SECONDS).done:
        if is_cancelled():
            stop.set()
            return


def _cancellation_check() -> Callable[[], bool] | None:
    """Return a function that checks whether the task of this thread is cancelled; None outside a dask worker."""
    module = sys.modules.get("distributed.worker")
    state = getattr(module, "thread_state", None)
    key, execution = getattr(state, "key", None), getattr(state, "execution_state", None)
    worker = execution.get("worker") if isinstance(execution, dict) else None
    if key is None or worker is None:
        return None

    def is_cancelled() -> bool:
        task = worker.state.tasks.get(key)
        closing = str(getattr(worker.status, "name", "")) in ("closing", "closed", "failed")
        return closing or task is None or task.state in ("cancelled", "released", "forgotten")

    return is_cancelled
