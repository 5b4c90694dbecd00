"""What becomes of a call to export: begun, continued or refused by what is there, noted as it goes, and published.

All of it is decided by the manifest and by what lies at the target; what that means in files is a matter of the site.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from imageryxr.errors import ManifestError, TargetError, TargetExistsError
from imageryxr.export.commit.conflicts import difference, exists, refuse_foreign_folder
from imageryxr.export.commit.journal import Entry, Progress, crc_of_sizes
from imageryxr.export.commit.manifest import FORMAT, Header
from imageryxr.export.commit.overlaps import Neighbours, keeper_of, manifest_name
from imageryxr.export.commit.publish import Site, site_of
from imageryxr.export.plan.regions import Regions
from imageryxr.export.store.local import Place, disk_errors, is_remote
from imageryxr.export.targets.base import Target


@dataclass(frozen=True)
class Stages:
    """All regions of an export, numbered through: those of the array, then those of each later stage."""

    parts: tuple[Regions, ...]

    @classmethod
    def of(cls, first: Regions, target: Target) -> Stages:
        """Return the stages of a target."""
        return cls((first, *target.later))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def start(self, stage: int) -> int:
        """Return the number of a stage's first region."""
        return sum(len(p) for p in self.parts[:stage])


class Workspace:
    """The place of one export: what is there, what is done, where the rest goes.

    Parameters
    ----------
    target : Target
        What is written.
    stages : Stages
        How a new export would be cut; one that continues keeps its own.
    token : str
        Of the call.
    what : dict
        The call in words.
    """

    def __init__(self, target: Target, stages: Stages, token: str, what: dict[str, Any]) -> None:
        self.target = target
        self.stages = stages
        self.token = token
        self.what = what
        self.remote = is_remote(target.root)
        self.folder, self.name = manifest_name(target)
        self.base = f"{self.folder}/{self.name}"
        self.keeper = keeper_of(self.folder, self.name)
        self.neighbours = Neighbours(target, self.folder, self.name)
        self.header = Header(token, what, *_cut(stages), len(stages), kind=target.kind, coarse=target.coarse)
        self.progress = Progress(len(stages))
        self._before: Header | None = None
        self._began_here = False
        self._senseless = False
        """Whether there is a manifest that makes no sense."""

    # ---- looking

    @property
    def site(self) -> Site:
        """Where it is written."""
        return site_of(self.target, self.base, self.keeper)

    def load(self, overwrite: bool) -> Header | None:
        """Return what the manifest says; one that makes no sense is none for whoever begins anew."""
        try:
            header = self.keeper.load()
            if header is not None and self._is_mine(header):
                first = self.stages.parts[0]
                header.check_cut(first.shape, self.target.granule, self.target.kind, f"{self.base}.json")
                header.check_place(self.remote, f"{self.base}.json")
        except ManifestError:
            self._refuse_while_written()
            if not overwrite:
                raise
            self._senseless = True
            return None
        return header

    def refuse(self, header: Header | None, overwrite: bool) -> None:
        """Raise `TargetExistsError` if what is there is not of this call and may not be replaced."""
        mine = header is not None and self._is_mine(header)
        if overwrite or (mine and self.target.kind != "tree"):
            refuse_foreign_folder(self.target)
        if overwrite or (header is not None and mine and header.phase != "writing" and not header.replaced):
            return
        there = self.site.existing()
        if header is None or mine:
            may = header is not None and (header.replaces or header.direct) and not header.replaced
            if there and not may:
                self._refuse_while_written()
                refuse_foreign_folder(self.target)
                raise TargetExistsError(exists(self.target, there, header))
            return
        if there or header.phase != "finished":
            other = difference({**self.target.earlier, **header.what}, self.what)
            self._refuse_while_written(f", for another export ({other})")
            state = "is" if header.phase == "finished" else "is the unfinished work"
            raise TargetExistsError(
                f"{self.target.place} {state} of another export ({other}); give overwrite=True to replace it "
                "when this one is complete, or another target"
            )

    def _refuse_while_written(self, other: str = "") -> None:
        holder = self.keeper.holder()
        if holder:
            raise TargetExistsError(
                f"{self.target.place} is being written now by {holder}{other}; wait for it to end, or stop it, or give "
                "another target"
            )

    def _refuse_what_appeared(self) -> None:
        if self.header.replaces or self.header.direct:
            return
        # what is being brought to its place is there in part
        there = self.site.existing() if self.header.phase == "writing" else self.site.strange(self.header)
        if there:
            raise TargetExistsError(
                f"{there[0]} appeared while this export was under way, and is not replaced; the work that is done is "
                "kept: move that away and make the same call again, or make it with overwrite=True"
            )

    def _is_mine(self, header: Header) -> bool:
        return header.token == self.token and header.format == FORMAT

    def adopt_cut(self, overwrite: bool) -> Header | None:
        """Take the regions of an export of this call that was begun before; return its header, if any."""
        header = self.load(overwrite)
        if header is not None and self._is_mine(header):
            first = Regions(self.stages.parts[0].shape, header.step, header.first)
            self.target = self.target.in_coarse(header.coarse)
            self.stages = Stages.of(first, self.target)
            self.progress = Progress(len(self.stages))
        return header

    # ---- beginning

    @contextmanager
    def opened(self, *, overwrite: bool, resume: bool) -> Iterator[None]:
        """Begin or continue; other processes are kept out until the block ends."""
        with ExitStack() as kept:
            with disk_errors(self.target.place):
                kept.enter_context(self.keeper.locked())
                self._enter(overwrite, resume)
            yield

    def _enter(self, overwrite: bool, resume: bool) -> None:
        header = self.adopt_cut(overwrite)
        try:
            self.refuse(header, overwrite)
            if header is None or overwrite or header.phase != "finished":
                with self.neighbours.held():  # whoever writes them now would write into this one's
                    pass
        except TargetError:
            if header is None and not self._senseless:
                self.keeper.remove()
            raise
        if header is not None and header.phase == "publishing" and (self._is_mine(header) or not self.remote):
            self.header = header
            if not overwrite:
                self._refuse_what_appeared()
            self._finish()
            header = self.header
        if header is not None and self._is_mine(header) and self._continues(header, overwrite, resume):
            self.header = replace(header, replaces=header.replaces or overwrite, replaced=None)
            if self.header != header:
                self.keeper.save(self.header)  # workers ask it
            self._look_again()
        else:
            self._begin(header, overwrite)

    def _finish(self) -> None:
        """Take the last step of an export that was complete, and was killed as it took it."""
        try:
            self._publish()
        except OSError:
            if self.remote:  # what was collected may be lost: the next call looks again
                self.header = replace(self.header, phase="writing")
                self.keeper.save(self.header)
            raise

    def _continues(self, header: Header, overwrite: bool, resume: bool) -> bool:
        if header.phase != "writing" and (overwrite or header.replaced):
            return False
        if not resume:
            return False
        if header.phase == "writing":
            return self.site.can_continue(header)
        there = bool(self.site.existing())
        if self.target.kind == "single":
            return there and self.site.file_size() == header.result
        return there

    def _begin(self, before: Header | None, overwrite: bool) -> None:
        there = bool(self.site.existing())
        direct = self.remote and not there and self.target.kind != "single"
        # What is there may be the torn result of this very call.
        replaces = overwrite or (before is not None and self._is_mine(before) and not before.replaced)
        self.header = Header(
            self.token, self.what, *_cut(self.stages), len(self.stages), replaces=replaces, direct=direct,
            kind=self.target.kind, coarse=self.target.coarse,
            names=self.target.names(), outdated=_outdated(before) if overwrite else [],
        )  # fmt: skip
        self.progress = Progress(len(self.stages))
        self._began_here, self._before = True, before
        self.keeper.save(self.header)
        if direct:
            self._replace_neighbours()
        self.site.remove_earlier(before)
        self.site.prepare(self.header)
        self.data.put(self.target.preamble().items())

    def _replace_neighbours(self) -> None:
        with self.neighbours.held() as others:
            self.neighbours.replace(others)

    @property
    def continued(self) -> bool:
        """Whether files may be there of regions that are not done, from a run that ended early."""
        return not self._began_here and self.header.phase == "writing"

    def _look_again(self) -> None:
        """Read the log, and forget what is not there as it says."""
        self.site.prepare(self.header)
        for entry in self.keeper.entries(self.header.run):
            self.progress.note(entry)
        if self.header.phase == "finished" and self.target.kind == "single":
            self.progress.done[:] = True  # the file has its size, whatever became of the log
            return
        size = self.data.size_of()
        for files in (self.target.preamble(), self.target.commit() if self.header.phase == "finished" else {}):
            self.data.put([(k, v) for k, v in files.items() if self.data.get(k) != v])
        for number in self.progress.done.nonzero()[0]:
            stage, box = self.box(int(number))
            sizes = [size(key) for key in self.target.keys(stage, box)]
            if None in sizes or crc_of_sizes(s for s in sizes if s is not None) != self.progress.sizes[number]:
                self.progress.forget(int(number))
                if self.continued:
                    # whoever makes it again takes what is there for whole
                    self.data.delete(self.target.keys(stage, box))

    def box(self, number: int) -> tuple[int, Any]:
        """Return stage and box of a region."""
        stage = 0
        while number >= len(self.stages.parts[stage]):
            number -= len(self.stages.parts[stage])
            stage += 1
        return stage, self.stages.parts[stage][number]

    def _keys(self) -> Iterator[str]:
        """Return the files of all regions."""
        for number in range(len(self.stages)):
            yield from self.target.keys(*self.box(number))

    # ---- working

    @property
    def data(self) -> Place:
        """Where the files of regions go."""
        return self.site.data(self.header)

    def note(self, entry: Entry) -> None:
        """Note a finished region; after this it is not made again."""
        with disk_errors(self.target.place):
            self.keeper.append(self.header.run, entry)
        self.progress.note(entry)

    # ---- ending

    def publish(self) -> int:
        """Bring the complete result to its place; return the bytes of what was written for that."""
        with disk_errors(self.target.place):
            return self._bring()

    def _bring(self) -> int:
        if self.header.phase == "finished":
            self._remove_outdated()
            self.site.remove_work(self.header)
            return 0
        self.keeper.flush()
        self.keeper.check()
        self._refuse_what_appeared()
        written = 0
        if self.target.kind == "single":
            written = self.site.assemble(self.header, self.stages.parts[0])
            self.header = replace(self.header, result=written)
        elif not self.header.direct:
            self.data.put(self.target.commit().items())
        with self.neighbours.held() as others:
            self.neighbours.replace(others)
            self.header = replace(self.header, phase="publishing")
            self.keeper.save(self.header)
            try:
                self._publish()
            except OSError:
                self.header = replace(self.header, phase="writing")
                self.keeper.save(self.header)
                raise
        self._remove_outdated()
        return written

    def _remove_outdated(self) -> None:
        """Remove the files of exports that this one replaced, where it makes none of that name."""
        mine = set(self.target.occupied()) if self.header.outdated else set()
        for names in self.header.outdated:
            theirs = set(self.target.named(names))
            if theirs & mine:  # else they are of another place, and nothing of them was replaced
                self.site.remove_files(sorted(theirs - mine))
        if self.header.outdated:
            self.header = replace(self.header, outdated=[])
            self.keeper.save(self.header)

    def _publish(self) -> None:
        self.site.bring(self.header, self._keys)
        self.header = replace(self.header, phase="finished")
        self.keeper.save(self.header)
        self.site.remove_work(self.header)

    def abandon(self) -> bool:
        """Remove what was begun here if no region was finished, nor slices of one; return whether there is any."""
        done = bool(self.progress.done.any())
        with suppress(TargetError):  # out of reach
            try:
                self.keeper.check()
            except TargetError:
                self._leave()
                return done
            done = done or self._has_slices()
            if self._began_here and not done:
                self._undo()
        return done

    def _has_slices(self) -> bool:
        if self.target.kind == "tree":
            return False
        if self.header.direct:
            size = self.data.own_size_of()
            return any(size(key) is not None for key in self._keys())
        return next(self.data.names(), None) is not None

    def _leave(self) -> None:
        """Remove what was collected here and came after another process had taken over, and has no use for it."""
        there = self.keeper.load()
        if there is None or there.run != self.header.run or there.phase == "finished":
            self.site.remove_left(self.header)

    def _undo(self) -> None:
        self.site.remove_work(self.header)
        if self.header.direct:
            self.data.delete(self.target.preamble())
        if self._before is not None and self._before.phase == "finished":
            self.keeper.save(self._before)  # what is at the target is still of that one
        else:
            self.keeper.remove()


def _outdated(before: Header | None) -> list[dict[str, Any]]:
    """Return what the files of earlier exports are called that are there, as their manifest says."""
    if before is None:
        return []
    if before.replaced:  # some of those files are another's
        return []
    there = before.names is not None and (before.phase != "writing" or before.direct)
    return [*before.outdated, *([before.names] if before.names is not None and there else [])]


def _cut(stages: Stages) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    return stages.parts[0].step, stages.parts[0].first
