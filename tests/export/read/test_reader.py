"""Buffers that regions reuse, and reading in parts, change no voxels; arrays that are in use share no memory."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.export.read.reader import BUFFERS, Buffers, SweepReader, draw
from imageryxr.export.read.sweep import Sweep, Window, whole_sweep
from imageryxr.export.targets.omezarr import OmeZarr
from imageryxr.graph.evaluate import evaluate
from imageryxr.graph.expr import LevelLeaf
from imageryxr.graph.labelled import box_reader
from imageryxr.sources.fetch import memory_cache
from imageryxr.sources.transposed import TransposedSource
from tests.support.export_jobs import Computed, array_of, digest, picture, place
from tests.support.latency_server import LatencyServer
from tests.support.processes import succeeds_in_fork

READER, SWEEP = (sys.modules[f"imageryxr.export.read.{name}"] for name in ("reader", "sweep"))


@pytest.fixture
def small(monkeypatch):
    """Lower all limits, so that small arrays are treated as large ones."""
    monkeypatch.setattr(READER, "KEPT_BYTES", 1000)
    monkeypatch.setattr(SWEEP, "KEPT_BYTES", 1000)
    for module in (READER, SWEEP):
        monkeypatch.setattr(module, "BRICK_VOXELS", 5000)
    yield
    BUFFERS.clear()


def test_unreferenced_buffers_are_reused(small):
    buffers = Buffers()
    first = buffers.empty((10, 20, 30), np.dtype(np.uint64))
    where = first.ctypes.data
    view = first[2:3].T
    del first
    second = buffers.empty((10, 20, 30), np.dtype(np.uint64))
    assert second.ctypes.data != where, "there is still a view of the first array"
    view[:] = 7
    second[:] = 9
    assert (view == 7).all()
    del view
    third = buffers.empty((100, 20), np.dtype(np.uint16))
    assert third.ctypes.data == where
    assert third.flags["C_CONTIGUOUS"]
    assert (third.dtype, third.shape) == (np.uint16, (100, 20))
    kept = memoryview(second)
    del second
    assert buffers.empty((10, 20, 30), np.dtype(np.uint64)).ctypes.data != np.frombuffer(kept, np.uint64).ctypes.data


def test_threads_never_share_a_buffer(small):
    buffers = Buffers()

    def one(number):
        for _ in range(300):
            array = buffers.empty((50 + number % 3 * 10, 100), np.dtype(np.uint32))
            array[:] = number
            if not (array == number).all():
                return False
            del array
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(8)))
    assert sum(a.nbytes for a in buffers._held) <= 9 * 70 * 100 * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_has_buffers_of_its_own(small):
    kept = BUFFERS.empty((5000,), np.dtype(np.uint8))
    with BUFFERS._lock:  # the parent holds the lock during the fork
        assert succeeds_in_fork(lambda: np.testing.assert_equal(len(BUFFERS._held), 0))
        assert succeeds_in_fork(lambda: BUFFERS.empty((5000,), np.dtype(np.uint8)))
    assert BUFFERS._held[0] is kept.base


def test_idle_buffers_are_freed(small):
    buffers = Buffers()
    for size in range(1000, 100_000, 1000):
        buffers.empty((size,), np.dtype(np.uint8))
    assert len(buffers._held) == 1
    buffers.clear()
    assert buffers._held == []


def read_sweep(array, z):
    """Read the sources of two slices at once; return the reader and one array of voxels per source."""
    read = box_reader(array)
    box = IndexBox((z, 0, 0), (z + 2, *array.shape[1:]))
    sources = SweepReader(read.volume.expr, whole_sweep(read.volume.expr, box))
    sources.advance(0)
    return sources, [values for parts in sources.readings(box).values() for _, values in parts]


@pytest.mark.parametrize("kind", ["precomputed", "zarr"])
def test_remote_voxels_are_read_into_the_memory_of_earlier_regions(sample, small, tmp_path, kind):
    seg = ix.open_segmentation(sample.segmentation, mip=1).isel(z=slice(0, 8))
    if kind == "zarr":
        ix.export(seg, tmp_path / "ids.ome.zarr", levels=1, chunks=(2, 64, 64))
    root, scheme = (tmp_path, "zarr") if kind == "zarr" else (sample.path, "precomputed")
    name, mip = ("ids.ome.zarr", 0) if kind == "zarr" else ("segmentation", 1)
    with LatencyServer(root, latency=0.0) as server:
        uncached = ix.Connection(memory_cache=0)  # the reader does not fetch boxes that are in the memory cache
        remote = ix.open_segmentation(f"{scheme}://{server.url}/{name}", mip=mip, connection=uncached)
        sources, (first,) = read_sweep(remote, 0)
        other, (second,) = read_sweep(remote, 2)
        assert not np.shares_memory(first, second), "the first region is not finished"
        np.testing.assert_array_equal(first, seg[0:2])
        np.testing.assert_array_equal(second, seg[2:4])
        place = first.ctypes.data
        del sources, first
        for thread in threading.enumerate():
            if thread.name == "imageryxr-web":  # the thread may refer to the voxels until it ends
                thread.join()
        third = read_sweep(remote, 4)[1][0]
        assert third.ctypes.data == place
        assert len(BUFFERS._held) == 2
        np.testing.assert_array_equal(third, seg[4:6])
        np.testing.assert_array_equal(second, seg[2:4])
        computed = remote[0:2].compute().values
        del other, second, third
        assert all(not np.shares_memory(computed, read_sweep(remote, z)[1][0]) for z in (2, 4)), "not part of an export"


def test_an_export_leaves_encoded_chunks_in_the_cache_and_no_voxels(sample, tmp_path):
    with LatencyServer(sample.path, latency=0.0) as server:
        remote = ix.open_segmentation(f"precomputed://{server.url}/segmentation", mip=1)
        memory_cache.cache.clear()
        ix.export(remote, tmp_path / "o.ome.zarr", levels=1)
        server.counts()
        assert memory_cache.cache._encoded.size > 0
        assert memory_cache.cache._decoded.size == 0
        remote[:4].compute()
        assert server.counts()["requests"] == 0


def test_the_memory_of_voxels_that_their_source_copies_is_not_kept(sample, small, tmp_path):
    source = box_reader(ix.open_segmentation(sample.segmentation, mip=1)).volume.expr.source
    turned = LevelLeaf(TransposedSource(source, (1, 0, 2)), 1)
    box = IndexBox((0, 0, 0), (2, 60, 50))
    window = Window(turned, box)
    sources = SweepReader(turned, Sweep((box,), (window,)))
    sources.advance(0)
    ((_, values),) = sources.readings(box)[turned]
    np.testing.assert_array_equal(values, source.read(1, IndexBox((0, 0, 0), (2, 50, 60))).swapaxes(1, 2))
    assert BUFFERS._held == []


@pytest.mark.parametrize("part", [1000, 50_000, 10**9])
@pytest.mark.parametrize("start", [(0, 0, 0), (3, 17, 70)])
def test_reading_in_parts_equals_reading_at_once(sample, small, monkeypatch, part, start):
    monkeypatch.setattr(SWEEP, "KEPT_BYTES", part)
    em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation, mip=1)
    drawn = ix.overlay(em, ix.regrid(seg, em), outline=3)
    read = box_reader(drawn)
    for size in ((20, 90, 150), (1, 1, 1), (5, 200, 30)):
        box = IndexBox(start, tuple(a + s for a, s in zip(start, size, strict=True)))
        sources = SweepReader(read.volume.expr, whole_sweep(read.volume.expr, box))
        sources.advance(0)
        for leaf, parts in sources.readings(box).items():
            for b, values in parts:
                np.testing.assert_array_equal(values, leaf.read(b))
        found = draw(read.volume.expr, box, sources.readings)
        np.testing.assert_array_equal(found, evaluate(read.volume.expr, box))


class Gated(Computed):
    """A source whose reads wait for an event, record their boxes, and may fail."""

    def __init__(self, **options):
        super().__init__((12, 8, 8), chunks=(4, 8, 8), **options)
        for name, value in {"began": [], "gate": threading.Event(), "ended": threading.Event()}.items():
            object.__setattr__(self, name, value)

    def read(self, mip, box):
        self.began.append(box.start[0])
        if box.start[0]:
            assert self.gate.wait(20)
        self.ended.set()
        return super().read(mip, box)


def slabs_of(source):
    """Return a reader of a source in three slabs, each of one layer of chunks."""
    leaf, whole = LevelLeaf(source, 0), IndexBox.of_shape((12, 8, 8))
    slabs = tuple(whole.with_axis(0, z, z + 4) for z in (0, 4, 8))
    window = Window(leaf, whole, None, 0, tuple((z, z + 4) for z in (0, 4, 8)))
    return SweepReader(leaf, Sweep(slabs, (window,))), leaf, slabs


def wait_for(condition):
    """Wait until a condition is true."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition did not become true")


def test_the_next_slab_is_read_while_a_slab_is_drawn():
    source = Gated()
    expected = Computed((12, 8, 8)).read(0, IndexBox.of_shape((12, 8, 8)))
    sources, leaf, slabs = slabs_of(source)
    with sources:
        sources.advance(0)
        wait_for(lambda: source.began == [0, 4])
        ((_, first),) = sources.readings(slabs[0])[leaf]
        source.gate.set()
        for number, slab in enumerate(slabs[1:], 1):
            np.testing.assert_array_equal(first, expected[:4], "the slab that is drawn stays as it is")
            sources.advance(number)
            ((box, values),) = sources.readings(slab)[leaf]
            np.testing.assert_array_equal(values, expected[box.slices()])
    assert source.began == [0, 4, 8]


def test_an_error_of_the_next_slab_is_raised_when_its_voxels_are_needed():
    source = Gated(fail_above=4)
    source.gate.set()
    sources, leaf, slabs = slabs_of(source)
    with sources:
        sources.advance(0)
        assert source.ended.wait(5)
        assert len(sources.readings(slabs[0])[leaf]) == 1
        with pytest.raises(Exception, match="read") as caught:
            sources.advance(1)
    assert source.began == [0, 4], f"a slab was read twice, or one after the error ({caught.value})"


def test_the_end_of_a_region_does_not_wait_for_the_next_slab():
    source = Gated()
    sources, _, _ = slabs_of(source)
    with sources:
        sources.advance(0)
        wait_for(lambda: source.began == [0, 4])
    assert not source.gate.is_set()
    source.gate.set()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ids", "rgba"])
def test_results_of_an_export_are_not_overwritten(sample, small, kind):
    seg = ix.open_segmentation(sample.segmentation, mip=1).isel(z=slice(0, 32))
    array = seg if kind == "ids" else ix.overlay(None, seg)
    expected = array.compute().values
    first = ix.export(array, "memory://", workers=2).result
    second = ix.export(array + 1 if kind == "ids" else 255 - array, "memory://", workers=2).result
    gc.collect()
    np.testing.assert_array_equal(first.values, expected)
    assert not np.shares_memory(first.values, second.values)
    assert BUFFERS._held == []


@pytest.mark.slow
def test_coarser_levels_work_beside_reused_buffers(sample, small, tmp_path, monkeypatch):
    finest, coarser = list[int](), list[int]()
    empty, derive = Buffers.empty, OmeZarr.derive
    monkeypatch.setattr(Buffers, "empty", lambda self, *a: (empty(self, *a), finest.append(len(self._held)))[0])
    monkeypatch.setattr(OmeZarr, "derive", lambda self, *a: (coarser.append(len(BUFFERS._held)), derive(self, *a))[1])
    ix.export(ix.open_segmentation(sample.segmentation), tmp_path / "ids.ome.zarr", chunks=(8, 64, 64), workers=2)
    assert max(finest) > 0
    assert set(coarser) == {0}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["picture", "ids", "own"])
@pytest.mark.parametrize("kind", ["omezarr", "sharded", "zarr2", "precomputed"])
def test_reading_in_pieces_equals_reading_at_once(tmp_path, monkeypatch, kind, what):
    seg = array_of(Computed((13, 45, 70), layer_type="segmentation"))
    own = (seg.chunk(z=5, y=20, x=33) + np.uint64(1)).astype(np.uint64)
    array = {"picture": picture(shape=(13, 45, 70)), "ids": seg, "own": own}[what]
    written = []
    for voxels in (10**9, 3000, 500):
        for module in (READER, SWEEP):
            monkeypatch.setattr(module, "BRICK_VOXELS", voxels)
        target, options = place(kind, tmp_path / str(voxels))
        report = ix.export(array, target, **options)
        written.append((digest(tmp_path / str(voxels)), report.bytes_written))
    assert written[0] == written[1] == written[2]
    if kind != "precomputed":
        stored = zarr.open(target, mode="r")["0"][:]
        np.testing.assert_array_equal(np.moveaxis(stored, 0, -1) if what == "picture" else stored, array.values)
