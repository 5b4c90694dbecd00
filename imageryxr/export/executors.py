"""Who does the work: threads, processes of this machine, or the workers of a dask cluster.

All of them take one region at a time and give a future; how many are under way is the caller's part.
"""

from __future__ import annotations

import os
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from dask.system import CPU_COUNT
from dask.utils import parse_bytes

from imageryxr.boxes import IndexBox
from imageryxr.errors import OptionError, TargetError
from imageryxr.export.estimate import PROCESS_BYTES
from imageryxr.export.job import Job, Piece, holds_array, pack, part_of, work
from imageryxr.export.reading import BUFFERS
from imageryxr.export.regions import REGION_BYTES, Regions
from imageryxr.export.slicewise import STOP
from imageryxr.foreign import fetched

# Exit code of a process that found itself running the script of its parent.
UNGUARDED = 78
# How many workers are asked about themselves at the most, and how long their answers are waited for.
MOST_ASKED = 64
LEAST_MEMORY = 100_000
ANSWER_SECONDS = 20.0


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
        self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="imageryxr-export")
        self._stop = threading.Event()

    def slots(self) -> int:
        """One a thread, or fewer where threads share one."""
        return self._count

    def submit(self, number: int, stage: int, box: IndexBox) -> Any:
        """Hand a region to a thread."""
        return self._pool.submit(self._work, number, stage, box)

    def _work(self, number: int, stage: int, box: IndexBox) -> Any:
        STOP.set(self._stop)
        return self._job(number, stage, box)

    def close(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown(cancel_futures=True)
        BUFFERS.clear()

    def abort(self) -> None:
        """Wait for no more of a region than a few slices."""
        self._stop.set()
        self.close()


class _Packed(Workers):
    """Workers in other processes: the job is pickled once, and a region that carries voxels brings only its own."""

    def __init__(self, job: Job) -> None:
        self._read = job.read
        self._parts = job.read is not None and bool(job.read.volume.givens or holds_array(job.read.volume.expr))
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
        return list(fetched(futures).values())


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
        return ProcessPoolExecutor(self._count, mp_context=get_context("spawn"), initializer=_end_with_parent)

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
        # that of the pool which is broken; CPython tells of its processes nowhere else
        processes = getattr(self._pool, "_processes", None) or {}
        if any(process.exitcode == UNGUARDED for process in processes.values()):
            raise TargetError(
                "the processes of client='processes' began by running this script again, up to its export: put what "
                "the script does under `if __name__ == '__main__':`"
            ) from None

    def close(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown(cancel_futures=True)

    def abort(self) -> None:
        """Do not wait."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def leave_script_of_parent(crew: Crew) -> None:
    """End this process if it is one of a parent's processes and runs the parent's script, up to the same export."""
    from multiprocessing import current_process

    if crew.kind == "processes" and getattr(current_process(), "_inheriting", False):
        os._exit(UNGUARDED)


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

    def slots(self) -> int:
        """Two a thread of the cluster as it is now, or as many as were asked for."""
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


def is_client(value: Any) -> bool:
    """Tell whether a value is a `distributed.Client`, without importing distributed."""
    return any(c.__module__.startswith("distributed") and c.__name__ == "Client" for c in type(value).__mro__)


def open_client(client: Any) -> tuple[Any, bool]:
    """Return the client that a value stands for, and whether it was made here.

    Raises
    ------
    OptionError
        If it is none.
    TargetError
        If no scheduler answers at the address.
    """
    if is_client(client):
        if getattr(client, "asynchronous", False):
            raise OptionError("client=… is asynchronous; export waits for its regions: give a Client() made without it")
        return client, False
    if not isinstance(client, str) or "://" not in client:
        raise OptionError(
            f"client={client!r} must be a distributed.Client, a scheduler's address such as 'tcp://host:8786', "
            "'threads' or 'processes'"
        )
    from distributed import Client

    try:
        return Client(client, timeout="5s", set_as_default=False), True
    except OSError as error:
        raise TargetError(f"no scheduler answers at {client} ({error}); start one with `dask scheduler`") from error


@dataclass(frozen=True)
class Crew:
    """Who will do the work."""

    kind: str
    """"threads", "processes" or "cluster"."""
    workers: int
    """Processes that work."""
    threads: int
    """Regions that one of them has under way at a time."""
    memory: int | None
    """Bytes that one of them may take, as far as is known."""
    make: Callable[[Job], Workers] = field(repr=False, compare=False)
    """Starts them."""
    close: Callable[[], Any] = field(repr=False, compare=False, default=lambda: None)
    """Lets go of what was opened to ask for these numbers."""
    ask: Callable[..., dict[str, Any]] = field(repr=False, compare=False, default=lambda function, *arguments: {})
    """Calls a function on some of a cluster's workers: what it gave or raised, by address, of those that answer."""

    def at_once(self, regions: Regions) -> int:
        """Return how many regions one of them has under way at the most."""
        return min(self.threads, len(regions))

    def share(self, at_once: int | None = None) -> int | None:
        """Return the bytes that a region may take; None where nobody knows."""
        if self.memory is None:
            return None
        # half of what there is, as the rest is an estimate, too
        return max(1 << 24, (self.memory - PROCESS_BYTES) // (at_once or self.threads) // 2)

    @property
    def budget(self) -> int:
        """Bytes that a region takes where more does not spare much."""
        return min(REGION_BYTES, self.share() or REGION_BYTES)


def find_crew(client: Any, count: int | None, memory: Any) -> Crew:
    """Return who will do the work; connects to a scheduler only where its address is given.

    Raises
    ------
    OptionError
        If an argument is outside its set.
    TargetError
        If no scheduler answers.
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise OptionError(f"workers={count!r} must be a whole number from 1, or None for one a core")
    limit = _memory(memory)
    number = count or CPU_COUNT
    if client is None or client == "threads":
        return Crew("threads", 1, number, limit or available_memory(), lambda job: Threads(job, number))
    if isinstance(client, str) and client == "processes":
        have = available_memory()
        share = None if have is None else have // number
        return Crew("processes", number, 1, limit or share, lambda job: Processes(job, number))
    opened, owned = open_client(client)
    threads = opened.nthreads().values()
    known = _worker_infos(opened)
    limits = [w["memory_limit"] for w in known if w.get("memory_limit")]
    return Crew(
        "cluster",
        max(1, len(threads)),
        max(threads, default=1),
        limit or min(limits, default=None),
        lambda job: Cluster(job, opened, count),
        opened.close if owned else lambda: None,
        partial(_ask, client, opened),
    )


def _ask(client: Any, opened: Any, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    answers: dict[str, Any] = {}

    def ask() -> None:
        with suppress(Exception):  # who does not answer has no say
            asked, owned = (opened, False) if opened.status == "running" else open_client(client)
            try:
                some = list(asked.nthreads())[:MOST_ASKED]
                answers.update(asked.run(function, *arguments, workers=some, on_error="return"))
            finally:
                if owned:
                    asked.close()

    # a daemon, as a worker that hangs answers never
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    return dict(answers)


def _worker_infos(client: Any) -> list[dict[str, Any]]:
    try:
        info = client.scheduler_info(n_workers=-1)
    except TypeError:  # before 2025.5 it tells of all anyway
        info = client.scheduler_info()
    return list(info["workers"].values())


def _memory(value: Any) -> int | None:
    if value is None:
        return None
    try:
        limit = 0 if isinstance(value, bool) else int(parse_bytes(value))
    except (ValueError, TypeError, OverflowError):
        limit = 0
    if 0 < limit < LEAST_MEMORY:
        raise OptionError(
            f"memory={value!r} is {limit:,} bytes, in which nothing works; write the unit, such as '4 GB'"
        )
    if limit <= 0:
        raise OptionError(f"memory={value!r} must be the bytes that a worker may take, such as '4 GB'")
    return limit


def available_memory() -> int | None:
    """Return how many bytes this process may still take: what the machine has free, or its container allows."""
    import psutil

    found = [int(psutil.virtual_memory().available)]
    with suppress(OSError, ValueError):
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found)
