"""Cutouts equal crops around their centres, and read each storage chunk once."""

from __future__ import annotations

import pickle

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.errors import BoxError, ImageryWarning, LayerError, OptionError, OutOfVolumeError
from imageryxr.graph import cutout_blocks as graph
from imageryxr.graph import cutout_reads
from imageryxr.graph.cutout_blocks import cutout_layers
from tests.conftest import volume
from tests.support import counted_source
from tests.support.volumes import IDS, as_source

rng = np.random.default_rng(11)


def oracle(array, center, size, resolution=(1, 1, 1)):
    """Return the values of one cutout, voxel by voxel, with 0 outside of the volume."""
    grid = ix.grid_of(array)
    box = grid.select(ix.BBox.around(center, size, resolution=resolution, size_resolution=grid.resolution))
    out = np.zeros(box.shape, array.dtype)
    values = np.asarray(array.transpose("z", "y", "x").values)
    for at in np.ndindex(*out.shape):
        voxel = tuple(a + b for a, b in zip(at, box.start, strict=True))
        if all(0 <= v < n for v, n in zip(voxel, values.shape, strict=True)):
            out[at] = values[voxel]
    return out


def points_in(grid, count, *, resolution=(1, 1, 1)):
    """Return random points in the volume, some of them on the edges between voxels."""
    lo, hi = np.array(grid.bbox.lo_nm), np.array(grid.bbox.hi_nm)
    inside = lo + rng.random((count, 3)) * (hi - lo)
    inside[::2] = np.round(inside[::2] / grid.resolution * 2) / 2 * grid.resolution
    return np.clip(inside, lo + grid.resolution, hi - 1e-3) / resolution


VOLUMES = {
    "negative offset": volume(IDS[rng.integers(0, 6, (7, 20, 23))], (8, 8, 40), (-9, 4, -3), layer_type="segmentation"),
    "fractional voxels": volume(
        IDS[rng.integers(0, 6, (7, 20, 23))], (4.04, 4.04, 40), (1000, 17, 3), layer_type="segmentation"
    ),
    "half a voxel": volume(
        IDS[rng.integers(0, 6, (7, 20, 23))], (10, 10, 25), (0.5, -1.5, 2), layer_type="segmentation"
    ),
}


@pytest.mark.fast_forms(10)
@pytest.mark.filterwarnings("ignore:size=.*is larger than the volume")
@pytest.mark.parametrize("size", [(6, 5, 3), (1, 1, 1), (7, 8), (30, 4, 2)])
@pytest.mark.parametrize("name", VOLUMES)
@pytest.mark.parametrize("source", ["in memory", "lazy", "dask"])
def test_each_cutout_equals_a_crop_around_its_centre(name, source, size):
    held = VOLUMES[name]
    array = {"in memory": held, "lazy": as_source(held), "dask": held.chunk({"z": 3, "y": 7, "x": 9})}[source]
    centers = points_in(ix.grid_of(held), 9)
    centers[4] = centers[1]
    found = ix.cutouts(array, centers, size)
    assert found.dims == ("cutout", "z", "y", "x")
    assert found.dtype == np.uint64
    for values, center in zip(found.values, centers, strict=True):
        np.testing.assert_array_equal(values, oracle(held, center, size))


PARTS = {
    "slice": lambda a, z, y, x: a.isel(z=slice(*z), y=slice(*y), x=slice(*x)),
    "steps": lambda a, z, y, x: a.isel(z=slice(*z), y=slice(*y, 2), x=slice(*x, 3)),
    "crop": lambda a, z, y, x: ix.crop(a, ix.grid_of(a.isel(z=slice(*z), y=slice(*y), x=slice(*x))).bbox),
    "one slice": lambda a, z, y, x: a.isel(z=[z[0]], y=slice(*y), x=slice(*x)),
    "dropped": lambda a, z, y, x: a.isel(z=z[0], y=slice(*y), x=slice(*x)),
    "regridded": lambda a, z, y, x: ix.regrid(a.isel(z=slice(*z), y=slice(*y), x=slice(*x)), (16, 16, 40), method="nearest"),
    "picture": lambda a, z, y, x: ix.outline(a, width=1).isel(z=slice(*z), y=slice(*y), x=slice(*x)),
}  # fmt: skip
SOURCES = {
    "lazy": as_source,
    "chunks": lambda a: as_source(a).chunk(z=4, y=9, x=8),
    "dask": lambda a: a.chunk(y=7, x=9),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:size=")
@settings(max_examples=20)
@given(
    part=st.sampled_from(list(PARTS)),
    origin=st.sampled_from(list(SOURCES)),
    starts=st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 6)),
    seed=st.integers(0, 99),
)
def test_cutouts_of_a_part_have_no_data_beyond_its_border(part, origin, starts, size, seed):
    held = VOLUMES["negative offset"]
    ends = [(a, n - a) for a, n in zip(starts, held.shape, strict=True)]
    array = PARTS[part](SOURCES[origin](held), *ends)
    loaded = array.compute()
    choose = np.random.default_rng(seed).choice
    centers = np.stack([choose(np.atleast_1d(array[dim].values), 4) for dim in "xyz"], axis=1)
    found = ix.cutouts(array, centers, size)
    np.testing.assert_array_equal(found.values, ix.cutouts(loaded, centers, size).values)
    together = ix.cutouts(xr.Dataset({"one": array, "two": array}), centers, size)
    np.testing.assert_array_equal(together.two, found)
    if part != "dropped":  # A crop of a dropped dim has one plane.
        for values, center in zip(found.values, centers, strict=True):
            around = ix.crop(array, center=center, size=size, resolution=(1, 1, 1))
            np.testing.assert_array_equal(values, around.values)


def test_cutouts_of_aligned_layers_are_empty_where_one_layer_is_missing():
    image = volume(rng.integers(1, 255, (6, 40, 40), dtype=np.uint8), (8, 8, 40), layer_type="image")
    labels = volume(IDS[rng.integers(1, 6, (6, 10, 10))], (16, 16, 40), (5, 5, 0), layer_type="segmentation")
    ds = ix.align(as_source(image), as_source(labels))
    tree = xr.DataTree.from_dict({"/image": as_source(image).to_dataset(), "/seg": as_source(labels).to_dataset()})
    corner = [(float(ds.x[0]), float(ds.y[0]), float(ds.z[2]))]
    for source in (ds, ds.compute(), tree):
        found = ix.cutouts(source, corner, (8, 8, 1))
        np.testing.assert_array_equal(found.image != 0, found.segmentation != 0)
        assert int((found.image != 0).sum()) == 16


def test_centres_in_voxels_of_another_size_are_converted():
    held = VOLUMES["fractional voxels"]
    centers = points_in(ix.grid_of(held), 8, resolution=(4.04, 8.08, 40))
    found = ix.cutouts(as_source(held), centers, (4, 4, 2), resolution=(4.04, 8.08, 40))
    for values, center in zip(found.values, centers, strict=True):
        np.testing.assert_array_equal(values, oracle(held, center, (4, 4, 2), (4.04, 8.08, 40)))
    np.testing.assert_allclose(found.center_x, centers[:, 0] * 4.04)
    np.testing.assert_allclose(found.center_z, centers[:, 2] * 40)


def test_offsets_count_from_the_voxel_that_contains_the_centre():
    held = VOLUMES["negative offset"]
    found = ix.cutouts(held, (20.0, 70.0, 10.0), (4, 3, 1))
    assert found.x.values.tolist() == [-16, -8, 0, 8]
    assert found.y.values.tolist() == [-8, 0, 8]
    assert found.z.values.tolist() == [0]
    at_centre = found.sel(z=0, y=0, x=0).values[0]
    assert at_centre == held.sel(x=20, y=70, z=10, method="nearest").values
    assert ix.grid_of(found.isel(cutout=0)).resolution == (8, 8, 40)


def reads_of(array):
    counted_source.READS.clear()
    values = array.compute()
    return values, dict(counted_source.READS)


def chunks_needed(centers, size):
    found = set()
    for center in centers:
        box = counted_source.GRID.select(
            ix.BBox.around(center, size, size_resolution=counted_source.GRID.resolution)
        ).clip(counted_source.GRID.box)
        spans = zip(box.start, box.stop, counted_source.CHUNKS, strict=True)
        z, y, x = (range(a // c, -(-b // c)) for a, b, c in spans)
        found |= {(i, j, k) for i in z for j in y for k in x}
    return found


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("layer_type", ["segmentation", "image"])
def test_all_cutouts_together_read_each_chunk_once(scheduler, layer_type):
    centers = points_in(counted_source.GRID, 300)
    found = ix.cutouts(counted_source.open_counted(layer_type=layer_type), centers, (9, 7, 3))
    with dask.config.set(scheduler=scheduler):
        values, reads = reads_of(found)
    assert set(reads) == chunks_needed(centers, (9, 7, 3))
    assert set(reads.values()) == {1}
    held = counted_source.array_in_memory(layer_type)
    for i in range(0, 300, 37):
        np.testing.assert_array_equal(values[i], oracle(held, centers[i], (9, 7, 3)))


def test_a_selection_reads_no_chunks_of_distant_cutouts():
    centers = np.concatenate([points_in(counted_source.GRID, 1), points_in(counted_source.GRID, 40)])
    found = ix.cutouts(counted_source.open_counted(), centers, (3, 3, 1))
    chosen = found.isel(cutout=[40, 2])
    layers = cutout_layers(chosen.data)
    rows = {
        row for layer in layers for b in layer.blocks for row in range(layer.spec.edges[b], layer.spec.edges[b + 1])
    }
    _, reads = reads_of(chosen)
    assert set(reads) == chunks_needed(centers[sorted(rows)], (3, 3, 1))
    assert len(rows) <= 16


def test_selections_that_are_computed_together_equal_those_computed_alone():
    found = ix.cutouts(counted_source.open_counted(), points_in(counted_source.GRID, 60), (5, 5, 2))
    first, last = dask.compute(found.isel(cutout=slice(0, 9)), found.sel(cutout=[59, 3]))
    np.testing.assert_array_equal(first, found.values[:9])
    np.testing.assert_array_equal(last, found.values[[59, 3]])


def test_a_pickled_graph_computes_the_same_values():
    found = ix.cutouts(counted_source.open_counted(), points_in(counted_source.GRID, 20), (5, 5, 2))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).values, found.values)


def test_equal_calls_have_equal_names():
    centers = points_in(counted_source.GRID, 20)
    names = {
        ix.cutouts(counted_source.open_counted(), c, (5, 5, 2)).data.name
        for c in (centers, centers.copy(), centers[::-1])
    }
    assert len(names) == 2


def test_a_dataset_keeps_its_layers_on_one_grid():
    ds = xr.Dataset(
        {"image": counted_source.open_counted(layer_type="image"), "segmentation": counted_source.open_counted()}
    )
    centers = points_in(counted_source.GRID, 12)
    found = ix.cutouts(ds, centers, (6, 6, 2))
    assert found.image.chunks == found.segmentation.chunks
    assert found.image.dtype == np.uint8
    np.testing.assert_array_equal(found.center, centers)
    np.testing.assert_array_equal(
        found.segmentation[7], oracle(counted_source.array_in_memory(), centers[7], (6, 6, 2))
    )


def test_an_aligned_dataset_equals_its_crops():
    image = volume(rng.integers(0, 255, (6, 40, 40), dtype=np.uint8), (8, 8, 40), layer_type="image")
    labels = volume(IDS[rng.integers(0, 6, (6, 20, 20))], (16, 16, 40), layer_type="segmentation")
    ds = ix.align(as_source(image), as_source(labels))
    centers = points_in(ix.grid_of(ds), 6)
    found = ix.cutouts(ds, centers, (9, 6, 2))
    for i, center in enumerate(centers):
        box = ix.BBox.around(center, (9, 6, 2), size_resolution=(8, 8, 40))
        for name in ("image", "segmentation"):
            np.testing.assert_array_equal(found[name][i], ix.crop(ds[name], box))


def test_a_tree_is_aligned_at_a_resolution():
    image = volume(rng.integers(0, 255, (6, 40, 40), dtype=np.uint8), (8, 8, 40), layer_type="image")
    labels = volume(IDS[rng.integers(0, 6, (6, 20, 20))], (16, 16, 40), layer_type="segmentation")
    tree = xr.DataTree.from_dict({"/image": as_source(image).to_dataset(), "/seg": as_source(labels).to_dataset()})
    found = ix.cutouts(tree, [(100, 100, 100)], (4, 4, 1), to=(16, 16, 40))
    assert ix.grid_of(found.isel(cutout=0)).resolution == (16, 16, 40)
    np.testing.assert_array_equal(found.segmentation[0], oracle(labels, (100, 100, 100), (4, 4, 1)))
    with pytest.raises(LayerError, match="0 layers of type segmentation"):
        ix.cutouts(tree.drop_nodes("seg"), [(100, 100, 100)], (4, 4, 1))


def test_pictures_are_cut_out_with_their_colours():
    picture = ix.outline(counted_source.open_counted(), width=2)
    centers = points_in(counted_source.GRID, 5)
    found = ix.cutouts(picture, centers, (8, 8, 1))
    assert found.dims == ("cutout", "z", "y", "x", "rgba")
    whole = ix.outline(counted_source.array_in_memory(), width=2)
    for channel in range(4):
        np.testing.assert_array_equal(found[3, ..., channel], oracle(whole.isel(rgba=channel), centers[3], (8, 8, 1)))


def test_a_target_grid_is_an_option_of_trees_only():
    held = VOLUMES["negative offset"]
    for source in (held, xr.Dataset({"image": held})):
        with pytest.raises(OptionError, match="for a tree, .* align"):
            ix.cutouts(source, (0, 60, 0), (4, 4, 1), to=(16, 16, 40))


def test_a_box_outside_the_volume_is_an_error_that_states_the_row():
    held = VOLUMES["negative offset"]
    with pytest.raises(OutOfVolumeError, match="1 of 3 cutouts lie wholly outside .*; row 2: "):
        ix.cutouts(held, [(0, 60, 0), (8, 60, 0), (9000, 60, 0)], (4, 4, 1))
    with pytest.raises(OutOfVolumeError, match=r"or with resolution=\(8, 8, 40\)"):
        ix.cutouts(held, [(9, 23, 900)], (4, 4, 1))


@pytest.mark.parametrize(
    ("centers", "given", "advice"),
    [
        (
            [(9, 23, 1), (-8, 4, -3)],
            (1, 1, 1),
            r"row 0: its centre is \(9, 23, 1\) nm; in voxels, .* inside: .*=\(8, 8, 40\)$",
        ),
        ([(27, 9, 1)], (1, 1, 1), r"in voxels, all centres lie inside: give resolution=\(4, 4, 40\)$"),
        (
            [(72, 184, 40)],
            (8, 8, 40),
            r"\(72, 184, 40\) in units of 8 × 8 × 40 nm; in nanometres, all centres lie inside: omit resolution$",
        ),
        ([(1, 5, 13)], (8, 8, 40), r"in the order \(z, y, x\), all centres lie inside: give centres \(x, y, z\)$"),
        ([(9, 23, 1), (900, 4, 1)], (1, 1, 1), r"give centres \(x, y, z\) inside it, .* or remove these rows$"),
    ],
)
def test_centres_in_another_unit_are_an_error_that_states_the_resolution(centers, given, advice):
    with pytest.raises(OutOfVolumeError, match=advice):
        ix.cutouts(VOLUMES["negative offset"], centers, (4, 4, 1), resolution=given)


@pytest.mark.parametrize(
    ("size", "advice"),
    [
        ((64, 64, 40), r"is larger than the volume, .* if it is in nm, give size=\(8, 8, 1\)"),
        ((3, 8, 20), r"is larger than the volume, .* order \(z, y, x\), give size=\(20, 8, 3\)"),
        ((3, 7, 7), r"boxes of 24 × 56 × 280 nm; if it is in the order \(z, y, x\), give size=\(7, 7, 3\)"),
    ],
)
def test_sizes_in_another_unit_or_order_cause_a_warning(size, advice):
    with pytest.warns(ImageryWarning, match=advice):
        ix.cutouts(VOLUMES["negative offset"], [(0, 60, 0)], size)


@pytest.mark.parametrize("size", [(8, 8, 3), (20, 6, 6), (8, 20), (1, 1, 1)])
def test_usual_sizes_cause_no_warning(size, recwarn):
    ix.cutouts(VOLUMES["negative offset"], [(0, 60, 0)], size)
    assert not recwarn


def test_sources_that_are_no_volume_are_errors_that_state_the_call():
    held, centers = VOLUMES["negative offset"], [(0, 60, 0)]
    with pytest.raises(LayerError, match=r"open it first: imageryxr.open_image\('precomputed://x'\)"):
        ix.cutouts("precomputed://x", centers, (4, 4, 1))
    for table in (centers, {"x": [0], "y": [60], "z": [0]}, pd.DataFrame({"x": [0], "y": [60], "z": [0]})):
        with pytest.raises(LayerError, match=r"swap the two arguments: cutouts\(source, centers, size\)"):
            ix.cutouts(table, held, (4, 4, 1))


@pytest.mark.parametrize("size", [(4, 4.5, 1), 4, (0, 4, 4), (1, 2, 3, 4)])
def test_sizes_are_positive_integers(size):
    with pytest.raises(BoxError, match="must be 2 or 3 positive integers"):
        ix.cutouts(VOLUMES["negative offset"], [(0, 60, 0)], size)


@pytest.mark.parametrize("kept", [0, 1 << 12, 1 << 30])
def test_many_batches_read_at_most_a_tenth_twice_if_memory_allows(monkeypatch, kept):
    monkeypatch.setattr(graph, "BATCH_BYTES", 1 << 15)
    monkeypatch.setattr(cutout_reads, "KEPT_BYTES", kept)
    centers = points_in(counted_source.GRID, 200)
    found = ix.cutouts(counted_source.open_counted(), centers, (9, 7, 3))
    counted_source.READS.clear()
    values = found.compute(scheduler="threads", num_workers=3)
    assert len(cutout_layers(found.data)[0].reads.batches) > 10
    if kept == 1 << 30:
        assert set(counted_source.READS.values()) == {1}
    for i in range(0, 200, 23):
        np.testing.assert_array_equal(values[i], oracle(counted_source.array_in_memory(), centers[i], (9, 7, 3)))


def test_a_failed_read_is_an_error_of_the_computation(monkeypatch):
    def fail(self, mip, box):
        raise OSError("connection lost")

    monkeypatch.setattr(graph, "BATCH_BYTES", 1 << 15)
    found = ix.cutouts(counted_source.open_counted(), points_in(counted_source.GRID, 50), (9, 7, 3))
    monkeypatch.setattr(counted_source.CountedSource, "read", fail)
    with pytest.raises(OSError, match="connection lost"):
        found.compute(scheduler="threads", num_workers=3)


@pytest.mark.slow
def test_cutouts_are_computed_in_processes():
    found = ix.cutouts(counted_source.open_counted(), points_in(counted_source.GRID, 20), (9, 7, 3))
    np.testing.assert_array_equal(found.compute(scheduler="processes", num_workers=2), found)
