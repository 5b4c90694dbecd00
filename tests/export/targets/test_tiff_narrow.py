"""A TIFF of slices that are one voxel wide, high or deep has every voxel at its position."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import tifffile
from PIL import Image

import imageryxr as ix
from tests.conftest import volume
from tests.support.slow import slow_except

NARROW = [shape for shape in product((1, 2, 5), (1, 7), (1, 2, 4)) if 1 in shape]
FILES = {
    "plain": ("o.tif", {}),
    "not compressed": ("o.tif", {"compression": None}),
    "big": ("o.tif", {"bigtiff": True}),
    "ome": ("o.ome.tif", {}),
    "ome, not compressed": ("o.ome.tif", {"compression": None}),
}
KINDS = ["uint8", "uint16", "float32", "uint64", "bool", "rgba"]


def array_of(shape, kind):
    rng = np.random.default_rng(7)
    if kind == "rgba":
        image = volume(rng.integers(0, 255, shape, np.uint8), layer_type="image")
        return ix.overlay(image, volume(rng.integers(0, 5, shape, np.uint32), layer_type="segmentation"))
    values = rng.random(shape) > 0.5 if kind == "bool" else (rng.random(shape) * 250).astype(kind)
    return volume(values, layer_type="segmentation" if kind == "uint64" else "image")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", slow_except(KINDS, "uint16"))
def test_slices_one_voxel_wide_have_every_voxel_at_its_position(tmp_path, kind, file):
    name, options = FILES[file]
    if kind == "uint64" and "ome" in name:
        pytest.skip("OME-TIFF holds no such ids")
    for shape in NARROW:
        array = array_of(shape, kind)
        path = tmp_path / "x".join(map(str, shape)) / name
        ix.export(array, path, **options)
        expected = array.values.astype(np.uint8) * 255 if kind == "bool" else array.values
        with tifffile.TiffFile(path) as tiff:
            assert len(tiff.pages) == shape[0], shape
            for page, plane in zip(tiff.pages, expected, strict=True):
                assert (page.imagelength, page.imagewidth) == shape[1:]
                np.testing.assert_array_equal(page.asarray().reshape(plane.shape), plane)
            assert len(tiff.series) == 1
            np.testing.assert_array_equal(tiff.series[0].asarray().reshape(expected.shape), expected)
        if kind == "uint64":  # Pillow cannot read these
            continue
        with Image.open(path) as picture:
            assert picture.n_frames == shape[0], shape
            for i, plane in enumerate(expected):
                picture.seek(i)
                np.testing.assert_array_equal(np.asarray(picture).reshape(plane.shape), plane)
