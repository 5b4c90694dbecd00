"""Tasks of a dask worker that end when their client cancels them, whatever they wait for."""

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

    A worker's thread that hangs keeps the worker from closing, and so an interrupted script from ending.

    Parameters
    ----------
    function : callable
        Without arguments.
    own_thread : bool
        Whether the function may run in another thread, which is left alone when the task is cancelled. Functions of
        the user's own may need the worker's thread; then only requests over a network are given up.
    """
    is_cancelled = _cancelled_on_worker()
    if is_cancelled is None:
        return function()
    stop = threading.Event()
    if own_thread:
        return _in_own_thread(function, is_cancelled, stop)
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


def _in_own_thread(function: Callable[[], Any], is_cancelled: Callable[[], bool], stop: threading.Event) -> Any:
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


def _cancelled_on_worker() -> Callable[[], bool] | None:
    """Return what tells whether the task of this thread is cancelled; None outside a dask worker."""
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
