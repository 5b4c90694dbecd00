"""Tests of `contacts` against a loop over all faces, and cc3d."""

from __future__ import annotations

from contextlib import nullcontext

import cc3d
import dask
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.errors import LayerError, MissingIdsWarning, OptionError, SegmentError
from tests.conftest import FIB25, volume
from tests.support.counted_source import READS, array_in_memory, open_counted
from tests.support.measured import IDS, RESOLUTION, as_segmentation, chunkings, corners_nm, count_faces, label_arrays

X, Y, Z = RESOLUTION
AREAS = np.array([X * Y, X * Z, Y * Z])  # across z, y, x


@given(labels=label_arrays(), chunks=chunkings)
def test_contacts_equal_a_count_of_all_faces_for_every_chunking(labels, chunks):
    found, expected = ix.contacts(as_segmentation(labels, chunks)), count_faces(labels)
    pairs = list(zip(found.segment_a.values.tolist(), found.segment_b.values.tolist(), strict=True))
    assert pairs == list(expected)
    for i, faces in enumerate(expected.values()):
        contact, rows = found.isel(contact=i), np.array(faces)
        areas = AREAS[rows[:, 0].astype(int)]
        assert contact.faces == len(faces)
        np.testing.assert_allclose(contact.area, areas.sum(), rtol=1e-12)
        center = np.average(rows[:, 1:], axis=0, weights=areas)
        np.testing.assert_allclose(contact.centroid, corners_nm(center), rtol=1e-12, atol=1e-9)


@given(labels=label_arrays(), chunks=chunkings)
def test_contacts_with_the_background_add_up_to_the_surface_of_each_segment(labels, chunks):
    seg = as_segmentation(labels, chunks)
    found = ix.contacts(seg, background=True)
    inner = found.isel(contact=(found.segment_a != 0).values)
    assert inner.identical(ix.contacts(seg))
    table = found.imagery.to_dataframe()
    for segment in IDS[1:].tolist():
        mask = labels == segment
        steps = [np.count_nonzero(np.diff(mask, axis=axis)) for axis in range(3)]
        own = table[(table.segment_a == segment) | (table.segment_b == segment)]
        assert own.faces.sum() == sum(steps)
        np.testing.assert_allclose(own.area.sum(), np.dot(steps, AREAS), rtol=1e-12)


def test_requested_ids_and_cutouts_have_contacts_with_the_background():
    labels = np.zeros((4, 6, 8), np.uint64)
    labels[:, 2:4, 2:5], labels[:, 2:4, 5] = 7, 9
    seg = as_segmentation(labels)
    for found in (ix.contacts(seg, ids=[7], background=True), ix.contacts(seg, background=True)):
        pairs = list(zip(found.segment_a.values.tolist(), found.segment_b.values.tolist(), strict=True))
        assert pairs == ([(0, 7), (7, 9)] if len(pairs) == 2 else [(0, 7), (0, 9), (7, 9)])
        assert found.faces.values[0] == 4 * (2 + 3 + 3)
    grid = ix.grid_of(seg)
    middle = np.add(grid.voxel_offset, (4, 3, 2)) * grid.resolution
    boxes = ix.cutouts(seg, [middle], size=(8, 6, 4))
    cut = ix.contacts(boxes, background=True)
    assert cut.segment_a.values.tolist() == [0, 0, 7]
    np.testing.assert_array_equal(cut.area, ix.contacts(seg, background=True).area)


@pytest.mark.slow
@given(labels=label_arrays(), one=chunkings, other=chunkings)
def test_contacts_do_not_depend_on_the_chunks_in_any_bit(labels, one, other):
    assert ix.contacts(as_segmentation(labels, one)).identical(ix.contacts(as_segmentation(labels, other)))


@pytest.mark.slow
@given(labels=label_arrays(), chunks=chunkings, requested=st.sets(st.sampled_from(IDS[1:].tolist()), min_size=1))
def test_requested_ids_have_all_their_contacts(labels, chunks, requested):
    every = ix.contacts(as_segmentation(labels, chunks))
    absent = requested - {*labels.ravel().tolist()}
    with pytest.warns(MissingIdsWarning, match=f"{len(absent)} of the") if absent else nullcontext():
        some = ix.contacts(as_segmentation(labels, chunks), ids=requested)
    pairs = zip(every.segment_a.values.tolist(), every.segment_b.values.tolist(), strict=True)
    assert some.identical(every.isel(contact=[bool({a, b} & requested) for a, b in pairs]))


def check_against_cc3d(found, labels, resolution):
    """Compare areas with `cc3d.contacts`, which takes arrays (x, y, z) and weighs the faces."""
    ids, small = np.unique(labels, return_inverse=True)
    small = small.reshape(labels.shape).astype(np.uint32) + (ids[0] != 0)
    names = ids if ids[0] == 0 else np.append(np.uint64(0), ids)
    expected = cc3d.contacts(small.T, connectivity=6, surface_area=True, anisotropy=resolution)
    expected = {(int(names[a]), int(names[b])): area for (a, b), area in expected.items() if a}
    pairs = zip(found.segment_a.values.tolist(), found.segment_b.values.tolist(), strict=True)
    areas = dict(zip(pairs, found.area.values.tolist(), strict=True))
    assert areas.keys() == expected.keys()
    np.testing.assert_allclose(
        [areas[pair] for pair in expected], list(expected.values()), rtol=1e-4
    )  # cc3d adds float32
    faces = cc3d.contacts(small.T, connectivity=6, surface_area=False)
    want_faces = {(int(names[a]), int(names[b])): n for (a, b), n in faces.items() if a}
    pairs = zip(found.segment_a.values.tolist(), found.segment_b.values.tolist(), strict=True)
    assert dict(zip(pairs, found.faces.values.tolist(), strict=True)) == want_faces


@pytest.mark.slow
def test_contacts_equal_cc3d_on_the_sample(sample):
    seg = ix.open_segmentation(sample.segmentation).isel(z=slice(0, 10))
    check_against_cc3d(ix.contacts(seg), seg.values, ix.grid_of(seg).resolution)


@pytest.mark.slow
@pytest.mark.skipif(not FIB25.exists(), reason="the FIB-25 sample is not beside this checkout")
@pytest.mark.parametrize("chunks", [None, {"z": 17, "y": 100, "x": 61}])
def test_contacts_equal_cc3d_on_real_tissue(chunks):
    labels = np.load(FIB25)["supervoxels"][:50].astype(np.uint64) + np.uint64(2**63)
    seg = volume(labels, (10, 12, 40), layer_type="segmentation")
    check_against_cc3d(ix.contacts(seg if chunks is None else seg.chunk(chunks)), labels, (10, 12, 40))


@pytest.mark.parametrize("chunks", [None, {"z": 5, "y": 20, "x": 17}, {"z": 1}])
def test_each_storage_chunk_is_read_once(chunks):
    READS.clear()
    found = ix.contacts(open_counted() if chunks is None else open_counted().chunk(chunks))
    assert set(READS.values()) == {1}
    assert found.drop_attrs().identical(ix.contacts(array_in_memory()).drop_attrs())


def test_contacts_do_not_depend_on_the_number_of_threads():
    for scheduler in ("synchronous", "threads"):
        with dask.config.set(scheduler=scheduler):
            assert ix.contacts(array_in_memory().chunk(z=5, y=7)).identical(ix.contacts(array_in_memory()))


def test_slabs_of_an_array_in_memory_meet_at_their_borders(monkeypatch):
    from imageryxr.graph import reduction

    expected = ix.contacts(array_in_memory())
    for voxels in (100, 5000):
        monkeypatch.setattr(reduction, "_SLAB", voxels)
        assert ix.contacts(array_in_memory()).identical(expected)


def test_a_segmentation_without_contacts_has_an_empty_table():
    for labels in (np.zeros((2, 3, 4), np.uint8), np.ones((1, 1, 1), np.uint8)):
        found = ix.contacts(as_segmentation(labels))
        assert found.sizes == {"contact": 0, "axis": 3}
        assert list(found.imagery.to_dataframe())[:2] == ["segment_a", "segment_b"]


def test_methods_of_arrays_and_datasets_equal_the_function():
    seg = array_in_memory()
    assert seg.imagery.contacts().identical(ix.contacts(seg))
    ds = (seg % 251).astype("u1").assign_attrs(layer_type="image").to_dataset(name="image").assign(segmentation=seg)
    assert ds.imagery.contacts().identical(ix.contacts(seg))


def test_wrong_arguments_are_errors():
    with pytest.raises(SegmentError, match="ids are integers from 1"):
        ix.contacts(array_in_memory(), ids=[0])
    with pytest.raises(LayerError, match="ids are integers"):
        ix.contacts(array_in_memory().astype(float))
    with pytest.raises(OptionError, match="background=0"):
        ix.contacts(array_in_memory(), background=0)
