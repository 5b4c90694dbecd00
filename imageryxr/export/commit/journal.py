"""The book that an export keeps beside its target: which call it is, and which regions are done.

``<target>.manifest.json`` says which call wrote or writes the target and how far it is: "writing" regions,
"publishing" the result, "finished". It is replaced whole. ``<target>.manifest.log`` has a line for each region that
is done, written after the region's files are; a line cut short by a crash is told by its checksum and passed over. In a
bucket, where nothing can be appended to, the log is a series of objects. A region that is done but not in the log is
made again, which gives the same bytes.
"""

from __future__ import annotations

import json
import os
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from imageryxr.errors import TargetError
from imageryxr.export.commit.manifest import Header
from imageryxr.export.store.bucket import Bucket
from imageryxr.export.store.file_locks import lock, lock_holder
from imageryxr.export.store.lease import Lease
from imageryxr.export.store.local import Folder


@dataclass(frozen=True)
class Entry:
    """A finished region: how many bytes its files are, a checksum of their sizes, and holes in what it read."""

    number: int
    size: int
    """Bytes of all its files."""
    sizes: int
    """CRC of the files' sizes."""
    holes: tuple[str, ...] = ()
    ids: tuple[tuple[str, tuple[int, ...]], ...] | None = None
    """Of each set of ids that were asked for, which ones no region before it had; None where none were asked for, or
    it is not known."""

    def line(self, run: str) -> bytes:
        """Return the line of the log."""
        notes = list(self.holes) if self.ids is None else {"holes": self.holes, "ids": dict(self.ids)}
        text = f"{run} {self.number} {self.size} {self.sizes:08x} {json.dumps(notes)}"
        return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()

    @classmethod
    def parse(cls, line: bytes, run: str) -> Entry | None:
        """Return the entry of a line, or None if it is of another run or was cut short."""
        text, _, check = line.decode("utf-8", "replace").rpartition(" ")
        if not text.startswith(run + " ") or check != f"{zlib.crc32(text.encode()):08x}":
            return None
        _, number, size, sizes, noted = text.split(" ", 4)
        notes, ids = json.loads(noted), None
        if isinstance(notes, dict):
            ids = tuple((name, tuple(found)) for name, found in notes["ids"].items())
            notes = notes["holes"]
        return cls(int(number), int(size), int(sizes, 16), tuple(notes), ids)


def crc_of_sizes(sizes: Iterable[int]) -> int:
    """Return the checksum of files' sizes that a region is known by."""
    return zlib.crc32(",".join(map(str, sizes)).encode())


class Progress:
    """Which regions are done: a few bytes a region, whatever their number."""

    def __init__(self, regions: int) -> None:
        self.done = np.zeros(regions, np.bool_)
        self.bytes = np.zeros(regions, np.int64)
        self.sizes = np.zeros(regions, np.uint32)
        self.holes: set[str] = set()
        self.ids: dict[str, set[int]] = {}
        """Which of the ids that were asked for regions have."""
        self.all_ids = True
        """Whether each of them told of that."""

    def note(self, entry: Entry) -> None:
        """Note a finished region."""
        if 0 <= entry.number < len(self.done):
            self.done[entry.number] = True
            self.bytes[entry.number] = entry.size
            self.sizes[entry.number] = entry.sizes
            self.holes.update(entry.holes)
            self.all_ids &= entry.ids is not None
            for name, found in entry.ids or ():
                self.ids.setdefault(name, set()).update(found)

    def forget(self, number: int) -> None:
        """Note that a region is not there after all."""
        self.done[number] = False


class Keeper(Protocol):
    """Where a manifest is kept."""

    def load(self) -> Header | None:
        """Return the header, or None where there is no manifest."""

    def save(self, header: Header) -> None:
        """Replace the header, atomically."""

    def entries(self, run: str) -> Iterator[Entry]:
        """Return the log of a run."""

    def append(self, run: str, entry: Entry) -> None:
        """Add to the log; durable at the latest when the manifest is closed."""

    def flush(self) -> None:
        """Make what was added to the log durable."""

    def remove(self) -> None:
        """Remove the manifest."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from this target."""

    def check(self) -> None:
        """Raise `TargetError` if it is another process's meanwhile."""

    def ensure(self) -> None:
        """Do the same where that is not known: for whoever is about to change something."""

    def holder(self) -> str:
        """Return which other process exports to this target now, in words; nothing if none does."""


class LocalKeeper:
    """A manifest in a folder; the log is locked while an export runs."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._log: int | None = None

    def load(self) -> Header | None:
        """Read the header."""
        folder, name = os.path.split(self.base + ".json")
        with _no_folder(self.base + ".json"):
            text = Folder(folder, folder).get(name)
        return None if text is None else Header.parse(text, self.base + ".json")

    def save(self, header: Header) -> None:
        """Replace the header."""
        folder, name = os.path.split(self.base)
        temporary = os.path.join(folder, f"{name}-{uuid.uuid4().hex[:8]}.json")
        try:
            with open(temporary, "xb") as file:
                file.write(header.to_bytes())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.base + ".json")
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    def entries(self, run: str) -> Iterator[Entry]:
        """Read the log."""
        try:
            with _no_folder(self.base + ".log"), open(self.base + ".log", "rb") as file:
                for line in file:
                    entry = Entry.parse(line.rstrip(b"\n"), run)
                    if entry is not None:
                        yield entry
        except FileNotFoundError:
            return

    def append(self, run: str, entry: Entry) -> None:
        """Write a line; it is in the kernel's hands when this returns, so that kill -9 cannot take it back."""
        assert self._log is not None, "the manifest is not locked"
        os.write(self._log, entry.line(run))

    def flush(self) -> None:
        """Wait until the log is on the disk."""
        if self._log is not None:
            os.fsync(self._log)

    def remove(self) -> None:
        """Remove both files."""
        for end in (".json", ".log"):
            if os.path.exists(self.base + end):
                os.unlink(self.base + end)
        if os.path.basename(os.path.dirname(self.base)).startswith("."):
            with suppress(OSError):  # it holds the manifests of other stacks
                os.rmdir(os.path.dirname(self.base))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the log: the system gives the lock back when the process ends, however it ends."""
        with _no_folder(self.base + ".log"):
            self._log = _locked_file(self.base + ".log")
        try:
            # a line that a crash cut short must not run into the next one
            if os.fstat(self._log).st_size:
                os.write(self._log, b"\n")
            yield
        finally:
            os.close(self._log)
            self._log = None

    def check(self) -> None:
        """Do nothing: the system takes a lock from nobody who lives."""

    def ensure(self) -> None:
        """Do nothing, for the same reason."""

    def holder(self) -> str:
        """Ask the system whose the lock is."""
        return "" if self._log is not None else lock_holder(self.base + ".log")


def _locked_file(path: str) -> int:
    while True:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except FileNotFoundError:  # another process removed the folder when it was empty
            continue
        try:
            lock(handle, path)
            # whoever held it before may have removed it meanwhile
            if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


@contextmanager
def _no_folder(path: str) -> Iterator[None]:
    try:
        yield
    except IsADirectoryError:
        raise TargetError(
            f"{path} is a folder, where a file of an export's manifest would be; remove it yourself, or choose another "
            "target"
        ) from None


@dataclass
class Run:
    """An export as its workers know it, which hold no lease: it goes on while its manifest says so.

    Who started it may be dead, and another export under way or complete, before they have finished what they are at.

    Parameters
    ----------
    url, name : str
        Of its manifest.
    run, phase : str
        What that said when the work was handed out.
    work : str, optional
        The folder that it collects in, which nobody else puts anything into.
    """

    SURE: ClassVar[float] = 2.0
    """Seconds for which an answer will do."""

    url: str
    name: str
    run: str
    phase: str
    work: str | None = None
    _sure: float = 0.0

    def ensure(self) -> None:
        """Ask if that is longer ago."""
        if abs(time.time() - self._sure) > self.SURE:
            self.check()

    def check(self) -> None:
        """Ask the bucket."""
        asked = time.time()
        place = f"{self.url}/{self.name}.json"
        text = Bucket(self.url).get(self.name + ".json")
        now = None if text is None else Header.parse(text, place)
        if now is not None and (now.run, now.phase) == (self.run, self.phase) and not now.replaced:
            self._sure = asked
            return
        if self.work is not None and (now is None or now.run != self.run or now.phase == "finished"):
            left = Bucket(self.work)  # of all that was collected, what came after that was removed
            left.delete(list(left.names()))
        became = "is not there any more" if now is None else "says that it ended, or that another export is there"
        raise TargetError(f"{place} {became}: a region that a worker was still at is not written", taken=True)


class BucketKeeper:
    """A manifest in a bucket; an object beside it keeps other processes out while an export runs, see `Lease`."""

    EVERY = 15.0
    """Seconds between pieces of the log: what a crash costs at the most."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self._lines: list[bytes] = []
        self._last = time.monotonic()
        self._lease = Lease(Bucket(url, fresh=True), f"{name}.lock")
        self.bucket = Bucket(url, self._lease, fresh=True)

    def load(self) -> Header | None:
        """Download the header."""
        text = self.bucket.get(self.name + ".json")
        return None if text is None else Header.parse(text, f"{self.bucket.url}/{self.name}.json")

    def save(self, header: Header) -> None:
        """Upload the header."""
        self.ensure()
        self.bucket.put([(self.name + ".json", header.to_bytes())])

    def _pieces(self) -> list[str]:
        return sorted(f"{self.name}.log/{key}" for key in Bucket(f"{self.bucket.url}/{self.name}.log").names())

    def entries(self, run: str) -> Iterator[Entry]:
        """Download the log."""
        for key in self._pieces():
            for line in (self.bucket.get(key) or b"").splitlines():
                entry = Entry.parse(line, run)
                if entry is not None:
                    yield entry

    def append(self, run: str, entry: Entry) -> None:
        """Keep a line until enough time has passed."""
        self.ensure()
        self._lines.append(entry.line(run))
        if time.monotonic() - self._last > self.EVERY:
            self.flush()

    def flush(self) -> None:
        """Upload what was added."""
        self._last = time.monotonic()
        if self._lines:
            key = f"{self.name}.log/manifest-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
            self.bucket.put([(key, b"".join(self._lines))])
            self._lines = []

    def remove(self) -> None:
        """Delete header and log."""
        self.bucket.delete([self.name + ".json", *self._pieces()])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lease, and write the rest of the log at the end, if it is still held."""
        with self._lease.held():
            try:
                yield
            finally:
                if not self._lease.is_lost():
                    self.flush()

    def check(self) -> None:
        """Ask the bucket whose the lease is."""
        self._lease.check()

    def ensure(self) -> None:
        """Ask it after a while without signs of life."""
        self._lease.ensure()

    def holder(self) -> str:
        """Look whether whoever has the lease gives signs of life, which takes a while where it does not."""
        return self._lease.alive()
