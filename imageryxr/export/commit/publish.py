"""Where a result grows until it is whole, and how it comes to its place: on a disk and in a bucket.

On a local disk everything is written into ``<target>.manifest-work-…`` beside the target and renamed to its place at
the end: what is there is always either the old data or the new. A bucket knows no renaming: where nothing was before,
objects go to their place at once, and what makes the whole readable comes last; where something was, they are
collected beside it and copied over when all are there.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from imageryxr.errors import TargetError
from imageryxr.export.commit.journal import Run
from imageryxr.export.commit.manifest import Header
from imageryxr.export.plan.regions import Regions
from imageryxr.export.store.bucket import Bucket, Watch
from imageryxr.export.store.local import Folder, Place, is_remote, move_into_place, sync
from imageryxr.export.targets.base import Target


class Site(ABC):
    """The ground that an export works on.

    Parameters
    ----------
    target : Target
        What is written.
    base : str
        Folder and first part of the name of all bookkeeping.
    watch : Watch
        Knows whether the target is another process's meanwhile.
    """

    def __init__(self, target: Target, base: str, watch: Watch) -> None:
        self._target, self._base, self._watch = target, base, watch

    def existing(self) -> list[str]:
        """Return what is at the target."""
        root = self._target.root
        if self._target.kind == "files":
            size = self.final.size_of()
            return [f"{root}/{key}" for key in self._target.occupied() if size(key) is not None]
        return [root] if self._is_there() else []

    def work(self, header: Header) -> str:
        """Return where an export works that is not at its place yet."""
        return f"{self._base}-work-{header.run}"

    @abstractmethod
    def _is_there(self) -> bool:
        """Tell whether there is anything at the place of a target that has it for itself."""

    @property
    @abstractmethod
    def final(self) -> Place:
        """What the target's keys name files of, once the result is at its place."""

    @abstractmethod
    def file_size(self) -> int | None:
        """Return the bytes of the one file of a target of that kind, None where there is none."""

    @abstractmethod
    def data(self, header: Header) -> Place:
        """Return where the files of regions go, and are."""

    @abstractmethod
    def can_continue(self, header: Header) -> bool:
        """Tell whether what an unfinished export has written can be there still."""

    @abstractmethod
    def prepare(self, header: Header) -> None:
        """Make what an export works in, and remove what a run that was killed had not brought to its place."""

    @abstractmethod
    def assemble(self, header: Header, regions: Regions) -> int:
        """Make the one file of a target of that kind; return its bytes."""

    @abstractmethod
    def bring(self, header: Header, keys: Callable[[], Iterator[str]]) -> None:
        """Bring the complete result, files of these keys, to its place; once more, after a kill, it ends the same."""

    @abstractmethod
    def strange(self, header: Header) -> list[str]:
        """Return what is where the result of an export goes that was being brought there, and is none of its own."""

    def remove_files(self, keys: list[str]) -> None:
        """Remove files from the result's place."""
        self.final.delete(keys)

    @abstractmethod
    def remove_work(self, header: Header) -> None:
        """Remove what an export worked in."""

    def remove_left(self, header: Header) -> None:  # noqa: B027 - on a disk locks keep others out
        """Remove what an export had collected that another process has ended, or has replaced by another one."""

    @abstractmethod
    def remove_earlier(self, before: Header | None) -> None:
        """Remove what earlier exports of this target left unfinished."""


class DiskSite(Site):
    """On a local disk."""

    def _is_there(self) -> bool:
        return os.path.lexists(self._target.root)

    @property
    def final(self) -> Folder:
        """The target's folder."""
        return Folder(self._target.root, self._target.root)

    def file_size(self) -> int | None:
        """Ask the file system."""
        folder, _, name = self._target.root.rpartition("/")
        return Folder(folder, folder).size_of()(name)

    def data(self, header: Header) -> Folder:
        """Return the work folder's, until it is renamed."""
        scratch = os.path.join(self.work(header), "new")
        settled = header.phase == "finished"
        return Folder(self._target.root if settled else os.path.join(self.work(header), "data"), scratch)

    def can_continue(self, header: Header) -> bool:
        """Look for the work folder."""
        return os.path.isdir(self.work(header))

    def prepare(self, header: Header) -> None:
        """Make the work folder; what has only a temporary name in it is a half."""
        for part in ("data", "new", "out"):
            os.makedirs(os.path.join(self.work(header), part), exist_ok=True)
        new = os.path.join(self.work(header), "new")
        halves = [os.path.join(new, name) for name in os.listdir(new)]
        for path in (*halves, *self._beside(r"-(probe-[0-9a-f]{8}|[0-9a-f]{8}\.json)")):
            with suppress(OSError):
                os.unlink(path)

    def assemble(self, header: Header, regions: Regions) -> int:
        """Write the file beside its place."""
        path = os.path.join(self.work(header), "out", os.path.basename(self._target.root))
        self._target.assemble(regions, self.data(header), path)
        sync(path)
        return os.path.getsize(path)

    def bring(self, header: Header, keys: Callable[[], Iterator[str]]) -> None:
        """Rename."""
        move_into_place(self._moves(header), f"{self.work(header)}/aside")

    def strange(self, header: Header) -> list[str]:
        """Return what is where something goes that is not there yet."""
        return [to for piece, to in self._moves(header) if os.path.lexists(piece) and os.path.lexists(to)]

    def _moves(self, header: Header) -> list[tuple[str, str]]:
        work, root = self.work(header), self._target.root
        if header.kind == "tree":
            return [(f"{work}/data", root)]
        if header.kind == "single":
            return [(f"{work}/out/{os.path.basename(root)}", root)]
        done = Folder(f"{work}/data", work)
        return [(f"{work}/data/{key}", f"{root}/{key}") for key in sorted(done.names())]

    def remove_files(self, keys: list[str]) -> None:
        """Remove files, and the folders that held nothing else."""
        super().remove_files(keys)
        for folder in sorted({os.path.dirname(key) for key in keys} - {""}, key=len, reverse=True):
            with suppress(OSError):  # there is something else in it
                os.rmdir(os.path.join(self._target.root, folder))

    def remove_work(self, header: Header) -> None:
        """Remove the work folder."""
        shutil.rmtree(self.work(header), ignore_errors=True)

    def remove_earlier(self, before: Header | None) -> None:
        """Remove all work folders of this target: nobody else is at it, who would hold its lock."""
        for path in self._beside("-work-[0-9a-f]{12}"):
            shutil.rmtree(path, ignore_errors=True)

    def _beside(self, end: str) -> list[str]:
        """Return the bookkeeping whose names end like this."""
        folder, _, name = self._base.rpartition("/")
        found = [n for n in os.listdir(folder or "/") if re.fullmatch(re.escape(name) + end, n)]
        return [os.path.join(folder or "/", n) for n in found]


class BucketSite(Site):
    """In a bucket."""

    def _is_there(self) -> bool:
        if self._target.kind == "tree":
            return next(self.final.names(), None) is not None
        folder, _, name = self._target.root.rpartition("/")
        return Bucket(folder).get(name) is not None

    @property
    def final(self) -> Bucket:
        """The target's prefix."""
        return self._at(self._target.root)

    def _at(self, url: str) -> Bucket:
        return Bucket(url, self._watch)

    def file_size(self) -> int | None:
        """Ask the server."""
        folder, _, name = self._target.root.rpartition("/")
        return Bucket(folder).size_of()(name)

    def data(self, header: Header) -> Bucket:
        """Return the target's prefix at once where nothing was before."""
        settled = header.phase == "finished" or header.direct
        folder, _, name = self._base.rpartition("/")
        run = Run(folder, name, header.run, header.phase, None if settled else self.work(header))
        place = Bucket(self._target.root if settled else f"{self.work(header)}/data", self._watch, run)
        return replace(place, run=header.run) if settled else place

    def can_continue(self, header: Header) -> bool:
        """Look at nothing: a prefix needs not be made, and each object is looked for in any case."""
        return True

    def prepare(self, header: Header) -> None:
        """Do nothing: an object is there as a whole or not at all."""

    def assemble(self, header: Header, regions: Regions) -> int:
        """Write the file here, and upload it beside its place."""
        name = self._target.root.rpartition("/")[2]
        with tempfile.TemporaryDirectory(prefix="imageryxr-") as folder:
            path = os.path.join(folder, name)
            self._target.assemble(regions, self.data(header), path)
            self._at(f"{self.work(header)}/out").upload(path, name)
            return os.path.getsize(path)

    def bring(self, header: Header, keys: Callable[[], Iterator[str]]) -> None:
        """Copy, if it is not there; what makes it readable goes first and comes last."""
        last = self._target.commit()
        final = self.final
        if not header.direct:
            source = Bucket(f"{self.work(header)}/{'out' if header.kind == 'single' else 'data'}")
            folder, _, name = self._target.root.rpartition("/")
            if header.kind == "single":
                final = self._at(folder)
            fresh = source.sizes()
            needed = iter([name]) if header.kind == "single" else keys()
            lost = next((key for key in needed if key.removesuffix(".gz") not in fresh), None)
            if lost is not None:
                raise TargetError(_lost(self._target, f"{source.url}/{lost}"))
            # nothing opens it while it is neither the old nor the new
            stale = set(final.names()) if header.kind == "tree" else set()
            final.delete(k for k in last if k in stale)
            for key, size in fresh.items():
                source.copy(key, final, size)
            final.delete(sorted(stale - fresh.keys()))
        final.put(last.items())

    def strange(self, header: Header) -> list[str]:
        """Return one file that is there and has another size; other results go where nobody looks for anything."""
        mine = header.kind != "single" or self.file_size() in (None, header.result)
        return [] if mine else [self._target.root]

    def remove_work(self, header: Header) -> None:
        """Remove what was collected beside the target."""
        if not header.direct:
            self._remove(header)

    def remove_earlier(self, before: Header | None) -> None:
        """Remove what the export before this one had collected."""
        if before is not None:
            self._remove(before)

    def remove_left(self, header: Header) -> None:
        """Remove it, though the target is another's: no other export works in that place."""
        left = Bucket(self.work(header))
        left.delete(list(left.names()))

    def _remove(self, header: Header) -> None:
        work = self._at(self.work(header))
        work.delete(list(work.names()))


def _lost(target: Target, url: str) -> str:
    return (
        f"{target.place} is not complete: {url} is not there any more, as somebody removed it meanwhile; what was at "
        "the target before is untouched, and the same call makes again what is lost"
    )


def site_of(target: Target, base: str, watch: Watch) -> Site:
    """Return the site of a target: see `Site`."""
    return (BucketSite if is_remote(target.root) else DiskSite)(target, base, watch)
