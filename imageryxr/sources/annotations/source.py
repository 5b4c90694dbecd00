"""Precomputed annotations, read with their indexes of cells, ids and segments.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/annotations.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import BBox, Triple
from imageryxr.core.lazy_import import import_package
from imageryxr.errors import ChunkReadError, OptionError, SourceError
from imageryxr.sources.annotations.folder import AnnotationFolder
from imageryxr.sources.annotations.info import AnnotationInfo, SpatialLevel

Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Records:
    """Decoded annotations."""

    ids: Ids
    values: npt.NDArray[Any]
    """Structured array of `AnnotationInfo.record`."""

    def select(self, chosen: npt.NDArray[Any]) -> Records:
        """Return the annotations at indexes, or where a mask is true."""
        return Records(self.ids[chosen], self.values[chosen])

    def unique(self) -> Records:
        """Return the annotations in ascending order of their ids, each once."""
        return self.select(np.unique(self.ids, return_index=True)[1])


def join_records(info: AnnotationInfo, parts: Sequence[Records]) -> Records:
    """Return several sets of annotations as one."""
    return Records(
        np.concatenate([np.empty(0, np.uint64), *(part.ids for part in parts)]),
        np.concatenate([np.empty(0, info.record), *(part.values for part in parts)]),
    )


def decode_list(info: AnnotationInfo, body: bytes, name: str) -> Records:
    """Decode the annotations of a cell or of a segment.

    Raises
    ------
    ChunkReadError
        If the length of the file contradicts the number of annotations in it.
    """
    record = info.record
    count = int.from_bytes(body[:8], "little")
    expected = 8 + count * (record.itemsize + 8)
    if len(body) < 8 or len(body) != expected:
        stated = (
            f"its {count:,} annotations take {expected:,}" if len(body) >= 8 else "its number of annotations takes 8"
        )
        raise ChunkReadError(
            f"{name} is damaged or has another layout than its info states: it has {len(body):,} bytes, but {stated}"
        )
    values = np.frombuffer(body, record, count, 8)
    return Records(np.frombuffer(body, "<u8", count, 8 + count * record.itemsize).astype(np.uint64), values)


def decode_single(info: AnnotationInfo, number: int, body: bytes, name: str) -> tuple[Records, list[Ids]]:
    """Decode one annotation of the index of ids, with the ids of the related segments of each relationship.

    Raises
    ------
    ChunkReadError
        If the file is too short or too long.
    """
    record = info.record
    problem = f"{name} is damaged or has another layout than its info states: "
    if len(body) < record.itemsize:
        raise ChunkReadError(f"{problem}it has {len(body):,} bytes, but an annotation takes {record.itemsize:,}")
    offset, related = record.itemsize, []
    for relationship in info.relationships:
        count = int.from_bytes(body[offset : offset + 4], "little")
        if offset + 4 + 8 * count > len(body):
            raise ChunkReadError(f"{problem}it ends within the segments of {relationship.name!r}")
        related.append(np.frombuffer(body, "<u8", count, offset + 4).astype(np.uint64))
        offset += 4 + 8 * count
    if offset != len(body):
        raise ChunkReadError(f"{problem}it has {len(body):,} bytes, but its content takes {offset:,}")
    return Records(np.array([number], np.uint64), np.frombuffer(body, record, 1)), related


MOST_CELLS = 1_000_000
"""Largest number of cells that are read for one box."""

Cell = tuple[int, int, int]


@dataclass(frozen=True)
class AnnotationSource:
    """A collection of precomputed annotations."""

    folder: AnnotationFolder
    info: AnnotationInfo

    def read_ids(self, ids: Sequence[int]) -> tuple[Records, list[list[Ids]]]:
        """Return the annotations of ids, and for each relationship the segments of each annotation.

        Ids that do not occur are omitted.
        """
        if self.info.by_id is None:
            raise SourceError(f"{self.folder.name} has no index of ids; select annotations with bbox= or segments=")
        index, what = self.info.by_id, f"{self.folder.name}/{self.info.by_id.key}"

        def parse(number: int, body: bytes) -> tuple[Records, list[Ids]]:
            return decode_single(self.info, number, body, f"annotation {number} in {what}")

        found = self.folder.child(index.key).read_ids(index.sharding, ids, parse)
        parts, related = [record for record, _ in found.values()], [segments for _, segments in found.values()]
        columns = [[row[i] for row in related] for i in range(len(self.info.relationships))]
        return join_records(self.info, parts), columns

    def read_segments(self, number: int, segments: Sequence[int]) -> dict[int, Records]:
        """Return the annotations related to each segment by the relationship at index `number`."""
        index = self.info.relationships[number]
        what = f"{self.folder.name}/{index.key}"
        return self.folder.child(index.key).read_ids(
            index.sharding,
            segments,
            lambda segment, body: decode_list(self.info, body, f"the entry of segment {segment} in {what}"),
        )

    def read_box(self, bbox: BBox | None) -> Records:
        """Return all annotations of the cells that overlap a box, each once; some may lie outside the box.

        Raises
        ------
        OptionError
            If the box overlaps too many cells.
        """
        if not self.info.spatial:
            raise SourceError(f"{self.folder.name} has no spatial index; select annotations with ids= or segments=")
        spans = [self._cells(level, bbox) for level in self.info.spatial]
        count = self.count_cells(bbox)
        if count > MOST_CELLS:
            raise OptionError(
                f"{'the box' if bbox is not None else 'the whole collection'} {bbox or self.folder.name} overlaps "
                f"{count:,} cells of the spatial index; the limit is {MOST_CELLS:,}: give a smaller bbox"
            )
        parts = []
        for level, ranges in zip(self.info.spatial, spans, strict=True):
            parts += self._read_cells(level, [(a, b, c) for a, b, c in itertools.product(*ranges)])
        return join_records(self.info, parts).unique()

    def count_cells(self, bbox: BBox | None) -> int:
        """Return the number of cells, at all levels of the spatial index, that overlap a box; all cells for None."""
        return sum(math.prod(len(span) for span in self._cells(level, bbox)) for level in self.info.spatial)

    def box_around(self, point: Triple, most: int) -> BBox:
        """Return a large box around a point (x, y, z) in nm that overlaps at most ``most`` cells.

        The box has the proportions of the grid of cells. The smallest box overlaps only the cells that contain the
        point, even if these are more than ``most``.
        """
        fine = max(self.info.spatial, key=lambda level: math.prod(level.grid_shape))
        extent = [fine.chunk_size[a] * fine.grid_shape[a] * self.info.units[a] for a in self.info.axes]
        share = 1.0
        while True:
            box = BBox(
                [p - share * e for p, e in zip(point, extent, strict=True)],
                [p + share * e for p, e in zip(point, extent, strict=True)],
            )
            if share < 1e-9 or self.count_cells(box) <= most:
                return box
            share *= 0.8

    def _cells(self, level: SpatialLevel, bbox: BBox | None) -> list[range]:
        """Return the ranges of cells of a level that overlap a box, along each stored dimension."""
        if bbox is None:
            return [range(n) for n in level.grid_shape]
        ranges = []
        for axis in range(3):
            lo, hi = self._interval(bbox, axis)
            low, size, count = self.info.lower_bound[axis], level.chunk_size[axis], level.grid_shape[axis]
            first, last = ((edge - low) / size for edge in (lo, hi))
            # Positions are stored as float32, so those within a rounding error of a border may be in either cell.
            slack = 1e-6 * (1 + max(abs(first), abs(last), abs(low / size)))
            # Some writers state the bounds of centres only, and store annotations beyond these in the outermost cells.
            start, stop = (min(max(math.floor(f), 0), count - 1) for f in (first - slack, last + slack))
            ranges.append(range(start, stop + 1))
        return ranges

    def _interval(self, bbox: BBox, stored_axis: int) -> tuple[float, float]:
        """Return the interval of a box along a stored dimension, in its units."""
        axis, unit = self.info.axes.index(stored_axis), self.info.units[stored_axis]
        return bbox.lo_nm[axis] / unit, bbox.hi_nm[axis] / unit

    def _read_cells(self, level: SpatialLevel, cells: list[Cell]) -> list[Records]:
        """Return the annotations of those cells that are stored; the others have no annotations."""
        folder = self.folder.child(level.key)
        names = ["_".join(map(str, cell)) for cell in cells]

        def parse(name: str, body: bytes) -> Records:
            return decode_list(self.info, body, f"the cell {name} of {folder.name}")

        if level.sharding is None:
            return list(folder.read(names, parse).values())
        codes = dict(zip(_morton_codes(cells, level.grid_shape), names, strict=True))
        stored = folder.read_sharded(level.sharding, list(codes), lambda code, body: parse(codes[code], body))
        return list(stored.values())


def _morton_codes(cells: Sequence[Cell], shape: Cell) -> list[int]:
    import_package("cloudvolume")
    from cloudvolume.datasource.precomputed.common import compressed_morton_code

    codes: Any = compressed_morton_code(np.array(cells, np.uint32).reshape(-1, 3), shape)
    return [int(code) for code in codes]
