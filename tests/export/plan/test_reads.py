"""A box that reaches beyond its volume is exported with a warning."""

from __future__ import annotations

import re

import numpy as np
import pytest

import imageryxr as ix
from tests.support.export_jobs import Computed, array_of

EM = array_of(Computed((12, 48, 64)))  # from voxel (3, 5, 7) of 8 × 8 × 40 nm
SEG = array_of(Computed((12, 48, 64), layer_type="segmentation"))


def box(lo, hi):
    return ix.BBox(lo, hi, resolution=(8, 8, 40))


INSIDE = box((3, 5, 7), (67, 53, 19))
OUT = box((-13, 5, 7), (3 + 48, 53, 19))  # a quarter of this box lies outside the volume
WARNED = {
    "an image": lambda b: ix.crop(EM, b),
    "ids": lambda b: ix.crop(SEG, b),
    "grey values as colours": lambda b: ix.to_rgba(ix.crop(EM, b)),
    "an overlay": lambda b: ix.overlay(ix.crop(EM, b), ix.crop(SEG, b), alpha=0.3, outline=2),
    "on another grid": lambda b: ix.regrid(ix.crop(EM, b), (16, 16, 40)),
    "aligned": lambda b: ix.align(EM, SEG, bbox=b).image,
    "a crop of a crop": lambda b: ix.crop(ix.crop(EM, b), b),
}


@pytest.mark.parametrize("case", WARNED)
def test_a_box_that_extends_beyond_its_volume_warns(tmp_path, case):
    with pytest.warns(ix.ImageryWarning) as caught:
        ix.plan_export(WARNED[case](OUT), tmp_path / "o.ome.zarr")
    (message,) = [str(w.message) for w in caught]
    assert re.search(
        r"reaches beyond computed://ramp: only .* lies inside the source, and the other 25 % are exported as 0", message
    )
    assert caught[0].filename == __file__
    ix.plan_export(WARNED[case](INSIDE), tmp_path / "o.ome.zarr")  # warnings are errors here


def small(depth, size):
    """Return a segmentation that has the lower corner of the image and is smaller."""
    return array_of(Computed((depth, size, size), layer_type="segmentation"))


@pytest.mark.parametrize(
    ("array", "share"),
    [
        (lambda: ix.overlay(*ix.align(EM, small(12, 48), bbox=INSIDE).data_vars.values()), 25),
        (lambda: ix.overlay(*ix.align(EM, small(6, 48), bbox=INSIDE).data_vars.values(), outline=2), 62),
        (lambda: ix.overlay(*ix.align(EM, SEG, bbox=INSIDE).data_vars.values(), outline=2), 0),
    ],
)
def test_a_box_that_extends_beyond_the_segmentation_warns(tmp_path, array, share):
    if not share:
        ix.plan_export(array(), tmp_path / "o.ome.zarr")  # warnings are errors here
        return
    with pytest.warns(ix.ImageryWarning) as caught:
        ix.plan_export(array(), tmp_path / "o.ome.zarr")
    (message,) = [str(w.message) for w in caught]
    assert re.search(
        rf"computed://ramp: only .* lies inside the source, and the other {share} % show no cell", message
    ), message


def test_voxels_outside_the_volume_are_exported_as_0(tmp_path):
    cut = ix.crop(EM, OUT)
    with pytest.warns(ix.ImageryWarning, match=r"only \(3, 5, 7\) to \(51, 53, 19\) in voxels of 8 × 8 × 40 nm lies"):
        ix.export(cut, tmp_path / "o.ome.zarr", levels=1)
    stored = ix.open_image(tmp_path / "o.ome.zarr").values
    assert not stored[..., :16].any()
    np.testing.assert_array_equal(stored[..., 16:], EM.values[..., :48])


@pytest.mark.parametrize(
    "array",
    [
        lambda: ix.overlay(EM, ix.crop(SEG, box((3, 5, 7), (20, 20, 19))).reindex_like(EM, fill_value=0)),
        lambda: ix.composite(ix.to_rgba(EM), ix.crop(ix.overlay(None, SEG), INSIDE)),
        lambda: ix.plane(EM, (30, 30, 12), (64, 64), normal=(1, 1, 0.2), nm_per_pixel=8, resolution=(8, 8, 40)),
        lambda: EM.isel(z=slice(2, 5), x=slice(None, None, 2)),
        lambda: ix.regrid(SEG, (12, 12, 40)),
        lambda: ix.crop(EM.compute(), OUT),
    ],
    ids=["half the cells", "a composite", "a slanted plane", "a part", "finer", "in memory"],
)
def test_boxes_without_uncovered_voxels_do_not_warn(tmp_path, array):
    ix.plan_export(array(), tmp_path / "o.ome.zarr")
