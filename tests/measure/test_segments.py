"""Tests of `measure` against numpy, scikit-image and cc3d."""

from __future__ import annotations

import math
from fractions import Fraction

import cc3d
import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import regionprops_table

import imageryxr as ix
from imageryxr.errors import GridMismatchError, ImageryWarning, LayerError, MissingIdsWarning, OptionError, SegmentError
from imageryxr.graph.expr import LevelLeaf
from imageryxr.graph.labelled import lazy_array
from imageryxr.graph.reduction import reduce_blocks
from tests.conftest import FIB25, volume
from tests.support.counted_source import READS, CountedZeros, array_in_memory, open_counted
from tests.support.measured import IDS, RESOLUTION, as_segmentation, chunkings, corners_nm, label_arrays
from tests.support.slow import slow_except


def check_against_numpy(cells, labels, image=None, levels=()):
    """Compare the row of each segment with numpy functions of its voxels."""
    ids = [int(i) for i in np.unique(labels) if i]
    assert cells.segment.dtype == np.uint64
    assert cells.segment.values.tolist() == ids
    for i, segment in enumerate(ids):
        cell, mask = cells.isel(segment=i), labels == np.uint64(segment)
        where = np.argwhere(mask)
        assert cell.voxels == len(where)
        np.testing.assert_allclose(cell.volume, len(where) * np.prod(RESOLUTION), rtol=1e-12)
        np.testing.assert_allclose(cell.centroid, corners_nm(where.mean(axis=0) + 0.5), rtol=1e-12, atol=1e-9)
        np.testing.assert_array_equal(cell.bbox_min, corners_nm(where.min(axis=0)))
        np.testing.assert_array_equal(cell.bbox_max, corners_nm(where.max(axis=0) + 1))
        assert cell.touches_edge == ((where == 0) | (where == np.array(labels.shape) - 1)).any()
        if image is not None:
            grey = image[mask]
            np.testing.assert_allclose(cell["mean"], grey.mean(dtype=float), rtol=1e-12)
            np.testing.assert_allclose(cell["std"], grey.std(dtype=float), rtol=1e-12)
            assert cell["min"] == grey.min()
            assert cell["max"] == grey.max()
        if levels:
            np.testing.assert_allclose(cell.percentiles, np.percentile(grey, levels), rtol=1e-12)


@given(labels=label_arrays(), chunks=chunkings, dtype=st.sampled_from(["u1", "u2", "i2", ">u2", "f4", "f8", "?"]))
def test_sums_of_segments_equal_numpy_for_every_chunking(labels, chunks, dtype):
    rng = np.random.default_rng(labels.size)
    image = (rng.integers(0, 60000, labels.shape) - 200).astype(dtype)
    levels = [0, 12.5, 50, 99, 100] if dtype in ("u1", "u2", ">u2") else []
    seg = as_segmentation(labels, chunks)
    cells = ix.measure(seg, seg.copy(data=image).assign_attrs(layer_type="image"), percentiles=levels or None)
    check_against_numpy(cells, labels, image, levels)


@pytest.mark.slow
@given(labels=label_arrays(), one=chunkings, other=chunkings)
def test_positions_do_not_depend_on_the_chunks_in_any_bit(labels, one, other):
    a, b = ix.measure(as_segmentation(labels, one)), ix.measure(as_segmentation(labels, other))
    assert a.identical(b)


@given(labels=label_arrays(), chunks=chunkings, requested=st.sets(st.sampled_from(IDS[1:].tolist()), min_size=1))
@pytest.mark.filterwarnings("ignore::imageryxr.errors.MissingIdsWarning")
def test_rows_of_requested_ids_equal_those_of_a_measurement_of_all_ids(labels, chunks, requested):
    every = ix.measure(as_segmentation(labels, chunks))
    some = ix.measure(as_segmentation(labels, chunks), ids=requested)
    assert some.identical(every.sel(segment=[i for i in every.segment.values if int(i) in requested]))


@pytest.mark.parametrize("dtype", slow_except(["uint8", ">u4", "int32", "int64", "uint16"], ">u4"))
def test_labels_may_have_any_integer_dtype(dtype):
    labels = (np.arange(60).reshape(3, 4, 5) // 7).astype(dtype)
    check_against_numpy(ix.measure(as_segmentation(labels)), labels)


@pytest.mark.slow
def test_segments_equal_regionprops_and_cc3d_on_the_sample(sample):
    seg, em = ix.open_segmentation(sample.segmentation), ix.open_image(sample.image)
    ds = ix.align(em, seg, to="segmentation").isel(z=slice(0, 12))
    check_against_peers(ix.measure(ds.segmentation, ds.image), ds.segmentation, ds.image)


@pytest.mark.slow
@pytest.mark.skipif(not FIB25.exists(), reason="the FIB-25 sample is not beside this checkout")
def test_segments_equal_regionprops_and_cc3d_on_real_tissue():
    data = np.load(FIB25)
    seg = volume(data["supervoxels"][:60].astype(np.uint64), (10, 10, 10), (5, -3, 2)) + np.uint64(2**63)
    seg.attrs["resolution"] = (10, 10, 10)
    em = seg.copy(data=data["em"][:60]).assign_attrs(layer_type="image")
    for chunks in (None, {"z": 17, "y": 100, "x": 61}):
        cells = ix.measure(*((seg, em) if chunks is None else (seg.chunk(chunks), em.chunk(chunks))))
        check_against_peers(cells, seg, em)


def check_against_peers(cells, seg, em):
    """Compare segments with `regionprops_table` and `cc3d.statistics`, for which ids are renumbered."""
    ids, small = np.unique(seg.values, return_inverse=True)
    small = small.reshape(seg.shape).astype(np.uint32) + (ids[0] != 0)
    ids = ids[ids != 0]
    (rx, ry, rz), (ox, oy, oz) = seg.imagery.grid.resolution, seg.imagery.grid.voxel_offset
    scale, origin = np.array([rz, ry, rx]), np.array([oz, oy, ox])
    names = ("label", "area", "centroid", "bbox", "intensity_mean", "intensity_std", "intensity_min", "intensity_max")
    peer = regionprops_table(small, em.values.astype(float), properties=names)
    assert cells.segment.values.tolist() == ids.tolist()
    np.testing.assert_array_equal(cells.voxels, peer["area"])
    for i, axis in enumerate("zyx"):
        center = (origin[i] + 0.5 + peer[f"centroid-{i}"]) * scale[i]
        np.testing.assert_allclose(cells.centroid.sel(axis=axis), center, rtol=1e-12)
        np.testing.assert_array_equal(cells.bbox_min.sel(axis=axis), (origin[i] + peer[f"bbox-{i}"]) * scale[i])
        np.testing.assert_array_equal(cells.bbox_max.sel(axis=axis), (origin[i] + peer[f"bbox-{i + 3}"]) * scale[i])
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(cells[name], peer[f"intensity_{name}"], rtol=1e-12)
    other = cc3d.statistics(small)
    np.testing.assert_array_equal(cells.voxels, other["voxel_counts"][1:])
    centers = (other["centroids"][1:] + origin + 0.5) * scale
    np.testing.assert_allclose(cells.centroid.sel(axis=["z", "y", "x"]), centers, rtol=1e-6)  # cc3d adds float32


_SMALL = np.random.default_rng(1).integers(0, 1000, (8, 20, 25))
_FROM_TOP = np.uint64(2**64 - 1) - _SMALL.astype(np.uint64)
_IS_FIRST = np.arange(_SMALL.size).reshape(_SMALL.shape) < 3
LARGE_VALUES = {
    "uint64 near 2**60": np.uint64(2**60) + _SMALL.astype(np.uint64),
    "int64 near 2**60": 2**60 + _SMALL,
    "int64 near -2**63": -(2**62) - 2**62 + _SMALL,
    "uint64 near 2**64": _FROM_TOP,
    "big-endian uint64 near 2**64": _FROM_TOP.astype(">u8"),
    "uint64 of all sizes": np.random.default_rng(2).integers(0, 2**64, _SMALL.shape, np.uint64),
    "int64 of all sizes": np.random.default_rng(2).integers(-(2**63), 2**63, _SMALL.shape),
    "uint64 near 2**64 and zeros": np.where(_IS_FIRST, np.uint64(0), _FROM_TOP),
    "int32 near 2**31": (2**31 - 1 - _SMALL % 5).astype(np.int32),
    "uint16": (60000 + _SMALL % 5).astype(np.uint16),
    "uint16, all equal but the first": np.where(
        _SMALL.cumsum().reshape(_SMALL.shape) == _SMALL.flat[0], 65534, 65535
    ).astype("u2"),
    "float64 near 10**15": 1e15 + _SMALL / 8,
    "float64 near 10**9 and zeros": np.where(_IS_FIRST, 0, 1e9 + _SMALL / 8),
    "float32 near 10**6": (1e6 + _SMALL / 16).astype(np.float32),
}


@pytest.mark.parametrize("case", LARGE_VALUES)
def test_statistics_of_large_values_are_exact_for_every_chunking(case):
    values = LARGE_VALUES[case]
    exact = [Fraction(v) for v in values.ravel().tolist()]
    mean = sum(exact) / len(exact)
    std = math.sqrt(sum((v - mean) ** 2 for v in exact) / len(exact))
    for chunks in (None, {"z": 3, "y": 7, "x": 11}, {"z": 1}, {"x": 1, "y": 10}):
        seg = as_segmentation(np.ones(values.shape, np.uint8), chunks)
        image = as_segmentation(values, chunks).assign_attrs(layer_type="image")
        cell = ix.measure(seg, image).isel(segment=0)
        np.testing.assert_allclose([cell["mean"], cell["std"]], [float(mean), std], rtol=1e-14, atol=std * 1e-14)
        assert (cell["min"].item(), cell["max"].item()) == (values.min().item(), values.max().item())


@pytest.mark.parametrize("chunks", [None, (1, 1, 2)])
def test_infinite_values_have_the_means_of_numpy(chunks):
    seg = as_segmentation(np.array([[[1, 1, 2, 1, 1, 2, 3, 3]]], np.uint64).repeat(3, 1))
    values = np.arange(24, dtype=np.float32).reshape(seg.shape)
    values[0, 1, 0], values[0, 2, 4], values[0, 0, 6], values[0, 1, 7] = np.inf, np.inf, np.inf, -np.inf
    image = seg.copy(data=values).assign_attrs(layer_type="image")
    if chunks is not None:
        seg, image = (array.chunk(dict(zip("zyx", chunks, strict=True))) for array in (seg, image))
    cells = ix.measure(seg, image)
    inside = [values[seg.values == i] for i in (1, 2, 3)]
    np.testing.assert_array_equal(cells["min"], [v.min() for v in inside])
    np.testing.assert_array_equal(cells["max"], [v.max() for v in inside])
    np.testing.assert_allclose(cells["mean"], [np.inf, inside[1].mean(), np.nan])
    np.testing.assert_allclose(cells["std"], [np.nan, inside[1].std(), np.nan], rtol=1e-6)


@pytest.mark.parametrize("chunks", [None, {"x": 2}])
def test_a_voxel_with_the_lowest_float_leaves_the_mean_finite(chunks):
    values = np.array([[[np.finfo(float).min, 3, 4, 5, 6, 7]]])
    seg = as_segmentation(np.ones(values.shape, np.uint8), chunks)
    cell = ix.measure(seg, as_segmentation(values, chunks).assign_attrs(layer_type="image")).isel(segment=0)
    np.testing.assert_allclose(cell["mean"], values.mean(), rtol=1e-15)
    assert cell["std"] == np.inf


def test_a_tree_is_an_error_that_names_a_layer():
    seg = as_segmentation(np.ones((1, 2, 3), np.uint64)).rename("segmentation")
    tree = xr.DataTree.from_dict({"/labels": xr.Dataset({"segmentation": seg})})
    with pytest.raises(LayerError, match=r"tree\['/labels'\]\['segmentation'\]"):
        ix.measure(tree)


def test_a_tree_is_an_error_that_names_its_segmentation_also_after_other_layers():
    seg = as_segmentation(np.ones((1, 2, 3), np.uint64))
    tree = xr.DataTree.from_dict({"/a": xr.Dataset({"image": seg.astype("u1"), "segmentation": seg})})
    for verb in (ix.measure, ix.contacts, lambda given: ix.overlaps(given, seg)):
        with pytest.raises(LayerError, match=r"layers: tree\['/a'\]\['image'\], tree\['/a'\]\['segmentation'\]"):
            verb(tree)


def test_ids_that_where_made_floats_are_an_error_that_names_where_with_0():
    seg = as_segmentation(np.arange(6, dtype=np.uint64).reshape(1, 2, 3))
    for verb in (ix.measure, ix.contacts, lambda given: ix.overlaps(given, seg)):
        with pytest.raises(LayerError, match=r"where\(condition, 0\) .* none is NaN"):
            verb(seg.where(seg > 2))
    assert ix.measure(seg.where(seg > 2, 0)).segment.values.tolist() == [3, 4, 5]


def test_nan_of_an_image_stays_nan():
    seg = as_segmentation(np.array([[[1, 1, 1, 2, 2]]], np.uint8), {"x": 2})
    image = seg.copy(data=np.array([[[1, np.nan, 0, 4, 6]]], np.float32)).assign_attrs(layer_type="image")
    cells = ix.measure(seg, image)
    for name, expected in (("mean", 5), ("std", 1), ("min", 4), ("max", 6)):
        np.testing.assert_array_equal(cells[name], [np.nan, expected])
    assert cells["min"].dtype == np.float32


@pytest.mark.parametrize("chunks", [None, {"z": 5, "y": 20, "x": 17}, {"z": 1}])
def test_each_storage_chunk_of_both_layers_is_read_once(chunks):
    READS.clear()
    seg = open_counted() if chunks is None else open_counted().chunk(chunks)
    cells = ix.measure(seg)
    assert set(READS.values()) == {1}
    READS.clear()
    ix.measure(seg, open_counted(layer_type="image"))
    assert set(READS.values()) == {2}
    assert cells.drop_attrs().identical(ix.measure(array_in_memory()).drop_attrs())


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_any_scheduler_gives_the_same_segments(scheduler):
    expected = ix.measure(array_in_memory())
    with dask.config.set(scheduler=scheduler):
        for seg in (array_in_memory().chunk(z=5), array_in_memory()):
            assert ix.measure(seg).identical(expected)


@pytest.mark.slow
def test_workers_of_a_cluster_give_the_same_segments():
    from distributed import Client

    expected = ix.measure(array_in_memory())
    with Client(n_workers=1, threads_per_worker=2, dashboard_address=":0"):
        for seg in (array_in_memory().chunk(z=5), array_in_memory()):
            assert ix.measure(seg).identical(expected)


def test_the_graph_of_100000_blocks_has_about_one_task_per_block():
    grid = ix.Grid((184,) * 3, (8, 8, 40), (0, 0, 0))
    seg = lazy_array(LevelLeaf(CountedZeros(grid, "segmentation"), 0), grid, {}, "seg", (4, 4, 4))
    graph = reduce_blocks([seg.data], max, max).__dask_graph__()
    assert 46**3 < len(graph) < 1.2 * 46**3


def test_a_section_touches_its_edges_in_the_plane_only():
    labels = np.zeros((1, 5, 5), np.uint8)
    labels[0, 2, 2], labels[0, 4, 1] = 1, 2
    seg = as_segmentation(labels)
    assert ix.measure(seg).touches_edge.values.tolist() == [True, True]
    assert ix.measure(seg.isel(z=0)).touches_edge.values.tolist() == [False, True]


def test_one_voxel_is_a_segment():
    seg = as_segmentation(np.full((1, 1, 1), 2**64 - 1, np.uint64))
    check_against_numpy(ix.measure(seg), seg.values)


def test_background_has_no_rows():
    seg = as_segmentation(np.zeros((2, 3, 4), np.uint64))
    for given_seg in (seg, seg.chunk(z=1)):
        cells = ix.measure(given_seg, given_seg.astype("u2").assign_attrs(layer_type="image"), percentiles=[50])
        assert cells.sizes == {"segment": 0, "axis": 3, "percentile": 1}
        assert len(cells.imagery.to_dataframe()) == 0


def test_attrs_and_units_survive_a_netcdf_file(tmp_path):
    seg = array_in_memory().assign_attrs(source="precomputed://here", timestamp="2024-01-01T00:00:00Z")
    cells = ix.measure(seg)
    cells.to_netcdf(tmp_path / "cells.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "cells.nc", engine="h5netcdf") as again:
        assert again.segment.values.tolist() == cells.segment.values.tolist()
        assert again.attrs["source"] == "precomputed://here"
        assert again.volume.attrs["units"] == "nm3"


def test_an_image_of_another_grid_is_an_error_that_names_align():
    seg = array_in_memory()
    with pytest.raises(GridMismatchError, match=r"imageryxr\.align"):
        ix.measure(seg, seg.isel(x=slice(1, None)).astype("u1").assign_attrs(layer_type="image"))


def test_missing_ids_warn():
    with pytest.warns(MissingIdsWarning, match="1 of the 2 requested ids"):
        cells = ix.measure(array_in_memory(), ids=[int(array_in_memory().max()), 5])
    assert cells.sizes["segment"] == 1


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"ids": [0]}, SegmentError, "ids are integers from 1"),
        ({"percentiles": [5]}, OptionError, "needs an image whose grey values are measured; give measure"),
        ({"percentiles": [101], "image": "u1"}, OptionError, "not numbers from 0 to 100"),
        ({"percentiles": [5], "image": "f4"}, OptionError, "uint8 or uint16"),
        ({"image": "c8"}, LayerError, "integers or floats"),
        ({"image": "labels"}, LayerError, "overlaps compares two segmentations"),
    ],
)
def test_wrong_arguments_are_errors_that_name_the_remedy(options, error, words):
    seg = array_in_memory()
    if "image" in options:
        image = (
            seg if options["image"] == "labels" else (seg % 7).astype(options["image"]).assign_attrs(layer_type="image")
        )
        options = {**options, "image": image}
    with pytest.raises(error, match=words):
        ix.measure(seg, **options)


def test_a_table_has_one_row_per_segment():
    seg = array_in_memory()
    image = (seg % 251).astype("u1").assign_attrs(layer_type="image")
    cells = ix.measure(seg, image, percentiles=[5, 99.5])
    table = cells.imagery.to_dataframe()
    assert table.index.tolist() == cells.segment.values.tolist()
    axes = [f"{name}_{axis}" for name in ("centroid", "bbox_min", "bbox_max") for axis in "xyz"]
    grey = ["mean", "std", "min", "max", "percentiles_5", "percentiles_99.5"]
    assert list(table) == ["voxels", "volume", *axes, "touches_edge", *grey]
    np.testing.assert_array_equal(table["centroid_z"], cells.centroid.sel(axis="z"))


def test_methods_of_arrays_and_datasets_equal_the_function():
    seg = array_in_memory()
    image = (seg % 251).astype("u1").assign_attrs(layer_type="image")
    assert seg.imagery.measure(image).identical(ix.measure(seg, image))
    ds = xr.Dataset({"image": image, "segmentation": seg})
    assert ds.imagery.measure().identical(ix.measure(seg, image))


def test_to_dataframe_of_another_dataset_is_an_error():
    with pytest.raises(LayerError, match="needs the result of"):
        xr.Dataset({"a": ("x", [1])}).imagery.to_dataframe()


def test_a_dataset_is_an_error_that_names_its_segmentation():
    both = xr.Dataset({"image": volume(np.ones((2, 3, 4), np.uint8)), "segmentation": volume(np.ones((2, 3, 4), int))})
    for verb in (ix.measure, ix.contacts, lambda ds: ix.overlaps(ds, ds)):
        with pytest.raises(LayerError, match=r"give its segmentation, ds\['segmentation'\], or .* ds.imagery.measure"):
            verb(both)
    boxes = ix.cutouts(both, [(8, 8, 8)], (2, 2, 1))
    for verb in (ix.measure, ix.to_rgba, ix.outline, lambda ds: ix.overlay(ds, ds)):
        with pytest.raises(LayerError, match="a Dataset with the variables"):
            verb(boxes)


def test_fractions_as_percentiles_are_reported():
    seg = volume(np.ones((2, 3, 4), int))
    image = volume(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    with pytest.warns(ImageryWarning, match=r"percentiles=\(0.05, 0.5\) are percents .* give percentiles=\(5, 50\)"):
        cells = ix.measure(seg, image, percentiles=(0.05, 0.5))
    np.testing.assert_allclose(cells.percentiles[0], np.percentile(image, [0.05, 0.5]))
