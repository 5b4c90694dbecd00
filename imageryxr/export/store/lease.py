"""Leases: mutual exclusion of exports to one target in a bucket, which has no locks.

An exporting process creates an object under a condition that only one of several concurrent processes meets, and
rewrites it every few seconds. An object that stays unchanged belongs to a dead process, and another process may take
it over. Each rewrite is conditional on the object that was read before, so a process that was suspended between
reading and writing changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from imageryxr.errors import TargetError
from imageryxr.export.store.bucket import Bucket


@dataclass
class WorkerWatch(ABC):
    """A check by workers, which hold no lease, that their export still runs.

    The process that started the export may die, and another export may start or even complete, before a worker has
    finished its part.
    """

    VALID_SECONDS: ClassVar[float] = 2.0
    """Seconds for which the result of a check is reused."""

    _confirmed: float = field(default=0.0, init=False)

    def ensure(self) -> None:
        """Raise `TargetError` as `check` does; reuse the result of the last check if it is recent."""
        if abs(time.time() - self._confirmed) > self.VALID_SECONDS:
            self.check()

    def check(self) -> None:
        """Raise `TargetError` if the export has ended or another one has started."""
        requested = time.time()
        self.confirm()
        self._confirmed = requested

    @abstractmethod
    def confirm(self) -> None:
        """Read the object that identifies the export; raise `TargetError` if it has changed."""


@lru_cache(maxsize=1)
def machine_id() -> str:
    """Return an identifier of the running machine and its process namespace.

    Host names do not identify a machine: many machines share a name, and containers of one machine number their
    processes separately.
    """
    try:
        # https://docs.kernel.org/admin-guide/sysctl/kernel.html#random, pid_namespaces(7)
        text = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        text = f"{uuid.getnode():x}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]  # hashed, because anyone may read it in the bucket


class Lease:
    """The exclusive right to export to one target in a bucket, held by an object with a given name."""

    BEAT = 5.0
    """Seconds between renewals."""
    DEAD = 30.0
    """Seconds without a renewal after which a holder counts as dead. A holder on this machine is dead as soon as its
    process does not exist."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket = bucket
        self._name = name
        self._key = uuid.uuid4().hex
        self._ended = threading.Event()
        self._confirmed = 0.0
        self._lost: dict[str, Any] | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Acquire the lease, and release it at the end; raise `TargetError` if another live process holds it."""
        self._acquire()
        self._ended.clear()
        renewing = threading.Thread(target=self._renew, name="imageryxr-lease", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            self._ended.set()
            renewing.join(self.DEAD)  # an unreachable network must not block the export for ever
            with suppress(TargetError):
                if self._read()[0].get("key") == self._key:
                    self._bucket.delete([self._name])

    def check(self) -> None:
        """Raise `TargetError` if another process holds the lease, or has taken it over, as after a network outage."""
        requested = time.time()
        self._check_holder(self._read()[0])
        self._confirmed = requested

    def ensure(self) -> None:
        """Raise `TargetError` as `check` does, but without a request if the last renewal is recent.

        A suspended process or a machine that slept continues where it stopped, so this is called before each change of
        the bucket.
        """
        if self._lost is not None:
            self._check_holder(self._lost)
        # the wall clock, because monotonic clocks may stop while a machine sleeps
        if abs(time.time() - self._confirmed) > self.DEAD / 2:
            self.check()

    def _check_holder(self, holder: dict[str, Any]) -> None:
        if holder.get("key") == self._key:
            return
        # If there is no holder, the process that took the lease over has ended and removed the object.
        who = self._describe(holder) if holder else "another process"
        then = " when that one has ended" if holder else ""
        raise TargetError(
            f"{who} took over this target while the bucket could not be reached; the finished regions are kept: the "
            f"same call continues{then}",
            taken=True,
        )

    def _acquire(self) -> None:
        if self._read()[1] is None and self._create():
            return
        holder, mark = self._wait_for_live_holder()
        if holder:
            raise TargetError(
                f"another process is exporting to this target ({self._describe(holder)}, which holds "
                f"{self._bucket.url}/{self._name}); wait for it to end, or stop it: the same call continues where "
                "it stopped"
            )
        # the lease was released meanwhile, or another process acquired it first
        if mark is None or not self._bucket.replace(self._name, self._content(), mark):
            self._acquire()
            return
        self.check()

    def _create(self) -> bool:
        """Create the object unless it exists; return whether this process created it."""
        if not self._bucket.create(self._name, self._content()):
            return self._read()[0].get("key") == self._key  # a retry after a broken connection finds its own object
        self.check()
        return True

    def _wait_for_live_holder(self) -> tuple[dict[str, Any], dict[str, str] | None]:
        """Wait for a renewal by the holder; return the holder, empty if it is dead, and the object's mark."""
        (seen, mark), since = self._read(), time.monotonic()
        while seen and not self._is_dead(seen) and time.monotonic() - since <= self.DEAD:
            time.sleep(self.BEAT / 5)
            now, mark = self._read()
            if now != seen:
                return now, mark
        return {}, mark

    def holder(self) -> str:
        """Return a description of the other live process that holds the lease; an empty string if there is none.

        This waits for half a minute if the holder is dead.
        """
        if self._read()[0].get("key") == self._key:
            return ""
        holder, _ = self._wait_for_live_holder()
        return self._describe(holder) if holder else ""

    def _renew(self) -> None:
        while not self._ended.wait(self.BEAT):
            # errors of the network are raised by the thread that writes regions
            with suppress(TargetError):
                requested = time.time()
                holder, mark = self._read()
                if holder.get("key") != self._key or mark is None:
                    self._lost = holder
                    continue
                is_recent = abs(time.time() - requested) < self.DEAD / 2  # false if the machine slept meanwhile
                if is_recent and self._bucket.replace(self._name, self._content(), mark):
                    self._confirmed = requested

    def _content(self) -> bytes:
        holder = {"key": self._key, "host": socket.gethostname(), "machine": machine_id(), "pid": os.getpid()}
        return json.dumps({**holder, "beat": uuid.uuid4().hex}).encode()

    def _read(self) -> tuple[dict[str, Any], dict[str, str] | None]:
        """Return the content of the object, and its mark."""
        text, mark = self._bucket.get_with_mark(self._name)
        try:
            found = json.loads(text or b"{}")
        except ValueError:
            found = {}
        return (found if isinstance(found, dict) else {}), mark

    def _describe(self, holder: dict[str, Any]) -> str:
        return f"process {holder.get('pid')} on {holder.get('host')}"

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        import psutil

        here = holder.get("machine") == machine_id() and isinstance(holder.get("pid"), int)
        return here and not psutil.pid_exists(holder["pid"])
