"""Full disks and missing folders on workers: which errors are retried, where, and which folder they name."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import socket
from functools import partial
from pathlib import Path

import pytest

import imageryxr as ix
from imageryxr.export.read import sweep
from imageryxr.export.run import scheduler as run
from imageryxr.export.run import workers
from imageryxr.export.run.scheduler import run_plan
from imageryxr.export.store import local
from tests.support.export_jobs import Computed, array_of, cluster_of, digest

pytestmark = pytest.mark.slow  # most of these tests start processes or servers

ROOT = Path(__file__).parents[3]
NAMES = ["half-res", "full-res", "quota", "a full disk"]


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(workers.WorkerPool, "memory_per_region", lambda self, at_once=None: 1 << 20)
    monkeypatch.setattr(sweep, "MIN_TILE_BYTES", 1 << 16)
    monkeypatch.setattr(sweep, "MIN_STRIP_VOXELS", 1 << 14)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    with cluster_of(2, local_directory=tmp_path_factory.mktemp("local")) as client:
        yield client


def wide():
    return array_of(Computed((20, 192, 224), chunks=(8, 64, 64), layer_type="segmentation"))


@pytest.fixture
def truth(tmp_path):
    ix.export(wide(), tmp_path / "truth" / "z{z:02d}.tif", scratch=False)
    return digest(tmp_path / "truth")


class FailingSync:
    """A replacement of `_begin_sync` that fails `times` times and then succeeds, as on a disk with transient errors."""

    def __init__(self, monkeypatch, number, times):
        self.left, self.number, self.begin = times, number, local._begin_sync
        monkeypatch.setattr(local, "_begin_sync", self)

    def __call__(self, handle):
        self.begin(handle)
        path = os.readlink(f"/proc/self/fd/{handle}")
        if "/new/" in path and os.path.getsize(path) and self.left:
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("name", NAMES)
def test_transient_errors_are_retried_for_every_target(tmp_path, monkeypatch, name):
    array = array_of(Computed())
    FailingSync(monkeypatch, errno.EIO, 1)
    report = ix.export(array, tmp_path / name / "z{z}.tif", workers=1)
    assert (report.complete, report.retries) == (True, 1)
    FailingSync(monkeypatch, errno.EIO, 10**9)
    report = ix.export(array, tmp_path / name / "y{y}.tif", workers=1, retries=1, on_error="collect", square=False)
    assert report.failed
    assert report.retries == len(report.failed)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_the_export_at_once(tmp_path, monkeypatch, number):
    disk = FailingSync(monkeypatch, number, 10**9)
    with pytest.raises(ix.errors.TargetError, match="free some space") as caught:
        ix.export(array_of(Computed()), tmp_path / "z{z}.tif", workers=1, on_error="collect")
    assert caught.value.full
    assert "try 1" in caught.value.__notes__[0]
    assert disk.left == 10**9 - 1


def test_disk_errors_of_workers_keep_their_type():
    there = pickle.loads(pickle.dumps(ix.errors.TargetError("no room", full=True)))
    assert (str(there), there.full) == ("no room", True)
    error = ix.errors.ScratchError("no room", folder="/scratch", reason="it is full", full=True, worker="tcp://a:1")
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is ix.errors.ScratchError
    assert (str(there), vars(there)) == ("no room", vars(error))
    assert (there.folder, there.reason, there.full, there.worker) == ("/scratch", "it is full", True, "tcp://a:1")
    assert not ix.errors.TargetExistsError("it is there").full


def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.usefixtures("little_memory")
def test_a_full_scratch_disk_moves_the_region_to_another_worker(tmp_path, two_workers, truth):
    small = sorted(two_workers.nthreads())[0]
    two_workers.run(limit, 100_000, workers=[small])
    try:
        report = ix.export(wide(), tmp_path / "a" / "z{z:02d}.tif", client=two_workers)
    finally:
        two_workers.run(limit, resource.RLIM_INFINITY)
    assert report.complete
    assert report.retries
    assert digest(tmp_path / "a") == truth


@pytest.mark.usefixtures("little_memory")
def test_the_error_names_the_worker_with_the_full_disk(tmp_path, two_workers, monkeypatch):
    monkeypatch.setattr(run, "RETRY_DELAYS", (0.0,))
    two_workers.run(limit, 100_000)
    try:
        with pytest.raises(ix.errors.TargetError) as caught:
            ix.export(wide(), tmp_path / "a" / "z{z:02d}.tif", client=two_workers)
    finally:
        two_workers.run(limit, resource.RLIM_INFINITY)
    error = caught.value
    assert error.full
    assert error.worker in two_workers.nthreads()
    assert (
        f"of the worker {error.worker} on {socket.gethostname()} cannot be used: the maximum file size is reached"
        in str(error)
    )
    assert "try 4" in error.__notes__[0]


@pytest.fixture
def homes(tmp_path, two_workers):
    """Let the two workers have different working folders; only that of the first contains a folder ``scratch``."""
    (tmp_path / "one" / "scratch").mkdir(parents=True)
    (tmp_path / "two").mkdir()
    before = two_workers.run(os.getcwd)
    for worker, place in zip(sorted(before), ("one", "two"), strict=True):
        two_workers.run(partial(os.chdir, str(tmp_path / place)), workers=[worker])
    yield sorted(before)
    for worker, place in before.items():
        two_workers.run(partial(os.chdir, place), workers=[worker])


@pytest.mark.usefixtures("little_memory")
def test_the_scratch_folder_is_checked_on_workers(tmp_path, two_workers, homes):
    target = tmp_path / "a" / "z{z:02d}.tif"
    for scheduler in (two_workers, two_workers.scheduler.address):
        plan = ix.plan_export(wide(), target, client=scheduler, scratch="/proc/self/cwd/scratch")
        assert plan.scratch is not None
        with pytest.raises(
            ix.errors.OptionError,
            match=rf"on 1 of 2 workers \({homes[1]}: /proc/self/cwd/scratch does not exist on .*\): give scratch=",
        ):
            plan.validate()
        with pytest.raises(ix.errors.OptionError, match="on 2 of 2 workers"):
            ix.export(wide(), target, client=scheduler, scratch="/nowhere/at/all")
    assert not target.parent.exists()


@pytest.mark.usefixtures("little_memory")
def test_a_worker_without_the_scratch_folder_gets_no_regions(tmp_path, two_workers, homes, truth):
    kept = {"overwrite": False, "resume": True, "retries": 9, "on_error": "raise", "progress": False}
    plan = ix.plan_export(wide(), tmp_path / "a" / "z{z:02d}.tif", client=two_workers, scratch="/proc/self/cwd/scratch")
    report = run_plan(plan, **kept)
    assert report.complete
    assert report.retries
    assert digest(tmp_path / "a") == truth
    plan = ix.plan_export(wide(), tmp_path / "b" / "z{z:02d}.tif", client=two_workers, scratch="/nowhere/at/all")
    with pytest.raises(ix.errors.TargetError, match="/nowhere/at/all of the worker tcp") as caught:
        run_plan(plan, **kept)
    assert "try 2" in caught.value.__notes__[0]
    assert caught.value.worker in homes


@pytest.mark.parametrize("target", ["o.ome.zarr", "z{z}.png", "memory://"])
def test_an_absent_scratch_folder_is_refused_even_if_unused(tmp_path, target):
    place = target if "//" in target else tmp_path / target
    plan = ix.plan_export(array_of(Computed()), place, scratch=tmp_path / "nowhere")
    assert plan.scratch is None
    with pytest.raises(ix.errors.TargetError, match="nowhere does not exist on"):
        plan.validate()
    for empty in ("", "  "):
        with pytest.raises(ix.errors.OptionError, match="names no folder; give one on a local disk"):
            ix.plan_export(array_of(Computed()), place, scratch=empty)
