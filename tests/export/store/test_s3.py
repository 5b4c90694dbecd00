"""Exports into a bucket of an S3 server (moto) on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time

import numpy as np
import psutil
import pytest
import tensorstore
import tifffile
import zarr
from PIL import Image

import imageryxr as ix
from tests.support.export_jobs import TARGETS, digest, file_digest, picture, run
from tests.support.processes import python
from tests.support.s3_server import SECRET
from tests.support.slow import slow_except
from tests.support.volumes import FINE

# The targets have few objects, because each request takes the server milliseconds.
FEW = {
    "omezarr": {"chunks": (4, 16, 32)},
    "sharded": {"chunks": (4, 8, 16), "shards": (4, 16, 32)},
    "zarr2": {"chunks": (4, 16, 32)},
    "precomputed": {"chunks": (4, 16, 32)},
}


def export_to(kind, bucket, **kwargs):
    target, options = TARGETS[kind]
    options = {**options, **FEW.get(kind, {})}
    address = f"precomputed://{bucket.url('pc')}" if kind == "precomputed" else bucket.url(target)
    return ix.export(kwargs.pop("array", picture()), address, **{"workers": 2, **options, **kwargs})


@pytest.mark.fast_forms(1)
@pytest.mark.parametrize("kind", slow_except(TARGETS, "omezarr", "png"))
def test_objects_equal_the_files_of_a_local_export(bucket, tmp_path, kind):
    report = export_to(kind, bucket)
    assert report.complete
    run(kind, tmp_path, **FEW.get(kind, {}))
    local = {name.removesuffix(".gz"): content for name, content in digest(tmp_path).items()}
    assert {name: file_digest(name, data) for name, data in bucket.contents().items()} == local
    assert not [k for k in bucket.names() if "-work-" in k]
    again = export_to(kind, bucket)
    assert (again.tasks, again.skipped) == (0, report.tasks)


@pytest.mark.slow
def test_other_libraries_read_the_result(bucket, tmp_path):
    from cloudvolume import CloudVolume

    truth = picture().values
    export_to("omezarr", bucket)
    store = zarr.storage.ObjectStore(_store(bucket, "o.ome.zarr"), read_only=True)
    np.testing.assert_array_equal(np.moveaxis(zarr.open_group(store, mode="r")["0"][:], 0, -1), truth)
    assert ix.open_image(f"zarr://{bucket.url('o.ome.zarr')}", channel=2).shape == truth.shape[:3]
    export_to("precomputed", bucket)
    ix.export(picture(), f"precomputed://{bucket.url('packed')}", chunks=(4, 16, 16), gzip=True)
    bucket.open_to_all()
    for name, encoding in (("pc", None), ("packed", "gzip")):
        key = next(k for k in bucket.names() if k.startswith(f"{name}/8_8_40/"))
        assert bucket.client.head_object(Bucket=bucket.name, Key=key).get("ContentEncoding") == encoding
        vol = CloudVolume(
            f"precomputed://{os.environ['AWS_ENDPOINT_URL']}/{bucket.name}/{name}", progress=False, fill_missing=False
        )
        np.testing.assert_array_equal(np.asarray(vol[:]).transpose(2, 1, 0, 3), truth)
        store = {"driver": "s3", "bucket": bucket.name, "path": f"{name}/", "aws_region": "us-east-1"}
        store["endpoint"] = os.environ["AWS_ENDPOINT_URL"]
        spec = {"driver": "neuroglancer_precomputed", "kvstore": store}
        np.testing.assert_array_equal(tensorstore.open(spec).result().read().result().transpose(2, 1, 0, 3), truth)
    export_to("png", bucket)
    export_to("tiff", bucket)
    bucket.fetch(tmp_path)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "stack" / "z003.png")), truth[3])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "one.tif"), truth)


def _store(bucket, prefix):
    from obstore.store import S3Store

    return S3Store(bucket.name, prefix=prefix, client_options={"allow_http": True})


def test_ids_exported_into_a_bucket_are_read_back(bucket):
    ix.export(FINE, f"precomputed://{bucket.url('ids')}", chunks=(4, 16, 16))
    bucket.open_to_all()
    store = f"precomputed://{os.environ['AWS_ENDPOINT_URL']}/{bucket.name}/ids"
    np.testing.assert_array_equal(ix.open_segmentation(store).values, FINE.values)


@pytest.mark.slow
def test_a_result_that_replaced_another_is_not_read_from_the_cache(bucket):
    """Chunks of the replaced result, with equal metadata, are in the memory cache of the process."""
    store = f"precomputed://{os.environ['AWS_ENDPOINT_URL']}/{bucket.name}/ids"
    other = FINE.copy(data=FINE.values + np.uint64(1))
    for number, array in enumerate((FINE, other)):
        ix.export(array, f"precomputed://{bucket.url('ids')}", chunks=(4, 16, 16), overwrite=number > 0)
        bucket.open_to_all()
        np.testing.assert_array_equal(ix.open_segmentation(store).values, array.values)


@pytest.mark.slow
@pytest.mark.parametrize("kind", slow_except(["omezarr", "precomputed", "png", "tiff"], "png"))
def test_the_previous_result_stays_until_the_new_one_is_complete(bucket, kind):
    export_to(kind, bucket)
    before = bucket.contents()
    other = picture(seed=1)
    with pytest.raises(ix.errors.TargetExistsError, match="of another export"):
        export_to(kind, bucket, array=other)
    with pytest.raises(ix.errors.ChunkReadError):
        export_to(kind, bucket, array=picture(seed=1, fail_above=7), overwrite=True, workers=1, retries=0)
    assert bucket.contents() == before
    report = export_to(kind, bucket, array=other, overwrite=True)
    assert report.skipped > 0
    after = bucket.contents()
    assert set(after) == set(before)
    assert after != before
    assert not [k for k in bucket.names() if "-work-" in k]
    assert export_to(kind, bucket, array=other).tasks == 0


def test_an_incomplete_result_cannot_be_opened(bucket):
    with pytest.raises(ix.errors.ChunkReadError):
        export_to("omezarr", bucket, array=picture(fail_above=7), workers=1, retries=0)
    assert "o.ome.zarr/zarr.json" not in bucket.names()
    with pytest.raises(ix.errors.SourceNotFoundError):
        ix.open_image(f"zarr://{bucket.url('o.ome.zarr')}")
    report = export_to("omezarr", bucket)
    assert report.skipped > 0
    assert "o.ome.zarr/zarr.json" in bucket.names()


@pytest.mark.slow
def test_truncated_and_lost_objects_are_written_again(bucket):
    export_to("omezarr", bucket)
    before = bucket.contents()
    chunks = [k for k in before if "/c/" in k]
    bucket.client.delete_object(Bucket=bucket.name, Key=chunks[3])
    bucket.client.put_object(Bucket=bucket.name, Key=chunks[-1], Body=b"torn")
    report = export_to("omezarr", bucket)
    assert report.tasks == 2
    assert bucket.contents() == before


def test_an_absent_bucket_is_an_error(bucket):
    with pytest.raises(ix.errors.TargetError, match="could not write s3://no-such-bucket-here"):
        ix.export(picture(), "s3://no-such-bucket-here/o.zarr")
    with pytest.raises(ix.errors.TargetError, match="is a whole bucket"):
        ix.export(picture(), f"precomputed://s3://{bucket.name}")
    with pytest.raises(ix.errors.OptionError, match="'ftp', which cannot be written to"):
        ix.export(picture(), "ftp://host/o.zarr")


def test_credentials_are_not_written_to_the_bucket(bucket):
    plan = ix.plan_export(picture(), bucket.url("o.zarr"))
    report = export_to("omezarr", bucket)
    assert SECRET not in repr(plan) + repr(report)
    for key in bucket.names():
        assert SECRET.encode() not in bucket.read(key)


# ---------------------------------------------------------------------------------------------------------
# two exports at once


def run_at_once(*calls):
    from concurrent.futures import ThreadPoolExecutor

    def outcome(call):
        try:
            return call()
        except ix.ImageryError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("overwrite", [False, True])
def test_one_of_two_exports_at_once_is_refused(bucket, impatient, seed, overwrite):
    """Two equal calls and two different calls never give a mixture or a missing file."""
    if overwrite:
        export_to("omezarr", bucket, array=picture(seed=7))
    arrays = [picture(seconds=0.4), picture(seconds=0.4, seed=seed)]
    found = run_at_once(*(lambda a=a: export_to("omezarr", bucket, array=a, overwrite=overwrite) for a in arrays))
    refused = [error for error in found if isinstance(error, ix.ImageryError)]
    assert len(refused) == 1, found
    assert isinstance(refused[0], ix.errors.TargetError | ix.errors.TargetExistsError)
    winner = arrays[1 - found.index(refused[0])]
    there = bucket.contents()
    assert not [name for name in bucket.names() if ".lock" in name]
    export_to("omezarr", bucket, array=winner, resume=False, overwrite=True)
    assert there == bucket.contents()


@pytest.mark.slow
def test_a_second_export_is_not_undone_by_one_that_stops(bucket, impatient):
    # the failed export must not remove files that the running export needs
    stop = ix.errors.ChunkReadError("stopped")

    def first():
        return export_to("omezarr", bucket, array=picture(seconds=3, seed=3, fail_above=0), retries=0)

    def second():
        while not [name for name in bucket.names() if ".lock" in name]:
            time.sleep(0.02)
        return export_to("omezarr", bucket, array=picture(seed=3))

    found = run_at_once(first, second)
    assert isinstance(found[0], type(stop))
    assert isinstance(found[1], ix.errors.TargetError)
    assert bucket.names() == []


@pytest.mark.slow
def test_the_lease_of_a_dead_process_on_another_machine_is_taken_over(bucket, impatient):
    import json

    from imageryxr.export.store.bucket import Bucket as Place
    from imageryxr.export.store.lease import Lease

    # machines with equal names differ, and process ids are not comparable between machines
    pid = max(psutil.pids()) + 10**6
    holder = {"key": "theirs", "host": socket.gethostname(), "machine": "another", "pid": pid}
    lock = bucket.url("o.ome.zarr").rpartition("/")[0]
    Place(lock).put([("o.ome.zarr.manifest.lock", json.dumps(holder).encode())])
    began = time.monotonic()
    assert export_to("omezarr", bucket).complete
    assert time.monotonic() - began > Lease.DEAD
    assert not [name for name in bucket.names() if ".lock" in name]


def test_the_lease_of_a_dead_process_on_this_machine_is_taken_over_at_once(bucket, monkeypatch):
    from imageryxr.export.store.bucket import Bucket as Place
    from imageryxr.export.store.lease import Lease

    monkeypatch.setattr(Lease, "DEAD", 3600.0)
    code = (
        "import sys, os; from imageryxr.export.store.bucket import Bucket; from imageryxr.export.store.lease import Lease\n"
        "with Lease(Bucket(sys.argv[1]), 'o.ome.zarr.manifest.lock').hold(): os._exit(0)\n"
    )
    folder = bucket.url("o.ome.zarr").rpartition("/")[0]
    assert python("-c", code, folder).wait() == 0
    assert Place(folder).get("o.ome.zarr.manifest.lock")
    assert export_to("omezarr", bucket).complete


def test_a_process_without_the_lease_publishes_nothing(bucket, impatient):
    import json

    from imageryxr.export.store.bucket import Bucket as Place

    def take_lease():
        while not [name for name in bucket.names() if ".lock" in name]:
            time.sleep(0.05)
        holder = {"key": "theirs", "host": "another-machine", "pid": 1}
        Place(bucket.url("x").rpartition("/")[0]).put([("o.ome.zarr.manifest.lock", json.dumps(holder).encode())])

    found = run_at_once(lambda: export_to("omezarr", bucket, array=picture(seconds=0.6)), take_lease)
    assert isinstance(found[0], ix.errors.TargetError)
    assert "process 1 on another-machine took over" in str(found[0])
    assert "o.ome.zarr/zarr.json" not in bucket.names()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["omezarr", "png", "tiff"])
def test_a_killed_export_is_continued(bucket, kind, tmp_path, monkeypatch):
    target, options = TARGETS[kind]
    options = {**options, **FEW.get(kind, {})}
    code = (
        "import sys, imageryxr as ix\nfrom imageryxr.export.commit.manifest import BucketManifest\nfrom tests.support.export_jobs import picture\n"
        "sys.modules['imageryxr.export.plan.regions'].START_VOXELS = 1 << 11\nBucketManifest.EVERY = 0.1\n"
        f"ix.export(picture(seconds=0.1), {bucket.url(target)!r}, workers=2, **{options!r})\n"
    )
    more, kills = 4 if kind == "omezarr" else 2, 0
    for _ in range(4):
        began = len(bucket.names())
        process = python("-c", code, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(bucket.names()) < began + more:
            time.sleep(0.02)
        if process.poll() == 0:
            break  # it completed, because fewer objects were left than the loop waits for
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills
    export_to(kind, bucket)
    found = bucket.contents()
    for key in [k for k in bucket.names() if k.split("/")[0] == target.split("/")[0] or "manifest" in k]:
        bucket.client.delete_object(Bucket=bucket.name, Key=key)
    export_to(kind, bucket)
    assert found == bucket.contents()


def test_the_error_for_an_absent_bucket_names_the_bucket(bucket):
    with pytest.raises(ix.errors.TargetError) as caught:
        ix.export(picture(), "s3://no-such-bucket/o.zarr", retries=0)
    assert str(caught.value) == (
        "could not write s3://no-such-bucket/o.zarr: the bucket s3://no-such-bucket does not exist; create it, or check "
        "its name"
    )


@pytest.mark.parametrize(
    ("server_error", "message"),
    [
        (
            "Generic S3 error: Server returned non-2xx status code: 403 Forbidden: <?xml version='1.0'?><Error>"
            "<Code>AccessDenied</Code><Message>Access Denied</Message><HostId>x</HostId></Error>Debug source: a\nb",
            "the server returned AccessDenied (Access Denied), status 403; check the bucket's name and your credentials",
        ),
        (
            "Generic S3 error: it is no XML <?xml version='1.0'?><Odd/>",
            "Generic S3 error: it is no XML; check the bucket's name and your credentials",
        ),
    ],
)
def test_the_error_contains_the_servers_reason(server_error, message):
    from imageryxr.export.store.bucket_errors import bucket_errors

    with pytest.raises(ix.errors.TargetError) as caught, bucket_errors("s3://b/x"):
        raise RuntimeError(server_error)
    assert str(caught.value) == f"could not write s3://b/x: {message}"
