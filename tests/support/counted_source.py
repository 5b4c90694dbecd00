"""A source that counts the reads of its chunks."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import xarray as xr

import imageryxr as ix
from imageryxr.graph.expr import LevelLeaf
from imageryxr.graph.labelled import lazy_array
from imageryxr.sources.base import Level

SHAPE, CHUNKS = (12, 44, 52), (4, 16, 16)


GRID = ix.Grid(SHAPE, (8, 8, 40), (3, 5, 7))


READS: Counter[tuple[int, int, int]] = Counter()


VOXELS = [0]


LOCK = threading.Lock()


def ids(shape=SHAPE):
    z, y, x = np.indices(shape)
    cells = ((z // 5) * 7 + (y + z) // 9 * 3 + (x + y // 3) // 11) % 6
    return (cells.astype(np.uint64) * np.uint64(2**60 + 1)) * (((x * y) % 13) > 0)


VALUES = ids()


@dataclass(frozen=True)
class CountedSource:
    """A source that counts how many calls read each of its chunks."""

    layer_type: str = "segmentation"
    name = "recorded://cells"
    attrs = {}  # noqa: RUF012

    @property
    def dtype(self):
        return np.dtype(np.uint64 if self.layer_type == "segmentation" else np.uint8)

    @cached_property
    def levels(self):
        return (Level(0, GRID, CHUNKS),)

    def check(self, mip):
        pass

    def read(self, mip, box):
        inside = box.clip(GRID.box)
        with LOCK:
            VOXELS[0] += inside.voxels
            spans = [range(a // c, -(-b // c)) for a, b, c in zip(inside.start, inside.stop, CHUNKS, strict=True)]
            for chunk in product(*spans):
                READS[chunk] += 1
        out = np.zeros(box.shape, self.dtype)
        if inside.voxels:
            out[inside.slices(box)] = (VALUES % 251 if self.layer_type == "image" else VALUES)[inside.slices()]
        return out

    def __dask_tokenize__(self):
        return ("recorded", self.layer_type)


def open_counted(chunks=None, layer_type="segmentation"):
    return lazy_array(LevelLeaf(CountedSource(layer_type), 0), GRID, {"layer_type": layer_type}, layer_type, chunks)


def array_in_memory(layer_type="segmentation"):
    values = VALUES if layer_type == "segmentation" else (VALUES % 251).astype(np.uint8)
    return xr.DataArray(
        values,
        dims=("z", "y", "x"),
        coords=GRID.coords(),
        attrs={"layer_type": layer_type, "resolution": GRID.resolution},
        name=layer_type,
    )


@dataclass(frozen=True)
class CountedZeros:
    """A source of any size whose voxels are 0, and which counts the voxels that are read."""

    grid: ix.Grid
    layer_type: str = "image"
    name = "recorded://endless"
    attrs = {}  # noqa: RUF012
    dtype = np.dtype(np.uint8)

    @cached_property
    def levels(self):
        return (Level(0, self.grid, (64, 64, 64)),)

    def check(self, mip):
        pass

    def read(self, mip, box):
        with LOCK:
            VOXELS[0] += box.voxels
        return np.zeros(box.shape, np.uint8)

    def __dask_tokenize__(self):
        return ("endless", self.grid.shape)
