"""Zarr groups of xarray Datasets that `xarray.open_zarr` opens without a warning."""

from __future__ import annotations

import warnings
from typing import Any

import xarray as xr


def write_group(dataset: xr.Dataset, store: Any, **options: Any) -> None:
    """Write a Dataset as a new Zarr group of format 3 with consolidated metadata; a group there is replaced.

    Lazy arrays are computed unless ``compute=False`` is among the `options` of `xarray.Dataset.to_zarr`.
    """
    with warnings.catch_warnings():
        # Consolidated metadata are an extension of the format, which all readers may ignore.
        warnings.filterwarnings("ignore", "Consolidated metadata is")
        dataset.to_zarr(store, mode="w", zarr_format=3, consolidated=True, **options)
