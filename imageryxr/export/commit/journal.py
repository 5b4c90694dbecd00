"""The manifest and the journal of an export: which call it is, and which regions are finished.

``<target>.manifest.json`` names the call and its phase: "writing" regions, "publishing" the result, or "finished". The
file is replaced as a whole. ``<target>.manifest.log``, the journal, has a line for each finished region, with the size
and the checksum of each of its files. The line is written after the files. Lines that a crash truncated are not JSON
and are skipped; their regions are made again. In a bucket, where objects cannot be appended to, the journal is a series
of objects.
"""

from __future__ import annotations

import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import numpy as np

from imageryxr.errors import TargetError
from imageryxr.export.commit.manifest import Header
from imageryxr.export.store.bucket import Bucket
from imageryxr.export.store.lease import Lease
from imageryxr.export.store.local import FileRecord, Folder, TargetLock


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A finished region: its files, and the missing chunks that it read."""

    number: int
    files: dict[str, FileRecord]
    """The size and the checksum of each file."""
    holes: tuple[str, ...] = ()
    ids: dict[str, tuple[int, ...]] | None = None
    """For each set of requested ids, the ones that the region contains and no earlier region did; None if no ids were
    requested, or the ids are unknown."""
    run: str = ""
    """The run that made the region; the journal sets it."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files.values())

    def line(self, run: str) -> bytes:
        """Return the line of the journal."""
        return msgspec.json.encode(msgspec.structs.replace(self, run=run)) + b"\n"

    @classmethod
    def parse(cls, line: bytes, run: str) -> Entry | None:
        """Return the entry of a line, or None if the line is of another run or truncated."""
        try:
            entry = msgspec.json.decode(line, type=cls)
        except (msgspec.MsgspecError, ValueError):
            return None
        return entry if entry.run == run else None


class Progress:
    """The finished regions, in a few bytes each."""

    def __init__(self, regions: int) -> None:
        self.done = np.zeros(regions, np.bool_)
        self.holes: set[str] = set()
        self.ids: dict[str, set[int]] = {}
        """Requested ids that the finished regions contain."""
        self.all_ids = True
        """Whether the ids of each finished region are known."""

    def note(self, entry: Entry) -> None:
        """Record a finished region."""
        if 0 <= entry.number < len(self.done):
            self.done[entry.number] = True
            self.holes.update(entry.holes)
            self.all_ids &= entry.ids is not None
            for name, found in (entry.ids or {}).items():
                self.ids.setdefault(name, set()).update(found)


class ManifestStore(ABC):
    """The manifest and journal of one target, on a disk or in a bucket.

    Parameters
    ----------
    base : str
        Path or URL of the manifest without its ending.
    """

    def __init__(self, base: str) -> None:
        self.base = base

    def load(self) -> Header | None:
        """Return the header, None if there is no manifest."""
        text = self._read()
        return None if text is None else Header.parse(text, f"{self.base}.json")

    def entries(self, run: str) -> Iterator[Entry]:
        """Iterate over the journal of a run."""
        found = (Entry.parse(line, run) for line in self._lines())
        return (entry for entry in found if entry is not None)

    @abstractmethod
    def _read(self) -> bytes | None:
        """Return the text of the manifest, None if there is none."""

    @abstractmethod
    def _lines(self) -> Iterable[bytes]:
        """Return the lines of the journal."""

    @abstractmethod
    def save(self, header: Header) -> None:
        """Replace the header, atomically."""

    def saved(self) -> float:
        """Return the time of the last `save`, by the clock of the files' modification times; infinity if unknown."""
        return float("inf")

    @abstractmethod
    def append(self, run: str, entry: Entry) -> None:
        """Add an entry to the journal; it is durable after `flush`."""

    @abstractmethod
    def flush(self) -> None:
        """Make the added entries durable."""

    @abstractmethod
    def remove(self) -> None:
        """Remove manifest and journal."""

    @abstractmethod
    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other processes from this target."""

    def check(self) -> None:  # noqa: B027 - on a disk, none can
        """Raise `TargetError` if another process has taken the target over."""

    def ensure(self) -> None:  # noqa: B027
        """Do the same unless a recent check succeeded; called before each change."""

    @abstractmethod
    def holder(self) -> str:
        """Return which other process is exporting to this target, in words; empty if none is."""


class LocalManifest(ManifestStore):
    """A manifest in a folder; a lock file beside it is locked while an export runs."""

    def __init__(self, base: str) -> None:
        super().__init__(base)
        self._lock = TargetLock(f"{base}.lock")
        self._log: int | None = None

    def _read(self) -> bytes | None:
        folder, name = os.path.split(self.base + ".json")
        with _no_folder(self.base + ".json"):
            return Folder(folder, folder).get(name)

    def _lines(self) -> Iterator[bytes]:
        with suppress(FileNotFoundError), _no_folder(self.base + ".log"), open(self.base + ".log", "rb") as file:
            yield from file

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

    def saved(self) -> float:
        """Return the modification time of the manifest."""
        return os.path.getmtime(self.base + ".json")

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
            with suppress(FileNotFoundError):
                os.unlink(self.base + end)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the target; the system releases the lock when the process ends, however it ends."""
        with self._lock.hold(), _no_folder(self.base + ".log"):
            self._log = os.open(self.base + ".log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                # separates a line that a crash truncated from the next one
                if os.fstat(self._log).st_size:
                    os.write(self._log, b"\n")
                yield
            finally:
                os.close(self._log)
                self._log = None

    def holder(self) -> str:
        """Return which other process has locked the target."""
        return "" if self._log is not None else self._lock.holder()


@contextmanager
def _no_folder(path: str) -> Iterator[None]:
    try:
        yield
    except (IsADirectoryError, PermissionError):  # Windows denies the permission to open a folder
        if not os.path.isdir(path):
            raise
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
            Bucket(self.work).clear()  # files that workers wrote after the work folder was removed
        change = "was removed" if now is None else "shows that this export ended or another one started"
        raise TargetError(f"{place} {change}: the region that a worker was still processing is not written", taken=True)


class BucketManifest(ManifestStore):
    """A manifest in a bucket; a `Lease` excludes other processes while an export runs."""

    EVERY = 15.0
    """Seconds between uploads of the journal: a crash loses the entries of this time at most."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(f"{url}/{name}")
        self.name = name
        self._buffered: list[bytes] = []
        self._last = time.monotonic()
        self._lease = Lease(Bucket(url, fresh=True), f"{name}.lock")
        self.bucket = Bucket(url, self._lease, fresh=True)

    def _read(self) -> bytes | None:
        return self.bucket.get(self.name + ".json")

    def save(self, header: Header) -> None:
        """Upload the header."""
        self.ensure()
        self.bucket.put([(self.name + ".json", header.to_bytes())])

    def _pieces(self) -> list[str]:
        return sorted(f"{self.name}.log/{key}" for key in Bucket(f"{self.base}.log").names())

    def _lines(self) -> Iterator[bytes]:
        for key in self._pieces():
            yield from (self.bucket.get(key) or b"").splitlines()

    def append(self, run: str, entry: Entry) -> None:
        """Add a line, and upload the buffered lines if the last upload is long ago."""
        self.ensure()
        self._buffered.append(entry.line(run))
        if time.monotonic() - self._last > self.EVERY:
            self.flush()

    def flush(self) -> None:
        """Upload the buffered lines."""
        self._last = time.monotonic()
        if self._buffered:
            key = f"{self.name}.log/manifest-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
            self.bucket.put([(key, b"".join(self._buffered))])
            self._buffered = []

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
