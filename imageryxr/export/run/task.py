"""What a worker does: one region, from the sources to files that are whole.

A `Job` is all that a worker needs, and pickles to a few kilobytes; what it makes of a region depends on nothing else,
so that a region may be made twice, by any worker, and is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, reduce
from typing import Any

import numpy as np

from imageryxr.core.bbox import IndexBox
from imageryxr.export.commit.journal import Entry, crc_of_sizes
from imageryxr.export.read.buffers import BUFFERS, bricks, draw, read_sources, unread_apart
from imageryxr.export.read.rolling_window import cut, strip_by_strip
from imageryxr.export.read.slabs import Slicewise, files_of
from imageryxr.export.read.spill import on_a_worker
from imageryxr.export.report import advance
from imageryxr.export.run.cancellation import run_cancellable
from imageryxr.export.run.daemon_threads import check_stop
from imageryxr.export.run.malloc import Lingering, give_back, keep_freed
from imageryxr.export.run.requested_ids import Told, told
from imageryxr.export.store.local import Place, disk_errors
from imageryxr.export.targets.base import Target
from imageryxr.graph.dask_inputs import InputBoxes, input_boxes
from imageryxr.graph.evaluate import Readings, required_boxes
from imageryxr.graph.expr import Array, ArrayLeaf, Expr, Leaf, LevelLeaf, replace_leaves
from imageryxr.graph.labelled import BoxReader
from imageryxr.ops.labels import record_ids, suspend_id_recording
from imageryxr.sources.base import record_missing_chunks

EMPTY = IndexBox((0, 0, 0), (0, 0, 0))

# How long a worker keeps memory for a region that does not come.
KEPT_SECONDS = 10.0


@dataclass(frozen=True)
class Outcome:
    """What became of a region."""

    entry: Entry
    values: Array | None = field(default=None, compare=False)
    """For targets in memory."""
    ids: Told | None = ()
    """Which of the ids that were asked for it has, in bits; None if a part of it was there already."""


@dataclass(frozen=True)
class Piece:
    """What a region is made from where foreign dask arrays are in it: it travels with the region."""

    read: BoxReader
    parts: InputBoxes
    values: Any = None
    """What a cluster kept of them, once it is there."""


@dataclass(frozen=True)
class Job:
    """An export, as a worker sees it."""

    target: Target
    place: Place | None
    read: BoxReader | None
    """None if each region brings its own."""
    how: Slicewise | None = None
    """How regions of slices are made; None for all others."""
    continued: bool = False
    """Whether files of regions that are not done may be there: each is whole, as it came to its place at once."""

    def __call__(self, number: int, stage: int, box: IndexBox, read: Any = None) -> Outcome:
        """Make a region and write it."""
        read = read or self.read
        if self.how is not None and not stage and self.place is not None and isinstance(read, BoxReader):
            return self._slicewise(number, box, read, self.place)
        values, sizes = None, list[int]()
        with record_missing_chunks() as holes, record_ids() as seen:
            if self.place is None:
                reader, given = _given(read)
                values = draw(reader.volume.expr, box, read_sources(reader, box, given))
            elif stage:
                sizes = self._derive(stage, box, self.place)
            else:
                sizes = self._stripwise(box, read, self.place)
        return Outcome(Entry(number, sum(sizes), crc_of_sizes(sizes), tuple(sorted(holes))), values, told(seen))

    def _stripwise(self, box: IndexBox, read: Any, place: Place) -> list[int]:
        """Write a region while it is read, drawn and encoded; return sizes in the order of its keys."""
        reader, given = _given(read)
        parts = strip_by_strip(reader, box, cut(reader.volume.expr, box, self.target.granule), given)
        keys = list[str]()
        # what goes wrong while the sources are read is not the target's disk
        with unread_apart(), disk_errors(self.target.place):
            drawn = self._drawn(reader.volume.expr, parts, keys, box.voxels)
            sizes = dict(zip(keys, place.put(drawn), strict=True))
        return [sizes[key] for key in self.target.keys(0, box)]

    def _drawn(
        self, expr: Expr, parts: Iterator[tuple[IndexBox, Readings]], keys: list[str], voxels: int
    ) -> Iterator[tuple[str, bytes]]:
        for part, held in parts:
            for piece in bricks(part, self.target.granule):
                check_stop()
                for key, data in self.target.encode(0, piece, draw(expr, piece, held)):
                    keys.append(key)
                    yield key, data
                advance(piece.voxels / voxels)

    def _slicewise(self, number: int, box: IndexBox, read: BoxReader, place: Place) -> Outcome:
        assert self.how is not None
        sizes: dict[str, int] = self._there(box) if self.continued else {}
        new, known = list[str](), not sizes

        def there(slab: IndexBox) -> bool:
            return bool(sizes) and all(key in sizes for key in self.target.keys(0, slab))

        count = len(self.target.keys(0, box))

        def noted(files: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
            for key, data in files:
                new.append(key)
                yield key, data
                advance(1 / count)

        made = files_of(self.how, read.volume.expr, box, self.target.encode, there)
        with record_missing_chunks() as holes, record_ids() as seen, made as files, disk_errors(self.target.place):
            written = place.put(noted(files))
        sizes.update(zip(new, written, strict=True))
        ordered = [sizes[key] for key in self.target.keys(0, box)]
        entry = Entry(number, sum(ordered), crc_of_sizes(ordered), tuple(sorted(holes)))
        return Outcome(entry, ids=told(seen) if known else None)

    def _there(self, box: IndexBox) -> dict[str, int]:
        sizes = {key: self._size_of(key) for key in self.target.keys(0, box)}
        return {key: size for key, size in sizes.items() if size is not None}

    @cached_property
    def _size_of(self) -> Callable[[str], int | None]:
        # of a bucket it looks in a listing, which is made once: what comes later is of regions that are under way
        assert self.place is not None
        return self.place.own_size_lookup()

    def _derive(self, stage: int, box: IndexBox, place: Place) -> list[int]:
        BUFFERS.clear()  # all regions of the finest level are there: what was kept for them would come on top
        with disk_errors(self.target.place):
            return place.put(self.target.encode(stage, box, self.target.derive(stage, box, place)))


def _given(read: Any) -> tuple[BoxReader, Readings | None]:
    if isinstance(read, Piece):
        with suspend_id_recording():
            return read.read, read.parts.compute(read.values)
    return read, None


# ---------------------------------------------------------------------------------------------------------
# for other processes


def part_of(read: BoxReader, box: IndexBox) -> Any:
    """Return what gives a box and nothing else: of arrays that are in memory or in a dask graph, the part it needs."""
    expr, dask_inputs = read.volume.expr, read.volume.dask_inputs
    small = _with_parts(expr, required_boxes(expr, box)) if holds_array(expr) else expr
    part = replace(read, volume=replace(read.volume, expr=small, dask_inputs={}))
    return Piece(part, input_boxes(expr, dask_inputs, box)) if dask_inputs else part


@dataclass(frozen=True, eq=False)
class _Part(ArrayLeaf):
    """A box of an array that is elsewhere, which it stands for."""

    origin: tuple[int, int, int] = (0, 0, 0)
    whole: IndexBox = EMPTY

    @property
    def bounds(self) -> IndexBox:
        return self.whole

    def read(self, box: IndexBox) -> Array:
        return super().read(box.shift(self.origin, -1))


def _with_parts(expr: Expr, needs: dict[Leaf, list[IndexBox]]) -> Expr:
    def part(leaf: Leaf) -> Expr:
        if not (isinstance(leaf, ArrayLeaf) or (isinstance(leaf, LevelLeaf) and holds_array(leaf))):
            return leaf
        hull = reduce(IndexBox.hull, needs.get(leaf, [EMPTY]))
        return _Part(np.ascontiguousarray(leaf.read(hull)), leaf.lead, leaf.tail, hull.start, leaf.bounds)

    return replace_leaves(expr, part)


def holds_array(expr: Expr) -> bool:
    """Tell whether a recipe carries voxels with it, which should not travel with every region."""
    if isinstance(expr, LevelLeaf):
        return hasattr(expr.source, "array")
    return isinstance(expr, ArrayLeaf) or any(holds_array(child) for child in expr.inputs)


def _rest() -> None:
    BUFFERS.clear()
    give_back()


KEPT = Lingering(keep_freed, _rest, KEPT_SECONDS)
"""The memory of this process, where it works for another."""


def pack(job: Job) -> bytes:
    """Pickle a job."""
    import cloudpickle

    data: bytes = cloudpickle.dumps(job)
    return data


@lru_cache(maxsize=8)
def _unpack(blob: bytes) -> Job:
    import cloudpickle

    job: Job = cloudpickle.loads(blob)
    return job


def work(
    blob: bytes,
    number: int,
    stage: int,
    box: tuple[Any, Any],
    part: bytes | None = None,
    keys: Any = (),
    values: Any = (),
) -> Outcome:
    """Make a region in another process: the task of a worker, which the cluster gives what it keeps of it."""
    import cloudpickle

    read: Any = None if part is None else cloudpickle.loads(part)
    if keys:
        read = replace(read, values=dict(zip(cloudpickle.loads(keys), values, strict=True)))

    def make() -> Outcome:
        with KEPT.used(), on_a_worker():
            return _unpack(blob)(number, stage, IndexBox(*box), read)

    outcome: Outcome = run_cancellable(make, own_thread=not isinstance(read, Piece))
    return outcome
