"""The manifest and the journal of an export: which call it is, and which regions are finished.

``<target>.manifest.json`` names the call and its phase: "writing" regions, "publishing" the result, or "finished". The
file is replaced as a whole, and `msgspec` validates every value that is read. ``<target>.manifest.log``, the journal,
has a line for each finished region, with the size and the checksum of each of its files. The line is written after the
files. Lines that a crash truncated are not JSON and are skipped; their regions are made again. In a bucket, where
objects cannot be appended to, the journal is a series of objects.
"""

from __future__ import annotations

import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta

from imageryxr.core.bbox import Index3
from imageryxr.errors import ImageryError, ManifestError, Message, TargetError, param
from imageryxr.export.store.bucket import Bucket, Place, Watch
from imageryxr.export.store.lease import Lease
from imageryxr.export.store.local import FileRecord, Folder, TargetLock, is_remote

FORMAT: Final = 2
"""Part of the hash of a call, so that exports of another format are neither continued nor taken for complete."""
Phase = Literal["writing", "publishing", "finished"]
Kind = Literal["tree", "files", "single", "memory"]

Count = Annotated[int, Meta(ge=0)]
Voxels = Annotated[int, Meta(ge=1)]
# Limits beyond any volume, below which computations do not overflow.
Nanometres = Annotated[float, Meta(ge=-1e18, le=1e18)]
Slices = Annotated[int, Meta(ge=0, le=1 << 26)]
# Part of the name of a folder that is removed; "\Z", because "$" permits a line break.
Run = Annotated[str, Meta(pattern=r"^[0-9a-f]{12}\Z")]


class SliceNames(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The names of the files of a stack: a pattern, and the axis that it is filled in along."""

    pattern: str
    axis: Annotated[str, Meta(pattern=r"^[zyx]\Z")]
    count: Slices
    resolution: Nanometres
    offset: Nanometres
    run: Run | None = None
    """The run whose entries in the journal have the checksums of these files."""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a manifest."""

    token: str
    """Hash of sources, timestamps, arguments and the version of this format: equal for equal calls."""
    what: dict[str, Any]
    """The call in readable form: sources, format, options."""
    step: tuple[Voxels, Voxels, Voxels]
    first: tuple[Voxels, Voxels, Voxels]
    """The regions of the array: their size, and the size of the first one."""
    regions: Count
    """Number of regions, later stages included."""
    phase: Phase = "writing"
    replaces: bool = False
    """Whether what was at the target may be replaced."""
    direct: bool = False
    """Whether files are written to their final place, as in a bucket without an earlier result."""
    kind: Kind = "tree"
    """See `Target.kind`."""
    run: Run = msgspec.field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Identifies this export in the journal, which may have entries of earlier exports."""
    began: str = msgspec.field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    names: SliceNames | None = None
    """The names of the files, for targets that share their folder: see `Target.names`."""
    outdated: tuple[SliceNames, ...] = ()
    """The `names` of exports that this one replaces. Files that only they have are removed when it is complete."""
    result: Count | None = None
    """Bytes of the file, for targets of a single file."""
    coarse: Voxels = 1 << 20
    """Approximate voxels of a region of a pyramid's coarser levels."""
    replaced: str | None = None
    """Name of another export that replaced some files of this one, which is then incomplete."""
    format: Literal[2] = FORMAT

    def to_bytes(self) -> bytes:
        """Return the JSON text."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=1) + b"\n"

    @classmethod
    def parse(cls, text: bytes, where: str) -> Header:
        """Return the header in a manifest's text, or raise `ManifestError`."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise _invalid_manifest(where, str(error)) from None

    def check_regions(self, shape: Index3, granule: Index3, kind: str, where: str) -> None:
        """Raise `ManifestError` if the regions do not fit a target of this kind."""
        if self.kind != kind:
            raise _invalid_manifest(where, f"kind is {self.kind!r} and must be {kind!r}")
        for n, step, first, g in zip(shape, self.step, self.first, granule, strict=True):
            if first < n and (first % g or step % g):
                sizes = f"step {list(self.step)} and first {list(self.first)}"
                raise _invalid_manifest(where, f"{sizes} are not multiples of {granule}, the size of a stored object")

    def check_place(self, remote: bool, where: str) -> None:
        """Raise `ManifestError` if `direct` is set, but a target at this place is not written directly."""
        if self.direct and (not remote or self.kind == "single"):
            raise _invalid_manifest(where, "direct is true, which requires a target of several files in a bucket")


def _invalid_manifest(where: str, reason: str) -> ManifestError:
    return ManifestError(
        Message(
            f"{where} is not a manifest that this version can read ({reason}); give ",
            param("overwrite", True),
            " to start over and replace the target, or give another target",
        )
    )


# ---------------------------------------------------------------------------------------------------------
# the journal


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


# ---------------------------------------------------------------------------------------------------------
# manifests on a disk


def open_place(folder: str, watch: Watch | None = None, *, fresh: bool = False) -> Place:
    """Return a local folder or a prefix of a bucket."""
    return Bucket(folder, watch, fresh=fresh) if is_remote(folder) else Folder(folder, folder)


def open_lock(folder: str, name: str) -> TargetLock | Lease:
    """Return the lock of a name in a local folder, or its lease in a bucket."""
    return Lease(Bucket(folder, fresh=True), name) if is_remote(folder) else TargetLock(f"{folder}/{name}")


class ManifestStore(ABC):
    """The manifest and journal of a target, on a disk or in a bucket.

    `base` is their path without its ending; `lock` excludes other processes.
    """

    def __init__(self, folder: str, name: str) -> None:
        self.base, self.name = f"{folder}/{name}", name
        self.lock = open_lock(folder, f"{name}.lock")
        self.place = open_place(folder, self.lock, fresh=True)

    def load(self) -> Header | None:
        """Return the header, None if there is no manifest."""
        with _explain_unreadable(self.base + ".json"):
            text = self.place.get(self.name + ".json")
        return None if text is None else Header.parse(text, f"{self.base}.json")

    def entries(self, run: str) -> Iterator[Entry]:
        """Iterate over the journal of a run."""
        found = (Entry.parse(line, run) for line in self._lines())
        return (entry for entry in found if entry is not None)

    def remove(self) -> None:
        """Remove manifest and journal."""
        self.place.delete([self.name + ".json", *self._journal()])

    @abstractmethod
    def _journal(self) -> list[str]:
        """Return the files of the journal."""

    @abstractmethod
    def _lines(self) -> Iterable[bytes]:
        """Return the lines of the journal."""

    @abstractmethod
    def save(self, header: Header) -> None:
        """Replace the header, atomically."""

    def saved_at(self) -> float:
        """Return the time of the last `save`, by the clock of the files' modification times; infinity if unknown."""
        return float("inf")

    @abstractmethod
    def append(self, run: str, entry: Entry) -> None:
        """Add an entry to the journal; it is durable after `flush`."""

    @abstractmethod
    def flush(self) -> None:
        """Make the added entries durable."""

    @abstractmethod
    @contextmanager
    def hold_lock(self) -> Iterator[None]:
        """Exclude other processes from this target."""


class LocalManifest(ManifestStore):
    """A manifest in a folder; a lock file beside it is locked while an export runs."""

    _log: int | None = None

    def _journal(self) -> list[str]:
        return [self.name + ".log"]

    def _lines(self) -> Iterator[bytes]:
        log = self.base + ".log"
        with suppress(FileNotFoundError), _explain_unreadable(log), open(log, "rb") as file:
            yield from file

    def save(self, header: Header) -> None:
        """Replace the header."""
        temporary = f"{self.base}-{uuid.uuid4().hex[:8]}.json"
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

    def saved_at(self) -> float:
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

    @contextmanager
    def hold_lock(self) -> Iterator[None]:
        """Lock the target; the system releases the lock when the process ends, however it ends."""
        with self.lock.hold(), _explain_folder(self.base + ".log"):
            self._log = os.open(self.base + ".log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                # separates a line that a crash truncated from the next one
                if os.fstat(self._log).st_size:
                    os.write(self._log, b"\n")
                yield
            finally:
                os.close(self._log)
                self._log = None


@contextmanager
def _explain_folder(path: str) -> Iterator[None]:
    """Raise `TargetError` with advice if a folder has the path of a file of the manifest."""
    try:
        yield
    except (IsADirectoryError, PermissionError):  # Windows denies the permission to open a folder
        if not os.path.isdir(path):
            raise
        raise TargetError(
            f"{path} is a folder, but the export needs this name for a file of its manifest; remove the folder, or "
            "choose another target"
        ) from None


@contextmanager
def _explain_unreadable(path: str) -> Iterator[None]:
    """Raise `TargetError` with advice if a file of the manifest exists but cannot be read."""
    try:
        with _explain_folder(path):
            yield
    except (ImageryError, FileNotFoundError):
        raise
    except OSError as error:
        raise TargetError(
            f"{path} cannot be read ({error.strerror or error}); check its permissions, or choose another target"
        ) from error


# ---------------------------------------------------------------------------------------------------------
# manifests in a bucket


class BucketManifest(ManifestStore):
    """A manifest in a bucket; a `Lease` excludes other processes while an export runs."""

    EVERY = 15.0
    """Seconds between uploads of the journal: a crash loses the entries of this time at most."""

    def __init__(self, folder: str, name: str) -> None:
        super().__init__(folder, name)
        self._buffered: list[bytes] = []
        self._last = time.monotonic()

    def save(self, header: Header) -> None:
        """Upload the header."""
        self.place.put([(self.name + ".json", header.to_bytes())])

    def _journal(self) -> list[str]:
        return sorted(f"{self.name}.log/{key}" for key in Bucket(f"{self.base}.log").names())

    def _lines(self) -> Iterator[bytes]:
        for key in self._journal():
            yield from (self.place.get(key) or b"").splitlines()

    def append(self, run: str, entry: Entry) -> None:
        """Add a line, and upload the buffered lines if the last upload is long ago."""
        self.lock.ensure()
        self._buffered.append(entry.line(run))
        if time.monotonic() - self._last > self.EVERY:
            self.flush()

    def flush(self) -> None:
        """Upload the buffered lines."""
        self._last = time.monotonic()
        if self._buffered:
            key = f"{self.name}.log/manifest-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
            self.place.put([(key, b"".join(self._buffered))])
            self._buffered = []

    @contextmanager
    def hold_lock(self) -> Iterator[None]:
        """Hold the lease; at the end upload the rest of the journal if the lease is still held."""
        with self.lock.hold():
            try:
                yield
            finally:
                try:
                    self.lock.ensure()
                except TargetError:
                    pass  # the lease is lost
                else:
                    self.flush()


def open_manifest(folder: str, name: str) -> ManifestStore:
    """Return access to the manifest and journal of a name in a folder."""
    return (BucketManifest if is_remote(folder) else LocalManifest)(folder, name)
