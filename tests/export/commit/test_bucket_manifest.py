"""Manifests and interrupted stacks in buckets: which slices are kept, and which process may write."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
import tifffile

import imageryxr as ix
from tests.support.dying import DYING
from tests.support.export_jobs import Computed, array_of, digest, picture
from tests.support.exports import A, B
from tests.support.processes import python
from tests.support.slices import THICK, count_pages, draw_stack
from tests.support.slow import slow_except

Z, Y = "s{z:03d}.tif", "s{y:03d}.tif"


def export(array, target, **kwargs):
    return ix.export(array, target, workers=1, square=False, compression=None, **kwargs)


def slices(bucket, folder, count=12):
    bucket.fetch(folder)
    return np.stack([tifffile.imread(folder / f"s{i:03d}.tif") for i in range(count)])


@pytest.mark.slow
@pytest.mark.parametrize("replacing", [False, True])
def test_finished_slices_are_not_drawn_again(bucket, monkeypatch, tmp_path, replacing):
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.slab_regions"], "BRICK_VOXELS", 1)
    url, options = bucket.url("s/z{z:03d}.png"), {"square": False, "overwrite": replacing}
    if replacing:  # an export that replaces another one first collects its slices in a work folder
        ix.export(array_of(Computed(**THICK, seed=5)), url)
    code = DYING.replace("export(sys.argv[1])", f"export(sys.argv[1], overwrite={replacing})")
    for count in (6, 4):
        process = python("-c", code, url, count)
        assert process.wait() == -signal.SIGKILL
    whole = [name for name in bucket.names() if name.endswith(".png") and replacing == ("-work-" in name)]
    assert len(whole) == 10
    plan = ix.plan_export(draw_stack(), bucket.url("other/z{z:03d}.png"), square=False)
    pages: list[tuple[int, ...]] = []
    monkeypatch.setattr(type(plan.target), "page", count_pages(type(plan.target).page, pages))
    report = ix.export(draw_stack(), url, **options)
    assert report.complete
    assert len(pages) == 70 - 10
    local = ix.export(draw_stack(), tmp_path / "disk" / "s" / "z{z:03d}.png", square=False)
    assert report.holes == local.holes == ("computed://ramp, mip 0, box 0-64",)
    bucket.fetch(tmp_path / "bucket")
    assert digest(tmp_path / "bucket") == digest(tmp_path / "disk")
    assert not [name for name in bucket.names() if "-work-" in name]


@pytest.mark.slow
def test_slices_replaced_by_another_pattern_are_written_again(bucket, tmp_path):
    truth = {Z: A.values, Y: np.moveaxis(B.values, 1, 0)}
    export(A, bucket.url(Z))
    export(B, bucket.url(Y), overwrite=True)
    with pytest.raises(ix.errors.TargetExistsError, match=r"export to s\{.*replaced files of this call; .*overwrite"):
        export(A, bucket.url(Z))
    np.testing.assert_array_equal(slices(bucket, tmp_path), truth[Y])
    assert export(B, bucket.url(Y)).tasks == 0
    assert export(A, bucket.url(Z), overwrite=True).complete
    np.testing.assert_array_equal(slices(bucket, tmp_path), truth[Z])
    with pytest.raises(ix.errors.TargetExistsError, match="replaced files of this call"):
        export(B, bucket.url(Y))


def test_slices_beyond_a_shorter_stack_are_removed_and_others_kept(bucket, tmp_path):
    export(A, bucket.url(Z))
    bucket.client.put_object(Bucket=bucket.name, Key="s099.tif", Body=b"mine")
    with pytest.warns(ix.ImageryWarning, match="1 file beside the 5"):
        export(A[:5], bucket.url(Z), overwrite=True)
    assert [name for name in bucket.names() if name.endswith(".tif")] == [
        *(f"s{i:03d}.tif" for i in range(5)),
        "s099.tif",
    ]
    np.testing.assert_array_equal(slices(bucket, tmp_path, 5), A.values[:5])


@contextmanager
def writing(bucket, target, *, seconds=1.0, dead=30.0, seed=0, goes_on=False, **options):
    """Yield a process that is running a slow export; kill it at the end of the block."""
    begun = [name for name in bucket.names() if name.endswith(".manifest.json")]
    before = [bucket.read(name) for name in begun]
    code = (
        "import sys, imageryxr as ix\nfrom tests.support.export_jobs import picture\n"
        "from imageryxr.export.store.lease import Lease\nLease.BEAT, Lease.DEAD = 0.2, " + f"{dead}\n"
        "sys.modules['imageryxr.export.plan.regions'].START_VOXELS = 1 << 11\n"
        f"ix.export(picture(seconds={seconds}, seed={seed}), {bucket.url(target)!r}, **{dict(workers=1, **options)!r})\n"
    )
    process = python("-c", code, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not goes_on and [bucket.read(n) for n in bucket.names() if n.endswith(".manifest.json")] == before:
            assert process.poll() is None
        while not any(f'"pid": {process.pid},'.encode() in bucket.read(n) for n in bucket.names() if ".lock" in n):
            assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_running_export_is_reported_before_other_problems(bucket):
    options = {"chunks": (2, 16, 16), "levels": 1}
    with writing(bucket, "o.zarr", **options) as process:
        for kwargs in ({}, {"resume": False}, {"overwrite": True}, {}, {"overwrite": True}):
            with pytest.raises(ix.errors.TargetError) as caught:
                ix.export(picture(seed=1), bucket.url("o.zarr"), **options, **kwargs)
            message = str(caught.value)
            assert f"process {process.pid}" in message
            assert "wait for it to end, or stop it" in message
            assert "overwrite" not in message
            if kwargs.get("overwrite"):  # the next call finds an invalid manifest
                bucket.client.put_object(Bucket=bucket.name, Key="o.zarr.manifest.json", Body=b"")
        assert process.poll() is None


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_an_export_is_refused_while_another_writes_files_of_the_same_names(bucket):
    with writing(bucket, "z{z:03d}.png") as process, pytest.raises(ix.errors.TargetError) as caught:
        ix.export(picture(), bucket.url("z{z:03}.png"), overwrite=True)
    assert re.search(rf"same names as another export.*process {process.pid} on", str(caught.value))
    assert ix.export(picture(), bucket.url("z{z:03}.png"), overwrite=True).complete
    with pytest.raises(ix.errors.TargetExistsError, match="replaced files of this call"):
        ix.export(picture(), bucket.url("z{z:03d}.png"))


# ---------------------------------------------------------------------------------------------------------
# suspended processes

# The target has only twelve objects, because each takes a request to the slow S3 server of the tests.
ZARR = {"chunks": (4, 24, 32), "levels": 1}


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("other", [False, True], ids=["the same call", "another call"])
@pytest.mark.parametrize(("target", "replacing"), [("o.zarr", True), ("o.zarr", False), ("s/{z:02d}.tif", False)])
def test_a_suspended_process_changes_nothing_after_another_process_took_over(bucket, target, replacing, other):
    """The process is suspended at any moment and continues later, as on a laptop whose lid is closed."""
    options = ZARR if "zarr" in target else {}
    if replacing:
        ix.export(picture(seed=9), bucket.url(target), **options)
    with writing(bucket, target, seconds=0.15, dead=1.0, overwrite=replacing, **options) as process:
        began = len(bucket.names())
        while len(bucket.names()) < began + 8:
            assert process.poll() is None
        process.send_signal(signal.SIGSTOP)
        assert ix.export(picture(seed=int(other)), bucket.url(target), overwrite=replacing or other, **options).complete
        found, beside = bucket.contents(), bucket.names()
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 1
        assert "took over this target while the bucket could not be reached; the finished regions are kept" in errors
    assert bucket.contents() == found
    assert bucket.names() == beside
    assert ix.export(picture(seed=int(other)), bucket.url(target), **options).tasks == 0


SUSPENDED_EXPORT = """
import re, signal, sys, threading
import obstore, imageryxr as ix
from imageryxr.export.store.lease import Lease
from tests.support.export_jobs import picture
target, verb, needle, count, replacing, options = eval(sys.argv[1])
Lease.BEAT, Lease.DEAD = 0.2, 1.0
sys.modules["imageryxr.export.plan.regions"].START_VOXELS = 1 << 11
real, seen = getattr(obstore, verb), 0

def dozing(store, *args, **kwargs):
    global seen
    seen += re.search(needle, str(store) + str(args)) is not None
    if seen == count:
        seen += 1
        # A signal to the process may stop another thread first, and this one would send meanwhile.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    return real(store, *args, **kwargs)

setattr(obstore, verb, dozing)
ix.export(picture(), target, workers=1, overwrite=replacing, **options)
"""


def suspended_export(*what):
    """Return an exporting process that has suspended itself just before it uploads the given object."""
    process = python("-c", SUSPENDED_EXPORT, repr(what), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("other", [False, True], ids=["the same call", "another call"])
@pytest.mark.parametrize(("target", "replacing"), [("o.zarr", True), ("o.zarr", False), ("s/{z:02d}.tif", False)])
@pytest.mark.parametrize("count", [1, 6])
def test_an_upload_of_a_suspended_process_replaces_nothing(bucket, target, replacing, other, count):
    """The process checked its lease before it was suspended, so only a conditional write can prevent the upload."""
    options = ZARR if "zarr" in target else {}
    if replacing:
        ix.export(picture(seed=9), bucket.url(target), **options)
    process = suspended_export(
        bucket.url(target), "put", "/c/" if "zarr" in target else r"\d\.tif", count, replacing, options
    )
    assert ix.export(picture(seed=int(other)), bucket.url(target), overwrite=replacing or other, **options).complete
    found, beside = bucket.contents(), bucket.names()
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "took over this target while the bucket could not be reached" in errors
    assert bucket.contents() == found
    assert bucket.names() == beside
    assert ix.export(picture(seed=int(other)), bucket.url(target), **options).tasks == 0


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_late_upload_does_not_count_as_a_slice_of_another_call(bucket, monkeypatch, tmp_path):
    """No conditional write prevents the upload: a process is suspended during it, and another one starts and is killed."""
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.slab_regions"], "BRICK_VOXELS", 1)
    url, other = bucket.url("s/z{z:03d}.png"), array_of(Computed(**THICK, seed=1))
    code = SUSPENDED_EXPORT.replace("ix.export(picture()", "ix.export(array").replace(
        "real, seen",
        "from tests.support.export_jobs import Computed, array_of\nfrom tests.support.slices import THICK\n"
        "sys.modules['imageryxr.export.plan.slab_regions'].BRICK_VOXELS = 1\n"
        "array = array_of(Computed(**THICK, seed=0))\nreal, seen",
        1,
    )
    suspended = python(
        "-c", code, repr((url, "put", r"z\d+\.png", 1, False, {"square": False})), stderr=subprocess.PIPE
    )
    while psutil.Process(suspended.pid).status() != psutil.STATUS_STOPPED:
        assert suspended.poll() is None, suspended.communicate()
        time.sleep(0.02)
    dying = DYING.replace("export(sys.argv[1])", "export(sys.argv[1], overwrite=True)")
    dying = (
        dying.replace("sys.modules[", "sys.modules['imageryxr.export.store.lease'].Lease.DEAD = 1.0\nsys.modules[", 1)
        .replace("import export", "import export, array_of, Computed, THICK")
        .replace(
            "export(sys.argv[1]", "ix.export(array_of(Computed(**THICK, seed=1)), sys.argv[1], square=False, workers=1"
        )
        .replace("import obstore", "import obstore, imageryxr as ix")
    )
    assert python("-c", dying, url, 0).wait() == -signal.SIGKILL
    assert not [name for name in bucket.names() if name.endswith(".png")]
    suspended.send_signal(signal.SIGCONT)
    _, errors = suspended.communicate(timeout=60)
    assert "took over this target" in errors
    assert [name for name in bucket.names() if name.endswith(".png")] == ["s/z000.png"]
    assert ix.export(other, url, square=False).complete
    ix.export(other, tmp_path / "disk" / "s" / "z{z:03d}.png", square=False)
    bucket.fetch(tmp_path / "bucket")
    assert digest(tmp_path / "bucket") == digest(tmp_path / "disk")


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("needle", [r"\.lock", r"\.manifest\.json"])
@pytest.mark.parametrize("other", [False, True], ids=["the same call", "another call"])
def test_a_late_lease_renewal_changes_nothing(bucket, needle, other):
    options = {"chunks": (2, 16, 16), "levels": 1}  # so many objects that the lease is renewed before the export ends
    process = suspended_export(bucket.url("o.zarr"), "put", needle, 2, False, options)
    with writing(
        bucket, "o.zarr", seconds=0.1, dead=1.0, seed=int(other), overwrite=other, goes_on=not other, **options
    ) as successor:
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 1
        assert f"process {successor.pid} on" in errors
        _, errors = successor.communicate(timeout=100)
        assert successor.returncode == 0, errors
    assert ix.export(picture(seed=int(other)), bucket.url("o.zarr"), **options).tasks == 0


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("target", slow_except(["o.zarr", "s/z{z:02d}.png", "one.tif"], "s/z{z:02d}.png"))
def test_lost_slices_are_reported_before_anything_is_replaced(bucket, monkeypatch, target):
    """Another program removes a slice just before the result is published."""
    ix.export(picture(seed=9), bucket.url(target))
    before = bucket.contents()
    site = sys.modules["imageryxr.export.commit.publish"].BucketSite
    publish = site.publish

    def publish_after_a_loss(self, header, keys):
        part = "/out/" if target == "one.tif" else "/data/"
        lost = [n for n in bucket.names() if part in n and not n.endswith("zarr.json")][-1]
        bucket.client.delete_object(Bucket=bucket.name, Key=lost)
        return publish(self, header, keys)

    with monkeypatch.context() as patched:
        patched.setattr(site, "publish", publish_after_a_loss)
        with pytest.raises(
            ix.errors.TargetError, match=r"is not complete: .* was removed by another program.*before is untouched"
        ):
            ix.export(picture(), bucket.url(target), overwrite=True)
    assert bucket.contents() == before
    assert ix.export(picture(), bucket.url(target), overwrite=True).complete
    assert set(bucket.contents()) == set(before)
    assert bucket.contents() != before


@pytest.mark.slow
@pytest.mark.parametrize("target", ["o.zarr", "s/z{z:02d}.png"])
def test_slices_lost_during_the_copy_are_reported(bucket, monkeypatch, target):
    """The error must not claim that the previous result is untouched."""
    options = {"chunks": (2, 16, 16), "levels": 1} if "zarr" in target else {}
    ix.export(picture(seed=9), bucket.url(target), **options)
    place = sys.modules["imageryxr.export.store.bucket"].Bucket
    copy, copied = place.copy, []

    def copy_with_a_loss(self, key, *args):
        copied.append(key)
        if len(copied) == 5:
            bucket.client.delete_object(Bucket=bucket.name, Key=f"{self.url.split('/', 3)[3]}/{key}")
        return copy(self, key, *args)

    with monkeypatch.context() as patched:
        patched.setattr(place, "copy", copy_with_a_loss)
        with pytest.raises(
            ix.errors.TargetError, match="was removed by another program.*part old and part new"
        ) as caught:
            ix.export(picture(), bucket.url(target), overwrite=True, **options)
    assert "untouched" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert ix.export(picture(), bucket.url(target), **options).complete
    found = bucket.contents()
    assert ix.export(picture(), bucket.url(target), overwrite=True, **options).complete
    assert bucket.contents() == found


@pytest.mark.slow
@pytest.mark.parametrize("target", ["o.zarr", "s/z{z:02d}.png"])
def test_slices_lost_after_a_kill_during_publishing_are_written_again(bucket, monkeypatch, target):
    ix.export(picture(seed=9), bucket.url(target))
    before = bucket.contents()
    site = sys.modules["imageryxr.export.commit.publish"].BucketSite

    def raise_interrupt(self, header, keys):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(site, "publish", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            ix.export(picture(), bucket.url(target), overwrite=True)
    lost = [n for n in bucket.names() if "/data/" in n and not n.endswith("zarr.json")][-1]
    bucket.client.delete_object(Bucket=bucket.name, Key=lost)
    with pytest.raises(ix.errors.TargetError, match="the same call restores the missing files"):
        ix.export(picture(), bucket.url(target))
    assert {name: bucket.read(name) for name in before} == before
    report = ix.export(picture(), bucket.url(target))
    assert report.complete
    assert report.tasks >= 1
    assert set(bucket.contents()) == set(before)
    assert bucket.contents() != before
