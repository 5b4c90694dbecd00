"""Keeping two exports of one target in a bucket apart, where there are no locks.

Whoever exports puts an object with a name of its own into it, which buckets allow to one of several that try at once,
and changes it every few seconds. One that does not change is of a process that is dead, and may be taken. Each change
is on the condition that nobody made another meanwhile: who was asleep between looking and changing changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from imageryxr.errors import TargetError
from imageryxr.export.store.bucket import Bucket


@lru_cache(maxsize=1)
def machine() -> str:
    """Return what tells a run of a machine, as its processes count themselves, from all others.

    Names do not: many machines go by one, and containers of one machine count their processes each on its own.
    """
    try:
        # https://docs.kernel.org/admin-guide/sysctl/kernel.html#random, pid_namespaces(7)
        told = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        told = f"{uuid.getnode():x}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]  # it stands in the bucket, for all to read


class Lease:
    """The right to export to one place of a bucket.

    Parameters
    ----------
    bucket : Bucket
    name : str
        Of the object.
    """

    BEAT = 5.0
    """Seconds between signs of life."""
    DEAD = 30.0
    """Seconds without one after which a holder counts as dead; where it ran on this machine, that is asked instead."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket = bucket
        self._name = name
        self._mine = uuid.uuid4().hex
        self._ended = threading.Event()
        self._sure = 0.0
        self._lost: dict[str, Any] | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Take the lease, and give it back at the end.

        Raises
        ------
        TargetError
            If another process has it and lives.
        """
        self._take()
        self._ended.clear()
        beating = threading.Thread(target=self._beat, name="imageryxr-lease", daemon=True)
        beating.start()
        try:
            yield
        finally:
            self._ended.set()
            beating.join(self.DEAD)  # a network that is away keeps nobody
            with suppress(TargetError):
                if self._holder().get("key") == self._mine:
                    self._bucket.delete([self._name])

    def check(self) -> None:
        """Raise `TargetError` if another has the lease by now, or had it: as after a network that was away for long."""
        asked = time.time()
        self._refuse(self._holder())
        self._sure = asked

    def ensure(self) -> None:
        """Do the same, and ask nothing while there are signs of life of this process.

        A process that was stopped, or a machine that slept, goes on where it was: whoever is about to change the
        bucket asks this first.
        """
        if self._lost is not None:
            self._refuse(self._lost)
        # by the clock on the wall: others do not stand still while a machine sleeps
        if abs(time.time() - self._sure) > self.DEAD / 2:
            self.check()

    def is_lost(self) -> bool:
        """Tell whether another has it, or had it."""
        try:
            self.ensure()
        except TargetError:
            return True
        return False

    def _refuse(self, holder: dict[str, Any]) -> None:
        if holder.get("key") == self._mine:
            return
        # who took it and has ended took it away
        who = self._where(holder) if holder else "another process"
        then = " when that one has ended" if holder else ""
        raise TargetError(
            f"{who} took over this target while it could not be reached; what is done is kept: the same call "
            f"continues{then}",
            taken=True,
        )

    def _take(self) -> None:
        if self._look()[1] is None and self._create():
            return
        now, mark = self._living()
        if now:
            raise TargetError(
                f"another process is exporting to this target ({self._where(now)}, which holds "
                f"{self._bucket.url}/{self._name}); wait for it to end, or stop it: the same call continues where "
                "it stopped"
            )
        # it was given back, or another was faster
        if mark is None or not self._bucket.replace(self._name, self._text(), mark):
            self._take()
            return
        self.check()

    def _create(self) -> bool:
        """Put the object there if there is none; return whether it is this one's."""
        if not self._bucket.create(self._name, self._text()):
            return self._holder().get("key") == self._mine  # a retry after a broken connection finds its own object
        self.check()
        return True

    def _living(self) -> tuple[dict[str, Any], dict[str, str] | None]:
        """Wait for a sign of life of whoever has the lease; return who that is, nothing where there is none.

        And with it what tells the object from what is there later; nothing if there is no object.
        """
        (seen, mark), since = self._look(), time.monotonic()
        while seen and not self._is_dead(seen) and time.monotonic() - since <= self.DEAD:
            time.sleep(self.BEAT / 5)
            now, mark = self._look()
            if now != seen:
                return now, mark
        return {}, mark

    def alive(self) -> str:
        """Return which other process has the lease and lives, in words; nothing if none does."""
        if self._holder().get("key") == self._mine:
            return ""
        living, _ = self._living()
        return self._where(living) if living else ""

    def _beat(self) -> None:
        while not self._ended.wait(self.BEAT):
            # a network that is away is others' to tell of
            with suppress(TargetError):
                asked = time.time()
                holder, mark = self._look()
                if holder.get("key") != self._mine or mark is None:
                    self._lost = holder
                    continue
                fresh = abs(time.time() - asked) < self.DEAD / 2  # else what was heard is of the past
                if fresh and self._bucket.replace(self._name, self._text(), mark):
                    self._sure = asked

    def _text(self) -> bytes:
        who = {"key": self._mine, "host": socket.gethostname(), "machine": machine(), "pid": os.getpid()}
        return json.dumps({**who, "beat": uuid.uuid4().hex}).encode()

    def _holder(self) -> dict[str, Any]:
        return self._look()[0]

    def _look(self) -> tuple[dict[str, Any], dict[str, str] | None]:
        """Return what the object says, and what tells it from what is there later."""
        text, mark = self._bucket.get_marked(self._name)
        try:
            found = json.loads(text or b"{}")
        except ValueError:
            found = {}
        return (found if isinstance(found, dict) else {}), mark

    def _where(self, holder: dict[str, Any]) -> str:
        return f"process {holder.get('pid')} on {holder.get('host')}"

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        import psutil

        here = holder.get("machine") == machine() and isinstance(holder.get("pid"), int)
        return here and not psutil.pid_exists(holder["pid"])
