"""Compare overlays and masks of real tissue (FIB-25) with direct computations."""

from __future__ import annotations

import numpy as np
import pytest

import imageryxr as ix
from tests.conftest import FIB25
from tests.support.layers import write_layer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FIB25.exists(), reason="the FIB-25 sample is not beside this checkout"),
]


@pytest.fixture(scope="module")
def fib25(tmp_path_factory):
    """Return the folder of the volume, EM at 10 nm and bodies at 20 nm, and the arrays in it."""
    folder = tmp_path_factory.mktemp("fib25")
    data = np.load(FIB25)
    table = dict(data["sv_to_body"].tolist())
    supervoxels = data["supervoxels"][1::2, 1::2, 1::2]
    known, where = np.unique(supervoxels, return_inverse=True)
    coarse = np.array([table.get(int(k), 0) for k in known], np.uint64)[where].reshape(supervoxels.shape)
    chunk = (64, 64, 32)
    em_level = [((250, 250, 250), (10, 10, 10), (100, -60, 7))]
    seg_level = [((125, 125, 125), (20, 20, 20), (50, -30, 3))]
    write_layer(folder / "em", "image", em_level, chunk=chunk, data=[data["em"].T])
    write_layer(folder / "seg", "segmentation", seg_level, "uint64", "compressed_segmentation", chunk, [coarse.T])
    return folder, data["em"], coarse


def test_an_overlay_of_bodies_equals_a_rendering_with_numpy(fib25):
    folder, em, coarse = fib25
    ds = ix.align(ix.open_image(folder / "em"), ix.open_segmentation(folder / "seg"), to="image")
    # the image begins at z voxel 7 of 10 nm, the segmentation at 3 of 20 nm: half a voxel apart
    z, y, x = (np.arange(n) for n in ds.image.shape)
    labels = coarse[((z + 1) // 2)[:, None, None], (y // 2)[None, :, None], (x // 2)[None, None, :]]
    grey = em[: len(z)]
    np.testing.assert_array_equal(ds.image.values, grey)
    np.testing.assert_array_equal(ds.segmentation.values, labels)
    ids = np.setdiff1d(coarse, [0])
    assert len(ids) > 300
    colors = ix.palette(ids, "husl")
    part = slice(90, 150)
    labels, grey, ds = labels[part], grey[part], ds.isel(z=part)
    rows = np.array([colors[int(i)] for i in ids], float)[np.searchsorted(ids, np.maximum(labels, ids[0]))]
    truth = np.where((labels > 0)[..., None], grey[..., None] * 0.6 + rows * 0.4, grey[..., None])
    drawn = ix.overlay(ds.image, ds.segmentation, colors=colors, alpha=0.4).values
    assert np.abs(drawn[..., :3] - truth).max() <= 1
    assert (drawn[..., 3] == 255).all()


def test_masks_of_bodies_cover_the_voxels_of_their_ids(fib25):
    folder, _, coarse = fib25
    seg = ix.open_segmentation(folder / "seg").isel(z=slice(40, 44))
    ids = ix.unique_ids(seg)
    assert ids.tolist() == np.setdiff1d(coarse[40:44], [0]).tolist()
    np.testing.assert_array_equal(ix.split_masks(seg, ids).any("segment").values, coarse[40:44] > 0)
