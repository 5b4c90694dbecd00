"""Stacks in memory: how near the whole comes to its slowest stage, and what the second core adds."""

from __future__ import annotations

from typing import Any, ClassVar

import dask
import numpy as np
import xarray as xr

import imageryxr as ix
from benchmarks import pictures, work


class _Stack(work.Work):
    rounds = 5

    def setup(self, *params: Any) -> None:
        shape = (16, 128, 128) if self.small else (64, 1024, 1024)
        layers = pictures.layers(shape, 10 if self.small else 300)
        lo, hi = layers.corners
        box = ix.BBox(lo, hi, resolution=pictures.RESOLUTION)
        self.image, self.segmentation = layers.image, layers.segmentation
        both = ix.align(ix.open_image(layers.image), ix.open_segmentation(layers.segmentation), bbox=box)
        self.read = both
        self.picture = ix.overlay(both.image, both.segmentation, alpha=0.3)
        self.prepare()

    def prepare(self) -> None:
        """Make what else is needed; not timed."""


class StackAgainstStages(_Stack):
    """Its peer is whichever stage takes longer by itself: reading both layers, or drawing what is read."""

    title = "stack 64×1024², read → align → overlay, in memory"
    peer_name = "its slowest stage alone, on as many cores"
    at_least = 0.7

    def prepare(self) -> None:
        held = in_memory(self.read, dict(zip(("z", "y", "x"), self.picture.data.chunks[:3], strict=True)))
        self.drawing = ix.overlay(held.image, held.segmentation, alpha=0.3)
        for stage in (self._read, self._draw):
            stage()  # what is compiled or opened the first time is no part of it
        reading, drawing = (work.seconds(stage) for stage in (self._read, self._draw))
        self.slowest = self._read if reading > drawing else self._draw

    def _read(self) -> Any:
        return blocks_of(self.read.image, self.read.segmentation)

    def _draw(self) -> Any:
        return blocks_of(self.drawing)

    def ours(self) -> Any:
        return blocks_of(self.picture)

    def peer(self) -> Any:
        return self.slowest()


def blocks_of(*arrays: Any) -> Any:
    """Compute arrays block by block, and let go of each block: neither is joined nor kept."""
    return dask.compute(*[dask.delayed(np.size)(block) for a in arrays for block in a.data.to_delayed().ravel()])


def in_memory(dataset: xr.Dataset, chunks: Any) -> xr.Dataset:
    """Return a Dataset in dask blocks that lie in memory, each by itself."""
    held: xr.Dataset = dataset.compute().chunk(chunks).map(lambda a: a.copy(data=a.data.map_blocks(np.array)))
    return held.persist()


def deep(dataset: xr.Dataset, times: int) -> xr.Dataset:
    """Return a Dataset several times over, one below the other."""
    grid = ix.grid_of(dataset.image)
    whole = ix.Grid((times * grid.shape[0], *grid.shape[1:]), grid.resolution, grid.voxel_offset)
    arrays = {
        name: (array.dims, np.concatenate([array.values] * times), array.attrs)
        for name, array in dataset.data_vars.items()
    }
    return xr.Dataset(arrays, coords=whole.coords())


class _TwoCores(_Stack):
    peer_name = "the same on one core"
    at_least = 1.7
    # A core that had nothing to do for 0.1 s, as while one side is timed, comes late, by 10 to 30 ms. Of a deep stack
    # that is little, and of what dask does before the first block begins.
    least = 0.5
    outline: ClassVar[Any] = None

    def prepare(self) -> None:
        held = in_memory(deep(self.read, 4), dict(zip(("z", "y", "x"), self.picture.data.chunksize[:3], strict=True)))
        self.drawing = ix.overlay(held.image, held.segmentation, alpha=0.3, outline=self.outline)

    def _draw(self, workers: int) -> Any:
        with dask.config.set(scheduler="threads", num_workers=workers):
            return blocks_of(self.drawing)

    def ours(self) -> Any:
        return self._draw(2)

    def peer(self) -> Any:
        return self._draw(1)


class OverlayOnTwoCores(_TwoCores):
    title = "overlay of a stack in memory, 256×1024², two threads"


class OutlineOnTwoCores(_TwoCores):
    title = "outlines of a stack in memory, 256×1024², two threads"
    outline = ix.Outline(10, side="in", merge=False)
