"""A source with exchanged axes, which the transform of a Neuroglancer layer may require."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import IndexBox
from imageryxr.core.fork import cached_property
from imageryxr.core.grid import Grid
from imageryxr.sources.base import LayerType, Level, Source

T = TypeVar("T")


@dataclass(frozen=True)
class TransposedSource:
    """The voxels of another source, with its axes exchanged."""

    inner: Source
    """The source as it is stored."""
    order: tuple[int, int, int]
    """Stored axis (0, 1, 2 for x, y, z) that becomes each of the axes x, y and z."""

    @property
    def name(self) -> str:
        """Address of the stored source."""
        return self.inner.name

    @property
    def layer_type(self) -> LayerType:
        """Kind of voxels: grey values or ids."""
        return self.inner.layer_type

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels."""
        return self.inner.dtype

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The levels with their axes exchanged."""
        return tuple(
            replace(level, grid=self._transpose_grid(level.grid), chunks=self._transpose(level.chunks))
            for level in self.inner.levels
        )

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the stored source."""
        return self.inner.attrs

    def check(self, mip: int) -> None:
        """Raise `CodecError` if reading a level requires a package that is not installed."""
        self.inner.check(mip)

    def read(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box, 0 outside the level."""
        back = np.argsort(self._axes)
        start, stop = (tuple(int(corner[i]) for i in back) for corner in (box.start, box.stop))
        voxels = self.inner.read(mip, IndexBox(start, stop))  # type: ignore[arg-type]
        return np.ascontiguousarray(voxels.transpose(self._axes))

    def __dask_tokenize__(self) -> object:
        return ("imageryxr.transposed", self.order, self.inner.__dask_tokenize__())

    @property
    def _axes(self) -> tuple[int, int, int]:
        """The stored array axis of each array axis (z, y, x)."""
        x, y, z = self.order
        return 2 - z, 2 - y, 2 - x

    def _transpose(self, values: tuple[T, T, T]) -> tuple[T, T, T]:
        z, y, x = (values[axis] for axis in self._axes)
        return z, y, x

    def _transpose_grid(self, grid: Grid) -> Grid:
        x, y, z = self.order
        sizes, offset = grid.resolution, grid.voxel_offset
        return Grid(self._transpose(grid.shape), (sizes[x], sizes[y], sizes[z]), (offset[x], offset[y], offset[z]))


_: type[Source] = TransposedSource
