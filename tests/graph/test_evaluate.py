"""Arrays that are computed together read their common voxels once, and equal arrays that are computed separately."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.graph.evaluate import SharedReads, boxes_around
from imageryxr.graph.expr import ArrayLeaf, Leaf, LevelLeaf
from imageryxr.graph.labelled import lazy_array
from imageryxr.sources.memory import MemorySource, memory_source
from tests.support.export_jobs import cluster_of
from tests.support.volumes import FINE, IDS, IMAGE, SEG

BLOCKS = {"z": 2, "y": 13, "x": 20}


def counted_array(array, log):
    """Return an array backed by a source that counts how often each voxel is read."""
    source = VoxelCounter(*_parts(array))
    COUNTS[source.label] = log
    return lazy_array(LevelLeaf(source, 0), source.grid, array.attrs, array.attrs["layer_type"], BLOCKS)


def _parts(array):
    source = memory_source(array, array.attrs["layer_type"])
    return source.array, source.grid, source.layer_type, source.given_attrs


COUNTS: dict[str, np.ndarray] = {}


class VoxelCounter(MemorySource):
    """A source in memory that counts reads per voxel, in COUNTS under its layer type."""

    @property
    def label(self):
        return self.layer_type

    def read(self, mip, box):
        with _lock:
            COUNTS[self.label][box.clip(self.grid.box).slices()] += 1
        return super().read(mip, box).copy()


_lock = threading.Lock()


@pytest.fixture
def layers():
    """Return an image and a segmentation on one grid, in equal blocks, and the number of reads of each voxel."""
    log = {"image": np.zeros(IMAGE.shape, int), "segmentation": np.zeros(FINE.shape, int)}
    return counted_array(IMAGE, log["image"]), counted_array(FINE, log["segmentation"]), log


def expected_reads(log, width):
    """Return how often each voxel of the segmentation should be read: by its block, and in halos of other blocks."""
    halo = np.zeros(FINE.shape, int)
    for z in range(0, FINE.shape[0], BLOCKS["z"]):
        for y in range(0, FINE.shape[1], BLOCKS["y"]):
            for x in range(0, FINE.shape[2], BLOCKS["x"]):
                halo[
                    z : z + BLOCKS["z"],
                    max(0, y - width) : y + BLOCKS["y"] + width,
                    max(0, x - width) : x + BLOCKS["x"] + width,
                ] += 1
    return halo


@pytest.mark.parametrize("scheduler", ["threads", "sync"])
def test_a_picture_and_its_image_read_the_image_once(layers, scheduler):
    image, seg, log = layers
    picture, grey = dask.compute(ix.overlay(image, seg), ix.to_rgba(image), scheduler=scheduler)
    assert (log["image"] == 1).all()
    assert (log["segmentation"] == 1).all()
    np.testing.assert_array_equal(picture, ix.overlay(IMAGE, FINE))
    np.testing.assert_array_equal(grey, ix.to_rgba(IMAGE))


def test_arrays_computed_separately_read_twice(layers):
    image, seg, log = layers
    ix.overlay(image, seg).compute()
    ix.to_rgba(image).compute()
    assert (log["image"] == 2).all()


def test_fill_and_outlines_share_the_block_and_read_the_halo_separately(layers):
    image, seg, log = layers
    for order in (1, -1):
        log["segmentation"][:] = 0
        arrays = [ix.overlay(image, seg), ix.outline(seg, width=4), ix.outline(seg, width=2, side="in")][::order]
        done = dask.compute(*arrays, scheduler="threads", num_workers=3)[::order]
        np.testing.assert_array_equal(log["segmentation"], expected_reads(log, 4))
        np.testing.assert_array_equal(done[1], ix.outline(FINE, width=4))


def test_a_dataset_reads_once(layers):
    image, seg, log = layers
    rgba = xr.Dataset(
        {"lines": ix.outline(seg, width=3), "grey": ix.to_rgba(image), "ids": ix.select_ids(seg, IDS[2:])}
    )
    loaded = rgba.compute()
    assert (log["image"] == 1).all()
    np.testing.assert_array_equal(log["segmentation"], expected_reads(log, 3))
    np.testing.assert_array_equal(loaded.ids, ix.select_ids(FINE, IDS[2:]))


def test_arrays_derived_from_pictures_read_once(layers):
    image, seg, log = layers
    picture, grey = ix.overlay(image, seg).isel(z=slice(0, 2)), ix.to_rgba(image)[:, ::2]
    total, mean = dask.compute(picture.sum(), grey.mean(("y", "x")))
    assert log["image"].max() == 1
    assert int(total) == int(ix.overlay(IMAGE, FINE)[:2].sum())
    np.testing.assert_allclose(mean, ix.to_rgba(IMAGE)[:, ::2].mean(("y", "x")))


def test_regridded_layers_share_reads():
    log = {"image": np.zeros(IMAGE.shape, int), "segmentation": np.zeros(SEG.shape, int)}
    image, seg = counted_array(IMAGE, log["image"]), counted_array(SEG, log["segmentation"])
    ds = ix.align(image, seg)
    fill, lines = dask.compute(ix.overlay(ds.image, ds.segmentation), ix.outline(ds.segmentation, width=3))
    alone = np.zeros(SEG.shape, int)
    COUNTS["segmentation"] = alone
    ix.outline(ds.segmentation, width=3).compute()
    np.testing.assert_array_equal(log["segmentation"], alone)
    same = ix.align(IMAGE, SEG)
    np.testing.assert_array_equal(fill, ix.overlay(same.image, same.segmentation))
    np.testing.assert_array_equal(lines, ix.outline(same.segmentation, width=3))


def test_pictures_with_a_dask_input_share_the_reads_of_the_image(layers):
    image, _, log = layers
    own = FINE.chunk({"z": 1, "y": 17, "x": 52})
    picture, grey = dask.compute(ix.overlay(image, own, outline=2), ix.to_rgba(image))
    assert (log["image"] == 1).all()
    np.testing.assert_array_equal(picture, ix.overlay(IMAGE, FINE, outline=2))
    np.testing.assert_array_equal(grey, ix.to_rgba(IMAGE))


def test_tiles_of_a_montage_read_once(layers):
    image, _seg, log = layers
    lazy = lazy_array(
        image.data.dask.layers[image.data.name].io_deps.popitem()[1].expr, ix.grid_of(image), image.attrs, "em"
    )
    plane = lazy.isel(z=[1])
    picture = ix.overlay(
        plane,
        lazy_array(LevelLeaf(memory_source(FINE, "segmentation"), 0), ix.grid_of(FINE), FINE.attrs, "s").isel(z=[1]),
    )
    tiles = ix.montage([ix.to_rgba(plane), picture, ix.to_pil(IMAGE.isel(z=0))], spacing=0)
    assert (log["image"][1] == 1).all()
    assert log["image"][0].max() == log["image"][2].max() == 0
    assert tiles.size == (3 * 52, 40)
    np.testing.assert_array_equal(np.asarray(tiles)[:, 52:104], ix.overlay(IMAGE, FINE).isel(z=1).values[..., :3])


def test_crops_of_one_size_at_different_positions_share_no_dask_layers(layers):
    image, _, _log = layers
    cuts = [
        ix.to_rgba(image.imagery.crop(ix.BBox((x, 0, 2), (x + 9, 20, 4), resolution=(8, 8, 40))))
        for x in range(11, 50, 9)
    ]
    names = [set(c.data.dask.layers) for c in cuts]
    assert len(set.union(*names)) == sum(map(len, names))
    for cut, one in zip(cuts, dask.compute(*cuts), strict=True):
        np.testing.assert_array_equal(one, cut.compute())


def test_shared_reads_are_released_block_by_block(layers, monkeypatch):
    image, seg, _ = layers
    alive, most = weakref.WeakSet(), [0]
    begin, read = SharedReads.__init__, SharedReads.read

    def init_and_note(self, leaf):
        begin(self, leaf)
        alive.add(self)

    def read_and_count(self, box):
        values = read(self, box)
        most[0] = max(most[0], sum(bool(r._stored) for r in list(alive)))
        return values

    monkeypatch.setattr(SharedReads, "__init__", init_and_note)
    monkeypatch.setattr(SharedReads, "read", read_and_count)
    arrays = [ix.overlay(image, seg, outline=2), ix.to_rgba(image), ix.overlay(image, seg)]
    assert arrays[0].data.npartitions == 24
    dask.compute(*arrays, num_workers=2, scheduler="threads")
    # Each of the two sources keeps the two blocks in progress and the two that dask starts next.
    assert 2 <= most[0] <= 8
    gc.collect()
    assert not any(r._stored for r in alive)


def test_results_do_not_share_memory():
    source = LevelLeaf(VoxelCounter(*_parts(IMAGE)), 0)
    whole = [lazy_array(source, ix.grid_of(IMAGE), {}, name, -1) for name in ("a", "b", "c")]
    a, b, c = dask.compute(*whole)
    a[:] = 0
    np.testing.assert_array_equal(b, IMAGE)
    b[:] = 0
    np.testing.assert_array_equal(c, IMAGE)


def add_one_in_place(block):
    block += 1
    return block


@pytest.mark.fast_forms(3)
@pytest.mark.parametrize("scheduler", ["sync", "threads"])
@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("order", [1, -1])
def test_an_in_place_function_does_not_change_other_arrays(layers, scheduler, optimize, order):
    image, seg, _ = layers
    kept = ix.select_ids(seg, IDS[1:])  # selects all ids, so no value changes
    arrays = [
        image.data.map_blocks(add_one_in_place, dtype="u1"),
        ix.to_rgba(image).data,
        ix.overlay(image, seg, outline=2).data,
        seg.data.map_blocks(add_one_in_place, dtype="u8"),
        kept.data.map_blocks(add_one_in_place, dtype="u8"),
    ]
    truth = [
        IMAGE.values + np.uint8(1),
        ix.to_rgba(IMAGE),
        ix.overlay(IMAGE, FINE, outline=2),
        FINE.values + np.uint64(1),
    ]
    for _ in range(3):
        found = dask.compute(*arrays[::order], scheduler=scheduler, optimize_graph=optimize)[::order]
        for values, expected in zip(found, [*truth, truth[-1]], strict=True):
            np.testing.assert_array_equal(values, expected)


def test_copy_if_shared_copies_only_shared_memory(layers):
    reads = SharedReads(LevelLeaf(memory_source(FINE, "segmentation"), 0))
    whole = reads.read(IndexBox((0, 0, 0), (3, 40, 52)))
    part = reads.copy_if_shared(reads.read(IndexBox((0, 0, 0), (1, 1, 1))))
    assert not np.shares_memory(part, whole)
    assert part.flags.owndata
    other = np.zeros(5)
    assert reads.copy_if_shared(other) is other


def test_a_failed_read_raises_for_all_arrays(layers, monkeypatch):
    image, seg, _ = layers

    def raise_error(self, mip, box):
        raise ix.ImageryError("the disk is gone")

    monkeypatch.setattr(VoxelCounter, "read", raise_error)
    with pytest.raises(ix.ImageryError, match="the disk is gone"):
        dask.compute(ix.overlay(image, seg), ix.to_rgba(image))


@pytest.mark.slow
def test_shared_reads_work_in_worker_processes(layers):
    image, seg = (
        lazy_array(LevelLeaf(memory_source(a, a.attrs["layer_type"]), 0), ix.grid_of(a), a.attrs, "layer", BLOCKS)
        for a in (IMAGE, FINE)
    )
    with cluster_of(2, threads_per_worker=2):
        picture, grey, lines = dask.compute(ix.overlay(image, seg), ix.to_rgba(image), ix.outline(seg, width=3))
    np.testing.assert_array_equal(picture, ix.overlay(IMAGE, FINE))
    np.testing.assert_array_equal(grey, ix.to_rgba(IMAGE))
    np.testing.assert_array_equal(lines, ix.outline(FINE, width=3))


# --- boxes ---------------------------------------------------------------------------------------------------

VALUES = np.arange(9 * 8 * 7, dtype=np.uint32).reshape(9, 8, 7)


class CountedLeaf(Leaf):
    """A leaf that counts how often each voxel is read."""

    def __init__(self):
        self.seen = np.zeros(VALUES.shape, int)
        self.leaf = ArrayLeaf(VALUES)

    dtype = property(lambda self: VALUES.dtype)
    bounds = property(lambda self: self.leaf.bounds)

    def read(self, box):
        self.seen[box.slices()] += 1
        return VALUES[box.slices()]


def boxes():
    spans = [
        st.tuples(st.integers(0, n - 1), st.integers(1, n)).map(lambda p, n=n: (p[0], min(n, p[0] + p[1])))
        for n in VALUES.shape
    ]
    return st.tuples(*spans).map(lambda s: IndexBox(tuple(a for a, _ in s), tuple(b for _, b in s)))


@given(requested=st.lists(boxes(), min_size=1, max_size=6))
def test_shared_reads_return_any_boxes_in_any_order(requested):
    leaf = CountedLeaf()
    reads = SharedReads(leaf)
    for box in requested:
        np.testing.assert_array_equal(reads.read(box), VALUES[box.slices()])
    nested = all(a.contains(b) or b.contains(a) for a in requested for b in requested)
    if nested:
        assert leaf.seen.max() == 1
    union = np.zeros(VALUES.shape, bool)
    for box in requested:
        union[box.slices()] = True
    np.testing.assert_array_equal(leaf.seen > 0, union)


@given(box=boxes(), other=boxes())
def test_boxes_around_a_core_cover_every_other_voxel_once(box, other):
    core = box.clip(other)
    if not core.voxels:
        return
    count = np.zeros(VALUES.shape, int)
    for piece in [core, *boxes_around(box, core)]:
        assert piece.voxels
        count[piece.slices()] += 1
    truth = np.zeros(VALUES.shape, int)
    truth[box.slices()] = 1
    np.testing.assert_array_equal(count, truth)


def test_pickled_shared_reads_are_empty():
    reads = SharedReads(ArrayLeaf(VALUES))
    reads.read(IndexBox((0, 0, 0), (9, 8, 7)))
    assert repr(reads) == "<SharedReads ArrayLeaf: 1 boxes>"
    other = pickle.loads(pickle.dumps(SharedReads(LevelLeaf(memory_source(IMAGE, "image"), 0))))
    assert other._stored == []
    assert other.leaf == LevelLeaf(memory_source(IMAGE, "image"), 0)


def test_many_threads_read_a_box_once():
    leaf = CountedLeaf()
    reads, box = SharedReads(leaf), IndexBox((0, 0, 0), (9, 8, 7))
    found = []
    threads = [threading.Thread(target=lambda: found.append(reads.read(box))) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert leaf.seen.max() == 1
    assert all((f == VALUES).all() for f in found)
    assert len(found) == 8
