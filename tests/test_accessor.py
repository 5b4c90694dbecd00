"""The reprs of the accessors."""

from __future__ import annotations

import numpy as np
import xarray as xr

import imageryxr as ix


def test_the_repr_of_an_accessor_describes_its_array_and_lists_its_methods(sample):
    em = ix.open_image(sample.image)
    text = repr(em.imagery)
    assert text.startswith("<imagery of 'image': uint8, (z, y, x) 64 × 1,024 × 1,024, voxels of 8 × 8 × 40 nm>")
    words = set(text.replace(",", " ").split())
    assert {"crop", "overlay", "save_masks", "export", "grid"} <= words
    assert all(hasattr(em.imagery, name) for line in text.splitlines()[1:] for name in line.strip(" ,").split(", "))
    ds = repr(em.to_dataset().imagery)
    assert "a Dataset with 'image': uint8" in ds
    assert "overlay" in ds


def test_accessors_of_arrays_without_a_grid_and_of_empty_datasets_have_a_repr():
    assert "without a grid in nm" in repr(xr.DataArray(np.zeros((2, 3))).imagery)
    assert "no arrays" in repr(xr.Dataset().imagery)
