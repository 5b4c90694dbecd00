"""How exports of slices are cut into regions, and where what they read waits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from imageryxr.boxes import IndexBox
from imageryxr.errors import TargetError
from imageryxr.export.estimate import rereads
from imageryxr.export.executors import Crew
from imageryxr.export.reading import BRICK_VOXELS
from imageryxr.export.regions import MUCH_AGAIN, REGION_BYTES, Regions, choose_regions, choose_slabs
from imageryxr.export.report import show_bytes
from imageryxr.export.scratch import MORE_ROOM, free_bytes, scratch_folder
from imageryxr.export.slicewise import Slicewise, fitted, scratch_bytes, slicewise_memory
from imageryxr.export.targets.base import Target
from imageryxr.export.targets.slices import SliceTarget
from imageryxr.expr import Expr
from imageryxr.volumes import BoxReader


def cutter_of(target: Target, read: BoxReader, crew: Crew, scratch: str | bool | None) -> Cutter | None:
    """Return what cuts an export that is made slice by slice; blocks of a foreign dask graph come as they come."""
    if not isinstance(target, SliceTarget) or read.volume.givens:
        return None
    return Cutter(target, read.volume.expr, crew, scratch)


@dataclass(frozen=True)
class Scratch:
    """What an export puts on local disks while it runs."""

    folder: str | None
    """Where; None for each worker's own folder."""
    bytes: int
    """What the regions take that a worker has under way at a time."""
    workers: int
    """How many workers share the folder, as far as is known."""

    def __str__(self) -> str:
        return f"up to {show_bytes(self.bytes)} a worker in {self.folder or 'its own local folder'}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"folder": self.folder, "bytes": self.bytes}

    def problems(self, crew: Crew) -> list[str]:
        """Return why there is no room, with what to do; raises `TargetError` where nothing can be written."""
        if crew.kind == "cluster" or self.folder is None:
            return []
        free, takes = free_bytes(self.folder), self.bytes * self.workers
        if takes <= free:
            return []
        return [
            f"{show_bytes(takes)} of what is read would wait in the scratch folder {self.folder}, where "
            f"{show_bytes(free)} are free: {MORE_ROOM}"
        ]


@dataclass(frozen=True)
class Cutter:
    """Cuts an export of slices into regions."""

    target: SliceTarget
    expr: Expr
    crew: Crew
    given: str | bool | None
    """The scratch folder that was asked for; False for none."""

    def regions(self) -> Regions:
        """Return regions whose readings fit into memory; or where that reads much again, into a scratch file."""
        shape = self.target.layer.grid.shape
        kept = choose_regions(
            self.expr,
            shape,
            self.target.granule,
            memory_of=self._least,
            reads_of=self._reads,
            budget=self.crew.budget,
            least=self.crew.workers * self.crew.threads,
            most=self.crew.share(),
            threads=self.crew.threads,
        )
        worst = self._reads(kept)[1]
        if worst <= MUCH_AGAIN or self.given is False:
            return kept
        slabs = choose_slabs(self.expr, shape, self.target.axis, reads_of=self._reads, fits=self._has_room)
        return slabs if self._reads(slabs)[1] < worst else kept

    def how(self, regions: Regions) -> Slicewise:
        """Return how such regions are made: in memory if that is enough, else with a scratch file."""
        box = regions.largest()
        at_once = self.crew.at_once(regions)
        share = self.crew.share(at_once)
        limit = REGION_BYTES if share is None else share
        # a cluster's other workers are on other machines
        slots = self.crew.threads * (self.crew.workers if self.crew.kind != "cluster" else 1)
        threads = max(1, slots // len(regions))
        plain = fitted(self._plain(box, threads), lambda how: self.memory(how, box), limit)
        if self.given is False or self.memory(plain, box) <= limit:
            return plain
        # what waits on a disk takes no memory, and of what is left to take, little is an estimate
        room = limit + limit // 2
        spilled = fitted(self._plain(box, threads, spilled=True), lambda how: self.memory(how, box), room)
        return spilled if self.memory(spilled, box) < self.memory(plain, box) else plain

    def memory(self, how: Slicewise, box: IndexBox) -> int:
        """Return the most bytes that a region takes."""
        rows, columns = self.target.picture_shape
        # as it is cut out, as bytes, and compressed
        page = getattr(self.target, "page_bytes", 3 * rows * columns * self.target.layer.voxel_bytes)
        return slicewise_memory(how, self.expr, box, page)

    def scratch(self, how: Slicewise, regions: Regions) -> Scratch:
        """Return what waits on disks."""
        crew = self.crew
        local = crew.kind != "cluster"
        folder = how.folder if not local else os.path.abspath(scratch_folder(how.folder))
        count = min(crew.workers, -(-len(regions) // crew.threads))
        return Scratch(folder, crew.at_once(regions) * scratch_bytes(self.expr, regions.largest()), count)

    def _plain(self, box: IndexBox, threads: int = 1, *, spilled: bool = False) -> Slicewise:
        axis = self.target.axis
        each = max(1, box.voxels // max(1, box.shape[axis]))
        slices = max(1, BRICK_VOXELS // each)
        return Slicewise(axis, slices, threads, spilled=spilled, folder=self._folder if spilled else None)

    def _least(self, box: IndexBox) -> int:
        """Return what a region takes that is read into memory, in parts as small as they should be."""
        how = fitted(self._plain(box), lambda how: self.memory(how, box), self.crew.budget)
        return self.memory(how, box)

    def _reads(self, regions: Regions) -> tuple[float, float]:
        return rereads(self.expr, regions)

    def _has_room(self, regions: Regions) -> bool:
        if self.crew.kind == "cluster":
            return True
        takes = self.crew.at_once(regions) * scratch_bytes(self.expr, regions.largest())
        try:
            free = free_bytes(scratch_folder(self._folder))
        except TargetError:  # which is for `validate` to tell
            return False
        return takes * self.crew.workers < free // 2

    @property
    def _folder(self) -> str | None:
        return self.given if isinstance(self.given, str) else None
