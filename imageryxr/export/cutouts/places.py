"""Places of cutouts: a folder on a disk or a prefix of a bucket, whose complete files are the journal of the export."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from imageryxr.errors import TargetError
from imageryxr.export.commit.manifest import open_lock
from imageryxr.export.store.bucket import Bucket
from imageryxr.export.store.lease import Lease, WorkerWatch
from imageryxr.export.store.local import HIDDEN, FileRecord, Folder, disk_errors, is_remote, replaced_file


@dataclass(frozen=True)
class CutoutFolder(Folder):
    """A local folder in which each file is complete or absent. Files are not flushed to the disk one by one."""

    def put(self, files: Iterable[tuple[str, bytes]]) -> dict[str, FileRecord]:
        """Write files under temporary names, then rename them."""
        records = {}
        for key, data in files:
            with replaced_file(Path(self.root, key), self.scratch) as temporary:
                temporary.write_bytes(data)
            records[key] = FileRecord.of(data)
        return records

    def get_start(self, key: str, size: int) -> bytes | None:
        """Return the first `size` bytes of a file; None if there is no file, and no bytes if it is a folder."""
        path = os.path.join(self.root, key)
        try:
            with open(path, "rb") as file:
                return file.read(size)
        except OSError:
            return b"" if os.path.lexists(path) else None

    def clear(self) -> None:
        """Remove the folder, or the file in its place."""
        with disk_errors(self.root):
            if os.path.isdir(self.root) and not os.path.islink(self.root):
                shutil.rmtree(self.root)
            elif self.exists():
                os.unlink(self.root)

    def begin(self) -> None:
        """Create the folder of incomplete files; writing fails without it."""
        with disk_errors(self.root):
            shutil.rmtree(self.scratch, ignore_errors=True)
            os.makedirs(self.scratch)

    def move(self, final: CutoutFolder) -> None:
        """Move the folder to its final place, and remove what was there."""
        final.clear()
        with disk_errors(final.root):
            os.replace(self.root, final.root)

    def end(self) -> None:
        """Remove the folder of incomplete files."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        with suppress(OSError):  # the hidden folder has other files
            os.rmdir(os.path.dirname(self.scratch))


CutoutPlace = CutoutFolder | Bucket


@dataclass
class MarkerWatch(WorkerWatch):
    """A check by workers, which hold no lease, that their export still runs, by the object that identifies it."""

    url: str
    marker: str
    """The object below `url` that identifies the export, see `CutoutSite.marker`."""
    content: bytes
    """The content of this object while the export runs."""

    def confirm(self) -> None:
        """Read the object; raise `TargetError` if the export has ended or another one has started."""
        if Bucket(self.url).get(self.marker) != self.content:
            raise TargetError(
                f"{self.url}/{self.marker} was removed or replaced: this export ended or another one started, and the "
                "cutouts that a worker was still processing are not written",
                taken=True,
            )


def split_place(place: str) -> tuple[str, str]:
    """Return the folder of a path, URL or pattern, and the name in it, which may be a pattern."""
    place = place.rstrip("/") if is_remote(place) else os.path.abspath(place)
    folder = place.partition("{")[0].rpartition("/")[0]
    name = place[len(folder) + 1 :]
    if folder.endswith(":/"):
        raise TargetError(f"{place} is a whole bucket; give a path in it, such as s3://bucket/{name.strip('/')}")
    return folder, name


class CutoutSite:
    """Where an export of cutouts writes: the folder of its target, on a disk or in a bucket.

    `token` identifies the export.
    """

    def __init__(self, folder: str, name: str, token: str) -> None:
        self.folder, self.name, self.token = folder, name, token
        lock = f"{HIDDEN}/cutouts-{hashlib.sha256(name.encode()).hexdigest()[:12]}.lock"
        self._lock = open_lock(folder, lock)

    @property
    def is_remote(self) -> bool:
        """Whether the target is in a bucket."""
        return isinstance(self._lock, Lease)

    @property
    def marker(self) -> str:
        """The file in the place of the cutouts that identifies the export."""
        return f"{HIDDEN}/cutouts-{self.token[:12]}"

    def hold_lock(self) -> AbstractContextManager[None]:
        """Exclude other exports to the target; raise `TargetError` if another process is exporting to it."""
        return self._lock.hold()

    def open(self, name: str = "") -> CutoutPlace:
        """Return the folder, or another folder in it."""
        url = f"{self.folder}/{name}".rstrip("/") or "/"
        if isinstance(self._lock, Lease):
            return Bucket(url, self._lock, MarkerWatch(url, self.marker, self.token.encode()))
        return CutoutFolder(url, f"{url}/{HIDDEN}/new-{self.token[:12]}")

    def open_work(self) -> CutoutPlace:
        """Return the folder for cutouts that are not published one by one."""
        return self.open(f"{HIDDEN}/{self.name}-{self.token[:12]}")
