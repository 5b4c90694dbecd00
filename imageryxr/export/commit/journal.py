"""The manifest and the journal of an export: which call it is, and which regions are finished.

``<target>.manifest.json`` names the call and its phase: "writing" regions, "publishing" the result, or "finished". The
file is replaced as a whole. ``<target>.manifest.log``, the journal, has a line for each finished region, written after
the region's files. A checksum detects a line that a crash truncated; such lines are skipped. In a bucket, where objects
cannot be appended to, the journal is a series of objects. A finished region that the journal lacks is made again.
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
    """A finished region: bytes of its files, a checksum of their sizes, and the missing chunks that it read."""

    number: int
    size: int
    """Bytes of all its files."""
    sizes: int
    """CRC of the files' sizes."""
    holes: tuple[str, ...] = ()
    ids: tuple[tuple[str, tuple[int, ...]], ...] | None = None
    """For each set of requested ids, the ones that the region contains and no earlier region did; None if no ids were
    requested, or the ids are unknown."""

    def line(self, run: str) -> bytes:
        """Return the line of the journal."""
        notes = list(self.holes) if self.ids is None else {"holes": self.holes, "ids": dict(self.ids)}
        text = f"{run} {self.number} {self.size} {self.sizes:08x} {json.dumps(notes)}"
        return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()

    @classmethod
    def parse(cls, line: bytes, run: str) -> Entry | None:
        """Return the entry of a line, or None if the line is of another run or truncated."""
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
    """Return the checksum of the sizes of a region's files."""
    return zlib.crc32(",".join(map(str, sizes)).encode())


class Progress:
    """The finished regions, in a few bytes each."""

    def __init__(self, regions: int) -> None:
        self.done = np.zeros(regions, np.bool_)
        self.bytes = np.zeros(regions, np.int64)
        self.sizes = np.zeros(regions, np.uint32)
        self.holes: set[str] = set()
        self.ids: dict[str, set[int]] = {}
        """Requested ids that the finished regions contain."""
        self.all_ids = True
        """Whether the ids of each finished region are known."""

    def note(self, entry: Entry) -> None:
        """Record a finished region."""
        if 0 <= entry.number < len(self.done):
            self.done[entry.number] = True
            self.bytes[entry.number] = entry.size
            self.sizes[entry.number] = entry.sizes
            self.holes.update(entry.holes)
            self.all_ids &= entry.ids is not None
            for name, found in entry.ids or ():
                self.ids.setdefault(name, set()).update(found)

    def forget(self, number: int) -> None:
        """Mark a region as unfinished."""
        self.done[number] = False


class ManifestStore(Protocol):
    """The manifest and journal of one target, on a disk or in a bucket."""

    def load(self) -> Header | None:
        """Return the header, None if there is no manifest."""

    def save(self, header: Header) -> None:
        """Replace the header, atomically."""

    def entries(self, run: str) -> Iterator[Entry]:
        """Iterate over the journal of a run."""

    def append(self, run: str, entry: Entry) -> None:
        """Add an entry to the journal; it is durable after `flush`."""

    def flush(self) -> None:
        """Make the added entries durable."""

    def remove(self) -> None:
        """Remove manifest and journal."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other processes from this target."""

    def check(self) -> None:
        """Raise `TargetError` if another process has taken the target over."""

    def ensure(self) -> None:
        """Do the same unless a recent check succeeded; called before each change."""

    def holder(self) -> str:
        """Return which other process is exporting to this target, in words; empty if none is."""


class LocalManifest:
    """A manifest in a folder; the journal file is locked while an export runs."""

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
        """Read the journal."""
        try:
            with _no_folder(self.base + ".log"), open(self.base + ".log", "rb") as file:
                for line in file:
                    entry = Entry.parse(line.rstrip(b"\n"), run)
                    if entry is not None:
                        yield entry
        except FileNotFoundError:
            return

    def append(self, run: str, entry: Entry) -> None:
        """Write a line to the kernel's buffers, where it survives a kill of this process."""
        assert self._log is not None, "the manifest is not locked"
        os.write(self._log, entry.line(run))

    def flush(self) -> None:
        """Flush the journal to the disk."""
        if self._log is not None:
            os.fsync(self._log)

    def remove(self) -> None:
        """Remove both files."""
        for end in (".json", ".log"):
            if os.path.exists(self.base + end):
                os.unlink(self.base + end)
        if os.path.basename(os.path.dirname(self.base)).startswith("."):
            with suppress(OSError):  # the folder may contain manifests of other stacks
                os.rmdir(os.path.dirname(self.base))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the journal file; the system releases the lock when the process ends, however it ends."""
        with _no_folder(self.base + ".log"):
            self._log = _locked_file(self.base + ".log")
        try:
            # separates a line that a crash truncated from the next one
            if os.fstat(self._log).st_size:
                os.write(self._log, b"\n")
            yield
        finally:
            os.close(self._log)
            self._log = None

    def check(self) -> None:
        """Do nothing: a live process keeps its file lock."""

    def ensure(self) -> None:
        """Do nothing: a live process keeps its file lock."""

    def holder(self) -> str:
        """Return which other process has locked the journal file."""
        return "" if self._log is not None else lock_holder(self.base + ".log")


def _locked_file(path: str) -> int:
    while True:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except FileNotFoundError:  # another process removed the empty folder
            continue
        try:
            lock(handle, path)
            # the process that held the lock before may have removed the file
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
            f"{path} is a folder, but the export needs this name for a file of its manifest; remove the folder, or "
            "choose another target"
        ) from None


@dataclass
class ManifestWatch:
    """A check by workers, which hold no lease, that their export still runs, by its manifest.

    The process that started the export may die, and another export may start or even complete, before a worker has
    finished its region.

    Parameters
    ----------
    url, name : str
        Folder and name of the manifest.
    run, phase : str
        Run and phase in the manifest when the region was submitted.
    work : str, optional
        The work folder of the export, which no other export writes to.
    """

    VALID_SECONDS: ClassVar[float] = 2.0
    """Seconds for which the result of a check is reused."""

    url: str
    name: str
    run: str
    phase: str
    work: str | None = None
    _confirmed: float = 0.0

    def ensure(self) -> None:
        """Check unless the last check is recent."""
        if abs(time.time() - self._confirmed) > self.VALID_SECONDS:
            self.check()

    def check(self) -> None:
        """Read the manifest; raise `TargetError` if the export has ended or another one has started."""
        requested = time.time()
        place = f"{self.url}/{self.name}.json"
        text = Bucket(self.url).get(self.name + ".json")
        now = None if text is None else Header.parse(text, place)
        if now is not None and (now.run, now.phase) == (self.run, self.phase) and not now.replaced:
            self._confirmed = requested
            return
        if self.work is not None and (now is None or now.run != self.run or now.phase == "finished"):
            leftover = Bucket(self.work)  # files that workers wrote after the work folder was removed
            leftover.delete(list(leftover.names()))
        change = "was removed" if now is None else "shows that this export ended or another one started"
        raise TargetError(f"{place} {change}: the region that a worker was still processing is not written", taken=True)


class BucketManifest:
    """A manifest in a bucket; a `Lease` excludes other processes while an export runs."""

    EVERY = 15.0
    """Seconds between uploads of the journal: a crash loses the entries of this time at most."""

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
        """Download the journal."""
        for key in self._pieces():
            for line in (self.bucket.get(key) or b"").splitlines():
                entry = Entry.parse(line, run)
                if entry is not None:
                    yield entry

    def append(self, run: str, entry: Entry) -> None:
        """Add a line, and upload the buffered lines if the last upload is long ago."""
        self.ensure()
        self._lines.append(entry.line(run))
        if time.monotonic() - self._last > self.EVERY:
            self.flush()

    def flush(self) -> None:
        """Upload the buffered lines."""
        self._last = time.monotonic()
        if self._lines:
            key = f"{self.name}.log/manifest-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
            self.bucket.put([(key, b"".join(self._lines))])
            self._lines = []

    def remove(self) -> None:
        """Delete manifest and journal."""
        self.bucket.delete([self.name + ".json", *self._pieces()])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lease; at the end upload the rest of the journal if the lease is still held."""
        with self._lease.hold():
            try:
                yield
            finally:
                if not self._lease.is_lost():
                    self.flush()

    def check(self) -> None:
        """Raise `TargetError` if another process holds the lease."""
        self._lease.check()

    def ensure(self) -> None:
        """Do the same, without a request while the last renewal is recent."""
        self._lease.ensure()

    def holder(self) -> str:
        """Return which other live process holds the lease; this waits for half a minute if the holder is dead."""
        return self._lease.live_holder()
