"""Who will do the work of an export, found before it is planned: how many they are, and what memory they have."""

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
from dask.utils import parse_bytes

from imageryxr.errors import OptionError, TargetError
from imageryxr.export.plan.estimate import PROCESS_BYTES
from imageryxr.export.plan.regions import REGION_BYTES, Regions
from imageryxr.export.run.executors import UNGUARDED, Cluster, Processes, Threads, Workers
from imageryxr.export.run.task import Job

# How many workers are asked about themselves at the most, and how long their answers are waited for.
MOST_ASKED = 64
ANSWER_SECONDS = 20.0
# How many workers are planned for where nobody is there yet, and nobody knows how many will be.
SOME_WORKERS = 8
# Bytes of memory of which fewer were meant in another unit.
LEAST_MEMORY = 100_000


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
    coming: int = 0
    """How many of the workers are not there yet."""

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
        _check_script()
        have = available_memory()
        share = None if have is None else have // number
        return Crew("processes", number, 1, limit or share, lambda job: Processes(job, number))
    opened, owned = open_client(client)
    threads = opened.nthreads().values()
    coming = max(len(threads), _coming(opened)) or SOME_WORKERS
    known = _worker_infos(opened)
    limits = [w["memory_limit"] for w in known if w.get("memory_limit")]
    return Crew(
        "cluster",
        coming,
        max(threads, default=1),
        limit or min(limits, default=None),
        lambda job: Cluster(job, opened, count),
        opened.close if owned else lambda: None,
        partial(_ask, client, opened),
        coming - len(threads),
    )


def _coming(client: Any) -> int:
    """Return how many workers a cluster is about to have, as far as it is known to its client: those asked for."""
    cluster = getattr(client, "cluster", None)
    asked = [len(getattr(cluster, "worker_spec", None) or ())]
    most = getattr(getattr(cluster, "_adaptive", None), "maximum", 0)
    if isinstance(most, int):  # else there is no end
        asked.append(most)
    return max(asked)


def _check_script() -> None:
    """Raise `OptionError` if processes could not begin as they do, by reading the script of this one."""
    from multiprocessing import process

    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if path is None or getattr(main, "__spec__", None) is not None:
        return
    if not os.path.exists(os.path.join(getattr(process, "ORIGINAL_DIR", None) or "", path)):
        raise OptionError(
            f"client='processes' starts Python anew, which reads this script again, and {path} is no file: write it "
            "to one, or leave client= away for threads"
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


def leave_script_of_parent(crew: Crew) -> None:
    """End this process if it is one of a parent's processes and runs the parent's script, up to the same export."""
    from multiprocessing import current_process

    if crew.kind == "processes" and getattr(current_process(), "_inheriting", False):
        os._exit(UNGUARDED)
