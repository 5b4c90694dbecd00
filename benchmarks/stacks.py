"""Compare stacks in memory with their slowest stage, and two cores with one."""

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
        """Create other inputs; not timed."""


class StackAgainstStages(_Stack):
    """A stack compared with its slowest stage alone: reading both layers, or drawing them."""

    title = "stack 64×1024², read → align → overlay, in memory"
    peer_name = "its slowest stage alone, on as many cores"
    at_least = 0.7

    def prepare(self) -> None:
        held = load_blocks(self.read, dict(zip(("z", "y", "x"), self.picture.data.chunks[:3], strict=True)))
        self.drawing = ix.overlay(held.image, held.segmentation, alpha=0.3)
        for stage in (self._read, self._draw):
            stage()  # excludes the time to compile and open from the comparison
        reading, drawing = (work.mean_seconds(stage) for stage in (self._read, self._draw))
        self.slowest = self._read if reading > drawing else self._draw

    def _read(self) -> Any:
        return compute_blocks(self.read.image, self.read.segmentation)

    def _draw(self) -> Any:
        return compute_blocks(self.drawing)

    def ours(self) -> Any:
        return compute_blocks(self.picture)

    def peer(self) -> Any:
        return self.slowest()


def compute_blocks(*arrays: Any) -> Any:
    """Compute arrays block by block without storing or concatenating the blocks."""
    return dask.compute(*[dask.delayed(np.size)(block) for a in arrays for block in a.data.to_delayed().ravel()])


def load_blocks(dataset: xr.Dataset, chunks: Any) -> xr.Dataset:
    """Return a Dataset of dask blocks that are separate arrays in memory."""
    held: xr.Dataset = dataset.compute().chunk(chunks).map(lambda a: a.copy(data=a.data.map_blocks(np.array)))
    return held.persist()


def repeat_in_depth(dataset: xr.Dataset, times: int) -> xr.Dataset:
    """Return a Dataset repeated several times along z."""
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
    # A core that was idle for 0.1 s, for example while the other side is timed, starts 10 to 30 ms late. A deep stack
    # makes this delay, and the time that dask needs before the first block, negligible.
    least = 0.5
    outline: ClassVar[Any] = None

    def prepare(self) -> None:
        held = load_blocks(
            repeat_in_depth(self.read, 4), dict(zip(("z", "y", "x"), self.picture.data.chunksize[:3], strict=True))
        )
        self.drawing = ix.overlay(held.image, held.segmentation, alpha=0.3, outline=self.outline)

    def _draw(self, workers: int) -> Any:
        with dask.config.set(scheduler="threads", num_workers=workers):
            return compute_blocks(self.drawing)

    def ours(self) -> Any:
        return self._draw(2)

    def peer(self) -> Any:
        return self._draw(1)


class OverlayOnTwoCores(_TwoCores):
    title = "overlay of a stack in memory, 256×1024², two threads"


class OutlineOnTwoCores(_TwoCores):
    title = "outlines of a stack in memory, 256×1024², two threads"
    outline = ix.Outline(10, side="in", merge=False)
