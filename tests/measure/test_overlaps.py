"""Tests of `overlaps` against numpy and scikit-image."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import variation_of_information

import imageryxr as ix
from imageryxr.errors import GridMismatchError
from tests.support.counted_source import READS, array_in_memory, open_counted
from tests.support.measured import RESOLUTION, as_segmentation, chunkings, label_arrays


def merge_and_split(labels):
    """Return labels with other borders: some ids are merged, and some are split along x."""
    other = labels.copy()
    other[labels == 7] = 1
    other[..., labels.shape[2] // 2 :] ^= np.uint64(2**40)
    return other


@given(labels=label_arrays(), chunks=chunkings, other_chunks=chunkings, background=st.booleans())
def test_overlaps_equal_a_count_of_voxels_for_every_chunking(labels, chunks, other_chunks, background):
    other = merge_and_split(labels)
    found = ix.overlaps(as_segmentation(labels, chunks), as_segmentation(other, other_chunks), background=background)
    shown = np.full(labels.shape, True) if background else (labels != 0) & (other != 0)
    expected = Counter(zip(labels[shown].tolist(), other[shown].tolist(), strict=True))
    pairs = zip(found.segment_a.values.tolist(), found.segment_b.values.tolist(), strict=True)
    assert list(zip(pairs, found.voxels.values.tolist(), strict=True)) == sorted(expected.items())
    np.testing.assert_allclose(found.volume, found.voxels * np.prod(RESOLUTION), rtol=1e-12)


@given(labels=label_arrays(), background=st.booleans())
def test_split_and_merge_equal_the_variation_of_information_of_skimage(labels, background):
    other = merge_and_split(labels)
    found = ix.overlaps(as_segmentation(labels), as_segmentation(other), background=background)
    shown = np.full(labels.shape, True) if background else (labels != 0) & (other != 0)
    if not shown.any():
        assert found.attrs["split"] == found.attrs["merge"] == 0
        return
    one, two = (np.unique(a[shown], return_inverse=True)[1] for a in (labels, other))
    split, merge = variation_of_information(one, two)
    np.testing.assert_allclose([found.attrs["merge"], found.attrs["split"]], [merge, split], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.attrs["variation_of_information"], merge + split, atol=1e-12)


def test_merged_segments_are_a_merge_and_split_segments_a_split():
    one = as_segmentation(np.array([[[1, 1, 2, 2]]], np.uint8))
    other = as_segmentation(np.array([[[5, 5, 5, 5]]], np.uint8))
    for pair, split, merge in (((one, other), 0, 1), ((other, one), 1, 0)):
        attrs = ix.overlaps(*pair).attrs
        assert (attrs["split"], attrs["merge"], attrs["variation_of_information"]) == (split, merge, 1)


def test_equal_segmentations_have_no_variation_of_information():
    same = ix.overlaps(array_in_memory(), array_in_memory().chunk(z=5))
    assert [same.attrs[name] for name in ("split", "merge", "variation_of_information")] == [0, 0, 0]
    cells = ix.measure(array_in_memory())
    assert same.segment_a.values.tolist() == same.segment_b.values.tolist() == cells.segment.values.tolist()
    np.testing.assert_array_equal(same.voxels, cells.voxels)


def test_each_storage_chunk_is_read_once():
    READS.clear()
    ix.overlaps(open_counted(), array_in_memory())
    assert set(READS.values()) == {1}


def test_attrs_survive_a_netcdf_file(tmp_path):
    found = ix.overlaps(array_in_memory(), array_in_memory() // np.uint64(3))
    found.to_netcdf(tmp_path / "overlaps.nc", engine="h5netcdf")
    assert found.attrs["merge"] >= 0
    assert list(found.imagery.to_dataframe()) == ["segment_a", "segment_b", "voxels", "volume"]


def test_segmentations_of_different_grids_are_an_error():
    with pytest.raises(GridMismatchError, match="the segmentations do not lie on one grid"):
        ix.overlaps(array_in_memory(), array_in_memory().isel(x=slice(1, None)))
