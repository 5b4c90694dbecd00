"""The variables of a Dataset that have voxels."""

from __future__ import annotations

from typing import Any, TypeVar

import xarray as xr

from imageryxr.core.bbox import DIMS

ArrayOrDataset = TypeVar("ArrayOrDataset", xr.DataArray, xr.Dataset)


def spatial_arrays(dataset: xr.Dataset) -> dict[Any, xr.DataArray]:
    """Return the variables of a Dataset that have z, y and x as dims or as scalar coordinates, by name."""
    return {name: v for name, v in dataset.data_vars.items() if {*DIMS} <= {*v.dims, *v.coords}}
