"""Regions that are read slab by slab have the same voxels, need less memory, and read each chunk once."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import product

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.export.read.reader import BUFFERS, SweepReader
from imageryxr.export.read.sweep import SlabSettings, Sweep, Window, slice_sweep, volume_sweep
from imageryxr.graph.evaluate import evaluate, required_boxes
from imageryxr.graph.expr import LevelLeaf
from imageryxr.graph.labelled import box_reader
from tests.support.export_jobs import Computed, array_of, digest, place

SWEEP = sys.modules["imageryxr.export.read.sweep"]


def sweep_slabs(expr, sweep, **options):
    """Yield each slab of a sweep and its source voxels."""
    with SweepReader(expr, sweep, **options) as sources:
        for number, slab in enumerate(sweep.slabs):
            sources.advance(number)
            yield slab, sources.readings(slab)


class OnDisk(Computed):
    """A source with the address of a local file, which counts the reads of each chunk."""

    url = "file:///computed"
    fetched = Counter()  # noqa: RUF012
    broken = False

    def read(self, mip, box):
        if self.broken and box.stop[1] > 32:
            raise OSError(28, "no space left on the disk of the source")
        ranges = [range(a // c, -(-b // c)) for a, b, c in zip(box.start, box.stop, self.chunks, strict=True)]
        self.fetched.update((self.layer_type, self.chunks, index) for index in product(*ranges))
        return super().read(mip, box)


class Remote(OnDisk):
    """A source like `OnDisk` with the address of a server."""

    url = "https://computed"


class Swapped(OnDisk):
    """A source like `OnDisk` with 8-byte grey values and 1-byte ids."""

    @property
    def dtype(self):
        return np.dtype(np.uint8 if self.layer_type == "segmentation" else np.float64)


class OnBrokenDisk(OnDisk):
    """A source like `OnDisk` that raises an OSError for boxes beyond row 32."""

    broken = True


@pytest.fixture
def small(monkeypatch):
    """Lower all limits, so that small arrays are treated as large ones and slabs are small."""
    OnDisk.fetched.clear()
    monkeypatch.setattr(sys.modules["imageryxr.export.read.reader"], "KEPT_BYTES", 100)
    monkeypatch.setattr(SWEEP, "KEPT_BYTES", 100)
    monkeypatch.setattr(SWEEP, "SLAB_VOXELS", 2000)
    yield monkeypatch
    BUFFERS.clear()


def draw_layers(shape, em_chunks, seg_chunks, outline=2, kind=OnDisk):
    em = array_of(kind(shape, chunks=em_chunks))
    seg = array_of(kind(shape, chunks=seg_chunks, layer_type="segmentation"))
    drawn = ix.overlay(em, seg, alpha=0.4, outline=outline)
    drawn.attrs.pop("outline_axis", None)
    return drawn


sizes = st.tuples(st.integers(1, 20), st.integers(1, 60), st.integers(1, 60))
chunks = st.tuples(st.integers(1, 9), st.integers(1, 33), st.integers(1, 33))


@settings(max_examples=60, deadline=None)
@given(
    shape=sizes, chunk=chunks, other=chunks, granule=chunks, outline=st.integers(0, 4), voxels=st.integers(50, 5000),
    kind=st.sampled_from([OnDisk, Remote]), data=st.data(),
)  # fmt: skip
def test_slabs_are_whole_granules_and_cover_the_region(shape, chunk, other, granule, outline, voxels, kind, data):
    start = [data.draw(st.integers(0, n - 1)) for n in shape]
    box = IndexBox(tuple(start), tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)))
    read = box_reader(draw_layers(shape, chunk, other, outline or None, kind))
    expr = read.volume.expr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SWEEP, "KEPT_BYTES", 1)
        patch.setattr(SWEEP, "SLAB_VOXELS", voxels)
        sweep = volume_sweep(expr, box, granule)
        hits = np.zeros(box.shape, int)
        OnDisk.fetched.clear()
        found = np.empty((*box.shape, 4), np.uint8)
        taken = 0
        for strip, held in sweep_slabs(expr, sweep):
            hits[strip.slices(box)] += 1
            assert all((a - b) % g == 0 for a, b, g in zip(strip.start, box.start, granule, strict=True))
            found[strip.slices(box)] = evaluate(expr, strip, held)
            taken = max(taken, sum(values.nbytes for parts in held.values() for _, values in parts))
        assert max(OnDisk.fetched.values(), default=0) <= 1
    assert (hits == 1).all()
    needed = sum(b.voxels * leaf.dtype.itemsize for leaf, boxes in required_boxes(expr, box).items() for b in boxes)
    assert taken <= needed - sweep.spared_bytes
    np.testing.assert_array_equal(found, evaluate(expr, box))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_region_is_cut_along_the_axis_that_saves_most_memory(small, axis):
    shape = [16, 48, 48]
    chunk = [shape[a] if a != axis else shape[a] // 6 for a in range(3)]
    expr = box_reader(draw_layers(tuple(shape), tuple(chunk), tuple(chunk), None)).volume.expr
    sweep = volume_sweep(expr, IndexBox.of_shape(shape), (1, 1, 1))
    assert len(sweep.slabs) > 1
    assert {window.axis for window in sweep.windows} == {axis}
    needed = 9 * np.prod(shape)
    assert sweep.spared_bytes > needed // 3
    large = tuple(shape)
    whole = box_reader(draw_layers(large, large, large)).volume.expr
    assert volume_sweep(whole, IndexBox.of_shape(shape), (1, 1, 1)).spared_bytes == 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=sizes, chunk=chunks, other=chunks, outline=st.integers(0, 4), axis=st.integers(0, 2),
    slices=st.integers(1, 5), threads=st.integers(1, 3), spilled=st.booleans(), data=st.data(),
)  # fmt: skip
def test_slices_are_drawn_from_chunks_that_are_read_once(
    tmp_path, shape, chunk, other, outline, axis, slices, threads, spilled, data
):
    start = [data.draw(st.integers(0, n - 1)) for n in shape]
    box = IndexBox(tuple(start), tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)))
    expr = box_reader(draw_layers(shape, chunk, other, outline or None)).volume.expr
    sweep = slice_sweep(SlabSettings(axis, slices, threads=threads, tile=1, spilled=spilled), expr, box)
    found = np.empty((*box.shape, 4), np.uint8)
    OnDisk.fetched.clear()
    for slab, held in sweep_slabs(expr, sweep, threads=threads, folder=str(tmp_path) if spilled else None):
        found[slab.slices(box)] = evaluate(expr, slab, held)
    assert max(OnDisk.fetched.values()) == 1
    np.testing.assert_array_equal(found, evaluate(expr, box))


@pytest.mark.slow
@pytest.mark.parametrize("source", [OnDisk, Remote])
@pytest.mark.parametrize("kind", ["omezarr", "sharded", "zarr2", "precomputed"])
def test_exports_in_slabs_of_any_size_are_equal_and_complete(small, tmp_path, kind, source):
    drawn = draw_layers((13, 75, 70), (4, 16, 16), (8, 8, 32), kind=source)
    written = []
    for voxels in (10**9, 3000, 1000):
        small.setattr(SWEEP, "SLAB_VOXELS", voxels)
        OnDisk.fetched.clear()
        target, options = place(kind, tmp_path / str(voxels))
        plan = ix.plan_export(drawn, target, **options)
        report = ix.export(drawn, target, **options)
        assert len(OnDisk.fetched) == sum(reads.chunks for reads in plan.reads)
        assert max(OnDisk.fetched.values()) == 1
        assert ix.export(drawn, target, **options).skipped == report.tasks
        written.append((digest(tmp_path / str(voxels)), report.bytes_written))
    assert written[0] == written[1] == written[2]
    if kind != "precomputed":
        np.testing.assert_array_equal(np.moveaxis(zarr.open(target, mode="r")["0"][:], 0, -1), drawn.values)


def test_slabs_of_layers_of_different_levels_equal_the_whole_region(small, sample, tmp_path):
    em = ix.open_image(sample.image)
    seg = ix.open_segmentation(sample.segmentation, mip=1)
    drawn = ix.overlay(em, ix.regrid(seg, em), outline=3)
    read = box_reader(drawn)
    for start, size in (((0, 0, 0), (40, 256, 256)), ((3, 17, 7), (50, 290, 275))):
        box = IndexBox(start, tuple(a + s for a, s in zip(start, size, strict=True))).clip(read.volume.expr.bounds)
        sweep = volume_sweep(read.volume.expr, box, (4, 8, 8))
        assert len(sweep.slabs) > 1
        assert any(window.ends for window in sweep.windows)
        found = np.empty((*box.shape, 4), np.uint8)
        for strip, held in sweep_slabs(read.volume.expr, sweep):
            found[strip.slices(box)] = evaluate(read.volume.expr, strip, held)
        np.testing.assert_array_equal(found, evaluate(read.volume.expr, box))


def test_errors_of_a_source_do_not_name_the_target(small, tmp_path):
    drawn = draw_layers((12, 64, 64), (4, 16, 16), (4, 16, 16), kind=OnBrokenDisk)
    with pytest.raises(OSError, match="the disk of the source") as caught:
        ix.export(drawn, tmp_path / "o.ome.zarr", chunks=(4, 16, 16), retries=0)
    assert "free some space or choose another target" not in str(caught.value)


def test_kept_voxels_are_copied_to_the_buffer_of_the_next_slab_without_another_array():
    import tracemalloc

    shape = (96, 96, 96)
    expected = OnDisk(shape, layer_type="segmentation").read(0, IndexBox.of_shape(shape))

    class Views(OnDisk):
        def read(self, mip, box):
            return expected[box.slices()]

    leaf, whole = LevelLeaf(Views(shape, chunks=(32, 32, 32), layer_type="segmentation"), 0), IndexBox.of_shape(shape)
    for axis in range(3):
        window = Window(leaf, whole, (32, 32, 32), axis, ((0, 80), (16, 96), (17, 96)))
        sources = SweepReader(leaf, Sweep((whole,) * 3, (window,)))
        for number in range(3):
            tracemalloc.start()
            sources.advance(number)
            assert number == 0 or tracemalloc.get_traced_memory()[1] < expected.nbytes / 48
            tracemalloc.stop()
            ((there, values),) = sources.readings(whole)[leaf]
            assert there == window.kept_box(number)
            np.testing.assert_array_equal(values, expected[there.slices()])


def test_the_largest_buffer_is_allocated_first(small, monkeypatch):
    """In another order, a small array could take a large buffer, and a large array would need a new one."""
    buffers = []
    empty = type(BUFFERS).empty
    monkeypatch.setattr(type(BUFFERS), "empty", lambda self, *a: (buffers.append(empty(self, *a)), buffers[-1])[1])
    em, seg = (array_of(Swapped((12, 64, 64), layer_type=t)) for t in ("image", "segmentation"))
    read = box_reader(ix.overlay(em, seg, contrast_limits=(0, 255)))
    for granule in ((4, 16, 16), (12, 64, 64)):
        buffers.clear()
        box = IndexBox.of_shape((12, 64, 64))
        for _ in sweep_slabs(read.volume.expr, volume_sweep(read.volume.expr, box, granule)):
            pass
        sizes = [a.nbytes for a in buffers]
        assert len(sizes) > 0
        assert all(image > ids for image, ids in zip(sizes[::2], sizes[1::2], strict=True))


def raise_error(block, error):
    raise error()


def disk_error():
    return OSError(5, "Input/output error")


def circular_error():
    error = disk_error()
    error.__cause__ = ValueError("because of")
    error.__cause__.__cause__ = error
    return error


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("error", [disk_error, circular_error, lambda: KeyError("gone")])
def test_errors_of_a_dask_array_are_raised(tmp_path, error, retries):
    array = array_of(Computed()).chunk(dict.fromkeys("zyx", 16))
    own = array.copy(data=array.data.map_blocks(raise_error, error, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)))
    with pytest.raises(type(error()), match=str(error())[-8:]) as caught:
        ix.export(own, tmp_path / "o.zarr", workers=1, retries=retries)
    assert f"try {retries + 1}" in caught.value.__notes__[0]


@pytest.mark.parametrize("kind", [OnDisk, Remote])
def test_the_plan_counts_the_memory_that_slabs_save(tmp_path, monkeypatch, kind):
    # Of 604 MB, two slabs of a quarter are in memory, with the chunks that they share.
    saved = 604_000_000 * (1 - 2 * 1.125 / 4)
    drawn = draw_layers((64, 1024, 1024), (64, 64, 64), (64, 64, 64), kind=kind)
    in_slabs = ix.plan_export(drawn, tmp_path / "o.ome.zarr", workers=1)
    monkeypatch.setattr(SWEEP, "MAX_SLABS", 1)
    at_once = ix.plan_export(drawn, tmp_path / "o.ome.zarr", workers=1)
    assert in_slabs.regions == at_once.regions
    assert in_slabs.peak_memory < at_once.peak_memory - saved
