"""Arrays in memory as a source: numpy, dask, or a DataArray with coordinates in nm."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.array_labels import grid_of
from imageryxr.core.bbox import DIMS, IndexBox
from imageryxr.core.fork import cached_property
from imageryxr.core.grid import Grid
from imageryxr.errors import GridError, LayerError
from imageryxr.sources.base import LayerType, Level, Source, read_filled


@dataclass(frozen=True, eq=False)
class MemorySource:
    """One level of voxels in memory or in a dask graph.

    Opening this source returns the array unchanged: numpy stays numpy, and dask keeps its blocks.
    """

    array: Any
    """Voxels (z, y, x), numpy or dask."""
    grid: Grid
    """Position, shape and resolution of the voxels."""
    layer_type: LayerType
    """Kind of voxels: grey values or ids."""
    given_attrs: tuple[tuple[str, Any], ...] = ()
    """Attributes of the array, sorted by name."""

    @property
    def name(self) -> str:
        """Name of the source in messages and attributes."""
        return f"memory://{self.dtype}"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels."""
        dtype: np.dtype[Any] = np.dtype(self.array.dtype).newbyteorder("=")
        return dtype

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The one level."""
        chunks = getattr(self.array, "chunksize", self.grid.shape)
        return (Level(0, self.grid, chunks, encoding="memory"),)

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the array."""
        return dict(self.given_attrs)

    def check(self, mip: int) -> None:
        """Do nothing: memory is always readable."""

    def read(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box, 0 outside the array; computes that part of a dask array."""
        return read_filled(self, mip, box)

    def read_inside(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the voxels of a box that lies inside the array."""
        return np.asarray(self.array[box.slices()]).astype(self.dtype, copy=False)

    def __eq__(self, other: object) -> bool:
        from dask.base import tokenize

        if not isinstance(other, MemorySource) or hash(self) != hash(other):
            return False
        return self.array is other.array or bool(tokenize(self) == tokenize(other))

    def __hash__(self) -> int:
        # Equal sources may hold equal copies of an array, so the array is not part of the hash.
        return hash((self.grid, self.layer_type, str(self.dtype)))

    def __dask_tokenize__(self) -> object:
        from dask.base import normalize_token

        return ("imageryxr.memory", normalize_token(self.array), astuple(self.grid), self.layer_type)


def memory_source(array: Any, layer_type: LayerType) -> MemorySource:
    """Return the source of a DataArray with coordinates in nm, or with attributes that give its position.

    Raises
    ------
    GridError
        If neither coordinates nor attributes give the voxel size.
    LayerError
        If the dims are not z, y and x.
    """
    if not isinstance(array, xr.DataArray):
        kind = type(array).__name__
        raise GridError(
            f"a bare {kind} has no position; give a DataArray with dims (z, y, x) and coordinates in nm: "
            "xr.DataArray(array, dims=('z', 'y', 'x'), coords=imageryxr.Grid(array.shape, resolution=(8, 8, 40), "
            "voxel_offset=(0, 0, 0)).coords())"
        )
    if set(array.dims) != set(DIMS):
        raise LayerError(
            f"the array has dims {array.dims}; a volume has ('z', 'y', 'x'): rename its dims, or select along others"
        )
    array = array.transpose(*DIMS)
    keep = {k: v for k, v in array.attrs.items() if k not in ("resolution", "voxel_offset", "mip", "layer_type")}
    return MemorySource(array.data, _grid(array), layer_type, tuple(sorted(keep.items(), key=lambda kv: str(kv[0]))))


def _grid(array: xr.DataArray) -> Grid:
    if all(dim in array.coords for dim in DIMS):
        return grid_of(array)
    if "resolution" in array.attrs:
        return Grid(array.shape, array.attrs["resolution"], array.attrs.get("voxel_offset", (0, 0, 0)))  # type: ignore[arg-type]
    return grid_of(array)


_: type[Source] = MemorySource
