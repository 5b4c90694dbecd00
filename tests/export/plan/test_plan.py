"""Plans: their numbers equal those of the export, and impossible exports are refused before they begin."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from itertools import product
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.export.plan.regions import Regions
from imageryxr.export.read.sweep import bricks
from imageryxr.export.run.workers import PROCESS_BYTES
from tests.conftest import no_compute
from tests.support.export_jobs import Computed, array_of, cluster_of, picture
from tests.support.processes import run_python

sizes = st.tuples(*[st.integers(1, 40)] * 3)


@given(shape=sizes, step=sizes, first=sizes)
def test_regions_cover_each_voxel_once(shape, step, first):
    first = tuple(min(a, b) for a, b in zip(first, step, strict=True))
    regions = Regions(shape, step, first)
    hits = np.zeros(shape, int)
    for box in regions:
        assert box.voxels
        hits[box.slices()] += 1
    assert (hits == 1).all()
    assert len(regions) == len(list(regions))
    assert regions.largest().voxels == max(r.voxels for r in regions)
    assert regions[-1] == list(regions)[-1]


@given(shape=sizes, voxels=st.integers(1, 5000))
def test_bricks_cover_each_voxel_once(shape, voxels):
    box = IndexBox.of_shape(shape).shift((3, 5, 7))
    hits = np.zeros(shape, int)
    for brick in bricks(box, voxels=voxels):
        hits[brick.slices(box)] += 1
        assert brick.voxels <= voxels or brick.voxels == 1
    assert (hits == 1).all()


@given(shape=sizes, granule=sizes, voxels=st.integers(1, 5000))
def test_bricks_consist_of_whole_granules_in_order(shape, granule, voxels):
    box = IndexBox.of_shape(shape).shift((3, 5, 7))

    def granules(part):
        starts = [range(a, b, g) for a, b, g in zip(part.start, part.stop, granule, strict=True)]
        return list(product(*starts))

    pieces = list(bricks(box, granule, voxels))
    assert [g for piece in pieces for g in granules(piece)] == granules(box)
    assert sum(piece.voxels for piece in pieces) == box.voxels
    assert pieces[0].voxels == max(piece.voxels for piece in pieces) <= max(voxels, math.prod(granule))


class CountedSource(Computed):
    """A source that counts how often each of its chunks is fetched."""

    fetched = Counter()  # noqa: RUF012

    def read(self, mip, box):
        inside = box.clip(self.levels[0].grid.box)
        ranges = [range(a // c, -(-b // c)) for a, b, c in zip(inside.start, inside.stop, self.chunks, strict=True)]
        with LOCK:
            self.fetched.update((self.layer_type, index) for index in product(*ranges))
        return super().read(mip, box)


LOCK = threading.Lock()
CROPS = [((0, 0, 0), (200, 200, 50)), ((5, 9, 3), (131, 120, 37)), ((16, 16, 4), (112, 112, 44))]


@pytest.mark.fast_forms(5)
@pytest.mark.filterwarnings("ignore:the box .* reaches beyond")  # some crops extend beyond the volume
@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("target", ["o.zarr", "z{z}.png", "x{x}.png"])
@pytest.mark.parametrize("start", [1 << 10, 1 << 22])
def test_the_planned_reads_are_the_actual_reads(tmp_path, crop, target, start, monkeypatch):
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.regions"], "START_VOXELS", start)
    shape = (40, 128, 128)
    em = array_of(CountedSource(shape, chunks=(8, 32, 32)))
    seg = array_of(CountedSource(shape, chunks=(16, 16, 16), layer_type="segmentation"))
    drawn = ix.overlay(em, seg, outline=3)
    del drawn.attrs["outline_axis"]
    z, y, x = (slice(a, b) for a, b in zip(crop[0][::-1], crop[1][::-1], strict=True))
    drawn = drawn.isel(z=z, y=y, x=x) if crop[0] == (0, 0, 0) else drawn.imagery.crop(
        ix.BBox([a + o for a, o in zip(crop[0], (3, 5, 7), strict=True)], [b + o for b, o in zip(crop[1], (3, 5, 7), strict=True)], resolution=(8, 8, 40))
    )  # fmt: skip
    CountedSource.fetched.clear()
    with no_compute():
        plan = ix.plan_export(drawn, tmp_path / target, workers=2, square=False)
    assert not CountedSource.fetched
    ix.export(drawn, tmp_path / target, workers=2, square=False)
    for reads in plan.reads:
        layer = (
            "segmentation"
            if reads.requests == _count("segmentation") and len(plan.reads) == 2 and reads is plan.reads[0]
            else None
        )
        assert reads.requests in (_count("image"), _count("segmentation")), (reads, layer)
    assert plan.requests == CountedSource.fetched.total()
    assert sum(r.distinct_bytes for r in plan.reads) <= plan.bytes_to_read
    budget = plan.pool.memory
    assert plan.peak_memory <= budget


def _count(layer):
    return sum(n for (kind, _), n in CountedSource.fetched.items() if kind == layer)


def test_chunks_are_read_at_most_1_15_times(tmp_path):
    """Stacks and OME-Zarr read at most 1.15 times the voxels of the box."""
    shape = (512, 1024, 1024)
    em = array_of(Computed(shape, chunks=(64, 64, 64)))
    seg = array_of(Computed(shape, chunks=(64, 128, 128), layer_type="segmentation"))
    for target in ("o.ome.zarr", "z{z:04d}.png"):
        plan = ix.plan_export(ix.overlay(em, seg, outline=3), tmp_path / target, workers=2)
        assert all(r.rereads <= 1.15 for r in plan.reads), plan
        assert len(plan.regions) >= 4


def test_a_plan_prints_all_its_numbers(tmp_path):
    plan = ix.plan_export(picture(), tmp_path / "o.ome.zarr", workers=3)
    text, html = repr(plan), plan._repr_html_()
    for word in ("64 × 48 × 12", "regions", "tasks", "computed://ramp", "requests", "before compression", "3 threads"):
        assert word in text
        assert word in html
    assert html.count("<tr>") == text.count("\n")
    numbers = plan.to_dict()
    assert numbers["bytes_to_write"] == 64 * 48 * 12 * 4 == plan.bytes_to_write
    assert numbers["tasks"] == len(plan.regions) + sum(map(len, plan.target.later))
    assert {r["source"] for r in numbers["reads"]} == {"computed://ramp"}
    assert os.listdir(tmp_path) == []


def test_a_plan_lists_finished_regions(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.regions"], "START_VOXELS", 1 << 11)
    with pytest.raises(ix.errors.ChunkReadError):
        ix.export(picture(fail_above=7), tmp_path / "z{z}.png", workers=1, retries=0)
    plan = ix.plan_export(picture(), tmp_path / "z{z}.png")
    assert 0 < plan.done < plan.tasks
    assert f"{plan.done} of them done before" in repr(plan)
    # a continued export keeps the regions of its first run
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.regions"], "START_VOXELS", 1 << 22)
    assert ix.plan_export(picture(), tmp_path / "z{z}.png", workers=7).regions == plan.regions


@pytest.mark.parametrize("client", ["threads", "processes"])
@pytest.mark.parametrize("target", ["o.ome.zarr", "z{z}.png", "o.tif", "o.mp4", "memory://"])
def test_a_pickled_plan_describes_the_same_export(tmp_path, client, target):
    """A plan is a value that scripts store or return from a process."""
    place = target if "://" in target else tmp_path / target
    plan = ix.plan_export(picture(), place, client=client, workers=2)
    for copy in (pickle.loads(pickle.dumps(plan)), cloudpickle.loads(cloudpickle.dumps(plan))):
        assert repr(copy) == repr(plan)
        assert copy.pool.threads == plan.pool.threads
        assert list(copy.regions) == list(plan.regions)
        copy.validate()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["o.ome.zarr", "z{z}.png", "o.tif"])
def test_peak_memory_is_close_to_the_plan(tmp_path, target):
    em = array_of(Computed((64, 256, 256), chunks=(32, 64, 64)))
    seg = array_of(Computed((64, 256, 256), chunks=(32, 64, 64), layer_type="segmentation"))
    drawn = ix.overlay(em, seg, outline=3)
    ix.export(drawn, tmp_path / "warm" / target, workers=1)
    plan = ix.plan_export(drawn, tmp_path / target, workers=1)
    tracemalloc.start()
    try:
        ix.export(drawn, tmp_path / target, workers=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    planned = plan.peak_memory - PROCESS_BYTES
    # computing voxels takes larger temporary arrays than reading them from a file
    assert peak < 2.5 * planned
    assert planned < 4 * peak


PLANNED = {
    "omezarr": ("o.ome.zarr", {"chunks": (4, 16, 16), "levels": 3}),
    "shards": ("s.ome.zarr", {"chunks": (4, 8, 8), "shards": (4, 16, 16), "levels": 2}),
    "precomputed": ("precomputed://{}/pc", {"chunks": (4, 16, 16), "levels": 3}),
    "png": ("z{z}.png", {}),
}


@pytest.mark.parametrize("kind", PLANNED)
def test_the_planned_files_are_the_written_files(tmp_path, kind):
    target, options = PLANNED[kind]
    target = target.format(tmp_path) if "//" in target else tmp_path / target
    drawn = picture(shape=(16, 64, 64))
    plan = ix.plan_export(drawn, target, **options)
    ix.export(drawn, target, **options)
    found = [p for p in tmp_path.rglob("*") if p.is_file() and "manifest" not in p.name]
    data = [p for p in found if p.name not in ("info", "zarr.json")]
    assert plan.files_to_write == len(data)
    assert f"about {len(data):,} files" in repr(plan)
    assert plan.to_dict()["files_to_write"] == len(data)
    coarser = getattr(plan.target, "grids", [])[1:]
    assert len(coarser) == options.get("levels", 1) - 1
    assert plan.pyramid_bytes == sum(4 * math.prod(grid.shape) for grid in coarser)


@pytest.mark.parametrize("chunks", [(64, 64, 64), (16, 128, 128), (32, 128, 128)])
def test_rereads_of_wide_volumes_stay_small_if_memory_allows(tmp_path, chunks):
    em = array_of(Computed((1024, 8192, 8192), chunks=chunks))
    seg = array_of(Computed((1024, 8192, 8192), chunks=chunks, layer_type="segmentation"))
    drawn = ix.overlay(em, seg, outline=3)
    plan = ix.plan_export(drawn, tmp_path / "o.ome.zarr", workers=2, memory="32 GB")
    assert all(r.rereads <= 1.15 for r in plan.reads), plan
    assert plan.peak_memory <= 32e9
    # with little memory, chunks are read repeatedly, but regions stay within the limit
    assert ix.plan_export(drawn, tmp_path / "o.ome.zarr", workers=2, memory="4 GB").peak_memory <= 4e9


def test_more_workers_than_regions_warn(tmp_path):
    drawn = picture(shape=(12, 48, 64), chunks=(16, 64, 64))
    plan = ix.plan_export(drawn, tmp_path / "z{z}.png", client="processes", workers=8)
    assert len(plan.regions) == 1
    assert "7 of 8 processes will be idle" in repr(plan)
    assert "will be idle" not in repr(ix.plan_export(drawn, tmp_path / "z{z}.png", workers=8)), (
        "threads share the region"
    )
    assert "will be idle" not in repr(ix.plan_export(drawn, tmp_path / "z{z}.png", client="processes", workers=1))


def test_chunks_that_are_read_many_times_warn(tmp_path):
    plan = ix.plan_export(
        array_of(Computed((128, 8192, 8192), chunks=(64, 64, 64))), tmp_path / "z{z}.png", memory="1 GB", scratch=False
    )
    assert plan.reads[0].rereads > 2
    with pytest.warns(
        ix.ImageryWarning, match=r"is read [\d.]+ times, .*GB instead of 8\.6 GB.*scratch=….*\.ome\.zarr"
    ):
        plan.warn_of_rereads()
    ix.plan_export(array_of(Computed((128, 64, 64))), tmp_path / "z{z}.png").warn_of_rereads()


@pytest.mark.parametrize("memory", ["500 MB", "700 MB", "2 GB"])
def test_regions_fit_into_the_available_memory(tmp_path, memory):
    em = array_of(Computed((512, 2048, 2048), chunks=(64, 64, 64)))
    seg = array_of(Computed((512, 2048, 2048), chunks=(64, 64, 64), layer_type="segmentation"))
    plan = ix.plan_export(ix.overlay(em, seg), tmp_path / "o.zarr", workers=2, memory=memory)
    assert plan.peak_memory <= plan.pool.memory
    plan.validate()


# ---------------------------------------------------------------------------------------------------------
# exports that are refused


def huge(shape, **kwargs):
    return array_of(Computed(shape, **kwargs))


REFUSED = {
    "4 GiB": (lambda: (huge((5000, 1000, 1000)), "o.tif", {}), r"at most 4 GiB.*4\.7 GiB.*bigtiff=True"),
    "4 GiB OME": (lambda: (huge((5000, 1000, 1000)), "o.ome.tif", {}), r"at most 4 GiB"),
    "memory": (lambda: (huge((4, 60_000, 60_000)), "z{z}.png", {"memory": "4 GB", "workers": 1}), r"needs .* GB of memory and has 4.0 GB.*\.ome\.zarr"),
    "memory of many": (lambda: (huge((64, 8_000, 8_000)), "o.zarr", {"chunks": (64, 1000, 1000), "memory": "1 GB", "workers": 16}), r"fewer threads"),
    "frames": (lambda: (huge((4, 200, 20_000)), "o.mp4", {}), r"20000 × 200 pixels.*16384"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_exports_are_refused_before_they_begin(tmp_path, case):
    make, words = REFUSED[case]
    array, target, options = make()
    plan = ix.plan_export(array, tmp_path / target, **options)
    with pytest.raises(ix.errors.OptionError, match=words):
        plan.validate()
    with pytest.raises(ix.errors.OptionError, match=words):
        ix.export(array, tmp_path / target, **options)
    assert os.listdir(tmp_path) == []


def test_large_tiff_files_need_bigtiff(tmp_path):
    ix.plan_export(huge((5000, 1000, 1000)), tmp_path / "o.tif", bigtiff=True).validate()


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ix.errors.TargetError, match="is a file, not a folder"):
        ix.plan_export(picture(), tmp_path / "file" / "o.zarr").validate()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ix.errors.TargetError, match="is a symbolic link without a target, not a folder"):
        ix.plan_export(picture(), tmp_path / "link" / "o.zarr").validate()
    with pytest.raises(ix.errors.TargetError, match="could not write /proc/"):
        ix.plan_export(picture(), "/proc/o.zarr").validate()


@pytest.mark.slow
def test_an_export_larger_than_the_disk_is_refused(tmp_path):
    array = huge((200_000, 50_000, 50_000))
    with pytest.raises(ix.errors.TargetError, match=r"it needs 500 TB; .* are free"):
        ix.plan_export(array, tmp_path / "z{z}.tif", compression=None, memory="100 GB").validate()


# ---------------------------------------------------------------------------------------------------------
# size


def test_the_memory_of_a_plan_does_not_grow_with_its_regions(tmp_path):
    tracemalloc.start()
    try:
        plan = ix.plan_export(
            huge((100_000, 51_200, 51_200), chunks=(64, 256, 256)), tmp_path / "o.zarr", memory="600 MB"
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(plan.regions) > 1_000_000 / 16
    assert plan.tasks > 1_000_000 / 16
    # the bookkeeping may take a few bytes per region
    assert peak < 20_000_000 + 32 * plan.tasks
    assert math.prod(plan.regions.counts) == len(plan.regions)


@settings(max_examples=20)
@given(offset=st.tuples(st.integers(0, 63), st.integers(0, 63), st.integers(0, 63)))
def test_regions_are_whole_chunks_of_the_target(offset):
    z, y, x = offset
    array = huge((300, 700, 700), chunks=(64, 64, 64)).isel(z=slice(z, None), y=slice(y, None), x=slice(x, None))
    plan = ix.plan_export(array, "/tmp/nothing-there/o.zarr", chunks=(16, 100, 100))
    for box in plan.regions:
        for a, b, n, g in zip(box.start, box.stop, plan.shape, (16, 100, 100), strict=True):
            assert a % g == 0
            assert b % g == 0 or b == n


@pytest.mark.parametrize(
    ("dtype", "options", "name", "advice"),
    [
        ("uint8", {}, "s.tif", None),
        ("uint8", {"bigtiff": True}, "s.tif", "BigTIFF; a name that ends in .ome.tif"),
        ("uint8", {"bigtiff": True}, "s.ome.tif", None),
        ("uint64", {}, "s.tif", "values of dtype uint64; a name that ends in .ome.zarr"),
        ("int32", {}, "s.tif", "values of dtype int32; a name that ends in .ome.tif"),
    ],
)
def test_the_plan_notes_where_only_tifffile_reads_the_distance_of_slices(tmp_path, dtype, options, name, advice):
    array = array_of(Computed()).astype(dtype)
    plan = ix.plan_export(array, tmp_path / name, **options)
    assert (advice is not None) == ("only tifffile" in repr(plan))
    if advice is not None:
        note = "only tifffile reads the distance of the slices, 40 nm, from this file, because ImageJ does not support"
        assert f"{note} {advice}" in repr(plan)


@pytest.mark.slow
def test_a_plan_counts_the_requested_workers_of_a_cluster(tmp_path):
    """The plan counts the requested workers, not those that have already started."""
    array = array_of(Computed((64, 512, 512), chunks=(4, 64, 64)))

    def plan_for(client):
        return ix.plan_export(array, tmp_path / "o.ome.zarr", chunks=(4, 64, 64), levels=1, client=client)

    with cluster_of(0) as client:
        plan = plan_for(client)
        assert plan.pool.workers == 8
        assert "8 × 1 cluster, none of them is there yet" in repr(plan)
        assert len(plan.regions) >= 8
        client.cluster.adapt(minimum=1, maximum=5)
        client.wait_for_workers(1)
        plan = plan_for(client)
        assert plan.pool.workers == 5
        assert "5 × 1 cluster, 1 of them is there yet" in repr(plan)
        assert plan_for(client.scheduler.address).pool.workers == 1


@pytest.mark.slow
def test_worker_processes_need_a_script_in_a_file(tmp_path):
    code = "import imageryxr as ix\nfrom tests.support.export_jobs import picture\nif __name__ == '__main__':\n"
    code += f"    ix.export(picture(), {str(tmp_path / 'o.zarr')!r}, client='processes', workers=1)\n"
    root = Path(__file__).parents[3]
    options = {"capture_output": True, "text": True, "cwd": root, "env": {**os.environ, "PYTHONPATH": str(root)}}
    done = subprocess.run([sys.executable, "-"], input=code, **options)
    assert "starts new processes, which import this script, but <stdin> is not a file" in done.stderr
    assert not list(tmp_path.iterdir())
    assert run_python("-c", code).returncode == 0
