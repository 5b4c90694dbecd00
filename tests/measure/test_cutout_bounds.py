"""The border of the volume within a cutout is not outlined, because fill values are not segments."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from tests.conftest import volume
from tests.support.volumes import as_source

CELLS = np.repeat(np.repeat(np.random.default_rng(4).integers(0, 4, (5, 6, 7)), 5, axis=1), 5, axis=2).astype(np.uint64)
CELLS[CELLS == 3] = 2**64 - 1
SIZE = (18, 16, 3)
INNER = (slice(None), slice(None), slice(1, -1), slice(1, -1))


def layers(resolution, offset):
    seg = volume(CELLS, resolution, offset, layer_type="segmentation")
    grey = np.random.default_rng(5).integers(1, 255, CELLS.shape, dtype=np.uint8)
    return xr.Dataset({"image": volume(grey, resolution, offset, layer_type="image"), "segmentation": seg})


def corners_of(ds):
    """Return points near the corners of a volume, and its centre."""
    box = ix.grid_of(ds).bbox
    low, high = np.array(box.lo_nm) + 1, np.array(box.hi_nm) - 1
    return np.array([low, high, (low[0], high[1], low[2]), (high[0], low[1], high[2]), (low + high) / 2])


@pytest.mark.fast_forms(4)
@pytest.mark.parametrize("kind", ["in memory", "dask"])
@pytest.mark.parametrize("options", [{}, {"side": "in"}, {"merge": False, "side": "in"}])
@pytest.mark.parametrize(
    ("resolution", "offset"),
    [((8, 8, 40), (-9, 4, -3)), ((4.04, 4.04, 40), (1000, -17, 3)), ((10, 10, 25), (0.5, -1.5, 2))],
)
def test_drawn_cutouts_equal_cutouts_of_a_drawn_volume(kind, options, resolution, offset):
    ds = layers(resolution, offset)
    centers = corners_of(ds)
    boxes = ix.cutouts(ds, centers, SIZE)
    boxes = boxes.chunk(cutout=2) if kind == "dask" else boxes
    line = ix.Outline(1, **options)
    drawn = ix.outline(boxes.segmentation, width=1, **options)
    expected = ix.cutouts(ix.outline(ds.segmentation, width=1, **options), centers, SIZE)
    np.testing.assert_array_equal(drawn.values[INNER], expected.values[INNER])
    overlaid = ix.overlay(boxes.image, boxes.segmentation, outline=line)
    expected = ix.cutouts(ix.overlay(ds.image, ds.segmentation, outline=line), centers, SIZE).values[INNER]
    inside = expected[..., 3] > 0
    np.testing.assert_array_equal(overlaid.values[INNER][inside], expected[inside])
    assert (overlaid.values[INNER][~inside] == [0, 0, 0, 255]).all()


@pytest.mark.parametrize("kind", ["lazy", "in memory"])
def test_nothing_is_outlined_where_the_smaller_layer_ends(kind):
    ds = layers((8, 8, 40), (-9, 4, -3))
    small = ds.segmentation.isel(x=slice(10, 30), y=slice(5, 25), z=slice(1, 4))
    grey = ix.regrid(ds.image, (4, 4, 40))
    if kind == "lazy":
        small, grey = as_source(small), as_source(grey.assign_attrs(layer_type="image"))
    centers = corners_of(small.to_dataset(name="segmentation"))
    both = ix.align(ix.cutouts(grey, centers, (36, 32, 3)), ix.cutouts(small, centers, SIZE))
    drawn = ix.outline(both.segmentation, width=1).values
    expected = ix.cutouts(ix.outline(ix.align(grey, small).segmentation, width=1), centers, (36, 32, 3)).values
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    np.testing.assert_array_equal(drawn[inner], expected[inner])
    assert drawn.any()


def test_ids_of_each_cutout_are_not_outlined_where_the_volume_ends():
    ds = layers((8, 8, 40), (-9, 4, -3))
    full = ds.assign(segmentation=ds.segmentation.copy(data=np.full(CELLS.shape, 2**64 - 1, np.uint64)))
    boxes = ix.cutouts(full, corners_of(ds), SIZE).assign_coords(own=("cutout", np.full(5, 2**64 - 1, np.uint64)))
    drawn = ix.overlay(boxes.image, boxes.segmentation, ids="own", colors="red", alpha=1, outline=1)
    is_inside = boxes.segmentation.values > 0
    assert (drawn.values[is_inside] == [255, 0, 0, 255]).all()
    assert (drawn.values[~is_inside] == [0, 0, 0, 255]).all()
    turned = ix.overlay(boxes.image, boxes.segmentation, ids="own", colors="red", alpha=1, outline=1, axis="y")
    np.testing.assert_array_equal(turned, drawn)
