"""Exports of slices that do not fit into memory: each chunk is read once, and voxels are spilled to a local disk."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.export.read import sweep
from imageryxr.export.run import workers
from imageryxr.export.run.workers import PROCESS_BYTES
from tests.conftest import volume
from tests.support.export_jobs import Computed, array_of, cluster_of, digest
from tests.support.processes import python

ROOT = Path(__file__).parents[3]
LOCK = threading.Lock()


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch, request):
    """Lower the limits, so that regions of small arrays do not fit into memory and are read and drawn in parts."""
    if "really" in request.node.name:
        return
    monkeypatch.setattr(workers.WorkerPool, "memory_per_region", lambda self, at_once=None: 1 << 20)
    monkeypatch.setattr(sweep, "MIN_TILE_BYTES", 1 << 16)
    monkeypatch.setattr(sweep, "MIN_STRIP_VOXELS", 1 << 14)


class CountedSource(Computed):
    """A source that counts how often each of its chunks is fetched."""

    fetched = Counter()  # noqa: RUF012

    def read(self, mip, box):
        self.count(box)
        return super().read(mip, box)

    def count(self, box):
        inside = box.clip(self.levels[0].grid.box)
        ranges = [range(a // c, -(-b // c)) for a, b, c in zip(inside.start, inside.stop, self.chunks, strict=True)]
        with LOCK:
            self.fetched.update((self.layer_type, index) for index in product(*ranges))


def rereads():
    """Return how often chunks were fetched on average, for the source with the higher average."""
    counts = {
        kind: [n for (k, _), n in CountedSource.fetched.items() if k == kind] for kind in ("image", "segmentation")
    }
    return max(sum(n) / len(n) for n in counts.values() if n)


def draw_counted(shape=(20, 192, 224), chunks=(8, 64, 64), seg_chunks=None, outline=2, like=None, axis="z"):
    em = array_of(CountedSource(shape, chunks=chunks))
    seg = array_of(CountedSource(shape, chunks=seg_chunks or chunks, layer_type="segmentation"))
    if like is not None:
        em, seg = ix.regrid(em, like), ix.regrid(seg, like)
    return ix.overlay(em, seg, outline=outline, axis=axis)


def planes(target, folder, axis):
    """Return the slices of a result, read with tifffile or Pillow."""
    import tifffile
    from PIL import Image

    if "{" not in target:
        found = tifffile.imread(folder / target)
    else:
        read = tifffile.imread if target.endswith(".tif") else lambda path: np.asarray(Image.open(path))
        found = np.stack([read(path) for path in sorted((folder).glob("*" + Path(target).suffix))])
    return np.moveaxis(found, 0, axis)


BOX = ix.BBox((10, 12, 12), (200, 180, 25), resolution=(8, 8, 40))
CASES = {
    "an overlay": (lambda axis: draw_counted(axis=axis), 1.0),
    "no outline": (lambda axis: draw_counted(outline=None), 1.0),
    "chunks of two depths": (lambda axis: draw_counted(seg_chunks=(4, 32, 32), axis=axis), 1.0),
    "an offset": (lambda axis: draw_counted((30, 224, 224), axis=axis).imagery.crop(BOX), 1.0),
    "half as fine": (lambda axis: draw_counted((40, 320, 384), like=(16, 16, 80), axis=axis), 1.0),
    "finer": (lambda axis: draw_counted((24, 96, 112), (8, 32, 32), like=(8 / 3, 8 / 3, 40 / 3), axis=axis), 1.15),
}
ALONG = {"z{z:03d}.png": "z", "y{y:03d}.tif": "y", "x{x:03d}.png": "x", "one.tif": "z", "one.ome.tif": "z"}


@pytest.mark.slow
@pytest.mark.parametrize("target", ALONG)
@pytest.mark.parametrize("case", CASES)
def test_every_voxel_is_written_and_each_chunk_read_once(tmp_path, case, target):
    make, most = CASES[case]
    axis = ALONG[target]
    array = make(axis)
    options = {"workers": 2, "square": False if "{" in target else None}
    plan = ix.plan_export(array, tmp_path / "a" / target, **options)
    assert plan.scratch is not None
    assert all(reads.rereads <= 1.15 for reads in plan.reads), plan
    CountedSource.fetched.clear()
    ix.export(array, tmp_path / "a" / target, **options)
    assert rereads() <= most
    assert plan.requests == CountedSource.fetched.total()
    np.testing.assert_array_equal(planes(target, tmp_path / "a", "zyx".index(axis)), array.compute().values)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the outlines were drawn")
def test_outlines_across_slices_read_a_halo(tmp_path):
    array = draw_counted((20, 192, 448), chunks=(8, 64, 32))
    CountedSource.fetched.clear()
    plan = ix.plan_export(array, tmp_path / "x{x:03d}.png", workers=2, square=False)
    assert all(reads.rereads <= 1.15 for reads in plan.reads), plan
    ix.export(array, tmp_path / "x{x:03d}.png", workers=2, square=False)
    assert rereads() <= 1.15
    np.testing.assert_array_equal(planes("x{x}.png", tmp_path, 2), array.compute().values)


def test_a_video_is_written_through_the_scratch_folder(tmp_path):
    import av

    def frames(path):
        with av.open(str(path)) as film:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]).astype(int)

    array = draw_counted()
    plan = ix.plan_export(array, tmp_path / "o.mp4")
    assert plan.scratch is not None
    CountedSource.fetched.clear()
    ix.export(array, tmp_path / "o.mp4")
    assert rereads() == 1
    found = frames(tmp_path / "o.mp4")
    assert found.shape == (20, 192, 224, 3)
    # each frame is correct within the loss of the codec
    assert np.abs(found - array.values[..., :3]).mean() < 8
    assert np.abs(found - array.values[::-1, ..., :3]).mean() > 20


# ---------------------------------------------------------------------------------------------------------
# messages and refusals


def test_the_plan_contains_the_scratch_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    plan = ix.plan_export(draw_counted(), tmp_path / "z{z}.png", workers=2)
    # two regions in progress, each with the voxels (8 × 192 × 224) of an image (1 byte) and of a segmentation (8 bytes)
    takes = 2 * 8 * 192 * 224 * 9
    assert plan.scratch.bytes == takes
    assert f"scratch: up to 6.2 MB per worker in {tmp_path}" in repr(plan)
    assert f"up to 6.2 MB per worker in {tmp_path}" in plan._repr_html_()
    assert plan.to_dict()["scratch"] == {"folder": str(tmp_path), "bytes": takes}
    assert plan.peak_memory < PROCESS_BYTES + takes
    none = ix.plan_export(draw_counted(), tmp_path / "z{z}.png", scratch=False)
    assert none.scratch is none.to_dict()["scratch"] is None
    assert "scratch" not in repr(none)
    assert max(reads.rereads for reads in none.reads) > 2
    assert os.listdir(tmp_path) == []


def test_the_scratch_folder_is_the_given_one_or_that_of_dask_or_of_the_system(tmp_path):
    def folder(**kwargs):
        return ix.plan_export(draw_counted(), tmp_path / "z{z}.png", **kwargs).scratch.folder

    with dask.config.set({"temporary-directory": str(tmp_path / "dask")}):
        assert folder() == str(tmp_path / "dask")
        assert folder(scratch=tmp_path / "mine") == str(tmp_path / "mine")
    assert folder(scratch="~/here") == os.path.expanduser("~/here")
    assert folder() == tempfile.gettempdir()
    for wrong in (True, 7, "s3://bucket/scratch"):
        with pytest.raises(ix.errors.OptionError, match="scratch=.* must be a folder on a local disk"):
            folder(scratch=wrong)


def test_scratch_does_not_change_the_files(tmp_path):
    ix.export(draw_counted(), tmp_path / "a" / "z{z:02d}.png", scratch=tmp_path)
    ix.export(draw_counted(), tmp_path / "b" / "z{z:02d}.png", scratch=False)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    # `scratch` does not change the identity of the call
    assert ix.export(draw_counted(), tmp_path / "a" / "z{z:02d}.png").tasks == 0


def test_threads_share_regions(tmp_path, monkeypatch):
    # both regions in progress have scratch files
    array = draw_counted((80, 192, 224))
    plan = ix.plan_export(array, tmp_path / "z{z:02d}.png", workers=16)
    assert len(plan.regions) == 10
    assert plan.scratch.bytes == 2 * 8 * 192 * 224 * 9
    assert (plan.slab_settings.at_once, plan.slab_settings.threads) == (2, 1), (
        "the memory suffices for one thread per region"
    )
    monkeypatch.setattr(workers.WorkerPool, "memory_per_region", lambda self, at_once=None: 2_900_000)
    plan = ix.plan_export(array, tmp_path / "z{z:02d}.png", workers=16)
    assert plan.slab_settings.at_once == 2
    assert 1 < plan.slab_settings.threads <= 8
    ix.export(array, tmp_path / "z{z:02d}.png", workers=16)
    np.testing.assert_array_equal(planes("z{z}.png", tmp_path, 0), array.compute().values)


class ScratchSizeRecorder(CountedSource):
    """A source that records the largest size of the scratch files of its process during its reads."""

    most = [0]  # noqa: RUF012

    def read(self, mip, box):
        with LOCK:
            self.most[0] = max(self.most[0], sum(sizes_of_unnamed_files("self", self.folder)))
        return super().read(mip, box)


@pytest.mark.slow
def test_the_scratch_size_does_not_grow_with_thick_regions(tmp_path, monkeypatch):
    # Each slice needs two source slices. The last slice of a region needs a slice of the next chunk, which the next
    # region reads again.
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(ScratchSizeRecorder, "folder", str(scratch), raising=False)
    shape = (160, 192, 224)
    seg = array_of(ScratchSizeRecorder(shape, chunks=(8, 64, 64), layer_type="segmentation"))
    em = array_of(ScratchSizeRecorder(shape, chunks=(8, 64, 64)))
    array = ix.overlay(ix.regrid(em, (16, 16, 80)), ix.regrid(seg, (16, 16, 80)), outline=2)
    assert array.shape[0] > 70
    plan = ix.plan_export(array, tmp_path / "z{z:02d}.png", workers=2, scratch=scratch)
    assert all(reads.rereads <= 1.15 for reads in plan.reads), plan
    assert plan.regions.step[0] >= 28
    # two layers of chunks of each source per region in progress; a whole region has eight or more
    assert plan.scratch.bytes <= plan.slab_settings.at_once * 2 * 8 * 192 * 224 * 9
    CountedSource.fetched.clear()
    ScratchSizeRecorder.most[0] = 0
    ix.export(array, tmp_path / "z{z:02d}.png", workers=2, scratch=scratch)
    assert rereads() <= 1.15
    assert plan.requests == CountedSource.fetched.total()
    assert 0 < ScratchSizeRecorder.most[0] <= plan.scratch.bytes
    np.testing.assert_array_equal(planes("z{z}.png", tmp_path, 0), array.compute().values)


@pytest.mark.filterwarnings("ignore:the outlines were drawn")
def test_slices_within_a_halo_are_drawn_together(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "MIN_STRIP_VOXELS", 1 << 18)
    monkeypatch.setattr(workers.WorkerPool, "memory_per_region", lambda self, at_once=None: 50_000_000)
    shape = (40, 2048, 4096)
    for target, together in (("z{z}.png", False), ("y{y}.png", True)):
        array = array_of(Computed(shape, chunks=(40, 64, 64), layer_type="segmentation"))
        plan = ix.plan_export(ix.overlay(None, array, outline=6), tmp_path / target, square=False, workers=1)
        assert plan.scratch is not None
        assert (plan.slab_settings.slices > 4) == together


@pytest.mark.parametrize("memories", [(1 << 20, 1 << 30), (1 << 30, 1 << 20)])
def test_an_export_is_continued_with_another_memory_limit(tmp_path, memories, monkeypatch):
    # a continued export keeps its regions, but not its scratch folder
    failing = array_of(Computed((40, 192, 224), chunks=(8, 64, 64), layer_type="segmentation", fail_above=24))
    sound = array_of(Computed((40, 192, 224), chunks=(8, 64, 64), layer_type="segmentation"))
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.regions"], "START_VOXELS", 1 << 17)
    for memory, seg in zip(memories, (failing, sound), strict=True):
        monkeypatch.setattr(workers.WorkerPool, "memory_per_region", lambda self, at_once=None, memory=memory: memory)
        plan = ix.plan_export(seg, tmp_path / "a" / "z{z:02d}.tif", workers=1)
        assert (plan.scratch is not None) == (memory == 1 << 20)
        report = ix.export(seg, tmp_path / "a" / "z{z:02d}.tif", workers=1, retries=0, on_error="collect")
    assert report.skipped > 0
    assert report.tasks > 0
    np.testing.assert_array_equal(planes("z{z}.tif", tmp_path / "a", 0), sound.compute().values)


def test_an_absent_or_small_scratch_folder_is_refused(tmp_path, monkeypatch):
    plan = ix.plan_export(draw_counted(), tmp_path / "z{z}.png", scratch=tmp_path / "nowhere")
    with pytest.raises(ix.errors.TargetError, match="scratch folder .*nowhere does not exist on .* give scratch="):
        plan.validate()
    array = draw_counted((64, 400_000, 400_000), chunks=(64, 512, 512))
    plan = ix.plan_export(array, tmp_path / "z{z}.tif", workers=1, memory="4 TB")
    with pytest.raises(ix.errors.OptionError, match=r"92\.2 TB in the scratch folder .* are free: give"):
        plan.validate()
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------
# interruptions within a region


@dataclass(frozen=True)
class ScratchFolderRecorder(Computed):
    """A source that records, at each read, the folders of the scratch files of its process."""

    notes: str = ""

    def read(self, mip, box):
        self.note()
        return super().read(mip, box)

    def note(self):
        for handle in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):
                where = os.readlink(f"/proc/self/fd/{handle}")
                if (where.endswith("(deleted)") and "/#" in where) or "/imageryxr-" in where:
                    with open(f"{self.notes}/{os.getpid()}", "a") as file:
                        file.write(f"{os.path.dirname(where)}\n")


def scratch_recorder(notes):
    return array_of(
        ScratchFolderRecorder((20, 192, 224), chunks=(8, 64, 64), layer_type="segmentation", notes=str(notes))
    )


def slow_export(folder, scratch, seconds, shape=(40, 192, 224)):
    """Run a slow export in small regions, in a process that a test kills."""
    workers.WorkerPool.memory_per_region = lambda self, at_once=None: 1 << 18
    sweep.MIN_TILE_BYTES = 1 << 15
    array = array_of(Computed(shape, chunks=(8, 64, 64), seconds=seconds))
    return ix.export(array, f"{folder}/z{{z:02d}}.png", scratch=scratch, workers=1)


def sizes_of_unnamed_files(pid, folder):
    """Return the sizes of the open files of a process that were unlinked from a folder, such as scratch files."""
    sizes = []
    for handle in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{handle}"
        with suppress(FileNotFoundError):
            if os.readlink(path).startswith(f"{folder}/") and os.stat(path).st_nlink == 0:
                sizes.append(os.stat(path).st_size)
    return sizes


@pytest.mark.slow
@pytest.mark.parametrize("done", [0, 2])
def test_an_export_killed_while_reading_is_continued(tmp_path, done):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = python(
        "-c",
        f"from tests.export.read.test_spill import slow_export; slow_export({str(tmp_path / 'a')!r}, {str(scratch)!r}, 0.1)",
    )
    for _ in range(6000):
        lines = sum(len(log.read_bytes().splitlines()) for log in (tmp_path / "a").glob(".imageryxr/*.manifest.log"))
        if (
            lines > done and any(sizes_of_unnamed_files(process.pid, scratch))
            if done
            else any(sizes_of_unnamed_files(process.pid, scratch))
        ):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert os.listdir(scratch) == []
    report = slow_export(tmp_path / "a", scratch, 0)
    assert report.skipped >= done
    assert report.tasks > 0
    slow_export(tmp_path / "b", scratch, 0)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != {}
    assert os.listdir(scratch) == []
    assert not list(tmp_path.rglob("*-work-*"))


def test_a_full_scratch_disk_is_an_error_without_a_retry(tmp_path):
    code = (
        "import resource, imageryxr as ix\n"
        "from tests.export.read.test_spill import slow_export\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"slow_export({str(tmp_path / 'a')!r}, {str(tmp_path)!r}, 0)\n"
    )
    process = python("-c", code, stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    last = err.strip().splitlines()
    assert f"ScratchError: the scratch folder {tmp_path} cannot be used: the maximum file size is reached" in "\n".join(
        last
    )
    assert "give scratch=… a local folder with more space" in err
    assert "try 1" in err
    assert os.listdir(tmp_path) in ([], ["a"])
    assert digest(tmp_path) == {}


def test_errors_of_a_source_are_reported_as_errors_of_the_source(tmp_path):
    array = array_of(Computed((40, 192, 224), chunks=(8, 64, 64), layer_type="segmentation", fail_above=16))
    assert ix.plan_export(array, tmp_path / "z{z:02d}.tif").scratch is not None
    with pytest.raises(ix.errors.ChunkReadError, match="is on a broken disk"):
        ix.export(array, tmp_path / "z{z:02d}.tif", workers=2, retries=0)
    assert digest(tmp_path) == {}
    report = ix.export(array, tmp_path / "z{z:02d}.tif", workers=2, retries=0, on_error="collect")
    assert [f.number for f in report.failed] == [2, 3, 4]


class SourceOnceDisconnected(Computed):
    """A source whose connection breaks once, after the first two layers of chunks."""

    broken = [False]  # noqa: RUF012

    def read(self, mip, box):
        with LOCK:
            breaks = not self.broken[0] and box.start[0] >= 16
            self.broken[0] |= breaks
        if breaks:
            raise ConnectionResetError("connection reset")
        return super().read(mip, box)


def test_network_errors_of_a_source_are_not_reported_as_errors_of_the_target(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["imageryxr.export.run.scheduler"], "RETRY_DELAYS", (0.1,))
    array = array_of(SourceOnceDisconnected((40, 192, 224), chunks=(8, 64, 64), layer_type="segmentation"))
    assert ix.plan_export(array, tmp_path / "z{z:02d}.tif").scratch is not None
    with pytest.raises(ix.errors.TargetError, match="region . of 5|was lost|connection reset") as caught:
        ix.export(array, tmp_path / "z{z:02d}.tif", workers=1, retries=0)
    assert "could not write" not in str(caught.value)
    SourceOnceDisconnected.broken[0] = False
    report = ix.export(array, tmp_path / "z{z:02d}.tif", workers=1, retries=1)
    assert report.retries == 1
    np.testing.assert_array_equal(planes("z{z}.tif", tmp_path, 0), array.compute().values)


def test_missing_chunks_are_reported(tmp_path):
    values = np.random.default_rng(0).integers(1, 2**60, (16, 128, 256), np.uint64)
    ix.export(volume(values, layer_type="segmentation"), f"precomputed://{tmp_path}/seg", chunks=(8, 64, 64), levels=1)
    next((tmp_path / "seg").rglob("64-128_0-64_8-16*")).unlink()
    seg = ix.open_segmentation(tmp_path / "seg", missing="fill")
    assert ix.plan_export(seg, tmp_path / "z{z:02d}.tif", workers=2).scratch is not None
    report = ix.export(seg, tmp_path / "z{z:02d}.tif", workers=2)
    assert len(report.holes) == 1
    values[8:16, 0:64, 64:128] = 0
    np.testing.assert_array_equal(planes("z{z}.tif", tmp_path, 0), values)


@pytest.mark.slow
def test_an_export_stopped_within_a_region_is_continued(tmp_path):
    # finishing the region would take minutes, and Ctrl-C must not wait for that
    code = (
        "from tests.export.read.test_spill import slow_export; "
        f"slow_export({str(tmp_path / 'a')!r}, {str(tmp_path)!r}, 0.2, shape=(8, 2048, 2048))"
    )
    process = python("-c", code, stderr=subprocess.PIPE)
    for _ in range(6000):
        if any(sizes_of_unnamed_files(process.pid, tmp_path)):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert not list(tmp_path.glob("a/*.png"))


# ---------------------------------------------------------------------------------------------------------
# other processes


@pytest.mark.slow
def test_on_a_cluster_each_worker_uses_its_own_folder(tmp_path):
    (tmp_path / "notes").mkdir()
    array = scratch_recorder(tmp_path / "notes")
    with cluster_of(2, local_directory=tmp_path / "local") as client:
        plan = ix.plan_export(array, tmp_path / "a" / "z{z:02d}.tif", client=client)
        assert "per worker in its own local folder" in repr(plan)
        ix.export(array, tmp_path / "a" / "z{z:02d}.tif", client=client)
        theirs = {info["local_directory"] for info in client.scheduler_info()["workers"].values()}
        mine = tmp_path / "mine"
        mine.mkdir()
        ix.export(array, tmp_path / "b" / "z{z:02d}.tif", client=client, scratch=mine)
    notes = {line for path in (tmp_path / "notes").iterdir() for line in path.read_text().splitlines()}
    assert str(mine) in notes
    assert notes & theirs
    ix.export(array, tmp_path / "c" / "z{z:02d}.tif", scratch=False)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c")


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("client", ["threads", "processes"])
def test_arrays_in_memory_are_not_spilled(tmp_path, client):
    image = np.random.default_rng(0).integers(0, 255, (20, 96, 112), np.uint8)
    em = xr.DataArray(image, dims=("z", "y", "x"), coords=ix.Grid(image.shape, (8, 8, 40), (3, 5, 7)).coords())
    seg = array_of(Computed((20, 96, 112), chunks=(8, 32, 32), layer_type="segmentation"))
    both = ix.overlay(em, seg, outline=2)
    ix.export(both, tmp_path / "z{z:02d}.png", workers=2, client=client)
    np.testing.assert_array_equal(planes("z{z:02d}.png", tmp_path, 0), both.compute().values)


# ---------------------------------------------------------------------------------------------------------
# memory


class SmallSource(CountedSource):
    """A source that makes its voxels with little memory besides the voxels."""

    def read(self, mip, box):
        self.count(box)
        z, y, x = (np.arange(a, b).astype(self.dtype) for a, b in zip(box.start, box.stop, strict=True))
        out = np.empty(box.shape, self.dtype)
        out[...] = (y // 50)[:, None]
        out += x // 60 + (z // 9)[:, None, None]
        return out


def peak_of(folder, memory):
    """Return the peak memory of an export in this process, the repetitions of reads, and the planned scratch space."""
    shape, chunks = (32, 1536, 1536), (32, 128, 128)
    seg = SmallSource(shape, chunks=chunks, layer_type="segmentation")
    array = ix.overlay(array_of(SmallSource(shape, chunks=chunks)), array_of(seg), outline=2)
    plan = ix.plan_export(array, f"{folder}/z{{z:02d}}.png", memory=memory, workers=2)
    CountedSource.fetched.clear()
    ix.export(array, f"{folder}/z{{z:02d}}.png", memory=memory, workers=2)
    # getrusage includes the peak of the parent process before the fork
    status = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return {"peak": peak, "rereads": rereads(), "scratch": plan.scratch and plan.scratch.bytes}


@pytest.mark.slow
def test_peak_memory_with_scratch_matches_the_plan(tmp_path):
    code = f"from tests.export.read.test_spill import peak_of; print(json.dumps(peak_of({str(tmp_path)!r}, '600 MB')))"
    # a new interpreter, because a forked process has more modules in memory
    command, env = [sys.executable, "-c", f"import json; {code}"], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    output = json.loads(done.stdout)
    assert output["scratch"] == math.prod((32, 1536, 1536)) * 9 > 600e6
    assert output["rereads"] == 1
    assert output["peak"] < 600e6
