"""Who does the work: threads, processes of this machine, or the workers of a dask cluster.

All of them take one region at a time and give a future; how many are under way is the caller's part, and who they are
is found in `crew`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

from imageryxr.core.bbox import IndexBox
from imageryxr.errors import TargetError
from imageryxr.export.read.buffers import BUFFERS
from imageryxr.export.report import ADVANCE
from imageryxr.export.run.daemon_threads import STOP, DaemonPool
from imageryxr.export.run.task import Job, Piece, holds_array, pack, part_of, work
from imageryxr.export.run.worker_probe import Probe
from imageryxr.graph.dask_inputs import gather_futures

# Exit code of a process that found itself running the script of its parent.
UNGUARDED = 78
# How long it is waited for how the processes of a broken pool ended, all of which are told to.
ENDING_SECONDS = 5.0
# How long an export that is interrupted waits for its threads and processes.
ABORT_SECONDS = 0.3


class Workers(ABC):
    """Those who make regions."""

    kind: str

    @abstractmethod
    def slots(self) -> int:
        """Return how many regions may be under way now."""

    @abstractmethod
    def submit(self, number: int, stage: int, box: IndexBox) -> Any:
        """Hand a region out; return a future with ``add_done_callback``, ``result`` and ``cancel``."""

    @abstractmethod
    def close(self) -> None:
        """Wait for what is under way, and let go of the workers."""

    def abort(self) -> None:
        """Stop as soon as can be."""
        self.close()

    def check(self) -> None:  # noqa: B027 - most have nothing to find
        """Raise `TargetError` if nobody is there who could make a region, or one failed as any other try would."""

    def lacks(self) -> str:
        """Return what is missing so that nothing comes back, for whoever waits; nothing if all is there."""
        return ""

    def elsewhere(self, number: int, worker: str | None) -> bool:
        """Keep a region away from a worker that cannot make it; return whether there are others."""
        return False

    def under_way(self) -> float:
        """Return how much of regions that are not done is there, in regions, as far as it is known here."""
        return 0.0

    def cancel(self, futures: Iterable[Any]) -> None:
        """Take regions back that were handed out, as far as nobody has begun them."""
        for future in futures:
            future.cancel()


class Threads(Workers):
    """Threads of this process: kernels and decoders run side by side in them."""

    kind = "threads"

    def __init__(self, job: Job, count: int) -> None:
        self._job = job
        self._count = min(count, job.how.at_once) if job.how is not None else count
        self._pool = DaemonPool(self._count, "imageryxr-export")
        self._stop = threading.Event()
        self._shares: dict[int, float] = {}

    def slots(self) -> int:
        """One a thread, or fewer where threads share one."""
        return self._count

    def submit(self, number: int, stage: int, box: IndexBox) -> Any:
        """Hand a region to a thread."""
        before = STOP.set(self._stop)
        try:
            return self._pool.submit(self._work, number, stage, box)
        finally:
            STOP.reset(before)

    def _work(self, number: int, stage: int, box: IndexBox) -> Any:
        self._shares[number] = 0.0

        def told(share: float) -> None:
            self._shares[number] += share

        before = ADVANCE.set(told)
        try:
            return self._job(number, stage, box)
        finally:
            ADVANCE.reset(before)
            del self._shares[number]

    def under_way(self) -> float:
        """Add up what threads tell."""
        return sum(list(self._shares.values()))

    def close(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown(cancel_futures=True)
        BUFFERS.clear()

    def abort(self) -> None:
        """Give up what is read; wait a moment for files that are being written."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True, timeout=ABORT_SECONDS)
        BUFFERS.clear()


class _Packed(Workers):
    """Workers in other processes: the job is pickled once, and a region that carries voxels brings only its own."""

    def __init__(self, job: Job) -> None:
        self._read = job.read
        self._parts = job.read is not None and bool(job.read.volume.dask_inputs or holds_array(job.read.volume.expr))
        self._blob = pack(replace(job, read=None) if self._parts else job)

    def _arguments(self, number: int, stage: int, box: IndexBox) -> tuple[Any, ...]:
        import cloudpickle

        if not self._parts or stage or self._read is None:
            return (self._blob, number, stage, tuple(box))
        part = part_of(self._read, box)
        kept: tuple[Any, ...] = ()
        if isinstance(part, Piece) and part.parts.futures:
            futures = part.parts.futures
            part = replace(part, parts=replace(part.parts, futures=dict.fromkeys(futures)))
            kept = (cloudpickle.dumps(list(futures)), self._kept(futures))
        return (self._blob, number, stage, tuple(box), cloudpickle.dumps(part), *kept)

    def _kept(self, futures: dict[Any, Any]) -> list[Any]:
        """Return what the worker will find in place of futures."""
        return list(gather_futures(futures).values())


class Processes(_Packed):
    """Processes of this machine, each on its own: for work that holds Python's lock."""

    kind = "processes"

    def __init__(self, job: Job, count: int) -> None:
        super().__init__(job)
        self._count = count
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        from multiprocessing import get_context

        # "spawn": connections and compiled code do not survive a fork
        return ProcessPoolExecutor(self._count, mp_context=get_context("spawn"), initializer=_begin_process)

    def slots(self) -> int:
        """One a process, and one in waiting each, so that none idles while results travel."""
        return 2 * self._count

    def submit(self, number: int, stage: int, box: IndexBox) -> Any:
        """Hand a region to a process."""
        arguments = self._arguments(number, stage, box)
        try:
            return self._pool.submit(work, *arguments)
        except BrokenProcessPool:
            self.check()
            self._mend()
            return self._pool.submit(work, *arguments)

    def _mend(self) -> None:
        """Start new processes: one that is killed takes the whole pool with it, and with that only its regions."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._new_pool()

    def check(self) -> None:
        """Raise `TargetError` if the processes ran the caller's script in the place of regions."""
        processes = self._processes()  # those of the pool that is broken
        until = time.monotonic() + ENDING_SECONDS
        # a pool is broken when a process closes its pipes, and the system knows a moment later how it ended
        while getattr(self._pool, "_broken", False) and time.monotonic() < until:
            if all(process.exitcode is not None for process in processes):
                break
            time.sleep(0.01)
        if any(process.exitcode == UNGUARDED for process in processes):
            raise TargetError(
                "the processes of client='processes' began by running this script again, up to its export: put what "
                "the script does under `if __name__ == '__main__':`"
            ) from None

    def close(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown(cancel_futures=True)

    def abort(self) -> None:
        """End the processes: Python would wait at its end for what they are at."""
        processes = self._processes()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        until = time.monotonic() + ABORT_SECONDS
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
            process.kill()

    def _processes(self) -> list[Any]:
        # CPython tells of them nowhere else
        return list((getattr(self._pool, "_processes", None) or {}).values())


def _begin_process() -> None:
    # Ctrl-C reaches all processes of a terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()


def _end_with_parent() -> None:
    # A worker of a parent that was killed waits for work for ever: it holds the other end of its own pipe.
    from multiprocessing import connection, parent_process

    parent = parent_process()
    if parent is None:
        return

    def watch(sentinel: Any) -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


class Cluster(_Packed):
    """The workers of a `distributed.Client`, which may come and go."""

    kind = "cluster"

    def __init__(self, job: Job, client: Any, count: int | None) -> None:
        super().__init__(job)
        self._client = client
        self._count = count
        # one group of keys whatever their number: the scheduler keeps a record of every group
        self._name = f"imageryxr-export-{uuid.uuid4().hex[:12]}"
        self._submitted = 0
        self._slots = 2
        self._unable: dict[int, set[str]] = {}
        """Workers that could not make a region."""
        self._probe = Probe(client)

    def slots(self) -> int:
        """Two a thread of the cluster as it is now, or as many as were asked for; none before one was checked."""
        if not self._probe.is_passed():
            return 0
        if self._count:
            return self._count
        try:
            self._slots = 2 * sum(self._client.nthreads().values()) or 2
        except OSError:  # a scheduler that is away for a moment may come back
            self.check()
        return self._slots

    def check(self) -> None:
        """Raise if the client has given its scheduler up."""
        if self._client.status in ("closing", "closed"):
            raise TargetError(
                f"the scheduler at {self._client.scheduler.address} does not answer any more; start it again, with its "
                "workers, and give its address"
            )
        self._probe.check()

    def cancel(self, futures: Iterable[Any]) -> None:
        """Take regions back, if there still is somebody to tell."""
        if self._client.status == "running":
            super().cancel(futures)

    def submit(self, number: int, stage: int, box: IndexBox) -> Any:
        """Hand a region to the scheduler."""
        self.check()
        arguments = self._arguments(number, stage, box)
        self._submitted += 1
        where: dict[str, Any] = {}
        if number in self._unable and (others := self._others(number)):
            where = {"workers": others, "allow_other_workers": True}  # if those others go, better any than none
        try:
            return self._client.submit(
                work, *arguments, key=(self._name, self._submitted), pure=False, retries=0, **where
            )
        except Exception:
            self.check()
            raise

    def elsewhere(self, number: int, worker: str | None) -> bool:
        """Have the scheduler give a region to other workers, if there are any that have not tried it."""
        if worker is not None:
            self._unable.setdefault(number, set()).add(worker)
        return bool(self._others(number))

    def _others(self, number: int) -> list[str]:
        try:
            return sorted(set(self._client.nthreads()) - self._unable.get(number, set()))
        except OSError:  # a scheduler that is away for a moment
            return []

    def _kept(self, futures: dict[Any, Any]) -> list[Any]:
        # of its own, the scheduler hands them to the worker, wherever they are
        mine = all(future.client is self._client for future in futures.values())
        return list(futures.values()) if mine else super()._kept(futures)

    def close(self) -> None:
        """Do nothing: the client is the caller's."""

    def lacks(self) -> str:
        """Tell that there are no workers, which may be on their way, or which nobody has started."""
        try:
            if self._client.nthreads():
                return ""
        except OSError:  # a scheduler that is away is another matter
            return ""
        place = self._client.scheduler.address
        return f"the scheduler {place} has no worker yet: waiting for one, such as `dask worker {place}` starts"
