"""Write an unfinished result to a work folder and publish it at its final place, on a disk or in a bucket.

On a local disk, files are written to the work folder ``<target>.manifest-work-…`` beside the target and renamed at the
end, so that the target is always either the old data or the new. Buckets cannot rename. If nothing was at the target,
objects are written to their final place, and the metadata that make the result readable come last. If something was,
objects are collected in a work folder and copied when all exist.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from imageryxr.core.units import show_bytes
from imageryxr.core.write_file import FULL, disk_problem
from imageryxr.errors import Message, TargetError, warn
from imageryxr.export.commit.manifest import Header, open_place
from imageryxr.export.store.bucket import Bucket, Place, Watch
from imageryxr.export.store.lease import WorkerWatch
from imageryxr.export.store.local import Folder, is_remote, move_into_place, sync
from imageryxr.export.targets.base import COARSER, SingleFile, Target

# Compression ratio above which a warning doubts that the export fits on the disk.
MAX_COMPRESSION = 20


class Site(ABC):
    """The work folder and the final place of an export.

    Parameters
    ----------
    target : Target
    base : str
        Path of the manifest without its ending.
    watch : Watch
        Checks that this process still owns the target.
    """

    def __init__(self, target: Target, base: str, watch: Watch) -> None:
        self._target, self._base, self._watch = target, base, watch

    def existing_files(self) -> list[str]:
        """Return the existing files of the target."""
        root = self._target.root
        if self._target.kind == "files":
            size = self.final.size_lookup()
            return [f"{root}/{key}" for key in self._target.identifying_keys() if size(key) is not None]
        # listing a prefix does not find a single object
        is_object = self._target.kind == "single" and is_remote(root)
        there = self.file_size() is not None if is_object else self.final.exists()
        return [root] if there else []

    def work(self, header: Header) -> str:
        """Return the work folder of an export."""
        return f"{self._base}-work-{header.run}"

    def file_size(self) -> int | None:
        """Return the bytes of the file of a single-file target, None if there is none."""
        folder, _, name = self._target.root.rpartition("/")
        return open_place(folder).size(name)

    @property
    def final(self) -> Place:
        """The folder or prefix that the target's keys are relative to after publishing."""
        return open_place(self._target.root, self._watch)

    @abstractmethod
    def data(self, header: Header) -> Place:
        """Return the folder or prefix that contains the files of regions."""

    def can_continue(self, header: Header) -> bool:
        """Return whether the files of an unfinished export may still exist."""
        return True

    @abstractmethod
    def check_writable(self, takes: int) -> None:
        """Raise `TargetError` if nothing can be written; leave nothing behind.

        Warn if the disk may be too small for `takes`, the bytes of all voxels before compression.
        """

    @property
    def _probe(self) -> str:
        """A new name for a file that is written and removed."""
        return f"{self._base.rpartition('/')[2]}-probe-{uuid.uuid4().hex[:8]}"

    def prepare(self, header: Header) -> None:  # noqa: B027 - in a bucket, prefixes are not created
        """Create the work folder, and remove incomplete files of a killed run."""

    @abstractmethod
    def assemble(self, header: Header, target: SingleFile) -> int:
        """Write the file of a single-file target into the work folder; return its bytes."""

    def check_complete(self, header: Header, keys: Callable[[], Iterator[str]]) -> None:  # noqa: B027 - see `publish`
        """Raise `TargetError` if the work folder lacks one of the files, whose keys are all different."""

    @abstractmethod
    def publish(self, header: Header, keys: Callable[[], Iterator[str]]) -> None:
        """Publish the complete result, which has files of these keys. It may be called again after a kill."""

    @abstractmethod
    def unexpected_files(self, header: Header) -> list[str]:
        """Return files at the final place of an export in phase "publishing" that it did not write."""

    def remove_files(self, keys: list[str]) -> None:
        """Remove files from the final place."""
        self.final.delete(keys)

    @abstractmethod
    def remove_work(self, header: Header) -> None:
        """Remove the work folder."""

    def remove_leftovers(self, header: Header) -> None:  # noqa: B027 - on a disk, locks exclude other processes
        """Remove collected files of an export that another process has completed or replaced."""

    @abstractmethod
    def remove_earlier(self, before: Header | None) -> None:
        """Remove the work folders of earlier, unfinished exports of this target."""


class DiskSite(Site):
    """The site of an export on a local disk."""

    def data(self, header: Header) -> Folder:
        """Return the work folder's data, or the target once it is finished."""
        scratch = os.path.join(self.work(header), "new")
        settled = header.phase == "finished"
        return Folder(self._target.root if settled else os.path.join(self.work(header), "data"), scratch)

    def can_continue(self, header: Header) -> bool:
        """Return whether the work folder exists."""
        return os.path.isdir(self.work(header))

    def check_writable(self, takes: int) -> None:
        """Create and remove a file beside the manifest, and compare the free space."""
        place, folder = self._target.place, self._base.rpartition("/")[0] or "/"
        while not os.path.isdir(folder):
            if os.path.lexists(folder) and not os.path.isdir(folder):  # another process may have created it just now
                what = "a symbolic link without a target" if os.path.islink(folder) else "a file"
                raise TargetError(f"could not write {place}: {folder} is {what}, not a folder")
            folder = os.path.dirname(folder)
        try:
            path = os.path.join(folder, self._probe)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            with suppress(FileNotFoundError):  # another export that starts here removes probes
                os.unlink(path)
        except OSError as error:
            # /proc reports "no such file" for an existing folder, so the message names the folder
            reason, advice = disk_problem(error)
            raise TargetError(
                f"could not write {place}: no file can be created in the folder {folder} ({reason}); {advice}, or "
                "choose another target",
                full=error.errno in FULL,
            ) from error
        _check_free_space(shutil.disk_usage(folder).free, takes, self._target, folder)

    def prepare(self, header: Header) -> None:
        """Create the work folder, and remove incomplete files, which still have temporary names."""
        for part in ("data", "new", "out"):
            os.makedirs(os.path.join(self.work(header), part), exist_ok=True)
        new = os.path.join(self.work(header), "new")
        incomplete = [os.path.join(new, name) for name in os.listdir(new)]
        for path in (*incomplete, *self._bookkeeping_files(r"-(probe-[0-9a-f]{8}|[0-9a-f]{8}\.json)")):
            with suppress(OSError):
                os.unlink(path)

    def assemble(self, header: Header, target: SingleFile) -> int:
        """Write the file into the work folder; return its bytes."""
        path = os.path.join(self.work(header), "out", os.path.basename(target.root))
        target.assemble(self.data(header), path)
        sync(path)
        return os.path.getsize(path)

    def check_complete(self, header: Header, keys: Callable[[], Iterator[str]]) -> None:
        """Count the files, which is faster than a look at each on network disks; look only if some are missing."""
        data = self.data(header)
        if sum(1 for _ in data.names()) < sum(1 for _ in keys()):
            lost = next((key for key in keys() if data.size(key) is None), None)
            if lost is not None:
                raise _lost_error(self._target.place, f"{data.url}/{lost}")

    def publish(self, header: Header, keys: Callable[[], Iterator[str]]) -> None:
        """Rename the result to its final place."""
        move_into_place(self._renames(header), f"{self.work(header)}/aside")

    def unexpected_files(self, header: Header) -> list[str]:
        """Return existing files at the final path of files that were not renamed yet."""
        return [to for piece, to in self._renames(header) if os.path.lexists(piece) and os.path.lexists(to)]

    def _renames(self, header: Header) -> list[tuple[str, str]]:
        work, root = self.work(header), self._target.root
        if header.kind == "tree":
            return [(f"{work}/data", root)]
        if header.kind == "single":
            return [(f"{work}/out/{os.path.basename(root)}", root)]
        done = Folder(f"{work}/data", work)
        return [(f"{work}/data/{key}", f"{root}/{key}") for key in sorted(done.names())]

    def remove_files(self, keys: list[str]) -> None:
        """Remove files, and the folders that become empty."""
        super().remove_files(keys)
        for folder in sorted({os.path.dirname(key) for key in keys} - {""}, key=len, reverse=True):
            with suppress(OSError):  # the folder contains other files
                os.rmdir(os.path.join(self._target.root, folder))

    def remove_work(self, header: Header) -> None:
        """Remove the work folder."""
        shutil.rmtree(self.work(header), ignore_errors=True)

    def remove_earlier(self, before: Header | None) -> None:
        """Remove all work folders of this target. This process has its lock, so no other process uses them."""
        for path in self._bookkeeping_files("-work-[0-9a-f]{12}"):
            shutil.rmtree(path, ignore_errors=True)

    def _bookkeeping_files(self, end: str) -> list[str]:
        """Return the files and folders beside the manifest whose names have this ending."""
        folder, _, name = self._base.rpartition("/")
        found = [n for n in os.listdir(folder or "/") if re.fullmatch(re.escape(name) + end, n)]
        return [os.path.join(folder or "/", n) for n in found]


@dataclass
class ManifestWatch(WorkerWatch):
    """Checks, by the manifest, that the export of a worker still runs; workers hold no lease."""

    url: str
    name: str
    run: str
    phase: str
    """Run and phase in the manifest when the region was submitted."""
    work: str | None = None
    """The work folder of the export, which no other export writes to."""

    def confirm(self) -> None:
        """Read the manifest; raise `TargetError` if the export has ended or another one has started."""
        place = f"{self.url}/{self.name}.json"
        text = Bucket(self.url).get(self.name + ".json")
        now = None if text is None else Header.parse(text, place)
        if now is not None and (now.run, now.phase) == (self.run, self.phase) and not now.replaced:
            return
        if self.work is not None and (now is None or now.run != self.run or now.phase == "finished"):
            Bucket(self.work).clear()  # files that workers wrote after the work folder was removed
        change = "was removed" if now is None else "shows that this export ended or another one started"
        raise TargetError(f"{place} {change}: the region that a worker was still processing is not written", taken=True)


class BucketSite(Site):
    """The site of an export in a bucket."""

    def _bucket(self, url: str) -> Bucket:
        return Bucket(url, self._watch)

    def check_writable(self, takes: int) -> None:
        """Check that the server supports conditional writes."""
        Bucket(self._base.rpartition("/")[0]).check_conditional_writes(self._probe)

    def data(self, header: Header) -> Bucket:
        """Return the work folder's data, or the target's prefix if it is finished or nothing was there before."""
        settled = header.phase == "finished" or header.direct
        folder, _, name = self._base.rpartition("/")
        run = ManifestWatch(folder, name, header.run, header.phase, None if settled else self.work(header))
        place = Bucket(self._target.root if settled else f"{self.work(header)}/data", self._watch, run)
        return replace(place, run=header.run) if settled else place

    def assemble(self, header: Header, target: SingleFile) -> int:
        """Write the file to a local temporary folder, and upload it to the work folder; return its bytes."""
        name = target.root.rpartition("/")[2]
        with tempfile.TemporaryDirectory(prefix="imageryxr-") as folder:
            path = os.path.join(folder, name)
            target.assemble(self.data(header), path)
            self._bucket(f"{self.work(header)}/out").upload(path, name)
            return os.path.getsize(path)

    def publish(self, header: Header, keys: Callable[[], Iterator[str]]) -> None:
        """Copy the collected objects. The metadata that make them readable are removed first and written last."""
        last = self._target.commit()
        final = self._bucket(self._target.root)
        if not header.direct:
            source = Bucket(f"{self.work(header)}/{'out' if header.kind == 'single' else 'data'}")
            folder, _, name = self._target.root.rpartition("/")
            if header.kind == "single":
                final = self._bucket(folder)
            fresh = source.sizes()
            needed = iter([name]) if header.kind == "single" else keys()
            lost = next((key for key in needed if key.removesuffix(".gz") not in fresh), None)
            if lost is not None:
                raise _lost_error(self._target.place, f"{source.url}/{lost}")
            # without these files, no reader opens a mixture of the old and the new
            stale = set(final.names()) if header.kind == "tree" else set()
            final.delete(k for k in last if k in stale)
            for key, size in fresh.items():
                source.copy(key, final, size)
            final.delete(sorted(stale - fresh.keys()))
        final.put(last.items())

    def unexpected_files(self, header: Header) -> list[str]:
        """Return the file of a single-file target if its size differs from the result's; nothing for other targets."""
        mine = header.kind != "single" or self.file_size() in (None, header.result)
        return [] if mine else [self._target.root]

    def remove_work(self, header: Header) -> None:
        """Remove the collected objects."""
        if not header.direct:
            self._bucket(self.work(header)).clear()

    def remove_earlier(self, before: Header | None) -> None:
        """Remove the objects that the previous export collected."""
        if before is not None:
            self._bucket(self.work(before)).clear()

    def remove_leftovers(self, header: Header) -> None:
        """Remove the collected objects without a check of ownership: no other export uses this work folder."""
        Bucket(self.work(header)).clear()


def _lost_error(place: str, file: str) -> TargetError:
    return TargetError(
        f"{place} is not complete: {file} was removed by another program during the export; what was at the target "
        "before is untouched, and the same call restores the missing files"
    )


def _check_free_space(free: int, takes: int, target: Target, folder: str) -> None:
    # a single file is assembled from files of its slices, so both exist at once
    least = takes * (2 if target.kind == "single" else 1)
    if target.is_uncompressed and least > free:
        raise TargetError(
            f"could not write {target.place}: it needs {show_bytes(least)}; {show_bytes(free)} are free in {folder}"
        )
    if takes > MAX_COMPRESSION * free:
        warn(
            Message(
                f"{target.place} needs {show_bytes(takes)} before compression; {show_bytes(free)} are free in ",
                f"{folder}, which suffices only at a compression ratio of {math.ceil(takes / max(1, free)):,}; ",
                *("choose another disk, a smaller box, or ", COARSER),
            )
        )


def open_site(target: Target, base: str, watch: Watch) -> Site:
    """Return the site of a target."""
    return (BucketSite if is_remote(target.root) else DiskSite)(target, base, watch)
