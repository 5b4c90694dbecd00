"""Exports of cutouts to a bucket: the objects, their resumption after a kill, and what is replaced."""

from __future__ import annotations

import functools
import io
import pickle
import re
import signal

import numpy as np
import pytest
import xarray as xr
import zarr
from PIL import Image

import imageryxr as ix
from imageryxr.errors import TargetError, TargetExistsError
from imageryxr.export.cutouts import writers
from imageryxr.export.store.bucket import bucket_store
from imageryxr.export.store.lease import Lease
from tests.support.cutouts import IDS, boxes, pictures
from tests.support.processes import run_python
from tests.support.s3_server import fresh_bucket, serving_s3


@pytest.fixture(scope="module")
def server():
    with serving_s3() as address:
        yield address


@pytest.fixture
def bucket(server, monkeypatch):
    return fresh_bucket(server, monkeypatch)


def open_group(url):
    return xr.open_zarr(zarr.storage.ObjectStore(bucket_store(url)), consolidated=False)


def test_a_zarr_in_a_bucket_has_one_object_per_cutout_and_is_skipped_when_complete(bucket):
    ds = boxes()
    ds["image"] = ds.image * 0  # chunks of background are stored as well
    target = bucket.url("some/boxes.zarr")
    report = ix.export(ds, target)
    assert (report.regions, report.skipped) == (12, 0)
    xr.testing.assert_equal(open_group(target).compute(), ds.compute())
    assert "some/boxes.zarr/image/c/5/0/0/0" in bucket.names()
    assert not [name for name in bucket.names() if ".imageryxr" in name]
    again = ix.export(ds, target)
    assert (again.regions, again.skipped) == (0, 12)
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        ix.export(boxes().segmentation, target)
    ix.export(boxes().segmentation, target, overwrite=True)
    assert list(open_group(target).data_vars) == ["segmentation"]
    assert not [name for name in bucket.names() if "/image/" in name]


def test_pictures_in_a_bucket_are_named_by_columns(bucket):
    array = pictures()
    report = ix.export(array, bucket.url("gallery/{id}.png"))
    assert report.regions == 6
    held = array.isel(z=1).values
    for i, number in enumerate(IDS.tolist()):
        found = np.asarray(Image.open(io.BytesIO(bucket.read(f"gallery/{number}.png"))))
        np.testing.assert_array_equal(found, held[i])
    assert ix.export(array, bucket.url("gallery/{id}.png")).skipped == 6
    with pytest.raises(TargetExistsError, match="gallery/"):
        ix.export(pictures().isel(y=slice(0, 4)), bucket.url("gallery/{id}.png"))


KILLED = """
import os, signal, sys
import imageryxr as ix
from imageryxr.export.cutouts import writers
from tests.support.cutouts import boxes, pictures

count = 0

def dying(original):
    def write(self, rows, block):
        global count
        count += len(rows)
        if count > 9:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, rows, block)
    return write

for kind in (writers.ZarrWriter, writers.PictureWriter):
    kind.write = dying(kind.write)
target = sys.argv[1]
ix.export(boxes(4).segmentation if target.endswith("zarr") else pictures(4), target, workers=1)
"""


def kill_export(target):
    assert run_python("-c", KILLED, target).returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("target", ["boxes.zarr", "gallery/{cutout:05d}.png", "gallery.html"])
def test_an_export_to_a_bucket_continues_after_a_kill(bucket, target):
    array = boxes(4).segmentation if target.endswith("zarr") else pictures(4)
    kill_export(bucket.url(f"broken/{target}"))
    assert "broken/boxes.zarr/zarr.json" not in bucket.names()
    report = ix.export(array, bucket.url(f"broken/{target}"))
    assert report.skipped == 8
    assert report.regions == 16
    ix.export(array, bucket.url(f"whole/{target}"))
    contents = {k: v for k, v in bucket.contents().items() if ".imageryxr" not in k}
    broken = {k.removeprefix("broken/"): v for k, v in contents.items() if k.startswith("broken/")}
    assert broken == {k.removeprefix("whole/"): v for k, v in contents.items() if k.startswith("whole/")}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["boxes.zarr", "gallery/{cutout:05d}.png", "gallery.html"])
def test_an_export_to_a_disk_continues_after_a_kill(tmp_path, target):
    array = boxes(4).segmentation if target.endswith("zarr") else pictures(4)
    kill_export(tmp_path / "broken" / target)
    report = ix.export(array, tmp_path / "broken" / target)
    assert report.skipped == 8
    ix.export(array, tmp_path / "whole" / target)
    files = [p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file()]
    for file in files:
        if ".imageryxr" not in file.parts:
            assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_an_interrupted_export_of_another_call_is_not_continued(bucket, monkeypatch):
    target = bucket.url("boxes.zarr")

    def stop(self, rows, block):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writers.ZarrWriter, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            ix.export(boxes().segmentation, target)
    assert "boxes.zarr/zarr.json" not in bucket.names()
    with pytest.raises(TargetExistsError):
        ix.export(boxes().image, target)
    assert ix.export(boxes().segmentation, target).complete


def test_a_page_in_a_bucket_equals_a_local_one_and_is_shown_by_browsers(bucket, tmp_path):
    target = bucket.url("pages/gallery.html")
    report = ix.export(pictures(), target)
    assert (report.regions, report.skipped) == (6, 0)
    ix.export(pictures(), tmp_path / "gallery.html")
    token = re.compile(rb'imageryxr-cutouts" content="[0-9a-f]+"')
    local = (tmp_path / "gallery.html").read_bytes()
    assert token.sub(b"", bucket.read("pages/gallery.html")) == token.sub(b"", local)
    assert report.bytes_written == len(local)
    assert bucket.names() == ["pages/gallery.html"]
    found = bucket.client.head_object(Bucket=bucket.name, Key="pages/gallery.html")
    assert found["ContentType"].startswith("text/html")
    again = ix.export(pictures(), target)
    assert (again.regions, again.skipped, again.bytes_written) == (0, 6, report.bytes_written)
    other = pictures().isel(y=slice(0, 4))
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        ix.export(other, target)
    assert ix.export(other, target, overwrite=True).regions == 6


@pytest.mark.fast_forms(1)
@pytest.mark.parametrize("in_bucket", [True, False])
def test_pictures_that_another_export_replaced_are_written_again(bucket, tmp_path, in_bucket):
    target = bucket.url("gallery/{id}.png") if in_bucket else str(tmp_path / "gallery/{id}.png")
    read = (lambda: bucket.read("gallery/7.png")) if in_bucket else (tmp_path / "gallery/7.png").read_bytes
    elsewhere = target.replace("{id}", "other_{id}")
    ix.export(pictures(), target)
    ix.export(pictures(), elsewhere)
    before = read()
    ix.export(pictures().isel(y=slice(0, 4)), target, overwrite=True)
    assert read() != before
    with pytest.raises(TargetExistsError):
        ix.export(pictures(), target)
    assert ix.export(pictures(), target, overwrite=True).skipped == 0
    assert read() == before
    assert ix.export(pictures(), elsewhere).skipped == 6


@pytest.mark.fast_forms(2)
@pytest.mark.parametrize("target", ["boxes.zarr", "gallery/{id}.png", "gallery.html"])
@pytest.mark.parametrize("in_bucket", [True, False])
def test_two_exports_to_one_target_at_once_are_refused(bucket, tmp_path, monkeypatch, target, in_bucket):
    place = bucket.url(target) if in_bucket else str(tmp_path / target)
    array = boxes().segmentation if target.endswith("zarr") else pictures()
    refused = []
    monkeypatch.setattr(Lease, "BEAT", 0.1)

    def write(self, rows, block, original=None):
        if not refused:
            refused.append(None)
            other = array.isel(y=slice(0, 4))
            with pytest.raises(TargetError, match="another process is exporting to this target"):
                ix.export(other, place, overwrite=True)
        original(self, rows, block)

    kinds = (writers.ZarrWriter, writers.PictureWriter)
    for kind in kinds:
        monkeypatch.setattr(kind, "write", functools.partialmethod(write, original=kind.write))
    assert ix.export(array, place, workers=1).regions == 6
    assert refused
    assert ix.export(array, place).skipped == 6


@pytest.mark.slow
def test_workers_stop_when_their_export_has_ended(bucket, monkeypatch):
    kept = []
    original = writers.ZarrWriter.write

    def write(self, rows, block):
        kept.append((pickle.loads(pickle.dumps(self)), rows, block))
        original(self, rows, block)

    monkeypatch.setattr(writers.ZarrWriter, "write", write)
    ix.export(boxes().segmentation, bucket.url("boxes.zarr"))
    before = bucket.contents()
    writer, rows, block = kept[0]
    with pytest.raises(TargetError, match="another one started"):
        original(writer, rows, block + 1)
    assert bucket.contents() == before
