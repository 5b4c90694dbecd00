"""Pyramids: the grids of the levels, and the derivation of a level from the next finer one."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from imageryxr.core.axis_mapping import GridMap
from imageryxr.core.bbox import Index3, IndexBox, tidy
from imageryxr.core.grid import Axis, Grid
from imageryxr.core.validate import check_whole
from imageryxr.errors import Message, Wording
from imageryxr.export.plan.regions import Regions, tiles
from imageryxr.export.store.bucket import Place
from imageryxr.export.targets.base import REGION_VOXELS, Target, lost_object, stored_dtype
from imageryxr.graph.evaluate import evaluate
from imageryxr.graph.expr import Array, ArrayLeaf, Expr, Resampled

# Voxels of a coarser level that are derived at a time, from up to eight times as many finer ones.
PART_VOXELS = 1 << 18
# Bytes of the Python objects that reading and encoding need for a box of any size.
_READER_BYTES = 1 << 18


def pyramid(grid: Grid, levels: int | None, largest: int, *, whole_offsets: bool = False) -> list[Grid]:
    """Return the grids of a pyramid. Each level halves the axes with the smallest voxels, towards isotropic voxels.

    All levels have the same lower corner, and odd sizes round up. With ``whole_offsets``, offsets are whole numbers
    instead, and a level extends beyond the finer one by up to a voxel on each side.
    """
    grids = [grid]
    while levels is None or len(grids) < levels:
        last = grids[-1]
        finest = min(last.resolution)
        halve = [a.resolution < 2 * finest and a.size > 1 for a in last.axes]
        if not any(halve) or (levels is None and max(last.shape) <= largest):
            break
        axes = [_halve_axis(a, whole_offsets) if h else a for a, h in zip(last.axes, halve, strict=True)]
        grids.append(Grid.from_axes(axes))
    return grids


def _halve_axis(axis: Axis, whole: bool) -> Axis:
    if not whole:
        return Axis(-(-axis.size // 2), axis.resolution * 2, tidy(axis.offset / 2))
    low, high = math.floor(axis.offset / 2), math.ceil((axis.offset + axis.size) / 2)
    return Axis(high - low, axis.resolution * 2, low)


@dataclass(frozen=True)
class Pyramid(Target):
    """A target of several levels, each derived from the next finer one.

    Images are averaged without NaN; a voxel is NaN if all its finer voxels are. Segmentations take the most frequent
    id. Colours are weighted by their alpha; other channels are averaged one by one. A voxel that the finer level covers
    in part derives from that part.
    """

    grids: tuple[Grid, ...]
    """The grid of each level, finest first."""
    chunk: Index3
    coarse: int = field(default=REGION_VOXELS, kw_only=True)

    encoding = 2.0

    def with_coarse(self, voxels: int) -> Pyramid:
        """Return the same target with coarser levels in regions of about `voxels` voxels."""
        return replace(self, coarse=voxels)

    def chunk_shape(self, level: int) -> Index3:
        """Return the shape of a chunk of a level."""
        return self.chunk

    def object_shape(self, level: int) -> Index3:
        """Return the shape of a stored object of a level: a multiple of its chunk."""
        return self.chunk_shape(level)

    @property
    def granule(self) -> Index3:
        """Voxels (z, y, x) of a stored object of the finest level, a chunk or a shard."""
        return self.object_shape(0)

    @property
    def later(self) -> tuple[Regions, ...]:
        """The coarser levels, each derived from the next finer one."""
        return tuple(level_regions(g.shape, self.object_shape(i), self.coarse) for i, g in enumerate(self.grids) if i)

    def derive(self, stage: int, box: IndexBox, place: Place) -> Array:
        """Return a box of a level, derived from the next finer level.

        It is derived in parts, one stored object of the finer level after the other and a few chunks at a time, so that
        little of the finer level is in memory.
        """
        objects: dict[str, bytes] = {}

        def load(need: IndexBox) -> Array:
            read_objects(place, self.keys(stage - 1, need), objects)
            return self.decode(stage - 1, need, objects, place)

        if box.voxels <= PART_VOXELS:
            return self._shrink(stage, box, load)
        channels, dtype = self.layer.channels, stored_dtype(self.layer.dtype)
        out = np.empty(box.shape, dtype)
        if channels:  # channels first in memory, as they are stored
            out = np.moveaxis(np.empty((channels, *box.shape), dtype), 0, -1)
        z, y, x = self._finer_shape(stage, self.object_shape(stage - 1))
        for outer in tiles(box, (z, y, x)):
            for part in tiles(outer, self._part_shape(stage, box)):
                out[part.slices(box)] = self._shrink(stage, part, load)
        return out

    @abstractmethod
    def decode(self, level: int, box: IndexBox, objects: Mapping[str, bytes], place: Place) -> Array:
        """Return the values of a box from all stored objects that it touches, by key; errors name ``place``."""

    def derived_bytes(self, stage: int, box: IndexBox) -> int:
        """Return the maximal bytes of memory that `derive` needs, its result included."""
        part = max(math.prod(self._part_shape(stage, box)), min(box.voxels, PART_VOXELS))
        stored = math.prod(self.object_shape(stage - 1))
        # A part derives from up to eight voxels for each of its own, which are loaded, padded and weighted.
        return self.layer.voxel_bytes * (box.voxels + 8 * 3 * part + stored) + _READER_BYTES

    def _finer_shape(self, stage: int, shape: Index3) -> list[int]:
        """Return the size in a level of a box of the next finer level, at least one voxel."""
        axes = zip(self.grids[stage].axes, self.grids[stage - 1].axes, shape, strict=True)
        return [max(1, n // round(axis.resolution / finer.resolution)) for axis, finer, n in axes]

    def _part_shape(self, stage: int, box: IndexBox) -> Index3:
        """Return the shape of the parts that are derived at a time: they cover whole chunks of the finer level."""
        most = list(map(min, box.shape, self._finer_shape(stage, self.object_shape(stage - 1))))
        size = list(map(min, most, self._finer_shape(stage, self.chunk_shape(stage - 1))))
        while True:
            axis = min((a for a in range(3) if 2 * size[a] <= most[a]), key=lambda a: size[a], default=None)
            if axis is None or math.prod(size) * 2 > PART_VOXELS:
                return size[0], size[1], size[2]
            size[axis] *= 2

    def _shrink(self, stage: int, box: IndexBox, load: Callable[[IndexBox], Array]) -> Array:
        """Return a box of a level, derived at once; `load` returns a box of the next finer level."""
        grid_map = GridMap.from_grids(self.grids[stage], self.grids[stage - 1])
        need = grid_map.source_box(box, "mean")
        held = need.clip(self.grids[stage - 1].box)
        # Edge padding gives a voxel that the finer level covers in part the value of that part.
        missing = [(h - n, m - g) for n, h, g, m in zip(need.start, held.start, held.stop, need.stop, strict=True)]
        values, channels = load(held), self.layer.channels
        if any(map(any, missing)):
            values = np.pad(values, [*missing, *([(0, 0)] if channels else [])], mode="edge")
        moved = grid_map.relative_to(need.start)
        if channels == 4 and values.dtype == np.uint8:
            return _shrink_rgba(values, moved, box)
        if channels:
            return np.stack([_shrink_channel(values[..., i], moved, box, "mean") for i in range(channels)], axis=-1)
        return _shrink_channel(values, moved, box, "mode" if self.layer.layer_type == "segmentation" else "mean")


def read_objects(place: Place, keys: list[str], objects: dict[str, bytes]) -> None:
    """Read the missing objects into a dictionary, and remove those that the next part does not share."""
    for key in set(objects) - set(keys):
        del objects[key]
    for key in set(keys) - set(objects):
        data = place.get(key)
        if data is None:
            raise lost_object(place, key)
        objects[key] = data


def check_levels(levels: int | None) -> None:
    """Raise `OptionError` if a number of levels is invalid."""
    if levels is not None:
        none = Wording(", or None", ", or be left out")
        check_whole("levels", levels, 1, expected=Message("a whole number from 1 (no pyramid)", none))


def level_regions(shape: Index3, granule: Index3, voxels: int = REGION_VOXELS) -> Regions:
    """Return the regions of a coarser level: whole chunks, of at most `voxels` voxels or of one chunk."""
    step = list(granule)
    while True:
        axis = min((a for a in range(3) if step[a] < shape[a]), key=lambda a: step[a], default=None)
        if axis is None or math.prod(step) * 2 > voxels:
            return Regions.uniform(shape, (step[0], step[1], step[2]))
        step[axis] *= 2


def _shrink_channel(values: Array, grid_map: GridMap, box: IndexBox, method: str) -> Array:
    if method == "mean" and values.dtype.kind == "f":
        unknown = np.isnan(values)
        if unknown.any():
            known = _shrink_channel((~unknown).astype(np.float64), grid_map, box, method)
            total = _shrink_channel(np.where(unknown, 0, values).astype(np.float64), grid_map, box, method)
            mean: Array = np.where(known > 0, total / np.where(known > 0, known, 1), np.nan).astype(values.dtype)
            return mean
    leaf: Expr = ArrayLeaf(np.ascontiguousarray(values))
    return evaluate(Resampled(leaf, grid_map, method), box)


def _shrink_rgba(values: Array, grid_map: GridMap, box: IndexBox) -> Array:
    from imageryxr.kernels.downsample import mean_rgba

    axes = zip(grid_map.axes, box.start, box.stop, values.shape[:3], strict=True)
    z, y, x = (m.overlap(a, b, (0, n)) for m, a, b, n in axes)
    return mean_rgba(values, (z, y, x))
