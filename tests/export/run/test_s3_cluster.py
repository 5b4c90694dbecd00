"""Exports into a bucket by the workers of a cluster, which may outlive the process that started the export."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from msgspec.structs import replace

import imageryxr as ix
from imageryxr.export.commit.publish import ManifestWatch
from imageryxr.export.store.bucket import Bucket
from tests.support.dying import DYING
from tests.support.export_jobs import cluster_of, picture
from tests.support.processes import python
from tests.support.slices import draw_stack

OPTIONS = {"chunks": (2, 16, 16), "levels": 1}


def _suspend_at_upload(needle, count):
    """Let a worker suspend itself just before it uploads the n-th object whose name contains `needle`."""
    import obstore

    real, seen = obstore.put, []

    def put_after_pause(store, key, *args, **kwargs):
        if needle in f"{store}{key}":
            seen.append(key)
            if len(seen) == count:
                # The signal may stop another thread first, and this thread would upload the object meanwhile.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        return real(store, key, *args, **kwargs)

    obstore.put = put_after_pause


def _is_idle(dask_worker):
    return not dask_worker.state.executing


@pytest.fixture
def worker(bucket):
    with cluster_of(1) as client:
        yield client


def suspend_worker_of_killed_export(client, *what):
    """Start an export whose worker suspends itself, kill the export, and return the process id of the worker."""
    url, overwrite = what
    pid = client.submit(os.getpid).result()
    code = (
        "import sys, imageryxr as ix\nfrom tests.support.export_jobs import cluster_of, picture\n"
        "sys.modules['imageryxr.export.plan.regions'].START_VOXELS = 1 << 11\n"
        f"ix.export(picture(), {url!r}, client={client.scheduler.address!r}, overwrite={overwrite}, **{OPTIONS!r})\n"
    )
    waiting_process = python("-c", code, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert waiting_process.poll() is None
        time.sleep(0.02)
    waiting_process.kill()
    waiting_process.wait()
    return pid


@pytest.mark.slow
@pytest.mark.parametrize(
    ("replacing", "depth", "count"),
    [
        pytest.param(False, 12, 6, id="at the target, the other export writes the object"),
        pytest.param(False, 4, 6, id="at the target, the other export does not write the object"),
        pytest.param(True, 12, 1, id="in a work folder"),
    ],
)
def test_a_worker_of_a_dead_export_writes_into_no_other_export(bucket, worker, replacing, depth, count):
    url, other = bucket.url("o.zarr"), picture(seed=1)[:depth]
    if replacing:
        ix.export(picture(seed=9), url, **OPTIONS)
    worker.run(_suspend_at_upload, "/c/", count)
    pid = suspend_worker_of_killed_export(worker, url, replacing)
    assert ix.export(other, url, overwrite=True, **OPTIONS).complete
    found, beside = bucket.contents(), bucket.names()
    os.kill(pid, signal.SIGCONT)
    until = time.monotonic() + 60
    while not all(worker.run(_is_idle).values()):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert bucket.contents() == found
    assert bucket.names() == beside
    assert ix.export(other, url, **OPTIONS).tasks == 0
    np.testing.assert_array_equal(ix.export(other, "memory://").result, other)


@pytest.mark.slow
def test_workers_continue_slices_that_another_pattern_replaced(bucket, forked_workers, monkeypatch):
    """Workers check the manifest, which no longer lists the slices as complete."""
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.slab_regions"], "BRICK_VOXELS", 1)
    url = bucket.url("s/z{z:03d}.png")
    process = python("-c", DYING, url, 6)
    assert process.wait() == -signal.SIGKILL
    ix.export(picture(seed=1), bucket.url("s/z{z:03}.png"), overwrite=True)
    assert ix.export(draw_stack(), url, square=False, overwrite=True, client="processes", workers=2).complete
    ix.export(draw_stack(), bucket.url("other/z{z:03d}.png"), square=False)
    names = [f"z{i:03d}.png" for i in range(70)]
    assert [bucket.read(f"s/{name}") for name in names] == [bucket.read(f"other/{name}") for name in names]


@pytest.mark.slow
def test_tasks_on_workers_check_the_manifest(bucket):
    """Workers hold no lease. Tasks in the main process check the lease instead of the manifest."""
    url = bucket.url("x")

    class Lease:
        calls = 0

        def ensure(self):
            self.calls += 1

        check = ensure

    lease = Lease()
    plan = ix.plan_export(picture(), f"{url}/o.zarr", **OPTIONS)
    assert plan.workspace is not None
    ix.export(picture(), f"{url}/o.zarr", **OPTIONS)
    header = plan.workspace.manifest.load()
    assert header is not None
    place = Bucket(f"{url}/y", lease, ManifestWatch(url, "o.zarr.manifest", header.run, header.phase))
    place.put([("a", b"1")])
    assert lease.calls == 1
    away = pickle.loads(pickle.dumps(place))
    assert away == place
    away.put([("a", b"2"), ("b", b"3")])
    assert lease.calls == 1
    taken = replace(header, replaced="another")  # some of its files belong to another export
    bucket.client.put_object(Bucket=bucket.name, Key="x/o.zarr.manifest.json", Body=taken.to_bytes())
    with pytest.raises(ix.errors.TargetError, match="another one started"):
        pickle.loads(pickle.dumps(place)).put([("a", b"0")])
    other = picture(seed=1)
    ix.export(other, f"{url}/o.zarr", overwrite=True, **OPTIONS)
    with pytest.raises(ix.errors.TargetError, match="another one started: the region .* is not written") as caught:
        away.put([("a", b"4")])  # the object exists, so the manifest is checked before it is replaced
    assert caught.value.taken
    bucket.client.delete_object(Bucket=bucket.name, Key="x/o.zarr.manifest.json")
    again = pickle.loads(pickle.dumps(place))
    with pytest.raises(ix.errors.TargetError, match=r"o.zarr.manifest.json was removed"):
        again.put([("c", b"5")])
    assert {k: bucket.read(f"x/y/{k}") for k in "ab"} == {"a": b"2", "b": b"3"}


def test_a_lost_lease_is_not_retried(bucket, monkeypatch):
    """With on_error="collect", every region would fail with the same error."""
    tried = []

    def raise_taken(self):
        tried.append(True)
        raise ix.errors.TargetError("another took over", taken=True)

    put = Bucket.put

    def chunks(self, files):
        files = list(files)
        if any("c/" in key for key, _ in files):
            raise_taken(self)
        return put(self, files)

    monkeypatch.setattr(Bucket, "put", chunks)
    with pytest.raises(ix.errors.TargetError, match="another took over"):
        ix.export(picture(), bucket.url("o.zarr"), workers=1, on_error="collect", **OPTIONS)
    assert len(tried) == 1
