"""Executors of regions on a dask cluster: that of the caller, or processes of this machine during an export.

Workers of this machine preload this module, so that they import the package while they start.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import wait
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import dask

from imageryxr.core.bbox import IndexBox
from imageryxr.errors import TargetError, param
from imageryxr.export.run.executors import ABORT_SECONDS, RegionExecutor, start_thread
from imageryxr.export.run.task import Job, RegionInput, has_arrays, pickle_job, restrict_reader, run_task
from imageryxr.graph.dask_inputs import gather_futures
from imageryxr.graph.evaluate import has_tables

# Argument of `eval`, a function that is pickled by name, so that a process without the package can run it.
_IMPORT = "__import__('imageryxr') and ''"
ANSWER_SECONDS = 15.0
"""Seconds to wait for answers; the scheduler handles workers that do not answer."""
PAUSE_SECONDS, FIRST_PAUSE_SECONDS = 2.0, 0.2
"""Seconds between checks for new workers, and between checks for the first worker."""
MOST_STARTS = 4
"""Maximum number of starts of the processes of this machine, because a process may be killed while it starts."""


def worker_threads(client: Any) -> dict[str, int]:
    """Return the threads of each worker of a client, by address; raise `OSError` if it has lost its scheduler."""
    try:
        return dict(client.nthreads())
    except AttributeError as error:  # a closed client has no scheduler
        raise ConnectionError("the client is closed") from error


class ClusterExecutor(RegionExecutor):
    """The workers of a `distributed.Client`, which may join and leave.

    The job is pickled once; a region carries only its own voxels.
    """

    def __init__(self, job: Job, client: Any, count: int | None) -> None:
        self._read = job.read
        self._has_inputs = job.read is not None and bool(
            job.read.volume.dask_inputs or has_arrays(job.read.volume.expr) or has_tables(job.read.volume.expr)
        )
        self._pickled_job = pickle_job(replace(job, read=None) if self._has_inputs else job)
        self._client = client
        self._address = getattr(client.scheduler, "address", "an unknown address")  # a closed client has none
        self._count = count
        # one key group for all regions, because the scheduler keeps a record of every group
        self._name = f"imageryxr-export-{uuid.uuid4().hex[:12]}"
        self._submitted = 0
        self._slots = 2
        self._failed_on: dict[int, set[str]] = {}
        """Workers on which a region has failed."""
        self._probe = ImportProbe(client)

    def slots(self) -> int:
        """Return the requested number of slots, or two per thread; 0 until one worker can import the package."""
        if not self._probe.is_passed():
            return 0
        if self._count:
            return self._count
        try:
            self._slots = 2 * sum(worker_threads(self._client).values()) or 2
        except OSError:  # the connection to the scheduler may recover
            self.check()
        return self._slots

    def check(self) -> None:
        """Raise `TargetError` if the client has lost its scheduler or a worker cannot import the package."""
        if self._client.status in ("closing", "closed"):
            raise TargetError(
                f"the scheduler at {self._address} no longer responds; restart it with its workers and give its address"
            )
        self._probe.check()

    def cancel(self, futures: Iterable[Any]) -> None:
        """Cancel submitted regions if the scheduler is still connected."""
        if self._client.status == "running":
            super().cancel(futures)

    def submit(self, number: int, stage: int, box: IndexBox) -> Any:
        """Submit a region to the scheduler."""
        self.check()
        arguments = self._arguments(number, stage, box)
        self._submitted += 1
        where: dict[str, Any] = {}
        if number in self._failed_on and (untried := self._untried_workers(number)):
            where = {"workers": untried, "allow_other_workers": True}  # another worker is used if these leave
        try:
            return self._client.submit(
                run_task, *arguments, key=(self._name, self._submitted), pure=False, retries=0, **where
            )
        except Exception:
            self.check()
            raise

    def avoid_worker(self, number: int, worker: str | None) -> bool:
        """Submit a region to workers that have not tried it from now on; return whether there are any."""
        if worker is not None:
            self._failed_on.setdefault(number, set()).add(worker)
        return bool(self._untried_workers(number))

    def _untried_workers(self, number: int) -> list[str]:
        try:
            return sorted(set(worker_threads(self._client)) - self._failed_on.get(number, set()))
        except OSError:  # the connection to the scheduler may recover
            return []

    def _arguments(self, number: int, stage: int, box: IndexBox) -> tuple[Any, ...]:
        import cloudpickle

        if not self._has_inputs or stage or self._read is None:
            return (self._pickled_job, number, stage, tuple(box))
        part = restrict_reader(self._read, box)
        values: tuple[Any, ...] = ()
        if isinstance(part, RegionInput) and part.parts.futures:
            futures = part.parts.futures
            part = replace(part, parts=replace(part.parts, futures=dict.fromkeys(futures)))
            values = (cloudpickle.dumps(list(futures)), self._worker_values(futures))
        return (self._pickled_job, number, stage, tuple(box), cloudpickle.dumps(part), *values)

    def _worker_values(self, futures: dict[Any, Any]) -> list[Any]:
        """Return the values that replace futures on the worker."""
        # the scheduler itself transfers the values of its own futures to the worker
        mine = all(future.client is self._client for future in futures.values())
        return list((futures if mine else gather_futures(futures)).values())

    def close(self) -> None:
        """Do nothing: the caller closes the client."""

    def missing_workers_message(self) -> str:
        """Return a message if the scheduler has no workers."""
        try:
            if worker_threads(self._client):
                return ""
        except OSError:  # `check` handles a lost scheduler
            return ""
        return (
            f"the scheduler {self._address} has no worker yet: "
            f"waiting for one, such as `dask worker {self._address}` starts"
        )


# ---------------------------------------------------------------------------------------------------------
# processes of this machine


def dask_setup(worker: Any) -> None:
    """Ignore Ctrl-C in a worker, because it reaches all processes of a terminal, and only the parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class LocalExecutor(ClusterExecutor):
    """Processes of this machine, for work that holds Python's lock."""

    def __init__(self, job: Job, count: int) -> None:
        from distributed import Client, LocalCluster, Nanny
        from distributed.utils import silence_logging_cmgr

        self._silenced = ExitStack()
        # this context lasts until the cluster is closed, because dask logs errors while it closes connections
        self._silenced.enter_context(silence_logging_cmgr(logging.CRITICAL))
        self._processes = count
        self._environment = dict(os.environ)
        self._nannies = nannies = list[Nanny]()
        self._exit_codes = exit_codes = list[int]()

        class RecordedNanny(Nanny):
            """A nanny that can be reached before its worker has started, and records the exit codes of its worker."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                nannies.append(self)

            def _on_worker_exit_sync(self, exitcode: int) -> None:
                exit_codes.append(exitcode)
                super()._on_worker_exit_sync(exitcode)  # type: ignore[no-untyped-call]

        self._cluster = LocalCluster(
            n_workers=0,
            threads_per_worker=1,
            worker_class=RecordedNanny,
            memory_limit=None,  # the plan already limits the memory of a worker
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
        """Start the processes, and others in place of those that are killed meanwhile; a nanny restarts no such."""
        cluster = self._cluster

        async def start() -> None:
            for name in [name for name, nanny in cluster.workers.items() if nanny.status.name in ("closed", "failed")]:
                del cluster.workers[name], cluster.worker_spec[name]
            for _ in range(count - len(cluster.worker_spec)):
                cluster.worker_spec.update(cluster.new_worker_spec())
            await cluster

        for number in range(MOST_STARTS):
            try:
                cluster.sync(start)
                return
            except RuntimeError:
                if number + 1 == MOST_STARTS or not self._were_killed():
                    raise

    def _were_killed(self) -> bool:
        """Return whether all processes that have ended were killed by a signal."""
        return bool(self._exit_codes) and all(code < 0 or code == 255 for code in self._exit_codes)

    def slots(self) -> int:
        """Return two slots per process, so that no process idles while results are transferred."""
        return self._count or 0

    def check(self) -> None:
        """Raise `TargetError` if the processes cannot start, for example because they run the caller's script."""
        error = self._starting.exception() if self._starting.done() else None
        if error is not None and self._were_killed():
            raise TargetError(
                "the processes of ",
                param("client", "processes"),
                " were killed while they started; probably the machine has too little memory: give fewer ",
                param("workers"),
            ) from error
        if isinstance(error, RuntimeError) and getattr(sys.modules.get("__main__"), "__file__", None):
            raise TargetError(
                "the processes of ",
                param("client", "processes"),
                " ended while they imported this script: put the script's code under `if __name__ == '__main__':`",
            ) from None
        if error is not None:
            raise TargetError("the processes of ", param("client", "processes"), f" did not start: {error}") from error
        if self._starting.done() and len(self._cluster.workers) < self._processes:
            self._cluster.scale(self._processes)  # the cluster removes a worker whose restart takes too long

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
        import psutil

        self._cluster.shutdown_on_close = False  # otherwise Python waits for the workers at exit
        for nanny in self._nannies:
            nanny.close_gracefully()  # otherwise the nanny restarts its worker
            if nanny.pid is not None:
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(nanny.pid).kill()
        wait([start_thread(self._close_cluster)], seconds)
        # remove the variables that dask sets for the workers, but also in this process
        for name in {name for nanny in self._nannies for name in nanny.pre_spawn_env} - set(self._environment):
            os.environ.pop(name, None)

    def _close_cluster(self) -> None:
        with self._silenced:
            self._client.close()
            self._cluster.close()


# ---------------------------------------------------------------------------------------------------------
# workers without the package


class ImportProbe:
    """Checks that each process of a cluster can import the package.

    A worker without the package exits when it gets a task of an export, and its nanny restarts it forever. So no region
    is submitted before one worker can import it. While there is no worker, a task that does not need the package is
    submitted, so that adaptive clusters start a worker. If this task fails because its workers left, it is submitted
    again.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._checked = set[str]()
        self._scheduler_checked = False
        self._next = 0.0
        self._waiting: Any = None

    def is_passed(self) -> bool:
        """Return whether a worker can import the package, or does not answer; raise `TargetError` if one cannot."""
        self.check()
        if self._checked:
            self._waiting = None
        elif (self._waiting is None or self._waiting.done()) and self._client.status == "running":
            with suppress(Exception):  # `ClusterExecutor.check` handles a lost scheduler
                key = f"imageryxr-probe-{uuid.uuid4().hex}"
                self._waiting = self._client.submit(eval, _IMPORT, key=key, pure=False)
        return bool(self._checked)

    def check(self) -> None:
        """Check the workers that have joined; raise `TargetError` if a process cannot import the package."""
        if time.monotonic() < self._next or self._client.status != "running":
            return
        answers: dict[str, Any] = {}
        thread = threading.Thread(target=self._collect, args=(answers,), daemon=True)
        thread.start()
        thread.join(ANSWER_SECONDS)
        self._next = time.monotonic() + (PAUSE_SECONDS if self._checked else FIRST_PAUSE_SECONDS)
        lacking = {place: error for place, error in list(answers.items()) if isinstance(error, ImportError)}
        if lacking:
            raise TargetError(_import_error_message(lacking))
        if thread.is_alive():
            self._checked.add("no answer")  # the scheduler handles workers that do not answer

    def _collect(self, answers: dict[str, Any]) -> None:
        with suppress(Exception):  # a cluster may forbid `run`, or the connection may be down
            if not self._scheduler_checked:
                self._scheduler_checked = True
                answers["scheduler"] = _scheduler_answer(self._client)
            new = sorted(set(self._client.nthreads()) - self._checked)
            if new:
                found = self._client.run(eval, _IMPORT, workers=new, on_error="return")
                answers.update(found)
                # workers whose connection was lost are checked again
                self._checked.update(place for place, answer in found.items() if not isinstance(answer, OSError))


def _scheduler_answer(client: Any) -> Any:
    try:
        return client.run_on_scheduler(eval, _IMPORT)
    except Exception as error:
        return error


def _import_error_message(lacking: dict[str, Any]) -> str:
    names = [f"the {name} {'of the cluster ' * (name == 'scheduler')}".strip() for name in lacking if "://" not in name]
    workers = [name for name in lacking if "://" in name]
    if workers:
        more = f" and {len(workers) - 3} more" if len(workers) > 3 else ""
        names.append(f"{'worker' if len(workers) == 1 else 'workers'} {', '.join(workers[:3])}{more}")
    error = next(iter(lacking.values()))
    return (
        f"{' and '.join(names)} cannot import imageryxr ({error}): install the same version there as here and restart "
        "them; or remove them from the cluster"
    )
