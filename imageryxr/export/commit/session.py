"""The session of an export: start, continue or refuse it, record its finished regions, and publish the result.

The decisions depend on the manifest and on the files at the target. `Site` does the work on files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from typing import Any

from msgspec.structs import replace

from imageryxr.errors import ManifestError, Message, TargetError, TargetExistsError, param
from imageryxr.export.commit.conflicts import (
    OverlappingExports,
    describe_difference,
    exists_message,
    manifest_name,
    refuse_foreign_folder,
)
from imageryxr.export.commit.manifest import Entry, Header, Progress, SliceNames, open_manifest
from imageryxr.export.commit.publish import Site, open_site
from imageryxr.export.plan.regions import Regions, Stages
from imageryxr.export.store.bucket import Place
from imageryxr.export.store.local import disk_errors, is_remote
from imageryxr.export.targets.base import SingleFile, Target


class Workspace:
    """The state of one export: what exists at the target, which regions are finished, where the others are written.

    Parameters
    ----------
    target : Target
    stages : Stages
        The regions of a new export; an export that continues keeps its own.
    token : str
        Hash of the call.
    what : dict
        The call in readable form.
    """

    def __init__(self, target: Target, stages: Stages, token: str, what: dict[str, Any]) -> None:
        self.target = target
        self.stages = stages
        self.token = token
        self.what = what
        self.remote = is_remote(target.root)
        self.folder, self.name = manifest_name(target)
        self.base = f"{self.folder}/{self.name}"
        self.manifest = open_manifest(self.folder, self.name)
        self.site: Site = open_site(target, self.base, self.manifest.lock)
        self.overlapping = OverlappingExports(target, self.folder, self.name)
        self.header = self._new_header()
        self.progress = Progress(len(stages))
        self._before: Header | None = None
        self._began_here = False
        self._is_invalid = False
        """Whether the manifest is invalid."""

    def _new_header(self) -> Header:
        target, first = self.target, self.stages.parts[0]
        return Header(
            self.token, self.what, first.step, first.first, len(self.stages), kind=target.kind, coarse=target.coarse,
            names=target.names(),
        )  # fmt: skip

    # ---- reading the target

    def load(self, overwrite: bool) -> Header | None:
        """Return the manifest, None if there is none. An invalid one raises `ManifestError` unless `overwrite`."""
        try:
            header = self.manifest.load()
            if header is not None and self._is_mine(header):
                first = self.stages.parts[0]
                header.check_regions(first.shape, self.target.granule, self.target.kind, f"{self.base}.json")
                header.check_place(self.remote, f"{self.base}.json")
        except ManifestError:
            self._check_not_being_written()
            if not overwrite:
                raise
            self._is_invalid = True
            return None
        return header

    def refuse(self, header: Header | None, overwrite: bool) -> None:
        """Raise `TargetExistsError` if the target is not of this call and may not be replaced."""
        mine = header is not None and self._is_mine(header)
        if overwrite or (mine and self.target.kind != "tree"):
            refuse_foreign_folder(self.target)
        if overwrite or (header is not None and mine and header.phase != "writing" and not header.replaced):
            return
        there = self.site.existing_files()
        if header is None or mine:
            may_replace = header is not None and (header.replaces or header.direct) and not header.replaced
            if there and not may_replace:
                self._check_not_being_written()
                refuse_foreign_folder(self.target)
                raise TargetExistsError(exists_message(self.target, there, header))
            return
        if there or header.phase != "finished":
            other = describe_difference(header.what, self.what)
            self._check_not_being_written(f", for another export ({other})")
            state = "is the result" if header.phase == "finished" else "is the unfinished work"
            raise TargetExistsError(
                Message(
                    f"{self.target.place} {state} of another export ({other}); give ",
                    param("overwrite", True),
                    " to replace it when this one is complete, or give another target",
                )
            )

    def _check_not_being_written(self, other: str = "") -> None:
        holder = self.manifest.lock.holder()
        if holder:
            raise TargetExistsError(
                f"{self.target.place} is being written by {holder}{other}; wait for it to end, or stop it, or give "
                "another target"
            )

    def _check_nothing_appeared(self) -> None:
        if self.header.replaces or self.header.direct:
            return
        # a result that is being published exists in part
        there = (
            self.site.existing_files() if self.header.phase == "writing" else self.site.unexpected_files(self.header)
        )
        if there:
            raise TargetExistsError(
                Message(
                    f"{there[0]} appeared during this export and is not replaced; the finished regions are ",
                    "kept: move that file away and make the same call again, or add ",
                    param("overwrite", True),
                )
            )

    def _is_mine(self, header: Header) -> bool:
        return header.token == self.token

    def adopt_regions(self, overwrite: bool) -> Header | None:
        """Adopt the regions of an earlier export of this call; return the header of the manifest, if any."""
        header = self.load(overwrite)
        if header is not None and self._is_mine(header):
            first = Regions(self.stages.parts[0].shape, header.step, header.first)
            self.target = self.target.with_coarse(header.coarse)
            self.site = open_site(self.target, self.base, self.manifest.lock)
            self.stages = Stages((first, *self.target.later))
            self.progress = Progress(len(self.stages))
        return header

    # ---- starting

    @contextmanager
    def open_session(self, *, overwrite: bool, resume: bool) -> Iterator[None]:
        """Start or continue the export, and exclude other processes until the block ends."""
        with ExitStack() as kept:
            with disk_errors(self.target.place, keeps_old=True):
                kept.enter_context(self.manifest.hold_lock())
                self._begin_or_continue(overwrite, resume)
            yield

    def _begin_or_continue(self, overwrite: bool, resume: bool) -> None:
        header = self.adopt_regions(overwrite)
        try:
            self.refuse(header, overwrite)
            if header is None or overwrite or header.phase != "finished":
                with self.overlapping.hold_locks():  # raises if a process is writing files of the same names
                    pass
        except TargetError:
            if header is None and not self._is_invalid:
                self.manifest.remove()
            raise
        if header is not None and header.phase == "publishing" and (self._is_mine(header) or not self.remote):
            self.header = header
            if not overwrite:
                self._check_nothing_appeared()
            self._finish_publishing()
            header = self.header
        if header is not None and self._is_mine(header) and self._continues(header, overwrite, resume):
            self.header = replace(header, replaces=header.replaces or overwrite, replaced=None)
            if self.header != header:
                self.manifest.save(self.header)  # workers refuse to write files of a replaced export
            self._verify_finished_regions()
        else:
            self._begin(header, overwrite)

    def _finish_publishing(self) -> None:
        """Publish the result of a complete export that was killed while it published."""
        try:
            self._move_result()
        except OSError:
            if self.remote:  # collected objects may be lost: the next call verifies the regions
                self.header = replace(self.header, phase="writing")
                self.manifest.save(self.header)
            raise

    def _continues(self, header: Header, overwrite: bool, resume: bool) -> bool:
        if header.phase != "writing" and (overwrite or header.replaced):
            return False
        if not resume:
            return False
        if header.phase == "writing":
            return self.site.can_continue(header)
        there = bool(self.site.existing_files())
        if self.target.kind == "single":
            return there and self.site.file_size() == header.result
        return there

    def _begin(self, before: Header | None, overwrite: bool) -> None:
        there = bool(self.site.existing_files())
        direct = self.remote and not there and self.target.kind != "single"
        # The target may be the damaged result of this same call.
        replaces = overwrite or (before is not None and self._is_mine(before) and not before.replaced)
        outdated = _replaced_names(before) if overwrite else ()
        self.header = replace(self._new_header(), replaces=replaces, direct=direct, outdated=outdated)
        self.progress = Progress(len(self.stages))
        self._began_here, self._before = True, before
        self.manifest.save(self.header)
        if direct:
            with self.overlapping.hold_locks() as others:
                self.overlapping.replace(others)
        self.site.remove_earlier(before)
        self.site.prepare(self.header)
        self.data.put(self.target.preamble().items())

    @property
    def is_continued(self) -> bool:
        """Whether files of unfinished regions may exist, from an interrupted run."""
        return not self._began_here and self.header.phase == "writing"

    def _verify_finished_regions(self) -> None:
        """Read the journal, and mark regions as unfinished whose files are missing or not as recorded."""
        self.site.prepare(self.header)
        finished = self.header.phase == "finished"
        if finished and self.target.kind == "single":
            for entry in self.manifest.entries(self.header.run):
                self.progress.note(entry)
            self.progress.done[:] = True  # the file's size was checked; the journal may be lost
            return
        for files in (self.target.preamble(), self.target.commit() if finished else {}):
            self.data.put([(k, v) for k, v in files.items() if self.data.get(k) != v])
        damaged = set[int]()
        # unfinished regions are written after the manifest, and a kill does not change the contents of their files
        is_intact = self.data.record_check(self.manifest.saved_at() if finished else float("inf"))
        for entry in self.manifest.entries(self.header.run):
            self.progress.note(entry)
            if not all(is_intact(key, record) for key, record in entry.files.items()):
                damaged.add(entry.number)
            else:  # an earlier entry of a region that was damaged and made again
                damaged.discard(entry.number)
        for number in damaged & set(range(len(self.progress.done))):
            self.progress.done[number] = False
            if self.is_continued:
                # existing files of an unfinished region are taken for complete
                self.data.delete(self.target.keys(*self.stages.box(number)))

    def _keys(self) -> Iterator[str]:
        """Iterate over the files of all regions."""
        for number in range(len(self.stages)):
            yield from self.target.keys(*self.stages.box(number))

    # ---- writing

    @property
    def data(self) -> Place:
        """The folder or prefix that the files of regions are written to."""
        return self.site.data(self.header)

    def note(self, entry: Entry) -> None:
        """Record a finished region, so that it is not made again."""
        with disk_errors(self.target.place, keeps_old=True):
            self.manifest.append(self.header.run, entry)
        self.progress.note(entry)

    # ---- publishing

    def publish(self) -> int:
        """Publish the complete result; return the bytes that this wrote."""
        with disk_errors(self.target.place, keeps_old=True):
            return self._publish_result()

    def _publish_result(self) -> int:
        if self.header.phase == "finished":
            self._remove_outdated()
            self.site.remove_work(self.header)
            return 0
        self.manifest.flush()
        self.manifest.lock.check()
        self._check_nothing_appeared()
        written = 0
        if isinstance(self.target, SingleFile):
            written = self.site.assemble(self.header, self.target)
            self.header = replace(self.header, result=written)
        elif not self.header.direct:
            self.data.put(self.target.commit().items())
            self.site.check_complete(
                self.header, lambda: chain(self.target.preamble(), self.target.commit(), self._keys())
            )
        with self.overlapping.hold_locks() as others:
            self.overlapping.replace(others)
            self.header = replace(self.header, phase="publishing")
            self.manifest.save(self.header)
            try:
                self._move_result()
            except OSError:
                self.header = replace(self.header, phase="writing")
                self.manifest.save(self.header)
                raise
        self._remove_outdated()
        return written

    def _remove_outdated(self) -> None:
        """Remove files of replaced exports whose names this export does not use."""
        mine = set(self.target.identifying_keys()) if self.header.outdated else set()
        for names in self.header.outdated:
            theirs = set(self.target.keys_from_names(names))
            if theirs & mine:  # otherwise their files are elsewhere, and none was replaced
                self.site.remove_files(self._unchanged_files(theirs - mine, names.run))
        if self.header.outdated:
            self.header = replace(self.header, outdated=())
            self.manifest.save(self.header)

    def _unchanged_files(self, keys: set[str], run: str | None) -> list[str]:
        """Return the files whose content is as a run recorded it, or of which the journal has no record."""
        entries = self.manifest.entries(run) if run else ()
        records = {key: record for entry in entries for key, record in entry.files.items()}
        is_intact = self.site.final.record_check(float("-inf"))
        return sorted(key for key in keys if key not in records or is_intact(key, records[key]))

    def _move_result(self) -> None:
        self.site.publish(self.header, self._keys)
        self.header = replace(self.header, phase="finished")
        self.manifest.save(self.header)
        self.site.remove_work(self.header)

    def abandon(self) -> bool:
        """Remove the export if no region and no slice is finished; return whether any is."""
        done = bool(self.progress.done.any())
        with suppress(OSError):  # the target cannot be reached or written; the first error is the one to report
            try:
                self.manifest.lock.check()
            except TargetError:
                self._remove_leftovers()
                return done
            done = done or self._has_slices()
            if self._began_here and not done:
                self._remove_everything()
        return done

    def _has_slices(self) -> bool:
        if self.target.kind == "tree":
            return False
        if self.header.direct:
            record = self.data.own_records()
            return any(record(key) is not None for key in self._keys())
        return next(self.data.names(), None) is not None

    def _remove_leftovers(self) -> None:
        """Remove collected files that were written after another process took over, unless that process uses them."""
        there = self.manifest.load()
        if there is None or there.run != self.header.run or there.phase == "finished":
            self.site.remove_leftovers(self.header)

    def _remove_everything(self) -> None:
        self.site.remove_work(self.header)
        if self.header.direct:
            self.data.delete(self.target.preamble())
        if self._before is not None and self._before.phase == "finished":
            self.manifest.save(self._before)  # the target is still the result of that export
        else:
            self.manifest.remove()


def _replaced_names(before: Header | None) -> tuple[SliceNames, ...]:
    """Return the names of existing files of earlier exports, as the manifest describes them."""
    if before is None or before.replaced:  # if it was replaced, some of its files belong to another export
        return ()
    there = before.phase != "writing" or before.direct
    return (*before.outdated, *([replace(before.names, run=before.run)] if before.names is not None and there else []))
