"""The workers of an export, as needed to plan it: their number, their threads and their memory."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dask.system import CPU_COUNT

from imageryxr.core.validate import check_bytes, check_whole
from imageryxr.errors import Message, OptionError, TargetError, Wording, param
from imageryxr.export.plan.regions import REGION_BYTES, RegionLimits, Regions
from imageryxr.export.run.cluster import ClusterExecutor, LocalExecutor, worker_threads
from imageryxr.export.run.executors import RegionExecutor, ThreadExecutor
from imageryxr.export.run.task import Job

# Maximum number of workers that run a query of `WorkerPool.run_on_workers`, and how long to wait for them.
MAX_QUERIED_WORKERS = 64
ANSWER_SECONDS = 20.0
# Memory of an idle process: the interpreter, numpy, xarray, compiled kernels, a client.
PROCESS_BYTES = 400_000_000
# Number of workers to plan for if none has joined and the cluster does not state how many will.
ASSUMED_WORKERS = 8
# A smaller number of bytes is assumed to be a mistake in the unit.
MIN_MEMORY = 100_000


def is_client(value: Any) -> bool:
    """Return whether a value is a `distributed.Client`, without importing distributed."""
    return any(c.__module__.startswith("distributed") and c.__name__ == "Client" for c in type(value).__mro__)


def open_client(client: Any) -> tuple[Any, bool]:
    """Return the client for a `client` argument, and whether this function has created it."""
    if is_client(client):
        if getattr(client, "asynchronous", False):
            raise OptionError(
                param("client", ...), " is asynchronous; export waits for its regions: give a synchronous Client"
            )
        return client, False
    if not isinstance(client, str) or "://" not in client:
        raise OptionError(
            param("client", client),
            " ",
            Wording("must be a distributed.Client, a scheduler's", "must be a scheduler's"),
            " address such as 'tcp://host:8786', 'threads' or 'processes'",
        )
    from distributed import Client

    try:
        return Client(client, timeout="5s", set_as_default=False), True
    except OSError as error:
        raise TargetError(f"no scheduler answers at {client} ({error}); start one with `dask scheduler`") from error


@dataclass(frozen=True)
class WorkerPool:
    """The workers of an export."""

    kind: str
    """"threads", "processes" or "cluster"."""
    workers: int
    """Number of worker processes."""
    threads: int
    """Threads per worker: the regions that it processes at a time."""
    memory: int | None
    """Bytes of memory per worker; None if unknown."""
    make: Callable[[Job], RegionExecutor] = field(repr=False, compare=False)
    """Creates the executor of a job."""
    close: Callable[[], Any] = field(repr=False, compare=False, default=lambda: None)
    """Closes the client if it was opened from an address."""
    run_on_workers: Callable[..., dict[str, Any]] = field(
        repr=False, compare=False, default=lambda function, *arguments: {}
    )
    """Runs a function on some workers of a cluster; returns results or errors by address, of those that answer."""
    expected: int = 0
    """Number of workers that have not joined yet."""

    def __reduce__(self) -> tuple[Any, ...]:
        # clients and functions stay in this process; in another one, a plan describes its workers
        described = (self.kind, self.workers, self.threads, self.memory, _refuse_job)
        return partial(WorkerPool, expected=self.expected), described

    def at_once(self, regions: Regions) -> int:
        """Return how many regions a worker processes at a time."""
        return min(self.threads, len(regions))

    def memory_per_region(self, at_once: int | None = None) -> int | None:
        """Return the bytes of memory that a region may use; None if unknown."""
        if self.memory is None:
            return None
        # half of the available memory, because the memory of a region is an estimate
        return max(1 << 24, (self.memory - PROCESS_BYTES) // (at_once or self.threads) // 2)

    @property
    def budget(self) -> int:
        """Bytes of memory that a region should use unless more avoids many repeated reads."""
        return min(REGION_BYTES, self.memory_per_region() or REGION_BYTES)

    def region_limits(self, factor: int = 1) -> RegionLimits:
        """Return the limits of regions; those that avoid repeated reads may use `factor` times the usual memory."""
        most = max(self.budget, factor * (self.memory_per_region() or 0))
        return RegionLimits(self.budget, most, self.workers * self.threads, self.threads)


def _refuse_job(job: Job) -> RegionExecutor:
    raise OptionError("a plan from another process has no workers; call export with the array")


def find_workers(client: Any, count: int | None, memory: Any) -> WorkerPool:
    """Return the workers of an export; connect to a scheduler if its address is given."""
    if count is not None:
        none = Wording(", or None", ", or be left out")
        count = check_whole("workers", count, 1, expected=Message("a whole number from 1", none, " for one per core"))
    limit = _parse_memory(memory)
    number = count or CPU_COUNT
    if client is None or (isinstance(client, str) and client == "threads"):
        limit = limit or available_memory()
        return WorkerPool("threads", 1, number, limit, lambda job: ThreadExecutor(job, job.at_once(number)))
    if isinstance(client, str) and client == "processes":
        _check_script()
        available = available_memory()
        memory_per_region = None if available is None else available // number
        return WorkerPool("processes", number, 1, limit or memory_per_region, lambda job: LocalExecutor(job, number))
    opened, owned = open_client(client)
    try:
        threads = worker_threads(opened).values()
        known = opened.scheduler_info(n_workers=-1)["workers"].values()
    except OSError as error:
        raise TargetError(
            param("client", ...), f" is not connected to a scheduler ({error}); give a connected Client"
        ) from error
    expected = max(len(threads), _expected_workers(opened)) or ASSUMED_WORKERS
    limits = [w["memory_limit"] for w in known if w.get("memory_limit")]
    return WorkerPool(
        "cluster",
        expected,
        max(threads, default=1),
        limit or min(limits, default=None),
        lambda job: ClusterExecutor(job, opened, count),
        opened.close if owned else lambda: None,
        partial(_run_on_workers, client, opened),
        expected - len(threads),
    )


def _expected_workers(client: Any) -> int:
    """Return how many workers a cluster is configured to have, or 0 if its client has no such information."""
    cluster = getattr(client, "cluster", None)
    counts = [len(getattr(cluster, "worker_spec", None) or ())]
    maximum = getattr(getattr(cluster, "_adaptive", None), "maximum", 0)
    if isinstance(maximum, int):  # otherwise there is no upper limit
        counts.append(maximum)
    return max(counts)


def _check_script() -> None:
    """Raise `OptionError` if new processes cannot import the running script, because it is not a file."""
    from multiprocessing import process

    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if path is None or getattr(main, "__spec__", None) is not None:
        return
    if not os.path.exists(os.path.join(getattr(process, "ORIGINAL_DIR", None) or "", path)):
        raise OptionError(
            param("client", "processes"),
            f" starts new processes, which import this script, but {path} is not a file: save ",
            "the script to a file, or omit ",
            param("client"),
            " to use threads",
        )


def _run_on_workers(client: Any, opened: Any, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    answers: dict[str, Any] = {}

    def collect_answers() -> None:
        with suppress(Exception):  # workers that do not answer are left out
            queried, owned = (opened, False) if opened.status == "running" else open_client(client)
            try:
                some = list(queried.nthreads())[:MAX_QUERIED_WORKERS]
                answers.update(queried.run(function, *arguments, workers=some, on_error="return"))
            finally:
                if owned:
                    queried.close()

    # a daemon thread, because a worker that hangs never answers
    thread = threading.Thread(target=collect_answers, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return dict(answers)


def _parse_memory(value: Any) -> int | None:
    if value is None:
        return None
    limit = check_bytes("memory", value, "the memory of a worker in bytes, such as '4 GB'")
    if limit < MIN_MEMORY:
        raise OptionError(
            param("memory", value), f" is {limit:,} bytes, which is too little; give a unit, such as '4 GB'"
        )
    return limit


def available_memory() -> int | None:
    """Return the bytes of memory available to this process: of the machine, or the limit of its container."""
    import psutil

    found = [int(psutil.virtual_memory().available)]
    with suppress(OSError, ValueError):
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found)


def exit_if_spawned(pool: WorkerPool) -> None:
    """Exit if this is a worker process that runs its parent's script again, because the script has no main guard."""
    # multiprocessing imports the script under this name, and makes it `__main__` afterwards
    script = sys.modules.get("__mp_main__")
    is_imported = script is None or script.__name__ != "__mp_main__" or script is sys.modules["__main__"]
    if pool.kind == "processes" and not is_imported:
        os._exit(1)
