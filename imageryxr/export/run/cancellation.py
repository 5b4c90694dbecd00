"""Cancellation of tasks on dask workers, including tasks that wait for a network request."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, wait
from contextvars import copy_context
from typing import Any

from imageryxr.export.run.daemon_threads import STOP, DaemonPool
from imageryxr.sources.fetch.threads import stop_on

POLL_SECONDS = 0.1


def run_cancellable(function: Callable[[], Any], *, own_thread: bool) -> Any:
    """Run a function; on a dask worker, stop when the task is cancelled or the worker closes.

    A thread that hangs would keep its worker from closing, and thereby an interrupted script from ending.

    Parameters
    ----------
    function : callable
        A function without arguments.
    own_thread : bool
        Whether the function may run in a separate thread, which is abandoned when the task is cancelled. User-defined
        functions may need the worker's thread; for them, cancellation only stops network requests.
    """
    is_cancelled = _cancellation_check()
    if is_cancelled is None:
        return function()
    stop = threading.Event()
    if own_thread:
        return _run_in_own_thread(function, is_cancelled, stop)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            if is_cancelled():
                stop.set()
                return

    threading.Thread(target=watch, name="imageryxr-cancel", daemon=True).start()
    before = STOP.set(stop)
    try:
        with stop_on(stop):
            return function()
    finally:
        ended.set()
        STOP.reset(before)


def _run_in_own_thread(function: Callable[[], Any], is_cancelled: Callable[[], bool], stop: threading.Event) -> Any:
    pool, before = DaemonPool(1, "imageryxr-task"), STOP.set(stop)
    try:
        future = pool.submit(copy_context().run, function)
    finally:
        STOP.reset(before)
        pool.shutdown(wait=False)
    while not wait([future], POLL_SECONDS).done:
        if is_cancelled():
            stop.set()
            raise CancelledError("the export has ended")
    return future.result()


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
