"""The task of a worker: one region, from the sources to complete files.

A `Job` holds everything that a worker needs and pickles to a few kilobytes. Its result for a region depends on nothing
else, so any worker may make a region, even twice, with the same result.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial, reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import IndexBox
from imageryxr.core.fork import cached_property, run_after_fork
from imageryxr.errors import MissingIdsWarning, warn
from imageryxr.export.commit.manifest import Entry
from imageryxr.export.read.reader import BUFFERS, SweepReader, draw, unwrap_source_errors
from imageryxr.export.read.spill import name_worker_in_errors, scratch_folder
from imageryxr.export.read.sweep import SlabSettings, bricks, slice_sweep, volume_sweep, whole_sweep
from imageryxr.export.report import add_progress
from imageryxr.export.run.executors import map_in_order, run_cancellable
from imageryxr.export.run.malloc import DelayedCleanup, raise_thresholds, restore_thresholds
from imageryxr.export.store.bucket import Place
from imageryxr.export.store.local import FileRecord, disk_errors
from imageryxr.export.targets.base import Target
from imageryxr.export.targets.pyramid import Pyramid
from imageryxr.graph.dask_inputs import InputBoxes, input_boxes
from imageryxr.graph.evaluate import Readings, required_boxes, restrict_tables
from imageryxr.graph.expr import Array, ArrayLeaf, Expr, Leaf, LevelLeaf, Resampled, replace_leaves
from imageryxr.graph.labelled import BoxReader
from imageryxr.graph.oblique import PlaneSlice
from imageryxr.graph.selection import Strided
from imageryxr.ops.segment_ids import RequestedIds, RequestsIds, record_ids, suspend_id_recording
from imageryxr.sources.base import record_missing_chunks

EMPTY = IndexBox((0, 0, 0), (0, 0, 0))

# Seconds that a worker keeps memory for the next region.
IDLE_MEMORY_SECONDS = 10.0


SeenBits = tuple[tuple[str, bytes], ...]
"""For each set of requested ids: the start of its digest, and a bit mask in which the bit of each found id is 1."""
FoundPlaces = dict[str, tuple[int, ...]]
"""For each set of requested ids: the start of its digest, and the indices of some of its ids."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a region."""

    entry: Entry
    values: Array | None = field(default=None, compare=False)
    """The voxels, for targets in memory."""
    ids: SeenBits | None = ()
    """The requested ids that the region contains, as bits; None if an earlier run had made a part of it."""
    kept: tuple[int, int] = (0, 0)
    """The number of slices that an earlier run had written, and their bytes."""


@dataclass(frozen=True)
class RegionInput:
    """The input of a region that reads dask arrays of the user's own; it is sent with the region."""

    read: BoxReader
    parts: InputBoxes
    values: Any = None
    """Persisted values of `parts`, set on the worker that receives them from the cluster."""


@dataclass(frozen=True)
class Job:
    """The part of an export that workers need."""

    target: Target
    place: Place | None
    read: BoxReader | None
    """None if each region carries its own input."""
    slab_settings: SlabSettings | None = None
    """Settings for regions of whole slices; None for other regions."""
    is_continued: bool = False
    """Whether an earlier run may have left files of unfinished regions. Files are renamed into place, so each is
    complete."""

    def at_once(self, threads: int) -> int:
        """Return how many regions threads of one process make at a time; several threads may share a region."""
        return threads if self.slab_settings is None else min(threads, self.slab_settings.at_once)

    def __call__(self, number: int, stage: int, box: IndexBox, read: Any = None) -> Outcome:
        """Make a region and write it."""
        read = read or self.read
        if stage:
            return Outcome(Entry(number, self._write_coarse(stage, box)))
        values, files, kept = None, dict[str, FileRecord](), dict[str, FileRecord]()
        with record_missing_chunks() as holes, record_ids() as seen:
            reader, given = _unpack_input(read, box)
            if self.place is None:
                sweep = whole_sweep(reader.volume.expr, box)
                with unwrap_source_errors(), SweepReader(reader.volume.expr, sweep, given) as sources:
                    sources.advance(0)
                    values = draw(reader.volume.expr, box, sources.readings)
            else:
                kept = self._existing_files(box) if self.is_continued and self.slab_settings is not None else {}
                files = {**kept, **self._write(reader.volume.expr, box, given, kept, self.place)}
        entry = Entry(number, files, tuple(sorted(holes)))
        size = sum(record.size for record in kept.values())
        return Outcome(entry, values, None if kept else pack_seen(seen), (len(kept), size))

    def _write(
        self, expr: Expr, box: IndexBox, given: Readings, kept: dict[str, FileRecord], place: Place
    ) -> dict[str, FileRecord]:
        """Write the files of a region that are not kept from an earlier run."""
        settings, threads, folder = self.slab_settings, 1, None
        if settings is None:
            sweep = volume_sweep(expr, box, self.target.granule)
        else:
            sweep, threads = slice_sweep(settings, expr, box), settings.threads
            folder = scratch_folder(settings.folder) if settings.spilled else None
        # errors of the sources must not be reported as errors of the target's disk
        with unwrap_source_errors(), SweepReader(expr, sweep, given, threads=threads, folder=folder) as sources:
            encode = partial(self._encode, expr, sources, kept)

            def files() -> Iterator[tuple[str, bytes]]:
                for number, slab in enumerate(sweep.slabs):
                    sources.advance(number)
                    pieces = list(self._pieces(slab))
                    for piece, encoded in zip(pieces, map_in_order(encode, pieces, threads), strict=True):
                        yield from encoded
                        add_progress(piece.voxels / box.voxels)

            with disk_errors(self.target.place, keeps_old=True):
                return place.put(files())

    def _pieces(self, slab: IndexBox) -> Iterator[IndexBox]:
        """Return the pieces of a slab that are drawn and encoded together."""
        granule, settings = self.target.granule, self.slab_settings
        return bricks(slab, granule, None if settings is None else settings.slices * math.prod(granule))

    def _encode(
        self, expr: Expr, sources: SweepReader, kept: dict[str, FileRecord], piece: IndexBox
    ) -> Iterable[tuple[str, bytes]]:
        """Draw a piece and encode its files, unless an earlier run has written them."""
        settings = self.slab_settings
        if kept and all(key in kept for key in self.target.keys(0, piece)):
            return ()
        if settings is None:
            return self.target.encode(0, piece, draw(expr, piece, sources.readings))
        values = draw(expr, piece, sources.readings, *settings.strips(expr, piece))
        files = self.target.encode(0, piece, values)
        # encode in this thread, in parallel with other pieces
        return files if settings.threads == 1 else list(files)

    def _existing_files(self, box: IndexBox) -> dict[str, FileRecord]:
        found = {key: self._own_record(key) for key in self.target.keys(0, box)}
        return {key: record for key, record in found.items() if record is not None}

    @cached_property
    def _own_record(self) -> Callable[[str], FileRecord | None]:
        # a bucket is listed once; files that appear later belong to regions in progress
        assert self.place is not None
        return self.place.own_records()

    def _write_coarse(self, stage: int, box: IndexBox) -> dict[str, FileRecord]:
        target, place = self.target, self.place
        assert isinstance(target, Pyramid)
        assert place is not None
        BUFFERS.clear()  # free the buffers of the finest level, which is complete
        with disk_errors(target.place, keeps_old=True):
            return place.put(target.encode(stage, box, target.derive(stage, box, place)))


def _unpack_input(read: Any, box: IndexBox) -> tuple[BoxReader, Readings]:
    """Return the reader of a region, and the values of the user's dask arrays."""
    with suspend_id_recording():
        if isinstance(read, RegionInput):
            return read.read, read.parts.compute(read.values)
        inputs = read.volume.dask_inputs
        return read, input_boxes(read.volume.expr, inputs, box).compute() if inputs else {}


# ---------------------------------------------------------------------------------------------------------
# jobs for other processes


def restrict_reader(read: BoxReader, box: IndexBox) -> Any:
    """Return a reader of one box that holds only the needed parts of arrays in memory and of dask graphs."""
    expr, dask_inputs = read.volume.expr, read.volume.dask_inputs
    small = restrict_tables(expr, box)
    small = _restrict_arrays(small, required_boxes(small, box)) if has_arrays(small) else small
    part = replace(read, volume=replace(read.volume, expr=small, dask_inputs={}))
    return RegionInput(part, input_boxes(expr, dask_inputs, box)) if dask_inputs else part


@dataclass(frozen=True, eq=False)
class _ArrayPart(ArrayLeaf):
    """A box of an array in another process, in the indexes of the whole array."""

    origin: tuple[int, int, int] = (0, 0, 0)
    whole: IndexBox = EMPTY

    @property
    def bounds(self) -> IndexBox:
        return self.whole

    def read(self, box: IndexBox) -> Array:
        return super().read(box.shift(self.origin, -1))


def _restrict_arrays(expr: Expr, needs: dict[Leaf, list[IndexBox]]) -> Expr:
    def part(leaf: Leaf) -> Expr:
        if not (isinstance(leaf, ArrayLeaf) or (isinstance(leaf, LevelLeaf) and has_arrays(leaf))):
            return leaf
        hull = reduce(IndexBox.hull, needs.get(leaf, [EMPTY]))
        return _ArrayPart(np.ascontiguousarray(leaf.read(hull)), leaf.lead, leaf.tail, hull.start, leaf.bounds)

    return replace_leaves(expr, part)


def has_arrays(expr: Expr) -> bool:
    """Return whether an expression contains voxels, which should not be sent with every region."""
    if isinstance(expr, LevelLeaf):
        return hasattr(expr.source, "array")
    return isinstance(expr, ArrayLeaf) or any(has_arrays(child) for child in expr.inputs)


def _free_memory() -> None:
    BUFFERS.clear()
    restore_thresholds()


WORKER_MEMORY = DelayedCleanup(raise_thresholds, _free_memory, IDLE_MEMORY_SECONDS)
"""The memory that this process keeps between regions if it is a worker."""
run_after_fork(WORKER_MEMORY.reset)


def pickle_job(job: Job) -> bytes:
    """Pickle a job."""
    import cloudpickle

    data: bytes = cloudpickle.dumps(job)
    return data


@lru_cache(maxsize=8)
def _unpickle_job(blob: bytes) -> Job:
    import cloudpickle

    job: Job = cloudpickle.loads(blob)
    return job


def run_task(
    blob: bytes,
    number: int,
    stage: int,
    box: tuple[Any, Any],
    part: bytes | None = None,
    keys: Any = (),
    values: Any = (),
) -> Outcome:
    """Make a region on a worker; `values` are the persisted values that the cluster passes for `keys`."""
    import cloudpickle

    read: Any = None if part is None else cloudpickle.loads(part)
    if keys:
        read = replace(read, values=dict(zip(cloudpickle.loads(keys), values, strict=True)))

    def make() -> Outcome:
        with WORKER_MEMORY.hold(), name_worker_in_errors():
            return _unpickle_job(blob)(number, stage, IndexBox(*box), read)

    outcome: Outcome = run_cancellable(make, own_thread=not isinstance(read, RegionInput))
    return outcome


# ---------------------------------------------------------------------------------------------------------
# requested ids that do not occur in the data: regions return their ids, and the export combines them


def pack_seen(seen: dict[bytes, npt.NDArray[np.bool_]]) -> SeenBits:
    """Return the ids that a region contains in the form that is sent with its outcome."""
    return tuple((_short_digest(packed), np.packbits(found).tobytes()) for packed, found in seen.items())


def _short_digest(packed: bytes) -> str:
    return hashlib.sha256(packed).hexdigest()[:16]


def _fully_read_nodes(expr: Expr, box: IndexBox) -> Iterator[tuple[Expr, IndexBox]]:
    """Yield the expressions below one whose voxels are all read for a box, each with its box.

    An oblique plane reads few voxels of its input, and a coarser grid skips voxels; what lies below them is left out.
    """
    box = box.clip(expr.bounds)
    if not box.voxels:
        return
    yield expr, box
    skips = isinstance(expr, Resampled) and any(along.scale > 1 for along in expr.grid_map.axes)
    if skips or isinstance(expr, PlaneSlice | Strided):
        return
    for child, need in zip(expr.inputs, expr.needs(box), strict=True):
        yield from _fully_read_nodes(child, need)


class IdTracker:
    """Records which requested ids the regions of an export contain.

    Sets of ids that were requested of a larger box than the exported one are ignored.
    """

    def __init__(self, expr: Expr, box: IndexBox) -> None:
        self._ids: dict[str, RequestedIds] = {}
        self._found: dict[str, npt.NDArray[np.bool_]] = {}
        self._unseen = False
        for node, part in _fully_read_nodes(expr, box):
            request = node.request() if isinstance(node, RequestsIds) else None
            if request is not None and part.contains(request[1]):
                requested, name = request[0], _short_digest(request[0].packed)
                self._ids[name] = requested
                self._found[name] = np.zeros(len(requested.array), np.bool_)

    def record(self, region: SeenBits | None) -> FoundPlaces | None:
        """Record the ids of a region; return the indices of those that no earlier region contained.

        `region` is None if parts of the region were made by an earlier run, so that its ids are unknown. The result
        is then None.
        """
        if region is None or not self._ids:
            self._unseen |= region is None
            return None
        new = {}
        for name, bits in region:
            if name in self._found:
                found = self._found[name]
                here = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(found)).astype(np.bool_)
                new[name] = tuple(np.flatnonzero(here & ~found).tolist())
                found |= here
        return {name: places for name, places in new.items() if places}

    def resume(self, ids: dict[str, set[int]], known: bool) -> None:
        """Record the ids of regions that an earlier run has made; `known` is whether the ids of all are known."""
        self._unseen |= not known
        for name, places in ids.items():
            if name in self._found and max(places, default=0) < len(self._found[name]):
                self._found[name][list(places)] = True

    def absent(self) -> tuple[int, ...]:
        """Return the requested ids that no region contains, ascending; empty if the ids of a region are unknown."""
        return tuple(sorted(set(self._absent(self._ids))))

    def _absent(self, names: Iterable[str]) -> list[int]:
        return [] if self._unseen else [i for n in names for i in self._ids[n].array[~self._found[n]].tolist()]

    def warn(self) -> None:
        """Warn of the requested ids that no region contains."""
        for name, requested in self._ids.items():
            absent = self._absent([name])
            if absent:
                warn(requested.missing_message(absent), MissingIdsWarning)
