"""Executors of regions: threads, or the workers of a dask cluster.

An executor takes one region per call and returns a future. The scheduler limits how many regions run at a time, and
`workers` chooses the executor. `local_cluster` has the executor for processes of this machine.
"""

from __future__ import annotations

import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any

from imageryxr.core.bbox import IndexBox
from imageryxr.errors import TargetError
from imageryxr.export.read.buffers import BUFFERS
from imageryxr.export.report import ON_PROGRESS
from imageryxr.export.run.task import Job, RegionInput, has_arrays, pickle_job, restrict_reader, run_task
from imageryxr.export.run.threads import start_thread
from imageryxr.export.run.worker_probe import ImportProbe
from imageryxr.graph.dask_inputs import gather_futures
from imageryxr.graph.tables import has_tables

# How long an interrupted export waits for its threads or processes.
ABORT_SECONDS = 0.3


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

    def __init__(self, job: Job, count: int) -> None:
        self._job = job
        self._count = min(count, job.slab_settings.at_once) if job.slab_settings is not None else count
        self._running = set[Future[Any]]()
        self._stop = threading.Event()
        self._shares: dict[int, float] = {}

    def slots(self) -> int:
        """Return one slot per thread, or fewer if several threads share a region."""
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
        BUFFERS.clear()

    def abort(self) -> None:
        """Cancel reads; wait briefly for files that are being written."""
        self._stop.set()
        wait(set(self._running), ABORT_SECONDS)
        BUFFERS.clear()


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
            self._slots = 2 * sum(self._client.nthreads().values()) or 2
        except OSError:  # the connection to the scheduler may recover
            self.check()
        return self._slots

    def check(self) -> None:
        """Raise `TargetError` if the client has lost its scheduler or a worker cannot import the package."""
        if self._client.status in ("closing", "closed"):
            raise TargetError(
                f"the scheduler at {self._client.scheduler.address} no longer responds; restart it with its workers "
                "and give its address"
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
            where = {"workers": untried, "allow_other_workers": True}  # in case the untried workers leave
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
            return sorted(set(self._client.nthreads()) - self._failed_on.get(number, set()))
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
            if self._client.nthreads():
                return ""
        except OSError:  # `check` handles a lost scheduler
            return ""
        place = self._client.scheduler.address
        return f"the scheduler {place} has no worker yet: waiting for one, such as `dask worker {place}` starts"
