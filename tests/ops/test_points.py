"""Values at points, lists and strides: each storage chunk that contains one is read once, and no others."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.graph.expr import LevelLeaf
from imageryxr.graph.labelled import lazy_array
from tests.conftest import no_compute
from tests.support.counted_source import (
    CHUNKS,
    GRID,
    READS,
    SHAPE,
    VALUES,
    VOXELS,
    CountedZeros,
    array_in_memory,
    open_counted,
)

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def nothing_read():
    READS.clear()
    VOXELS[0] = 0


def chunks_of(z, y, x):
    z, y, x = np.broadcast_arrays(z, y, x)
    return set(zip(*((i // c).ravel().tolist() for i, c in zip((z, y, x), CHUNKS, strict=True)), strict=True))


def dims(values, *names):
    return xr.DataArray(values, dims=names)


INDEX = {"z": 12, "y": 44, "x": 52}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_lists_points_and_strides_read_the_chunks_that_they_touch_once(data):
    """Compare the selection from an opened array with numpy."""
    selected = {}
    for dim, n in INDEX.items():
        one = st.integers(-n, n - 1)
        kind = data.draw(st.sampled_from(["all", "int", "slice", "stride", "list", "p", "q", "pq", "mask"]))
        if kind == "int":
            selected[dim] = data.draw(one)
        elif kind == "slice":
            selected[dim] = slice(data.draw(one), data.draw(one))
        elif kind == "stride":
            selected[dim] = slice(None, None, data.draw(st.sampled_from([-7, -3, -1, 2, 5, 17])))
        elif kind == "list":
            selected[dim] = data.draw(st.lists(one, max_size=5))
        elif kind == "mask":
            selected[dim] = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        elif kind != "all":
            shape = {"p": (3,), "q": (2,), "pq": (3, 2)}[kind]
            values = data.draw(st.lists(one, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
            selected[dim] = dims(np.array(values).reshape(shape), *kind)
    order = data.draw(st.permutations("zyx"))
    READS.clear()
    array = open_counted().transpose(*order)
    for one_dim in data.draw(st.permutations(list(selected))) if data.draw(st.booleans()) else [None]:
        now = selected if one_dim is None else {one_dim: selected[one_dim]}
        if one_dim is not None and any(isinstance(v, xr.DataArray) for v in selected.values()):
            now = selected
        array = array.isel({d: i for d, i in now.items() if d in array.dims})
        if now is selected:
            break
    expected = array_in_memory().transpose(*order).isel(selected).transpose(*array.dims)
    got = array.values
    np.testing.assert_array_equal(got, expected.values)
    assert set(READS.values()) <= {1}
    index = array_in_memory().copy(data=np.arange(VALUES.size).reshape(SHAPE)).isel(selected).values
    assert set(READS) == chunks_of(*np.unravel_index(index, SHAPE))


@pytest.mark.parametrize("order", list(itertools.permutations("zyx")))
def test_indexing_one_voxel_of_a_transposed_array_returns_it(order):
    array, values = open_counted().transpose(*order), array_in_memory()
    for place in ({"z": 11, "y": 43, "x": 51}, {"z": 0, "y": 1, "x": 0}, {"z": -1, "y": 0, "x": 1}):
        assert array.isel(place).values == values.isel(place).values
        assert array.isel(x=[place["x"], 0]).isel({**place, "x": 0}).values == values.isel(place).values


def test_indexing_one_voxel_by_points_returns_it():
    points = {"z": dims([3, 11, 0], "p"), "y": dims([1, 43, 7], "p")}
    array, values = open_counted().isel(points), array_in_memory().isel(points)
    for p, x in ((0, 51), (1, 0), (2, -1)):
        assert array.isel(p=p, x=x).values == values.isel(p=p, x=x).values


def test_points_in_a_petavoxel_layer_read_only_their_chunks():
    grid = ix.Grid((28_000, 180_000, 200_000), (8, 8, 40), (0, 0, 0))
    big = lazy_array(LevelLeaf(CountedZeros(grid), 0), grid, {"layer_type": "image"}, "image")
    at = {"z": [25, 22_500], "y": [125, 162_500], "x": [125, 187_500]}
    assert big.isel({d: dims(i, "p") for d, i in at.items()}).values.tolist() == [0, 0]
    assert VOXELS[0] == 2
    VOXELS[0] = 0
    assert big.isel(z=0, y=slice(None, None, 2000), x=slice(None, None, 2000)).shape == (90, 100)
    assert big.isel(z=0, y=slice(None, None, 2000), x=slice(None, None, 2000)).values.sum() == 0
    assert VOXELS[0] == 9000


def test_every_hundredth_pixel_is_read_without_the_voxels_between():
    grid = ix.Grid((1, 1 << 15, 1 << 15), (8, 8, 40), (0, 0, 0))
    big = lazy_array(LevelLeaf(CountedZeros(grid), 0), grid, {"layer_type": "image"}, "image")
    drawn = ix.to_rgba(big.isel(z=0, y=slice(None, None, 2048), x=slice(None, None, 2048)))
    drawn.compute(scheduler="sync")
    assert VOXELS[0] == 16 * 16


# ---------------------------------------------------------------------------------------------------------
# sample_points


def _points(n=300):
    index = np.stack([RNG.integers(0, s, n) for s in SHAPE], axis=1)
    xyz = index[:, ::-1] + np.array(GRID.voxel_offset)
    return index, xyz


@pytest.mark.parametrize("how", ["opened", "chunked", "own", "numpy", "strided"])
def test_a_sampled_point_has_the_value_of_its_voxel(how):
    index, xyz = _points()
    own = array_in_memory().chunk(z=5, y=7, x=50)
    array = {
        "opened": open_counted,
        "chunked": lambda: open_counted().chunk(z=5, y=7, x=50),
        "own": lambda: own.copy(data=own.data.map_blocks(np.copy, dtype="u8")),
        "numpy": array_in_memory,
        "strided": lambda: open_counted().chunk(z=5).isel(z=slice(None, None, 1)),
    }[how]()
    expected = VALUES[tuple(index.T)]
    jitter = RNG.uniform(0.001, 0.999, xyz.shape)
    for points in (xyz, xyz + jitter, (xyz + jitter).tolist()):
        READS.clear()
        got = ix.sample_points(array, points, resolution=GRID.resolution)
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == np.uint64
        assert got.dims == ("point",)
        if how in ("opened", "chunked"):
            assert set(READS.values()) == {1}
            assert set(READS) == chunks_of(*index.T)
    nm = (xyz + 0.5) * np.array(GRID.resolution)
    got = array.imagery.sample_points(nm)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(got.x, nm[:, 0])
    assert got.z.attrs["units"] == "nm"


def test_each_block_of_a_dask_input_is_computed_once():
    counted = []

    def block(values):
        if values.size:
            counted.append(1)
        return values

    own = array_in_memory().chunk(z=6, y=22, x=26)
    array = own.copy(data=own.data.map_blocks(block, dtype="u8", meta=np.empty((0, 0, 0), "u8")))
    _, xyz = _points(500)
    ix.sample_points(array, xyz, resolution=GRID.resolution)
    assert len(counted) == 8


def test_points_are_read_from_tables():
    index, xyz = _points(20)
    expected = VALUES[tuple(index.T)]
    table = pd.DataFrame(xyz, columns=list("xyz"))
    nm = {d: (xyz[:, a] + 0.5) * GRID.resolution[a] for a, d in enumerate("xyz")}
    columns = xr.Dataset({d: ("annotation", v) for d, v in nm.items()})
    np.testing.assert_array_equal(ix.sample_points(open_counted(), table, resolution=GRID.resolution), expected)
    np.testing.assert_array_equal(ix.sample_points(open_counted(), nm), expected)
    np.testing.assert_array_equal(ix.sample_points(open_counted(), columns), expected)
    triples = pd.Series(list(xyz))
    np.testing.assert_array_equal(ix.sample_points(open_counted(), triples, resolution=GRID.resolution), expected)
    with pytest.raises(ix.errors.BoxError, match=r"lacks \['x'\]"):
        ix.sample_points(open_counted(), table.rename(columns={"x": "pt_x"}))


def test_points_outside_are_background_and_all_outside_are_an_error():
    first = np.array(GRID.voxel_offset)
    points = [first, first - 1, first + np.array(SHAPE[::-1]), first + np.array(SHAPE[::-1]) - 1]
    got = ix.sample_points(open_counted(), points, resolution=GRID.resolution).values
    assert got.tolist() == [int(VALUES[0, 0, 0]), 0, 0, int(VALUES[-1, -1, -1])]
    with pytest.raises(ix.errors.OutOfVolumeError, match=r"none of 1 points lies in the array 'segmentation'"):
        ix.sample_points(open_counted(), [first - 1], resolution=GRID.resolution)
    with pytest.raises(ix.errors.OutOfVolumeError, match=r"give resolution=\(8, 8, 40\)"):
        ix.sample_points(open_counted(), [first + 1])
    with pytest.raises(
        ix.errors.OutOfVolumeError,
        match=r"Read as \(z, y, x\), the points are inside: give their numbers in the order \(x, y, z\)",
    ):
        ix.sample_points(array_in_memory(), [(7.5, 45, 50)][::1], resolution=(8, 8, 40)[::1])


@pytest.mark.parametrize(
    "points", [[(1, 2)], [[[1, 2, 3]]], "abc", [(1, 2, np.nan)], [(1, 2, np.inf)], 3, None, [("a", "b", "c")]]
)
def test_invalid_points_raise(points):
    with pytest.raises(ix.errors.BoxError):
        ix.sample_points(open_counted(), points)


def test_sample_points_accepts_one_point_and_no_points():
    first = np.array(GRID.voxel_offset) + 3
    assert ix.sample_points(open_counted(), first, resolution=GRID.resolution).values.tolist() == [int(VALUES[3, 3, 3])]
    none = ix.sample_points(open_counted(), [], resolution=GRID.resolution)
    assert none.shape == (0,)
    assert none.dtype == np.uint64


def test_points_are_sampled_in_images_pictures_and_sections():
    index, xyz = _points(50)
    grey = ix.sample_points(open_counted(None, "image"), xyz, resolution=GRID.resolution)
    np.testing.assert_array_equal(grey, (VALUES % 251).astype("u1")[tuple(index.T)])
    drawn = ix.overlay(None, open_counted(), outline=2)
    colors = ix.sample_points(drawn, xyz, resolution=GRID.resolution)
    assert colors.dims == ("point", "rgba")
    np.testing.assert_array_equal(colors, drawn.values[tuple(index.T)])
    section = open_counted().isel(z=4)
    got = ix.sample_points(section, xyz, resolution=GRID.resolution)
    np.testing.assert_array_equal(got, np.where(index[:, 0] == 4, VALUES[tuple(index.T)], 0))


def test_points_on_edges_belong_to_the_voxel_above():
    grid = ix.Grid((1, 1, 1000), (4.04, 8, 40), (10, 0, 0))
    values = xr.DataArray(
        np.arange(1000, dtype="u8")[None, None], dims=("z", "y", "x"), coords=grid.coords(),
        attrs={"resolution": grid.resolution},
    )  # fmt: skip
    edges = np.stack([np.arange(10, 1010), np.zeros(1000), np.zeros(1000)], axis=1)
    np.testing.assert_array_equal(ix.sample_points(values, edges, resolution=grid.resolution), np.arange(1000))


def test_sampling_starts_no_dask_compute():
    _, xyz = _points(5)
    with no_compute():
        ix.sample_points(array_in_memory(), xyz, resolution=GRID.resolution)
        ix.sample_points(open_counted(), xyz, resolution=GRID.resolution)


def test_each_layer_of_a_dataset_is_sampled(sample):
    ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    points = [(4600, 2560, 130), (4200, 2200, 110), (0, 0, 0)]
    found = ds.imagery.sample_points(points, resolution=(8, 8, 40))
    assert list(found.data_vars) == ["image", "segmentation"]
    for name, values in found.data_vars.items():
        xr.testing.assert_identical(values, ix.sample_points(ds[name], points, resolution=(8, 8, 40)))
    with pytest.raises(ix.errors.OutOfVolumeError):
        ds.imagery.sample_points([(0, 0, 0)])
    with pytest.raises(ix.errors.LayerError, match="none of which has the dims z, y and x"):
        ix.sample_points(xr.Dataset({"a": ("t", [1, 2])}), points)


def test_a_table_with_one_column_of_triples_is_accepted(sample):
    seg = ix.open_segmentation(sample.segmentation)
    rows = [(4600, 2560, 130), (4200, 2200, 110)]
    truth = ix.sample_points(seg, rows, resolution=(8, 8, 40)).values
    tables = [
        pd.DataFrame({"id": [1, 2], "pt_position": [np.array(r) for r in rows]}),
        pd.DataFrame({"pt_position": [list(r) for r in rows], "cell_type": ["a", "b"]}),
        {"id": np.array([1, 2]), "pt_position": np.array(rows)},
        pd.DataFrame({"pt_position": [str(list(r)) for r in rows]}),
        {"pt_position": ["(4600 2560 130)", "4200, 2200, 110".join("[]")]},
    ]
    for table in tables:
        np.testing.assert_array_equal(ix.sample_points(seg, table, resolution=(8, 8, 40)).values, truth)
        column = ix.sample_points(seg, table["pt_position"], resolution=(8, 8, 40))
        np.testing.assert_array_equal(column.values, truth)
    split = pd.DataFrame({f"pt_position_{axis}": np.array(rows)[:, i] for i, axis in enumerate("xyz")})
    np.testing.assert_array_equal(ix.sample_points(seg, split, resolution=(8, 8, 40)).values, truth)
    with pytest.raises(ix.errors.BoxError, match="1 of 3 points are not finite, the first is row 1"):
        ix.sample_points(seg, pd.Series([str(list(rows[0])), None, str(list(rows[1]))]), resolution=(8, 8, 40))


def test_a_table_with_ambiguous_positions_raises_with_advice(sample):
    seg = ix.open_segmentation(sample.segmentation)
    rows = [(4600, 2560, 130), (4200, 2200, 110)]
    table = pd.DataFrame({"pre_pt_position": rows, "post_pt_position": rows})
    with pytest.raises(
        ix.errors.BoxError, match=r"2 of which are positions: give one of them, table\['pre_pt_position'\]"
    ):
        ix.sample_points(seg, table, resolution=(8, 8, 40))
    columns = {f"pt_position_{axis}": np.array(rows)[:, i] for i, axis in enumerate("xyz")}
    table = pd.DataFrame({**columns, **{f"other_{name}": column for name, column in columns.items()}})
    with pytest.raises(ix.errors.BoxError, match="give table") as error:
        ix.sample_points(seg, table, resolution=(8, 8, 40))
    typed = str(error.value).partition("give ")[2]
    found = ix.sample_points(seg, eval(typed, {"table": table}), resolution=(8, 8, 40))
    np.testing.assert_array_equal(found.values, ix.sample_points(seg, rows, resolution=(8, 8, 40)).values)


def test_points_of_which_most_lie_outside_cause_a_warning_with_their_unit(sample):
    seg = ix.open_segmentation(sample.segmentation)
    box = ix.grid_of(seg).bbox
    lo, hi = np.array(box.lo), np.array(box.hi)
    voxels = np.random.default_rng(0).uniform(lo, hi, (100, 3))
    nm = voxels * box.resolution
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ix.sample_points(seg, np.concatenate([nm, voxels[:80]]))  # fewer than half
    given = np.concatenate([nm[:2], voxels])
    message = r"100 of 102 points lie outside of the array 'segmentation' and have the value 0: the first of them is .*"
    with pytest.warns(ix.errors.ImageryWarning, match=message + r"give resolution=\(16, 16, 40\)") as caught:
        found = ix.sample_points(seg, given)
    assert len(caught) == 1
    assert not found.values[2:].any()


def test_annotations_are_sampled_at_their_middle_in_nm(sample):
    labels = array_in_memory()
    z, y, x = (float(labels[dim][2]) for dim in "zyx")
    lines = ix.as_annotations([[x - 3, y - 5, z]], end=[[x + 3, y + 5, z]])
    assert int(ix.sample_points(labels, lines)[0]) == int(labels[2, 2, 2])
    with pytest.raises(ix.errors.OptionError, match="the positions of annotations are in nm; omit resolution"):
        ix.sample_points(labels, lines, resolution=(8, 8, 40))


def test_points_of_an_array_have_the_unit_that_it_states():
    labels = array_in_memory()
    place = [[float(labels[dim][2]) / 1000 for dim in "xyz"]]
    points = xr.DataArray(place, dims=("point", "axis"), attrs={"units": "um"})
    table = xr.Dataset({axis: ("point", [place[0][i]], {"units": "um"}) for i, axis in enumerate("xyz")})
    for one in (points, table):
        assert int(ix.sample_points(labels, one)[0]) == int(labels[2, 2, 2])
