"""Divide exports of slices into regions, and choose between memory and scratch files for the source voxels."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from imageryxr.core.bbox import IndexBox
from imageryxr.core.units import show_bytes
from imageryxr.errors import Message, OptionError, ScratchError, Wording, param
from imageryxr.export.plan.reads import FETCH_FACTOR, drawing_bytes
from imageryxr.export.plan.regions import REGION_BYTES, REREAD_LIMIT, Regions, choose_regions, choose_slabs
from imageryxr.export.read.spill import SCRATCH_ADVICE, free_bytes, scratch_folder
from imageryxr.export.read.sweep import BRICK_VOXELS, SlabSettings, box_bytes, bricks, slice_windows
from imageryxr.export.run.workers import WorkerPool
from imageryxr.export.targets.base import SliceTarget
from imageryxr.graph.evaluate import required_boxes
from imageryxr.graph.expr import Expr


def check_scratch(value: Any) -> str | bool | None:
    """Return a `scratch` argument: a folder, None for the default, or False for none; or raise `OptionError`."""
    if value is None or value is False:
        return value
    is_text = isinstance(value, str | os.PathLike) and "\0" not in str(value)
    text = os.fspath(value) if is_text else ""
    if "://" in text:
        raise OptionError(param("scratch", text), " must be a folder on a local disk, not a URL")
    if not text.strip():
        problem = " names no folder; give one on " if is_text else " must be a folder on "
        expected = Wording("a local disk, None for the usual one, or False", "a local disk, or 'none'")
        raise OptionError(param("scratch", value), problem, expected)
    return os.path.abspath(os.path.expanduser(text))


@dataclass(frozen=True)
class SpillSpace:
    """The scratch space of an export on local disks."""

    folder: str | None
    """The folder; None for each worker's own folder."""
    bytes: int
    """Bytes for the regions that a worker processes at a time."""
    workers: int
    """Number of workers that share the folder."""

    def __str__(self) -> str:
        return f"up to {show_bytes(self.bytes)} per worker in {self.folder or 'its own local folder'}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"folder": self.folder, "bytes": self.bytes}

    def problems(self, pool: WorkerPool) -> list[str]:
        """Return errors about too little space, with advice; raise `ScratchError` if the folder is not writable."""
        if self.folder is None:
            return []
        if pool.kind == "cluster":
            return self._unusable_workers(pool.run_on_workers(free_bytes, self.folder))
        free, takes = free_bytes(self.folder), self.bytes * self.workers
        if takes <= free:
            return []
        problem = (
            f"the export needs {show_bytes(takes)} in the scratch folder {self.folder}; {show_bytes(free)} are free: "
        )
        fewer = ("start fewer processes (", param("workers", ...), "), or ") if self.workers > 1 else ()
        return [Message(problem, *fewer, SCRATCH_ADVICE)]

    def _unusable_workers(self, answers: dict[str, Any]) -> list[str]:
        """Return an error that lists the workers of a cluster that cannot use the folder, from their answers."""
        lacking = {worker: answer.reason for worker, answer in answers.items() if isinstance(answer, ScratchError)}
        if not lacking:
            return []
        workers = sorted(lacking)
        named = ", ".join(workers[:4]) + (f" and {len(workers) - 4} more" if len(workers) > 4 else "")
        return [
            Message(
                f"the scratch folder {self.folder} cannot be used on {len(lacking)} of {len(answers)} workers ",
                *(f"({named}: {lacking[workers[0]]}): ", SCRATCH_ADVICE),
            )
        ]


@dataclass(frozen=True)
class SlabPlanner:
    """Divides an export of slices into regions."""

    target: SliceTarget
    expr: Expr
    pool: WorkerPool
    scratch_option: str | bool | None
    """The `scratch` argument: a folder, None for the default, or False for no scratch files."""
    reads_of: Callable[[Regions], tuple[float, float]]
    """Returns about how many times regions read each byte, for all sources together and for the worst source."""

    def regions(self) -> Regions:
        """Return regions whose source voxels fit into memory, or into scratch files if that avoids repeated reads."""
        shape, limits = self.target.layer.grid.shape, self.pool.region_limits()
        kept = choose_regions(
            self.expr, shape, self.target.granule, limits, memory_of=self._min_memory, reads_of=self.reads_of
        )
        worst = self.reads_of(kept)[1]
        if worst <= REREAD_LIMIT or self.scratch_option is False:
            return kept
        slabs = choose_slabs(self.expr, shape, self.target.axis, reads_of=self.reads_of, fits=self._has_room)
        return slabs if self.reads_of(slabs)[1] < worst else kept

    def settings(self, regions: Regions) -> tuple[SlabSettings, int]:
        """Return the settings for regions, and the bytes of memory that the regions of a worker need together.

        Source voxels are cached in memory if they fit, else in scratch files.
        """
        at_once = self.pool.at_once(regions)
        plain, takes = self._fit_settings(regions, at_once)
        if self.scratch_option is False or takes <= self._limit(at_once):
            return plain, at_once * takes
        if self.pool.kind == "threads":
            # one region is read while another is drawn; more would only use more disk space
            at_once = min(at_once, 2 if self._has_room(regions, 2) else 1)
        spilled, spilled_takes = self._fit_settings(regions, at_once, spilled=True)
        choices = [(spilled, at_once * spilled_takes), (plain, plain.at_once * takes)]
        return choices[0] if choices[0][1] < choices[1][1] else choices[1]

    def _fit_settings(self, regions: Regions, at_once: int, *, spilled: bool = False) -> tuple[SlabSettings, int]:
        # the workers of a cluster are on different machines, which do not share memory
        workers = self.pool.workers if self.pool.kind != "cluster" else 1
        slots, under_way = self.pool.threads * workers, min(at_once * workers, len(regions))
        threads, limit = slots // under_way, self._limit(at_once)
        if spilled:
            threads = -(-slots // under_way)
            # Spilled voxels are in a file, so the estimate of the memory is more exact and the limit can be higher.
            limit += limit // 2
        settings = SlabSettings(
            self.target.axis, self._slices(regions.largest()), at_once, threads, spilled=spilled,
            folder=self._folder if spilled else None,
        )  # fmt: skip
        boxes = {regions.largest(), regions[0]}
        return fit_memory(settings, lambda settings: max(self._memory(settings, box) for box in boxes), limit)

    def _limit(self, at_once: int) -> int:
        share = self.pool.memory_per_region(at_once)
        return REGION_BYTES if share is None else share

    def _slices(self, box: IndexBox) -> int:
        """Return how many slices to draw at a time: more than fit into a brick if that avoids much drawing."""
        axis = self.target.axis
        count = box.shape[axis]
        each = max(1, box.voxels // max(1, count))
        best = max(1, min(BRICK_VOXELS // each, count))

        def per_slice(slices: int) -> float:
            slab = first_slices(box, axis, slices)
            return drawing_bytes(self.expr, slab) / max(1, slab.shape[axis])

        while best < min(16, count) and per_slice(2 * best) < 0.8 * per_slice(best):
            best *= 2
        return best

    def _memory(self, settings: SlabSettings, box: IndexBox) -> int:
        """Return the most bytes that a region takes while it is read, drawn, encoded and written."""
        windows = slice_windows(settings, self.expr, box)
        cached = 0 if settings.spilled else sum(window.bytes for window in windows)
        # a tile that was read, and its copy in slice order
        turned = settings.spilled and settings.axis != 0
        tile = max((min(math.prod(w.tile or ()), w.box.voxels) * w.leaf.dtype.itemsize for w in windows), default=0)
        slab = first_slices(box, settings.axis, settings.slices)
        strip = next(bricks(slab, *settings.strips(self.expr, slab)))
        drawing = drawing_bytes(self.expr, strip)
        if settings.spilled:  # voxels that are cached in memory are not copied
            needs = required_boxes(self.expr, strip)
            drawing += sum(b.voxels * leaf.dtype.itemsize for leaf, boxes in needs.items() for b in boxes)
        out = box_bytes(self.expr, slab)
        waiting = out if settings.threads > 1 else 0
        making = out + waiting + max(drawing, self.target.page_bytes)
        return int(cached + settings.threads * max((FETCH_FACTOR + turned) * tile, making))

    def _min_memory(self, box: IndexBox) -> int:
        """Return the bytes of memory that a region needs if its source voxels are in memory and its parts are small."""
        settings = SlabSettings(self.target.axis, self._slices(box))
        return fit_memory(settings, lambda settings: self._memory(settings, box), self.pool.budget)[1]

    def spill_space(self, settings: SlabSettings, regions: Regions) -> SpillSpace | None:
        """Return the scratch space that regions need; None if they are not spilled."""
        if not settings.spilled:
            return None
        count = min(self.pool.workers, -(-len(regions) // settings.at_once))
        takes = settings.at_once * self._scratch_bytes(settings, regions.largest())
        return SpillSpace(settings.folder, takes, count)

    def _scratch_bytes(self, settings: SlabSettings, box: IndexBox) -> int:
        """Return the most bytes that a region has in scratch files: the chunk layers of its current and next slices."""
        axis, total = settings.axis, 0
        needs = required_boxes(self.expr, first_slices(box, axis, settings.threads * settings.slices))
        for window in slice_windows(settings, self.expr, box):
            depth = max((b.shape[axis] for b in needs.get(window.leaf, [])), default=1)
            layers = -(-depth // window.chunk) + 1
            total += min(window.bytes, layers * window.chunk * window.bytes // max(1, window.box.shape[axis]))
        return total

    def _has_room(self, regions: Regions, at_once: int = 1) -> bool:
        if self.pool.kind == "cluster":
            return True
        box, threads = regions.largest(), -(-self.pool.threads // at_once)
        settings = SlabSettings(self.target.axis, self._slices(box), at_once, threads)
        takes = at_once * self.pool.workers * self._scratch_bytes(settings, box)
        try:
            return takes < free_bytes(self._folder or "") * 3 // 4
        except ScratchError:  # `validate` raises it later
            return False

    @property
    def _folder(self) -> str | None:
        """The folder of scratch files; None for each worker's own."""
        given = self.scratch_option if isinstance(self.scratch_option, str) else None
        return given if self.pool.kind == "cluster" else os.path.abspath(scratch_folder(given))


def first_slices(box: IndexBox, axis: int, count: int) -> IndexBox:
    """Return the first slices of a box."""
    return box.with_axis(axis, box.start[axis], min(box.start[axis] + count, box.stop[axis]))


def fit_memory(
    settings: SlabSettings, memory_of: Callable[[SlabSettings], int], limit: int
) -> tuple[SlabSettings, int]:
    """Reduce the parts, and then the threads, until settings fit into a memory limit; return them and their memory."""
    large = settings
    while (takes := memory_of(settings)) > limit:
        smaller = settings.smaller()
        if smaller == settings:
            if settings.threads == 1:
                break
            smaller = replace(large, threads=settings.threads - 1)
        settings = smaller
    return settings, takes
