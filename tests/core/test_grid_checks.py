"""Warnings about grids half a voxel apart."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from tests.support.omezarr import axes_of, level, write_ome

SHAPE = (4, 16, 16)


def precomputed_like(offset=(3, 4, 1)) -> xr.DataArray:
    grid = ix.Grid(SHAPE, (8, 8, 40), offset)
    attrs = {"source": "precomputed://gs://bucket/em", "layer_type": "image"}
    return xr.DataArray(np.zeros(SHAPE, "uint8"), coords=grid.coords(), dims=("z", "y", "x"), attrs=attrs, name="image")


@pytest.fixture
def labels(tmp_path):
    ids = np.arange(np.prod(SHAPE), dtype="uint64").reshape(SHAPE)
    multiscale = {"axes": axes_of("zyx"), "datasets": [level("0", (40, 8, 8))]}
    write_ome(tmp_path / "cells", [ids], multiscale, more={"image-label": {}})
    return tmp_path / "cells"


def test_labels_half_a_voxel_away_from_the_image_warn(labels):
    image, cells = precomputed_like((0, 0, 0)), ix.open_segmentation(labels)
    with pytest.warns(ix.ImageryWarning, match=r"exactly half a voxel \(4 × 4 × 20 nm\).*open it with assume='corner'"):
        ix.align(image, cells)
    with pytest.warns(ix.ImageryWarning, match="assume='corner'"):
        ix.regrid(cells, like=image)
    with pytest.raises(
        ix.errors.GridMismatchError, match="half a voxel apart, so if one is an OME-Zarr.*assume='corner'"
    ):
        ix.overlay(image, cells)


def test_labels_opened_by_their_corner_align_with_the_image_and_do_not_warn(labels):
    cells = ix.open_segmentation(labels, assume="corner")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = ix.align(precomputed_like((0, 0, 0)), cells)
    np.testing.assert_array_equal(both.segmentation.values, cells.values)


def test_a_crop_warns_like_the_whole_array(labels):
    cells = ix.open_segmentation(labels).isel(z=slice(1, 3), x=slice(2, 9))
    with pytest.warns(ix.ImageryWarning, match="assume='corner'"):
        ix.align(precomputed_like(), cells)


def test_grids_with_other_differences_do_not_warn(labels):
    cells = ix.open_segmentation(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ix.align(precomputed_like((0.25, 0.25, 0)), cells)
        ix.align(precomputed_like((0.5, 0.5, 0.5)), cells)
