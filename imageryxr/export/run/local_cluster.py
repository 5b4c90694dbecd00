"""Processes of this machine, as a `distributed.LocalCluster` that exists during an export.

Workers preload this module, so that they import the package while they start.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from concurrent.futures import wait
from contextlib import ExitStack, suppress
from typing import Any

import dask
import psutil

from imageryxr.errors import TargetError, param
from imageryxr.export.run.executors import ABORT_SECONDS, ClusterExecutor
from imageryxr.export.run.task import Job
from imageryxr.export.run.threads import start_thread


def dask_setup(worker: Any) -> None:
    """Set up a worker: Ctrl-C reaches all processes of a terminal, and only the parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class LocalExecutor(ClusterExecutor):
    """Processes of this machine, for work that holds Python's lock."""

    def __init__(self, job: Job, count: int) -> None:
        from distributed import Client, LocalCluster, Nanny
        from distributed.utils import silence_logging_cmgr

        self._silenced = ExitStack()
        # a cluster would log again before its connections are closed
        self._silenced.enter_context(silence_logging_cmgr(logging.CRITICAL))
        self._processes = count
        self._environment = dict(os.environ)
        self._nannies = nannies = list[Nanny]()

        class RecordedNanny(Nanny):
            """A nanny that can be reached before its worker has started."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                nannies.append(self)

        self._cluster = LocalCluster(
            n_workers=0,
            threads_per_worker=1,
            worker_class=RecordedNanny,
            memory_limit=None,  # the plan limits it
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            security=True,  # or other users of this machine could run code on the workers
            # the export itself counts failures and retries
            scheduler_kwargs={"dashboard": False, "allowed_failures": 0},
            preload=[*dask.config.get("distributed.worker.preload"), __name__],
        )
        super().__init__(job, Client(self._cluster, set_as_default=False), 2 * count)
        # in a thread, because an interrupt must end the export while processes start
        self._starting = start_thread(self._start_workers, count)

    def _start_workers(self, count: int) -> None:
        async def start() -> None:
            for _ in range(count):
                self._cluster.worker_spec.update(self._cluster.new_worker_spec())
            await self._cluster

        self._cluster.sync(start)

    def slots(self) -> int:
        """Return two slots per process, so that no process idles while results are transferred."""
        return self._count or 0

    def check(self) -> None:
        """Raise `TargetError` if the processes cannot start, for example because they run the caller's script."""
        error = self._starting.exception() if self._starting.done() else None
        if isinstance(error, RuntimeError) and getattr(sys.modules.get("__main__"), "__file__", None):
            raise TargetError(
                "the processes of ",
                param("client", "processes"),
                " ended while they imported this script: put the script's code under `if __name__ == '__main__':`",
            ) from None
        if error is not None:
            raise TargetError("the processes of ", param("client", "processes"), f" did not start: {error}") from error
        if self._starting.done() and len(self._cluster.workers) < self._processes:
            self._cluster.scale(self._processes)  # a cluster gives a worker up that needs long to restart

    def missing_workers_message(self) -> str:
        """Return an empty string: processes start, or `check` raises an error."""
        return ""

    def close(self) -> None:
        """Kill the processes, which have no more work, and wait until they have ended."""
        self._stop(None)

    def abort(self) -> None:
        """Kill the processes; wait briefly until they have ended."""
        self._stop(ABORT_SECONDS)

    def _stop(self, seconds: float | None) -> None:
        self._cluster.shutdown_on_close = False  # or Python would wait for its workers at exit
        for nanny in self._nannies:
            nanny.close_gracefully()  # or it would restart its worker
            if nanny.pid is not None:
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(nanny.pid).kill()
        wait([start_thread(self._close_cluster)], seconds)
        # dask sets variables for its workers in this process
        for name in {name for nanny in self._nannies for name in nanny.pre_spawn_env} - set(self._environment):
            os.environ.pop(name, None)

    def _close_cluster(self) -> None:
        with self._silenced:
            self._client.close()
            self._cluster.close()
